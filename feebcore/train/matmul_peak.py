"""How fast this machine multiplies matrices: what a model's FLOP rate is a share of (MFU).

A peak from a data sheet says nothing about two cores of a shared processor, so it is measured: one square product in
the run's format. The best that was ever seen for the same processor, threads and format is kept in the user's cache.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from pathlib import Path

import torch

from feebcore.files import write_json

SIDE = {"cpu": 2048, "cuda": 8192}
SECONDS = 0.25
"""What a measurement may take, after one product to warm up."""


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product, the best seen here and now or before; measured once a process."""
    return _peak(device.type, precision, torch.get_num_threads())


@functools.lru_cache
def _peak(kind: str, precision: str, threads: int) -> float:
    device = torch.device(kind)
    file, key = cache_file(), f"{processor(device)}, {threads} threads, {precision}, torch {torch.__version__}"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        best = float(known.get(key, 0.0))
    except (OSError, ValueError, AttributeError):
        known, best = {}, 0.0
    found = max(best, measure(device, torch.float32 if precision == "fp32" else torch.bfloat16))
    if found > best:
        _keep(file, known | {key: found})
    return found


def measure(device: torch.device, dtype: torch.dtype, side: int = 0, seconds: float = SECONDS) -> float:
    """FLOP/s of the fastest product of two matrices [side, side]. Draws no number from torch's own generators."""
    side = side or SIDE[device.type]
    row = torch.linspace(-1, 1, side, device=device)
    a, b = (torch.outer(row.roll(k), row).to(dtype) for k in (1, side // 3))
    fastest, end, warm = float("inf"), time.perf_counter() + seconds, False
    while time.perf_counter() < end or fastest == float("inf"):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - began
        fastest = min(fastest, took) if warm or took > seconds / 2 else fastest
        warm = True
    return 2.0 * side**3 / fastest


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model or platform.machine()} of {platform.node()}"


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feeb" / "matmul_peak.json"


def _keep(file: Path, known: dict[str, float]) -> None:
    """A cache that cannot be written is measured again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    except Exception:
        return
