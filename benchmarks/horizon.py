"""Does lr_scaling `horizon` beat the learning rate that it starts from, on longer runs and other batch sizes?

    python benchmarks/horizon.py [--optimizer adamw] [--width 48] [--steps 200] [--horizons 4,16] [--seeds 3] [--out rows.jsonl]

A transformer of 2 layers on bytes of the standard library's source, sequences of 128, cosine after a tenth of warmup. The learning rate is
tuned at the short horizon (a grid of factors 2, a parabola through the three best). Then runs of 4 and 16 times as many tokens: the rate kept, corrected by `horizon`, and
rates around them; and at other batch sizes kept against corrected, with beta2 and eps. Runs of one seed have the same first weights and,
at one batch size, the same text in the same order, so differences are taken seed by seed. Bits per byte on files that no run trains on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
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

LENGTH, VOCAB, ROWS = 128, 256, 8
GRID = {"adamw": (0.001, 0.002, 0.004, 0.008, 0.016, 0.032), "muon": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)}
AROUND = (0.25, 2.0)
BATCHES = ((4, 0.25), (4, 4.0))
"""(tokens, batch) over those of the reference."""


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library without its tests for training and, every 20th file, for scoring."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(f for f in root.rglob("*.py") if not {"site-packages", "test", "tests", "idlelib"} & set(f.relative_to(root).parts))
    content = [np.frombuffer(f.read_bytes(), np.uint8) for f in files]
    return np.concatenate([c for i, c in enumerate(content) if i % 20]), np.concatenate(content[::20])


def windows(data: np.ndarray, starts: np.ndarray) -> Batch:
    rows = torch.from_numpy(np.stack([data[s : s + LENGTH + 1] for s in starts]).astype(np.int64))
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def section(arguments: argparse.Namespace, lr: float, tokens: int, rows: int, rule: dict[str, Any] | None) -> TrainSection:
    optimizer = (
        {"name": "adamw", "lr": lr}
        if arguments.optimizer == "adamw"
        else {"name": "muon", "lr": lr, "embedding_lr": lr, "lm_head_lr": lr / 5, "vector_lr": lr / 2}
    )
    return TrainSection.model_validate(
        {
            "architecture": {"name": "transformer", "num_layers": 2, "d_model": arguments.width, "num_heads": arguments.width // 16},
            "optimizer": optimizer,
            "schedule": {"name": "cosine", "warmup_fraction": 0.1},
            "lr_scaling": rule,
            "seq_len": LENGTH,
            "batch_size": rows,
            "max_steps": round(tokens / (rows * LENGTH)),
        }
    )


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.train, self.held_out = text()
        self.objective = resolve_part("objectives", "next_token").build()
        self.tokens = arguments.steps * ROWS * LENGTH
        self.rule = {"name": "horizon", "reference_tokens": self.tokens, "reference_batch_tokens": ROWS * LENGTH}
        self.out = Path(arguments.out) if arguments.out else None
        self.known = {row["key"]: row for row in map(json.loads, self.out.read_text().splitlines())} if self.out and self.out.exists() else {}

    def bits(self, lr: float, horizon: float, batch: float, seed: int, rule: bool) -> float:
        """Of one run; a run that is in the file already is not trained again."""
        key = f"{self.arguments.optimizer} d{self.arguments.width} T0={self.tokens} lr={lr:.6g} T={horizon:g} B={batch:g} seed={seed} {'horizon' if rule else 'kept'}"
        if key not in self.known:
            began = time.process_time()
            run = section(self.arguments, lr, round(self.tokens * horizon), round(ROWS * batch), self.rule if rule else None)
            self.known[key] = {"key": key, "bits": self.trained(run, seed), "seconds": round(time.process_time() - began, 1)}
            print(f"  {key}: {self.known[key]['bits']:.4f}, {self.known[key]['seconds']} s", flush=True)
            if self.out:
                with self.out.open("a") as file:
                    file.write(json.dumps(self.known[key]) + "\n")
        return float(self.known[key]["bits"])

    def trained(self, run: TrainSection, seed: int) -> float:
        model = build_model(run.architecture, VOCAB, LENGTH, seed)
        optimizer = build_optimizer(run, model, lr_scale(run, model))
        rates = OptimizerSchedules(optimizer, run.schedule.build(total_steps=run.max_steps))
        order = np.random.default_rng(seed)
        for step in range(run.max_steps):
            rates.apply(step)
            found = self.objective(model, windows(self.train, order.integers(0, len(self.train) - LENGTH - 1, run.batch_size)))
            (found.loss_sum / found.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        starts = np.random.default_rng(12345).integers(0, len(self.held_out) - LENGTH - 1, 1536)
        with torch.no_grad():
            scores = [self.objective(model, windows(self.held_out, part)) for part in np.split(starts, 24)]
        bits = float(sum(s.loss_sum for s in scores) / sum(s.count for s in scores)) / math.log(2)
        return bits if math.isfinite(bits) else math.inf

    def seeds(self, lr: float, horizon: float = 1.0, batch: float = 1.0, rule: bool = False) -> list[float]:
        return [self.bits(lr, horizon, batch, seed, rule) for seed in range(self.arguments.seeds)]


def tuned(bench: Bench) -> float:
    """The rate of least mean loss at the short horizon."""
    means = {lr: statistics.fmean(bench.seeds(lr)) for lr in GRID[bench.arguments.optimizer]}
    rates = sorted(means)
    best = min(rates, key=lambda lr: means[lr])
    print(f"short horizon, {bench.tokens:,} tokens: " + "  ".join(f"{lr:g}: {means[lr]:.4f}" for lr in rates))
    if best in (rates[0], rates[-1]):
        raise SystemExit(f"the best rate, {best:g}, is at the edge of the grid")
    near = rates[rates.index(best) - 1 : rates.index(best) + 2]
    curvature, slope, _ = np.polyfit(np.log(near), [means[lr] for lr in near], 2)
    return float(f"{math.exp(-slope / (2 * curvature)):.3g}")


def shown(name: str, runs: list[float], kept: list[float]) -> str:
    differences = [a - b for a, b in zip(runs, kept, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else math.nan
    return f"  {name:<16} {statistics.fmean(runs):.4f}" + ("" if runs is kept else f"   {statistics.fmean(differences):+.4f} ± {error:.4f} against kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(GRID), default="adamw")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--steps", type=int, default=200, help="of the short horizon, 1,024 tokens each")
    parser.add_argument("--horizons", default="4,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="", help="file of finished runs, which are not trained again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    lr = tuned(bench)
    print(f"tuned: {lr:g}\n")
    for horizon in map(float, arguments.horizons.split(",")):
        kept, corrected = bench.seeds(lr, horizon), bench.seeds(lr, horizon, rule=True)
        print(f"{horizon:g} x the tokens")
        print(shown("kept", kept, kept))
        print(shown(f"horizon, x {horizon**-0.3:.3f}", corrected, kept))
        for factor in AROUND:
            print(shown(f"x {factor:g}", bench.seeds(lr * factor, horizon), kept))
    for horizon, batch in BATCHES:
        kept, corrected = bench.seeds(lr, horizon, batch), bench.seeds(lr, horizon, batch, rule=True)
        print(f"{horizon:g} x the tokens, {batch:g} x the batch")
        print(shown("kept", kept, kept))
        print(shown(f"horizon, x {batch**0.5 * horizon**-0.3:.3f}", corrected, kept))


if __name__ == "__main__":
    main()
