"""What probes cost compared with the training they look into, each and all together, at their default intervals.

    nice -n 19 python benchmarks/probe_cost.py [SHAPE] [--compile] [--steps 200]

One run of the real loop with every probe on; CPU seconds spent in each callback are divided by those of the training's own
steps. One thread. SHAPE: 1.0M, 4.2M or 12M parameters, as in the speed comparisons. The first
step and what probes do before and in it (the look at the untrained model, measuring the machine's peak) are `start`.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from feebcore.artifacts import StageOutput
from feebcore.protocols import Batch
from feebcore.train.callbacks import Callback
from feebcore.train.config import TrainSection
from feebcore.train.pretrain import train_model

PROBES = ("residual_stream", "logits", "repetition", "first_batch", "gradients", "throughput")
SHAPES = {  # layers, width, heads, seq_len, batch_size, vocabulary
    "1.0M": (4, 128, 4, 128, 32, 2048),
    "4.2M": (4, 256, 4, 256, 16, 4096),
    "12M": (6, 384, 6, 256, 16, 4096),
}
Spent = collections.Counter[str]
HOOKS = ("on_start", "on_batch", "on_gradients", "on_step_end", "on_save", "on_end", "on_close")


class Random:
    """Batches of random tokens, made once."""

    def __init__(self, batch: int, length: int, vocabulary: int) -> None:
        tokens = torch.randint(vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        self.only = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        return self.only


class Clock(Callback):
    """The last of the callbacks: CPU seconds at the end of the first step and of the last one."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent
        self.marks: list[tuple[float, Spent]] = []

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step in (1, self.run.section.max_steps):
            self.marks.append((time.process_time(), collections.Counter(self.spent)))


def timed(spent: Spent, name: str, callback: Callback) -> Callback:
    """The callback, with CPU seconds of each hook that it overrides added to `spent`; the others stay as they are."""

    def wrap(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - began  # type: ignore[assignment]

        return call

    own = {hook: wrap(getattr(type(callback), hook)) for hook in HOOKS if getattr(type(callback), hook) is not getattr(Callback, hook)}
    callback.__class__ = type(type(callback).__name__, (type(callback),), own)
    return callback


def measure(shape: str, compile_it: bool, steps: int) -> tuple[float, Spent, Spent]:
    """CPU seconds of the training's steps, of each probe while they ran, and of each before and in the first step."""
    layers, width, heads, length, batch, vocabulary = SHAPES[shape]
    options = {
        "architecture": {"name": "transformer", "num_layers": layers, "d_model": width, "num_heads": heads},
        "seq_len": length,
        "batch_size": batch,
        "max_steps": steps,
        "compile": "on" if compile_it else "off",
        "threads": 1,
        "prefetch": 0,
        "validation_every": 0,
        "callbacks": list(PROBES),
    }
    section = TrainSection.model_validate(options)
    spent: Spent = collections.Counter()
    clock = Clock(spent)
    parts: list[Any] = [SimpleNamespace(name=p.name, build=lambda p=p: timed(spent, p.name, p.build())) for p in section.callbacks]
    section = section.model_copy(update={"callbacks": [*parts, SimpleNamespace(name="clock", build=lambda: clock)]})
    with tempfile.TemporaryDirectory() as folder:
        out = StageOutput(Path(folder))
        data = Random(batch, length, vocabulary)
        train_model(section, data, None, None, Path(folder), out, vocab_size=vocabulary, checkpoint=False, save=False)
        out.close()
    (began, before), (ended, after) = clock.marks
    during = collections.Counter({name: after[name] - before[name] for name in PROBES})
    return ended - began - sum(during.values()), during, before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", default="4.2M", choices=SHAPES)
    parser.add_argument("--compile", action="store_true", help="compile the training step")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    training, during, before = measure(arguments.shape, arguments.compile, arguments.steps)
    print(f"{arguments.shape}, {'compiled' if arguments.compile else 'eager'}, {arguments.steps} steps of {1000 * training / (arguments.steps - 1):.0f} ms")
    for name in PROBES:
        print(f"  {name:<16} {100 * during[name] / training:6.2f} % of training    start {before[name]:.2f} s")
    print(f"  {'all together':<16} {100 * sum(during.values()) / training:6.2f} % of training    start {sum(before.values()):.2f} s")


if __name__ == "__main__":
    main()
