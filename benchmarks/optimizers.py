"""Optimizers compared: what a step costs, and what it buys.

    python benchmarks/optimizers.py time [--threads 1] [--rounds 5]
    python benchmarks/optimizers.py quality [--steps 300] [--width 128] [--layers 4] [--names muon,normuon] [--seeds 1] [--factors 0.5,1,2]

time: milliseconds of optimizer.step() on transformers of 4.2 M and 12 M parameters, interleaved rounds in one process,
medians, and the ratio to torch's fused AdamW. With one thread it is CPU time, which other work on the machine disturbs less.

quality: validation bits per byte after training a small byte model on the standard library's source, for each
optimizer at the best of `factors` on all its rates, same seeds, data and schedule
(cosine after a tenth of warmup; for schedule_free constant after the warmup).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feebcore.model.build import build_model
from feebcore.model.groups import param_groups
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.train.optimizer_schedules import OptimizerSchedules, build_optimizer

SIZES = {"4.2 M": (4, 256), "12 M": (6, 384)}
NAMES = ["adamw", "adam", "sgd", "lion", "adafactor", "ademamix", "schedule_free", "muon", "normuon", "soap", "grokfast"]
MIDDLE = {
    # rates that a first search found good for this model: one rate for all roles, but for muon, normuon and sgd
    "adamw": {"lr": 3e-3},
    "adam": {"lr": 3e-3},
    "sgd": {"lr": 0.3},
    "lion": {"lr": 5e-4},
    "adafactor": {"lr": 0.03},
    "ademamix": {"lr": 3e-3},
    "schedule_free": {"lr": 6e-3},
    "muon": {},
    "normuon": {},
    "soap": {"lr": 3e-3},
    "grokfast": {"optimizer": {"name": "adamw", "lr": 2e-3}},
}


def transformer(layers: int, width: int, vocab: int, length: int, seed: int = 0) -> Any:
    part = resolve_part("architectures", {"name": "transformer", "num_layers": layers, "d_model": width, "num_heads": width // 64 or 1})
    return build_model(part, vocab, length, seed)


# --- time -----------------------------------------------------------------------------------------------------------


def step_times(layers: int, width: int, names: list[str], rounds: int, clock: Any) -> dict[str, float]:
    """Median milliseconds of a step by name; 'torch AdamW' is torch's own, fused, over all parameters at once."""
    model = transformer(layers, width, 4096, 256)
    groups = param_groups(model)
    gradients = [torch.randn_like(p) * 1e-3 for g in groups for p in g.parameters]
    parameters = [p for g in groups for p in g.parameters]
    optimizers = {"torch AdamW": torch.optim.AdamW(parameters, lr=1e-4, fused=True)}
    optimizers |= {name: build_optimizer(resolve_part("optimizers", name), groups) for name in names}
    found: dict[str, list[float]] = {name: [] for name in optimizers}
    for number in range(rounds + 1):
        for name, optimizer in optimizers.items():
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g.clone()
            began = clock()
            steps = 10 if name == "soap" else 2 if name in ("muon", "normuon") else 5  # of SOAP, one with QR among them
            for _ in range(steps if number else 2):  # the first round makes the state
                optimizer.step()
            if number:
                found[name].append(1000 * (clock() - began) / steps)
    return {name: statistics.median(times) for name, times in found.items()}


def compare_times(names: list[str], rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    for size, shape in SIZES.items():
        found = step_times(*shape, names, rounds, clock)
        print(f"{size} parameters, {threads} thread(s)\n{'optimizer':<14}{'ms':>10}{'ratio':>8}")
        for name, milliseconds in found.items():
            print(f"{name:<14}{milliseconds:>10.1f}{milliseconds / found['torch AdamW']:>8.2f}", flush=True)


# --- quality --------------------------------------------------------------------------------------------------------


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library's modules for training and, every 20th file, for scoring."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    content = [np.frombuffer(f.read_bytes(), np.uint8) for f in files]
    return np.concatenate([c for i, c in enumerate(content) if i % 20]), np.concatenate(content[::20])


def windows(data: np.ndarray, count: int, length: int, seed: int) -> Batch:
    starts = np.random.default_rng(seed).integers(0, len(data) - length - 1, count)
    rows = torch.from_numpy(np.stack([data[s : s + length + 1] for s in starts]).astype(np.int64))
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def scaled(options: dict[str, Any], name: str, factor: float) -> dict[str, Any]:
    """The options with every rate times `factor`."""
    if "optimizer" in options:
        inner = options["optimizer"]
        return options | {"optimizer": {"name": inner["name"], **scaled({k: v for k, v in inner.items() if k != "name"}, inner["name"], factor)}}
    config = resolve_part("optimizers", {"name": name, **options}).config
    rates = {k: getattr(config, k) for k in ("lr", "embedding_lr", "lm_head_lr", "vector_lr")}
    return options | {k: v * factor for k, v in rates.items() if v is not None}


def bits_per_byte(model: Any, objective: Any, data: np.ndarray, length: int) -> float:
    with torch.no_grad():
        results = [objective(model, windows(data, 16, length, 10_000 + i)) for i in range(16)]
    return float(sum(r.loss_sum for r in results) / sum(r.count for r in results)) / math.log(2)


def trained(name: str, options: dict[str, Any], arguments: argparse.Namespace, seed: int, texts: tuple[np.ndarray, np.ndarray]) -> float:
    length, batch, steps = 64, 16, arguments.steps
    torch.manual_seed(seed)
    model = transformer(arguments.layers, arguments.width, 256, length, seed)
    objective = resolve_part("objectives", "next_token").build()
    optimizer = build_optimizer(resolve_part("optimizers", {"name": name, **options}), param_groups(model))
    schedule = "constant" if name == "schedule_free" else "cosine"
    rates = OptimizerSchedules(optimizer, resolve_part("schedules", {"name": schedule, "warmup_fraction": 0.1}).build(total_steps=steps))
    for step in range(steps):
        rates.apply(step)
        found = objective(model, windows(texts[0], batch, length, seed * 1_000_003 + step))
        (found.loss_sum / found.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    score = bits_per_byte(model, objective, texts[1], length)
    return score if math.isfinite(score) else float("inf")


def compare_quality(names: list[str], arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    texts = text()
    count = sum(p.numel() for p in transformer(arguments.layers, arguments.width, 256, 64).parameters())
    factors = [float(f) for f in arguments.factors.split(",")]
    print(f"{count / 1e6:.2f} M parameters, {arguments.steps} steps of 1024 bytes, validation bits per byte, {arguments.seeds} seed(s)")
    print(f"{'optimizer':<14}" + "".join(f"{f'x {f:.2f}':>9}" for f in factors) + f"{'best':>9}{'minutes':>9}")
    for name in names:
        began = time.perf_counter()
        scores = [statistics.mean(trained(name, scaled(MIDDLE[name], name, f), arguments, seed, texts) for seed in range(arguments.seeds)) for f in factors]
        minutes = (time.perf_counter() - began) / 60
        print(f"{name:<14}" + "".join(f"{s:>9.3f}" for s in scores) + f"{min(scores):>9.3f}{minutes:>9.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "quality"])
    parser.add_argument("--names", default=",".join(NAMES), help="optimizers, comma between")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--factors", default="0.5,1,2", help="on all rates, comma between")
    given = parser.parse_args()
    if given.what == "time":
        compare_times(given.names.split(","), given.rounds, given.threads)
    else:
        compare_quality(given.names.split(","), given)
