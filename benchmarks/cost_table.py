"""How the time of a training step grows with window, width, depth and vocabulary, compared with what its FLOPs say.

    python benchmarks/cost_table.py [--quick] [--threads 0] [--cpu-time] [--compile]

One size is varied at a time from 2 layers, width 128, T 128, batch 16, V 2048 (forward, backward and fused AdamW, fp32 or
bf16 as `precision: auto` says). The exponent of a row is the slope of log time against log size from its first to its last
value; expected is the same slope of the declared FLOPs (feebcore/model/counting.py). Below it: fixed cost is still felt.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time

import torch

from feebcore.model.build import build_model
from feebcore.model.precision import execution, resolve_precision
from feebcore.parts import resolve_part
from feebcore.train.compilation import compiled
from feebcore.train.step import LossModule

BASE = {"layers": 2, "width": 128, "window": 128, "vocabulary": 2048}
VALUES = {"window": (64, 128, 256, 512), "width": (64, 128, 256, 512), "layers": (1, 2, 4, 8), "vocabulary": (1024, 2048, 4096, 8192)}
BATCH = 16


def step_seconds(sizes: dict[str, int], steps: int, cpu_time: bool, compile_step: bool) -> tuple[float, float]:
    """(median seconds, declared training FLOPs) of one step."""
    architecture = {"name": "transformer", "num_layers": sizes["layers"], "d_model": sizes["width"], "num_heads": sizes["width"] // 32}
    model = build_model(resolve_part("architectures", architecture), sizes["vocabulary"], sizes["window"])
    cpu = torch.device("cpu")
    module = LossModule(model, resolve_part("objectives", "next_token").build(), resolve_precision("auto", cpu), cpu)
    forward = compiled(module) if compile_step else module
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(sizes["vocabulary"], (BATCH, sizes["window"]))
    clock = time.process_time if cpu_time else time.perf_counter
    times = []
    for _ in range(steps + 2):
        began = clock()
        forward(tokens, tokens, None, None, None)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(clock() - began)
    return statistics.median(times[2:]), 3 * model.count().flops_per_token * tokens.numel()


def slope(xs: tuple[int, ...], ys: list[float]) -> float:
    return math.log(ys[-1] / ys[0]) / math.log(xs[-1] / xs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three steps a size instead of nine")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="time what the processor did; with --threads 1 on a busy machine")
    parser.add_argument("--compile", action="store_true", help="through inductor; each size compiles anew")
    args = parser.parse_args()
    print("| varied | " + " | ".join("ms" for _ in range(4)) + " | exponent | of the FLOPs |\n|---|---|---|---|---|---|---|")
    with execution(args.threads or len(os.sched_getaffinity(0)), True, torch.device("cpu")):
        for name, values in VALUES.items():
            found = [step_seconds(BASE | {name: value}, 3 if args.quick else 9, args.cpu_time, args.compile) for value in values]
            cells = " | ".join(f"{1e3 * seconds:.0f} ({value:,})" for value, (seconds, _) in zip(values, found, strict=True))
            exponents = [slope(values, list(column)) for column in zip(*found, strict=True)]
            print(f"| {name} | {cells} | {exponents[0]:.2f} | {exponents[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
