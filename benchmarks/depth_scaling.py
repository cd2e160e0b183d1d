"""Does one number set a run well? At each depth, training with the depth's rates and with multiples of them.

    python benchmarks/depth_scaling.py [--depths 1,2,3,4] [--factors 0.5,1,2] [--width 16] [--tokens-per-parameter 20] [--jobs 2] [--seed 0]

Everything but the factor is what `pretrain: {depth: N}` says: layers, width, heads, batch, steps and rates, with AdamW and a cosine
after a tenth of warmup; only the width a layer is small, so that four depths take minutes on a CPU. Bytes of the standard
library's source, windows of 128, the same data at every factor; bits per byte on held-out files. Each run has one thread, and
`jobs` of them run side by side. The rule is good where the middle column is the lowest, or close to it, in every row.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feebcore.model.build import build_model
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.train.config import TrainSection
from feebcore.train.optimizer_schedules import OptimizerSchedules
from feebcore.train.pretrain import build_optimizer, lr_scale

LENGTH, VOCAB = 128, 256


def section(depth: int, factor: float, width: int, tokens_per_parameter: float) -> TrainSection:
    return TrainSection.model_validate(
        {
            "depth": depth,
            "tokens_per_parameter": tokens_per_parameter,
            "architecture": {"width_per_layer": width},
            "optimizer": {"name": "adamw", "lr": 3e-3 * factor},
            "schedule": {"name": "cosine", "warmup_fraction": 0.1},
            "seq_len": LENGTH,
        }
    )


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library's modules for training and, every 20th file, for scoring."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    content = [np.frombuffer(f.read_bytes(), np.uint8) for f in files]
    return np.concatenate([c for i, c in enumerate(content) if i % 20]), np.concatenate(content[::20])


def windows(data: np.ndarray, count: int, seed: int) -> Batch:
    starts = np.random.default_rng(seed).integers(0, len(data) - LENGTH - 1, count)
    rows = torch.from_numpy(np.stack([data[s : s + LENGTH + 1] for s in starts]).astype(np.int64))
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def trained(job: tuple[int, float, argparse.Namespace]) -> dict[str, Any]:
    depth, factor, arguments = job
    torch.set_num_threads(1)
    run = section(depth, factor, arguments.width, arguments.tokens_per_parameter)
    train, held_out = text()
    model = build_model(run.architecture, VOCAB, LENGTH, arguments.seed)
    objective = resolve_part("objectives", "next_token").build()
    optimizer = build_optimizer(run, model)
    rates = OptimizerSchedules(optimizer, run.schedule.build(total_steps=run.max_steps))
    began = time.perf_counter()
    for step in range(run.max_steps):
        rates.apply(step)
        found = objective(model, windows(train, run.batch_size, arguments.seed * 1_000_003 + step))
        (found.loss_sum / found.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        scores = [objective(model, windows(held_out, 32, 10_000 + i)) for i in range(24)]
    bits = float(sum(s.loss_sum for s in scores) / sum(s.count for s in scores)) / math.log(2)
    sizes = run.architecture.config
    rate = 3e-3 * lr_scale(run, model).of("matrix")
    shown = {"layers": sizes.num_layers, "width": sizes.d_model, "batch": run.batch_size * LENGTH, "steps": run.max_steps, "rate": rate}  # type: ignore[attr-defined]
    return {"depth": depth, "factor": factor, "bits": bits if math.isfinite(bits) else math.inf, "seconds": time.perf_counter() - began, **shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="1,2,3,4")
    parser.add_argument("--factors", default="0.5,1,2")
    parser.add_argument("--width", type=int, default=16, help="d_model / num_layers")
    parser.add_argument("--tokens-per-parameter", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    factors = [float(f) for f in arguments.factors.split(",")]
    depths = [int(d) for d in arguments.depths.split(",")]
    jobs = [(depth, factor, arguments) for depth in sorted(depths, reverse=True) for factor in factors]  # the longest first
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        results = []
        for result in pool.imap_unordered(trained, jobs, chunksize=1):
            results.append(result)
            print(f"depth {result['depth']}, {result['factor']:g}x: {result['bits']:.4f} bits per byte, {result['seconds']:.0f} s", flush=True)
    print(f"\n{'depth':>5} {'width':>5} {'batch':>6} {'steps':>5} {'rate':>8}  " + " ".join(f"{f:>7g}x" for f in factors) + "   best")
    for depth in depths:
        row = {r["factor"]: r for r in results if r["depth"] == depth}
        one = row[factors[0]]
        best = min(factors, key=lambda f: row[f]["bits"])
        bits = " ".join(f"{row[f]['bits']:>8.4f}" for f in factors)
        print(f"{depth:>5} {one['width']:>5} {one['batch']:>6} {one['steps']:>5} {one['rate']:>8.4f}  {bits}   {best:g}x")


if __name__ == "__main__":
    main()
