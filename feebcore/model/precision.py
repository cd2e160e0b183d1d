"""Device, number format, threads and determinism of a run: chosen once, described, restored afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch

from feebcore.errors import FeebError
from feebcore.hardware import available_cpus

_memory_filling: Any = torch.utils.deterministic  # a module whose attributes are properties, which type checkers do not see


def resolve_device(wanted: str) -> torch.device:
    """'auto' is CUDA where there is some. Raises FeebError when CUDA is asked for and missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FeebError("device: cuda is not available to this torch; use device: auto or cpu (`feeb doctor` says more)")
    return torch.device("cuda" if wanted in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """'auto' is bf16 where the hardware multiplies bf16 matrices, else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # the flags of this processor, not of the build: emulated bf16 is slower than fp32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bf16, everything else and all weights in fp32; nothing for fp32. fp8 is bf16 where it is not fp8."""
    return torch.autocast(device.type, torch.bfloat16) if precision in ("bf16", "fp8") else contextlib.nullcontext()


def scoring_precision(precision: str) -> str:
    """The precision in which a model trained in `precision` is scored: fp8 is a way to train, its model is scored in bf16."""
    return "bf16" if precision == "fp8" else precision


def environment(device: torch.device) -> dict[str, Any]:
    """What must stay the same for the bits to stay the same; compared on resume."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    } | (_cuda_libraries() if device.type == "cuda" else {})


def _cuda_libraries() -> dict[str, Any]:
    """Versions of what computes on a GPU and between them."""
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "fla": importlib.metadata.version("fla-core") if importlib.util.find_spec("fla") else None,
    }


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep memory that was freed, for the next step, instead of handing it back; whether it could be asked.

    By default glibc maps each large tensor anew and the kernel clears its pages: 35,000 page faults a training step of 1 M
    parameters on a CPU, a tenth of its time. Stays so until the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    if not (mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)):  # older ones allow no more
        return False
    return bool(mallopt(trim_threshold, (1 << 31) - 1) and mallopt(top_pad, 64 << 20))


@contextlib.contextmanager
def execution(threads: int, deterministic: bool | Literal["auto"], device: torch.device) -> Iterator[None]:
    """Threads and determinism inside; what was set before is set again after. auto: deterministic on a CPU. On CUDA that would exclude
    cuDNN's attention, the fast backward of flash attention and inductor's tuning."""
    deterministic = device.type == "cpu" if deterministic == "auto" else deterministic
    old_threads, old_fill = torch.get_num_threads(), _memory_filling.fill_uninitialized_memory
    old = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    try:
        keep_freed_memory()
        torch.set_num_threads(threads or min(old_threads, available_cpus()))
        if device.type == "cuda":  # before the first allocation: sizes that change from step to step then leave no holes
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses deterministic mode without it
        _use_deterministic_algorithms(deterministic)
        _memory_filling.fill_uninitialized_memory = False  # memory we never read; filling it costs time
        yield
    finally:
        torch.set_num_threads(old_threads)
        _use_deterministic_algorithms(old[0], warn_only=old[1])
        _memory_filling.fill_uninitialized_memory = old_fill


def _use_deterministic_algorithms(mode: bool, warn_only: bool = False) -> None:
    """As torch's, which loads inductor to tell it; one that is loaded later, by whoever compiles first, reads the variable."""
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    else:
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(mode))
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
