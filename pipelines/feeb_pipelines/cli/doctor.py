"""`feeb doctor`: check whether this machine can run feeb."""

from __future__ import annotations

import json as json_module
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption
from feeb_pipelines.cli.tables import hint


class Claim(NamedTuple):
    """One line. level: 'ok', 'note' (works with limitations) or 'problem'."""

    name: str
    level: str
    text: str
    advice: str = ""


def doctor(
    *,
    full: Annotated[bool, Parameter(help="Also compile a function with torch.compile: half a minute.", negative=(), show_default=False)] = False,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> int:
    """Check Python, disk space, Prefect, torch, CUDA, bf16 and the compiler; takes seconds.

    Each line appears as its check ends. What is wrong comes with what to do about it.

    Exits with status 1 if a problem must be fixed before feeb can run.

    Example:
        feeb doctor
    """
    from feebcore.artifacts import Workspace

    root = Workspace(workspace).root
    checks: dict[str, Callable[[], Claim]] = {
        "python": check_python,
        "disk": lambda: check_disk(root),
        "prefect": lambda: check_prefect(root),
        "torch": check_torch,
        "cuda": check_cuda,
        "bf16": check_bf16,
        "compile": check_compile,
    } | ({"torch.compile": check_torch_compile} if full else {})
    claims = []
    for name, check in checks.items():
        if not json and sys.stdout.isatty():
            print(f"…       {name:9} checking", end="\r", flush=True)
        claim = _guarded(name, check)
        claims.append(claim)
        if not json:
            mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[claim.level]
            print(f"{mark} {claim.name:9} {claim.text}" + (f"; {claim.advice}" if claim.advice else ""), flush=True)
    problems = [claim.name for claim in claims if claim.level == "problem"]
    if not json:
        hint(*([f"fix {', '.join(problems)}, then feeb doctor again"] if problems else ["feeb run experiments/quickstart.yaml"]))
    if json:
        sys.stdout.write(json_module.dumps([f._asdict() for f in claims], indent=2) + "\n")
    return 1 if any(f.level == "problem" for f in claims) else 0


def _guarded(name: str, check: Callable[[], Claim]) -> Claim:
    try:
        return check()
    except Exception as error:
        return Claim(name, "problem", f"{type(error).__name__}: {error}", "reinstall feeb into a fresh environment (make quickstart does)")


def check_python() -> Claim:
    text = f"{platform.python_version()} at {sys.executable}"
    return Claim("python", "ok", text) if sys.version_info >= (3, 11) else Claim("python", "problem", text, "feeb needs Python 3.11 or newer")


def check_torch() -> Claim:
    import torch

    return Claim("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs")


def check_cuda() -> Claim:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        advice = "a GPU is optional; with one, install a CUDA build of torch" if built is None else "a GPU is optional; with one, check nvidia-smi"
        return Claim("cuda", "note", "no GPU found; training runs on the CPU", advice)
    names = [f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)" for i in range(torch.cuda.device_count())]
    return Claim("cuda", "ok", ", ".join(names))


def check_bf16() -> Claim:
    """Measured: a CPU without bf16 instructions emulates it, slowly."""
    import time

    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
        return Claim(
            "bf16", "ok" if fast else "note", "the GPU supports bf16" if fast else "the GPU does not support bf16", "" if fast else "precision: auto uses fp32"
        )
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        a @ a
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        times[dtype] = time.perf_counter() - started
    ratio = times[torch.float32] / times[torch.bfloat16]
    if ratio > 1.2:
        return Claim("bf16", "ok", f"bf16 matmul is {ratio:.1f}x as fast as fp32")
    return Claim("bf16", "note", f"bf16 is not accelerated on this CPU ({ratio:.1f}x the speed of fp32)", "precision: auto uses fp32; training is slower")


COMPILED = """
#include <Python.h>
#include <cmath>
#include <omp.h>
extern "C" float check(const float* x, int n) {
    float sum = 0;
    #pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += std::sin(x[i]);
    return sum;
}
"""
"""What torch.compile needs of a machine: a C++ compiler, Python's headers, OpenMP, and a linker."""


def check_compile() -> Claim:
    """Whether what torch.compile generates can be compiled; to have it generate something takes half a minute (`--full`)."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    eager = "torch.compile is unavailable and training runs in eager mode, more slowly"
    if compiler is None:
        return Claim("compile", "note", f"no C++ compiler, so {eager}", "apt install g++ (or clang)")
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-x", "c++", "-", "-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_path('include')}", "-o", f"{folder}/check.so"]
        done = subprocess.run(command, input=COMPILED, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return Claim("compile", "ok", f"{compiler} compiles for torch.compile; feeb doctor --full tries torch.compile itself")
    reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200] or "no message")
    advice = {"Python.h": "install Python's headers (apt install python3-dev)", "omp": "install OpenMP (apt install libomp-dev)"}
    return Claim(
        "compile", "note", f"{compiler} fails ({reason}), so {eager}", next((a for word, a in advice.items() if word in reason), "reinstall the compiler")
    )


def check_torch_compile() -> Claim:
    """torch.compile of a small function, in a subprocess with an empty cache."""
    code = "import torch; f = torch.compile(lambda x: (x.sin() + 1).sum()); x = torch.arange(64.); assert torch.allclose(f(x), (x.sin() + 1).sum())"
    with tempfile.TemporaryDirectory() as folder:  # one compiler: a pool of them would import torch in each
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300, check=False, env=environment)
    if done.returncode == 0:
        return Claim("torch.compile", "ok", "compiles and runs")
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return Claim("torch.compile", "note", f"fails ({reason}); training runs in eager mode", "set compile: off in recipes, or follow what check `compile` says")


def check_disk(root: Path) -> Claim:
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        return Claim("disk", "problem", f"{place} is not writable", "choose another workspace with --workspace DIR or FEEB_WORKSPACE")
    level = "ok" if free >= 5 else "note" if free >= 1 else "problem"
    return Claim(
        "disk",
        level,
        f"{free:.1f} GiB free at {place}",
        "" if level == "ok" else "the quickstart needs about 1 GiB; feeb artifacts gc lists artifacts that can be removed",
    )


def check_prefect(root: Path) -> Claim:
    import importlib.metadata

    version = importlib.metadata.version("prefect")
    from feeb_pipelines.server import ServerError, configured_api, connect, home_of, is_own

    url, source = configured_api()
    if not url or is_own(home_of(root), url):
        return Claim("prefect", "ok", f"{version}; runs use an embedded server in the workspace")
    try:
        with connect(root):
            return Claim("prefect", "ok", f"{version}; the server at {url} ({source}) answers")
    except ServerError as error:
        return Claim("prefect", "problem", f"{version}; {error}")


COMMANDS = (doctor,)
