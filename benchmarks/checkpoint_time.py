"""How long a checkpoint holds up the training, and how long until it is on disk: `python benchmarks/checkpoint_time.py`.

A model of 12 M parameters with AdamW's state (145 MB), on one CPU thread. Reports the first checkpoint, whose memory is
fresh, and the median of the others; copying is what the training waits for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from feebcore.train.checkpoint import Checkpointer
from feebcore.train.parallel import SingleProcess


def measure(parameters: int, times: int, asynchronous: bool, folder: Path) -> dict[str, float]:
    width = 512
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(round(parameters / width**2))])
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    checkpointer = Checkpointer(folder, SingleProcess(), asynchronous=asynchronous)
    blocked, whole = [], []
    for step in range(times):
        began = time.perf_counter()
        checkpointer.save(step, model, optimizer, {})
        blocked.append(time.perf_counter() - began)
        checkpointer.wait()
        whole.append(time.perf_counter() - began)
    began = time.perf_counter()
    assert checkpointer.load_latest(model, optimizer) is not None
    found = {"first_blocked": blocked[0], "blocked": statistics.median(blocked[1:]), "on_disk": statistics.median(whole[1:])}
    return {k: round(v, 4) for k, v in (found | {"load": time.perf_counter() - began}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=12_000_000)
    parser.add_argument("--times", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for asynchronous in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(options.parameters, options.times, asynchronous, Path(folder))
        print(json.dumps({"asynchronous": asynchronous, "parameters": options.parameters, "seconds": seconds}))


if __name__ == "__main__":
    main()
