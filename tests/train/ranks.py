"""Several ranks, each a process of its own: `start(world, folder, jobs)` has all of them do the jobs in turn; a job is
`{"do": "train" | "reshard" | "sums", ...}`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import torch
from small_run import VOCAB, B, Cycle, T, section

from feebcore.artifacts import StageOutput
from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.protocols import Batch
from feebcore.run.worker import RankOutput
from feebcore.train.checkpoint import Checkpointer, checkpoints
from feebcore.train.parallel import join, make_parallel
from feebcore.train.pretrain import build_optimizer, train_model
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
    optimizer = build_optimizer(wanted, model)
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
    common = {"WORLD_SIZE": str(world), "FEEB_RENDEZVOUS": str(folder / "meet"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"rank-{rank}.txt" for rank in range(world)]
    processes = [forked.start(do, jobs, log=log, environment=common | {"RANK": str(rank)}) for rank, log in enumerate(logs)]
    for process in processes:
        process.join(250)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, "\n".join(log.read_text() for log in logs)


def do(jobs: Sequence[dict[str, Any]]) -> None:
    join(CPU)
    for job in jobs:
        {"train": train, "reshard": reshard, "sums": sums}[job["do"]](**{k: v for k, v in job.items() if k != "do"})
    torch.distributed.destroy_process_group()
