"""Whether a run is compiled, and where compiled code is cached."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from feebcore.errors import FeebError
from feebcore.files import NoHomeError, expand_user

Form = Literal["", "blocks", "whole"]
"""What of a run is compiled: nothing, each residual block by itself, or the whole training graph."""

CPU_FLOPS = {"bf16": 2e11, "fp32": 8e10}  # eager training of small models on a few cores; order of magnitude only
CUDA_FLOPS = {"bf16": 1e14, "fp32": 3e13}
STEP_SECONDS = {"cpu": 0.003, "cuda": 0.01}  # least time of an eager step
COMPILE_SECONDS = 25.0
WORTH = 3.0
WHOLE = 12.0
"""Compile times that a run must last for the whole graph. Below, blocks: on two cores at 1 M parameters they compile in about half of the
time (a block once for all layers) and then take 7 % longer a step, as nothing is fused across their borders."""


def has_compiler(device: torch.device) -> bool:
    """Inductor needs a C++ compiler on CPU and Triton on CUDA."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # no part of `import torch`

        return bool(has_triton())
    return any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if c)


def compiler_of(device: torch.device) -> str:
    """What inductor is missing there, and so what to install."""
    return "Triton (package triton)" if device.type == "cuda" else "C++ compiler (g++)"


def should_compile(option: str, device: torch.device, precision: str, training_flops: float, steps: int, by_blocks: bool = False) -> tuple[Form, str]:
    """What to compile, and a sentence when `compile: on` cannot be met. by_blocks: blocks can be compiled by themselves. From shape and
    length alone, never from a clock, so that the same recipe takes the same path twice."""
    if option == "off":
        return "", ""
    if precision == "fp8":
        return _fp8_compiles(device)
    rates = CUDA_FLOPS if device.type == "cuda" else CPU_FLOPS
    rate = rates.get(precision, rates["bf16"])
    seconds = max(training_flops / rate, steps * STEP_SECONDS[device.type])
    if option == "auto" and seconds < WORTH * COMPILE_SECONDS:
        return "", ""
    if not has_compiler(device):
        return "", f"no {compiler_of(device)} was found, so training runs uncompiled (about half as fast); install it or set compile: off"
    short = option == "blocks" or (option == "auto" and seconds < WHOLE * COMPILE_SECONDS)
    return "blocks" if short and by_blocks else "whole", ""


def _fp8_compiles(device: torch.device) -> tuple[Form, str]:
    """However short the run is: uncompiled, fp8 is slower than bf16."""
    if not has_compiler(device):
        raise FeebError(f"precision: fp8 needs torch.compile, and there is no {compiler_of(device)}; install it, or use precision: bf16")
    return "whole", ""


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` through inductor with static shapes; where no gradient is wanted, as it is: validation has other shapes and modes, and
    would be compiled for each of them in the middle of a run."""
    keep_compiled_code()
    trust_vector_instructions()
    fast = torch.compile(forward, dynamic=False)

    def call(*arguments: Any, **options: Any) -> Any:
        return (fast if torch.is_grad_enabled() else forward)(*arguments, **options)

    return call


def compiled_blocks(forward: Callable[..., Any], blocks: Sequence[nn.Module]) -> Callable[..., Any]:
    """`forward`, in which the blocks' own forwards are compiled; equal ones share their code. They are so inside this call only: what
    validates, scores or samples with the same model comes in other shapes."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(blocks))  # blocks may all differ
    fast = [compiled(block.forward) for block in blocks]

    def run(*arguments: Any) -> Any:
        for block, own in zip(blocks, fast, strict=True):
            block.forward = own
        try:
            return forward(*arguments)
        finally:
            for block in blocks:
                del block.forward

    return run


def trust_vector_instructions() -> None:
    """Compile for the processor's widest vectors without trying them first, where torch itself computes with them.

    Inductor compiles and loads a test program for each instruction set, one after the other, before the first kernel: a quarter of the
    processor time of a cold start. They ask whether compiler, processor and torch go together; where its own kernels use the same
    set, they do, and should the compiler still fail, training goes on uncompiled. TORCHINDUCTOR_VEC_ISA_OK wins over this.
    """
    import torch._inductor.config as inductor

    capability = torch.backends.cpu.get_cpu_capability()
    widest = capability == "AVX512" or (capability == "AVX2" and not torch.cpu._is_avx512_supported())
    if widest and inductor.cpp.vec_isa_ok is None:
        inductor.cpp.vec_isa_ok = True


def keep_compiled_code() -> None:
    """Compiled code goes where it outlives a restart of the machine, so that it is compiled once for all runs of a shape.

    In $XDG_CACHE_HOME/feeb/inductor (default ~/.cache); where TORCHINDUCTOR_CACHE_DIR says, if it is set. Only before the
    first compile of a process: torch's default is a folder in /tmp.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, NoHomeError):  # no home, or one that cannot be written: torch's default
        folder = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "feeb" / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
