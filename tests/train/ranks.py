"""Several ranks, each a process of its own: `start(world, folder, jobs)` has all of them do the jobs in turn; a job is
`{"do": "train" | "reshard" | …, ...}`."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import forked
import numpy as np
import torch
from safetensors.torch import save_file
from small_run import VOCAB, B, Cycle, T, section

from feebcore.artifacts import StageOutput
from feebcore.errors import Interrupted
from feebcore.evaluate.scorer import score_documents
from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.protocols import Batch
from feebcore.run.build import stop_on_signals
from feebcore.run.worker import RankOutput
from feebcore.train.checkpoint import Checkpointer, checkpoints
from feebcore.train.dtensor import is_sharded
from feebcore.train.parallel import fill_with_memory, join, make_parallel
from feebcore.train.pretrain import build_optimizer, train_model
from feebcore.train.step import LossModule

__all__ = ["CPU", "VOCAB", "B", "T", "dtypes", "reshard", "start", "train"]

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


def score_stopped(folder: Path, **changes: Any) -> None:
    """A run that gets SIGTERM on the last rank in the middle of its final validation, and is then run again; one that does not."""
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    found: dict[str, Any] = {"reads": []}
    for name, stops in (("whole", False), ("stopped", True), ("stopped", False)):
        store = Documents(80, {9: lambda: os.kill(os.getpid(), signal.SIGTERM)} if stops and last else None)
        (folder / name).mkdir(parents=True, exist_ok=True)
        out = StageOutput(folder / name) if not int(os.environ["RANK"]) else RankOutput(folder / name)
        try:
            with stop_on_signals(out), mock.patch.dict("feebcore.evaluate.scorer.BATCH_TOKENS", cpu=64):
                metrics = train_model(section(**changes), Slots(), store, None, folder / name, out, vocab_size=VOCAB).metrics
            found[f"{name} metrics"] = {k: v for k, v in metrics.items() if "second" not in k and "wait" not in k}
        except Interrupted as error:
            found["message"] = str(error)
        found["reads"].append(store.reads)
        out.close()
    (folder / f"stopped-{os.environ['RANK']}.json").write_text(json.dumps(found))


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


def sharded(wanted: Any) -> tuple[Any, Any]:
    """(strategy, sharded model) as train_model makes them."""
    parallel = make_parallel(wanted, CPU)
    model = build_model(wanted.architecture, VOCAB, wanted.seq_len, wanted.seed, parallel.build_device)
    parallel.wrap(LossModule(model, wanted.objective.build(), "fp32", CPU), blocks_of(model))
    return parallel, model


def weights(folder: Path, architectures: list[dict[str, Any]]) -> None:
    """The initial weights of sharded models, put together again and saved, one file an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, architecture in enumerate(architectures):
        wanted = section(architecture=architecture, parallel={"strategy": "fsdp"})
        parallel, model = sharded(wanted)
        whole, _ = parallel.whole_model(model, lambda device, wanted=wanted: build_model(wanted.architecture, VOCAB, wanted.seq_len, device=device))
        if parallel.is_main:
            save_file({name: t.clone() for name, t in (*whole.named_parameters(), *whole.named_buffers())}, folder / f"{number}.safetensors")


def memory(folder: Path, **changes: Any) -> None:
    """How much more memory this rank held at most while the model was built, sharded and put together again; bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sharded(section(**changes))  # imports and gloo's buffers
    before = peak()
    large = section(**changes | {"architecture": {"name": "transformer", "num_layers": 12, "d_model": 512, "num_heads": 4}})
    parallel, model = sharded(large)
    made = peak()
    with mock.patch("feebcore.train.parallel.fill_with_memory", fill_with_memory if parallel.is_main else no_room):
        parallel.whole_model(model, lambda device: build_model(large.architecture, VOCAB, T, device=device))
    found = {"weights": sum(p.numel() * 4 for p in model.parameters()), "made": made - before, "gathered": peak() - before}
    (folder / f"memory-{parallel.rank}.json").write_text(json.dumps(found))


def no_room(model: torch.nn.Module, device: torch.device) -> None:
    raise torch.OutOfMemoryError


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def dtypes(folder: Path, **changes: Any) -> None:
    """dtype and values of what a training pass in bf16 computes: the stream after each block, the hidden state, the loss and gradients."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = section(**changes)
    parallel, model = make_parallel(wanted, CPU), None
    model = build_model(wanted.architecture, VOCAB, wanted.seq_len, wanted.seed, parallel.build_device)
    module = LossModule(model, wanted.objective.build(), "bf16", CPU)
    wrapped = parallel.wrap(module, blocks_of(model))
    seen: dict[str, torch.Tensor] = {}
    for number, block in enumerate(blocks_of(model)):
        block.register_forward_pre_hook(lambda m, a, number=number: seen.update({f"stream {number}": a[0].detach().clone()}))
    model.final_norm.register_forward_hook(lambda m, a, result: seen.update({"hidden": result.detach().clone()}))
    batch = Cycle().batch(0)  # the same on all ranks, so that what they see is what one process sees
    loss, _, _ = wrapped(batch.tokens, batch.targets, None, None, None)
    loss.backward()
    for name, p in model.named_parameters():
        seen[f"gradient {name}"] = p.grad.full_tensor() / parallel.world if hasattr(p.grad, "full_tensor") else p.grad
    if parallel.is_main:
        save_file({name: t.contiguous() for name, t in (seen | {"loss": loss.detach()}).items()}, folder / "seen.safetensors")


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


class Documents:
    """A token store in memory: documents of 1 to 60 random tokens. at_read: what happens as the n-th is read."""

    def __init__(self, number: int, at_read: dict[int, Any] | None = None) -> None:
        self.at_read, self.reads = at_read or {}, 0
        generator = np.random.default_rng(0)
        self.doc_bytes = generator.integers(1, 61, number)
        self.doc_offsets = np.concatenate([[0], np.cumsum(self.doc_bytes + 2)])
        self.tokens, self.num_documents = generator.integers(0, VOCAB, self.doc_offsets[-1]), number
        self.num_tokens, self.doc_source = len(self.tokens), np.zeros(number, dtype=np.uint16)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads += 1
        self.at_read.get(self.reads, int)()
        return self.tokens[start:stop]


def score(folder: Path) -> None:
    """Documents scored by this rank alone and by all together, with turns that leave ranks without a batch; batches computed here. The model
    is whole, or a sharded one put together again, on every rank or, where it does not fit, on the first."""
    folder.mkdir(parents=True, exist_ok=True)
    model, store = build_model(section().architecture, VOCAB, T, seed=0), Documents(23)
    fsdp, split = sharded(section(parallel={"strategy": "fsdp"}))
    gathered, everywhere = fsdp.whole_model(split, lambda device: build_model(section().architecture, VOCAB, T, device=device))
    assert everywhere
    found: dict[str, Any] = {}
    for name, scored, ranks in (
        ("alone", model, None),
        ("together", model, make_parallel(section(parallel={"strategy": "ddp"}), CPU)),
        ("fsdp", gathered, fsdp),
    ):
        calls: list[int] = []
        scored.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        progress: list[float] = []
        options = {"stride": 5, "batch_tokens": 90, "progress": lambda done, total, shares=progress: shares.append(done / total)}
        scores = score_documents(scored, store, ranks=ranks, **options)
        found[name] = {"nats": scores.nats.tolist(), "batches": len(calls), "progress": progress[-1]}
    with mock.patch("feebcore.train.parallel.fill_with_memory", no_room if fsdp.rank == 1 else fill_with_memory):
        first, everywhere = fsdp.whole_model(split, lambda device: build_model(section().architecture, VOCAB, T, device=device))
    found["one without room"] = {"everywhere": everywhere, "sharded": any(is_sharded(p) for p in first.parameters())}
    if fsdp.is_main:
        found["one without room"]["equal"] = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), first.state_dict().values(), strict=True))
    (folder / f"score-{fsdp.rank}.json").write_text(json.dumps(found))


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
    kinds = {
        "train": train,
        "reshard": reshard,
        "sums": sums,
        "score": score,
        "score_stopped": score_stopped,
        "weights": weights,
        "memory": memory,
        "dtypes": dtypes,
    }
    for job in jobs:
        kinds[job["do"]](**{k: v for k, v in job.items() if k != "do"})
    torch.distributed.destroy_process_group()
