"""A cheap look at held-out text while training: the same few windows every time, in eager mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from feebcore.errors import DataError
from feebcore.protocols import Batch
from feebcore.train.loop import micro_batches

if TYPE_CHECKING:
    from torch import nn

    from feebcore.data.store import TokenStore
    from feebcore.train.config import TrainSection


def make_evaluation(
    section: TrainSection, model: nn.Module, store: TokenStore, device: torch.device
) -> Callable[[Callable[..., Any]], dict[str, float]] | None:
    """`evaluate(forward)` on about `eval_tokens` tokens evenly spaced over the split; None when it has no whole window.

    loss: nats per target. bits_per_byte: estimated with the split's own bytes per token; the final score is exact.
    """
    try:
        packing = section.packing.build(store, section.seq_len)
    except DataError:
        return None
    wanted = max(1, min(packing.num_windows, section.eval_tokens // section.seq_len))
    packed = packing.windows(np.unique(np.linspace(0, packing.num_windows - 1, wanted).round().astype(np.int64)))
    tokens = torch.from_numpy(packed.tokens.astype(np.int64))
    optional = [None if a is None else torch.from_numpy(a) for a in (packed.mask, packed.doc_ids, packed.positions)]
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), *optional)
    bits = store.num_tokens / (math.log(2) * max(1, int(np.sum(store.doc_bytes))))
    rows = section.micro_batch or section.batch_size

    @torch.no_grad()
    def evaluate(forward: Callable[..., Any]) -> dict[str, float]:
        was_training = model.training
        model.eval()
        nats, count = 0.0, 0.0
        for part in micro_batches(batch, rows, device):
            loss_sum, targets, metrics = forward(part.tokens, part.targets, part.mask, part.doc_ids, part.positions)
            nats += float(metrics.get("nats", loss_sum))
            count += float(targets)
        model.train(was_training)
        return {"loss": nats / max(count, 1.0), "bits_per_byte": nats / max(count, 1.0) * bits}

    return evaluate
