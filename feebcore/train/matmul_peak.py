"""The peak FLOP/s of this device: what a training run's FLOP/s are a share of.

GPUs: dense peaks of the vendors' data sheets, which the share is called MFU of. CPUs, and GPUs that the table lacks, are measured,
as a data sheet says nothing about two cores of a shared processor; that is a share of what matrix products reach, and a larger number.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch

DATA_SHEET = {  # TFLOP/s, dense: bf16 tensor cores, fp32 without TF32; most specific name first
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "H20": (148.0, 44.0),
    "B200": (2250.0, 80.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "MI300X": (1307.4, 163.4),
}
SIDE = {"cpu": 2048, "cuda": 8192}
SECONDS = 0.25
"""What a measurement may take, after one product to warm up."""


class Peak(NamedTuple):
    """flops: FLOP/s. measured: on this machine, else of the data sheet."""

    flops: float
    measured: bool


def matmul_peak(device: torch.device, precision: str) -> Peak:
    """Of matrix products in a run's precision (fp8: those of bf16, as MFU is quoted)."""
    known = data_sheet_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return Peak(_measured(device.type, precision, torch.get_num_threads()), True) if known is None else Peak(known, False)


def data_sheet_peak(name: str, precision: str) -> float | None:
    """FLOP/s of the GPU of that name, None where the table lacks it."""
    peaks = next((peaks for model, peaks in DATA_SHEET.items() if all(word in name.replace("-", " ").split() for word in model.split())), None)
    return None if peaks is None else peaks[precision == "fp32"] * 1e12


@functools.lru_cache
def _measured(kind: str, precision: str, threads: int) -> float:
    return measure(torch.device(kind), torch.float32 if precision == "fp32" else torch.bfloat16)


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
