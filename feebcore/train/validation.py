"""Validation while training: the loss on the same few sequences every time, in eager mode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from feebcore.errors import DataError
from feebcore.protocols import Batch
from feebcore.train.callbacks import LoopCallback
from feebcore.train.loop import Trainer
from feebcore.train.step import GradientAccumulator, micro_batches

if TYPE_CHECKING:
    from torch import nn

    from feebcore.data.store import TokenStore
    from feebcore.train.config import TrainSection


class ValidationInterrupted(Exception):
    """A validation was cut short because the run is asked to stop."""


class Validation(LoopCallback):
    """Every `validation_every` steps `evaluate(forward)` with the weights for evaluation; its metrics go to the recipe's callbacks.

    A validation that a stop cuts short is done again when the run resumes.
    """

    def __init__(self, trainer: Trainer, evaluate: Callable[[Callable[..., Any]], dict[str, float]]) -> None:
        self.trainer, self.evaluate = trainer, evaluate

    def due(self, step: int) -> bool:
        return step % self.trainer.section.validation_every == 0 and step < self.trainer.run.last_step

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        state = self.trainer.state
        state.validation_due = self.due(step)
        if state.validation_due:
            self.validate()

    def validate(self) -> None:
        trainer, state, out = self.trainer, self.trainer.state, self.trainer.run.out
        try:
            with trainer.eval_weights():
                metrics = self.evaluate(trainer.gradients.wrapped)
        except ValidationInterrupted:
            trainer.stopping = True
            return
        state.validation_due = False
        state.validation = (state.step, metrics["loss"])
        for callback in trainer.callbacks.values():
            callback.on_validation(state.step, metrics)
        trainer.stopping = trainer.parallel.any(out.stop_requested) or trainer.stopping


def make_evaluation(
    section: TrainSection, model: nn.Module, store: TokenStore, gradients: GradientAccumulator, stop_requested: Callable[[], bool]
) -> Callable[[Callable[..., Any]], dict[str, float]] | None:
    """`evaluate(forward)` on about `validation_tokens` tokens evenly spaced over the split; None when it has no whole sequence.

    loss: nats per target. bits_per_byte: estimated with the split's own bytes per token; the final score is exact.
    Ranks evaluate a share of the sequences each and agree on the result. Raises ValidationInterrupted, on every rank, once
    `stop_requested`.
    """
    parallel, device = gradients.parallel, gradients.module.device
    try:
        packing = section.packing.build(store=store, seq_len=section.seq_len)
    except DataError:
        return None
    number = max(1, min(packing.num_sequences, section.validation_tokens // section.seq_len))
    packed = packing.sequences(np.unique(np.linspace(0, packing.num_sequences - 1, number).round().astype(np.int64)))
    tokens = torch.from_numpy(packed.tokens.astype(np.int64))
    optional = [None if a is None else torch.from_numpy(a) for a in (packed.mask, packed.doc_ids, packed.positions)]
    whole = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), *optional)
    bits = store.num_tokens / (math.log(2) * max(1, int(np.sum(store.doc_bytes))))
    batch = own_share(whole, parallel.rank, parallel.world)

    @torch.no_grad()
    def evaluate(forward: Callable[..., Any]) -> dict[str, float]:
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, targets
        rows = gradients.size or max(1, section.batch_size // parallel.world)  # what fits in training fits here
        for part in micro_batches(batch, rows, device):
            if parallel.any(stop_requested()):
                model.train(was_training)
                raise ValidationInterrupted
            loss_sum, targets, metrics = forward(part.tokens, part.targets, part.mask, part.doc_ids, part.positions)
            sums += torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in (metrics.get("nll", loss_sum), targets)])
        model.train(was_training)
        nats, count = parallel.sum(sums).tolist()
        return {"loss": nats / max(count, 1.0), "bits_per_byte": nats / max(count, 1.0) * bits}

    return evaluate


def own_share(batch: Batch, rank: int, world: int) -> Batch:
    """Rows rank::world. Where they do not divide, the last rows count nothing: every rank must call the model equally often."""
    if world == 1:
        return batch
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
    if fields["mask"] is None:
        fields["mask"] = torch.ones_like(batch.targets, dtype=torch.bool)
    missing = -len(batch.tokens) % world
    for key, value in fields.items():
        if value is not None:
            rest = value[:1].expand(missing, *value.shape[1:])
            fields[key] = torch.cat([value, torch.zeros_like(rest) if key == "mask" else rest])[rank::world]
    return Batch(**fields)
