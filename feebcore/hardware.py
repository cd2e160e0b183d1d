"""What this machine computes with, found without torch, so that what 'auto' means is known before anything runs."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

GPU_DEVICES = ("/proc/driver/nvidia/gpus", "/dev/dxg", "/dev/kfd")
"""Of NVIDIA's driver, of WSL, of AMD's driver."""


def cuda_devices() -> Sequence[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    folder = Path(GPU_DEVICES[0])
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_precision(device: str) -> str:
    """What `precision: auto` means on this machine for `device` (auto, cpu or cuda): bf16 where its matrix products are fast, else fp32."""
    gpu = device != "cpu" and _gpu_precision(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return gpu or ("bf16" if _cpu_multiplies_bf16() else "fp32")


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    """By the flags of this processor: emulated bf16 is slower than fp32."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags and {"avx512_bf16", "amx_tile"} & set(flags.group(1).split()))


@functools.cache
def _gpu_precision(visible: str | None) -> str:
    """'' where torch has no GPU to use. visible: CUDA_VISIBLE_DEVICES."""
    torch = importlib.util.find_spec("torch")
    version = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    builds = re.findall(r"^(?:cuda|hip)\b.*=\s*['\"]\d", version.read_text(), re.MULTILINE) if version and version.exists() else []
    if not builds or visible in ("", "-1") or not any(Path(device).exists() for device in GPU_DEVICES):
        return ""
    answer = (  # torch knows; loading it takes seconds, so it happens in the rare case only, and in a process of its own
        "import torch; print('bf16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'fp32') if torch.cuda.is_available() else print()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", answer], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
