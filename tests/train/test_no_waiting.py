"""No step waits for its device: it runs on a device whose values nobody can read, torch's meta device."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from small_run import VOCAB, B, T, section
from torch.utils._python_dispatch import TorchDispatchMode

from feebcore.model.build import build_model
from feebcore.protocols import Batch
from feebcore.train import loop
from feebcore.train.callbacks import Callback, RunContext
from feebcore.train.loop import Trainer
from feebcore.train.lr_scaling import LRScale
from feebcore.train.optimizer_schedules import OptimizerSchedules
from feebcore.train.parallel import SingleProcess
from feebcore.train.pretrain import build_optimizer
from feebcore.train.step import GradientAccumulator, LossModule

META = torch.device("meta")
SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 32, "num_heads": 2}


class Unread:
    """Rows of the batch, which lie on the CPU until the step takes them."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        tokens = torch.zeros(B, T, dtype=torch.int64)
        return Batch(tokens, tokens, torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.int64))


class Out:
    stop_requested = False

    def log(self, text: str) -> None:
        raise AssertionError(text)


class Uploads(TorchDispatchMode):
    """Counts copies from the CPU to the device: one out of memory that is not pinned waits for it too."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = [a.device.type for a in (*args, result) if isinstance(a, torch.Tensor)]
            self.number += "cpu" in devices and "meta" in devices
        return result


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", float("inf"))


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps run in fp32, and parts that switch autocast off could not do so here: the meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def trainer_of(callbacks: dict[str, Callback] | None = None, **changes: Any) -> Trainer:
    wanted = section(max_steps=6, log_every=100, **changes)
    model = build_model(wanted.architecture, VOCAB, T, device=META)
    gradients = GradientAccumulator(LossModule(model, wanted.objective.build(), "fp32", META), SingleProcess(META), wanted.micro_batch, print)
    optimizer = build_optimizer(wanted, model, LRScale())
    run = RunContext(wanted, model, META, None, Out())  # type: ignore[arg-type]
    trainer = Trainer(run, Unread(), gradients, optimizer, OptimizerSchedules(optimizer, wanted.schedule.build(total_steps=6)), callbacks or {})
    for callback in trainer.callbacks.values():
        callback.on_start(run)
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon", "ema_decay": 0.9, "micro_batch": 2},
        {"optimizer": "normuon", "architecture": {"name": "modded", **SIZES}},
        {"optimizer": "sgd", "architecture": {"name": "gemma3", **SIZES}, "objective": "all_layer"},
        {"optimizer": "lion", "architecture": {"name": "transformer", "position": "rope_yarn", "attention": "mla", "block": "residual_lambdas", **SIZES}},
        {"optimizer": "ademamix", "architecture": {"name": "transformer", "lm_head": "multi_token", **SIZES}, "objective": "multi_token"},
        {"optimizer": "schedule_free", "grad_clip": 0.0},
        {"optimizer": "adam", "architecture": {"name": "transformer", "attention": "differential", **SIZES}},
        {"optimizer": "soap", "architecture": {"name": "looped", **SIZES}},
        {"architecture": {"name": "gated_delta_hybrid", "num_layers": 4, "d_model": 32, "num_heads": 2}},
        {"architecture": {"name": "transformer", "feedforward": "moe", **SIZES}},
        {"architecture": {"name": "transformer", "feedforward": {"name": "moe", "capacity": 1.0, "router": "sigmoid"}, **SIZES}, "micro_batch": 4},
    ],
    ids=lambda c: "-".join(str(v) if not isinstance(v, dict) else v["name"] for v in c.values()) or "adamw",
)
def test_no_step_reads_a_value_of_the_device(changes: dict[str, Any]) -> None:
    trainer = trainer_of(**changes)
    for step in range(3):
        trainer.step(step)
        trainer.state.step = step + 1
        assert not trainer._due(step + 1), "nobody is due"
    assert len(trainer.records) == 3
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        trainer.report()


class Reads(TorchDispatchMode):
    """Counts values that are read, and results whose shape depends on values: on a GPU each waits for it."""

    WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        boolean = function is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.number += boolean or function in self.WAITS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("boundaries", ["stride", "words"])
def test_patches_wait_once_a_pass_of_packed_rows_and_never_of_plain_ones(boundaries: str) -> None:
    stack = {"name": "patches", "boundaries": boundaries}
    model = build_model(section(architecture={"name": "transformer", "stack": stack, **SIZES}).architecture, VOCAB, T)
    tokens, docs = torch.arange(T).expand(B, -1), (torch.arange(T) // 5).expand(B, -1)
    found = []
    for options in ({}, {"doc_ids": docs}, {"cache": model.new_cache(B, T)}):
        with torch.no_grad(), Reads() as reads:
            model(tokens, **options)
        found.append(reads.number)
    assert found == [0, 1, 2], "plain rows; packed ones: how many patches; with a cache also how many it holds"


def test_a_step_copies_nothing_to_the_device_but_its_batch() -> None:
    trainer = trainer_of(optimizer="muon")
    trainer.step(0)
    with Uploads() as uploads:
        trainer.step(1)
    assert uploads.number == 5, "tokens, targets, mask, documents, positions"


def test_loggers_are_due_when_they_write_and_others_whenever_they_look() -> None:
    class Looks(Callback):
        def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
            raise AssertionError("never reached here")

    from feebcore.parts import resolve_part

    quiet = {"metrics": resolve_part("callbacks", {"name": "metrics", "every": 4}).build(), "progress": resolve_part("callbacks", "progress").build()}
    assert [trainer_of()._due(step) for step in (1, 4, 6)] == [False, False, True]
    quiet["metrics"].every = 4
    trainer = trainer_of()
    trainer.callbacks = quiet
    quiet["metrics"].run = trainer.run
    assert [trainer._due(step) for step in (1, 4, 5, 6)] == [False, True, False, True]
    trainer.callbacks = {"looks": Looks(), "none": Callback()}
    assert trainer._due(1)


def test_a_policy_that_skips_has_to_wait() -> None:
    trainer = trainer_of(on_nonfinite="skip")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        trainer.step(0)
