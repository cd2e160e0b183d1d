"""One rank of several, a process of its own: `RANK=0 WORLD_SIZE=2 FEEB_RENDEZVOUS=FILE python ranks.py JSON` does the jobs
in turn. `start(world, folder, jobs)` starts them all; a job is `{"do": "train" | "reshard" | "sums", ...}`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from small_run import VOCAB, B, Cycle, T, section

from feebcore.artifacts import StageOutput
from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.protocols import Batch
from feebcore.run.worker import RankOutput
from feebcore.train.checkpoint import Checkpointer, checkpoints
from feebcore.train.parallel import join, make_parallel
from feebcore.train.pretrain import build_optimizer, lr_scale, train_model
from feebcore.train.step import LossModule

__all__ = ["CPU", "VOCAB", "B", "T", "reshard", "start", "train"]

CPU = torch.device("cpu")


class Slots:
    """Rows rank::world of every batch; `seen` is what this rank was given."""

    def __init__(self, masked: bool = True) -> None:
        self.whole, self.seen = Cycle(masked=masked), []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        whole = self.whole.batch(step)
        self.seen.append(whole.tokens[rank::world].tolist())
        return Batch(whole.tokens[rank::world], whole.targets[rank::world], None if whole.mask is None else whole.mask[rank::world])


def train(folder: Path, **changes: Any) -> None:
    """A run like any other; each rank also leaves the rows that it was given."""
    folder.mkdir(parents=True, exist_ok=True)
    rank, data = int(os.environ.get("RANK", 0)), Slots()
    out = RankOutput(folder) if rank else StageOutput(folder)
    metrics = train_model(section(**changes), data, None, None, folder, out, vocab_size=VOCAB).metrics
    (folder / f"seen-{rank}.json").write_text(json.dumps({"rows": data.seen, "metrics": {k: metrics[k] for k in ("final_loss", "tokens", "flops")}}))
    out.close()


def reshard(source: Path, folder: Path, **changes: Any) -> None:
    """Load the newest checkpoint of `source` as this group of ranks holds it, and save it so."""
    wanted = section(**changes)
    parallel = make_parallel(wanted, CPU)
    model = build_model(wanted.architecture, VOCAB, wanted.seq_len, seed=99)
    parallel.wrap(LossModule(model, wanted.objective.build(), "fp32", CPU), blocks_of(model))
    optimizer = build_optimizer(wanted, model, lr_scale(wanted, model))
    state, extras = Checkpointer(source, parallel).load(checkpoints(source)[0], model, optimizer)
    kept = {k: v for k, v in state.items() if k in ("train_state", "seed")}
    writer = Checkpointer(folder, parallel)
    writer.save(state["step"], model, optimizer, kept, extras)
    writer.wait()


def sums(folder: Path) -> None:
    """What the loop asks of a group, on values that differ by rank."""
    parallel = make_parallel(section(parallel={"strategy": "ddp"}), CPU)
    found = {
        "sum": parallel.sum(torch.tensor([1.0, float(parallel.rank)])).tolist(),
        "any": [parallel.any(parallel.rank == 1), parallel.any(False)],
        "exchange": parallel.channel().all_gather_text("é" * parallel.rank),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"sums-{parallel.rank}.json").write_text(json.dumps(found))


def start(world: int, folder: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Run the jobs in `world` processes. Raises AssertionError with what the ranks printed when one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    common = os.environ | {"WORLD_SIZE": str(world), "FEEB_RENDEZVOUS": str(folder / "meet"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"rank-{rank}.txt" for rank in range(world)]
    command = [sys.executable, __file__, json.dumps(list(jobs), default=str)]
    processes = []
    for rank, log in enumerate(logs):
        with open(log, "wb") as stream:
            processes.append(subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdout=stream, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(250) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(codes), "\n".join(log.read_text() for log in logs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join(CPU)
    for job in json.loads(sys.argv[1]):
        {"train": train, "reshard": reshard, "sums": sums}[job.pop("do")](**{k: Path(v) if k in ("folder", "source") else v for k, v in job.items()})
    torch.distributed.destroy_process_group()
