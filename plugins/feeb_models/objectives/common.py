"""What objectives share: the loss mask, auxiliary losses, every layer's prediction, and values per token without all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from feebcore.model.counting import count_flops
from feebcore.model.loss import most_logits_on
from feebcore.protocols import Batch, LanguageModel, ModelOutput


def loss_mask(batch: Batch) -> Tensor | None:
    """[B,T] bool: targets that count; None: all."""
    if batch.doc_ids is None:
        return batch.mask
    real_BT = batch.doc_ids >= 0
    return real_BT if batch.mask is None else batch.mask & real_BT


def loss_mask_or_ones(batch: Batch) -> Tensor:
    """[B,T] bool: as `loss_mask`, never None."""
    mask_BT = loss_mask(batch)
    return torch.ones_like(batch.targets, dtype=torch.bool) if mask_BT is None else mask_BT


def with_auxiliary(loss_sum: Tensor, count: Tensor, output: ModelOutput) -> Tensor:
    """The sum with the model's auxiliary terms (load balance of experts and the like), which are means, added."""
    for extra in output.losses.values():
        loss_sum = loss_sum + extra * count
    return loss_sum


def run_with_layers(name: str, model: LanguageModel, batch: Batch, **more: Any) -> tuple[ModelOutput, list[Tensor]]:
    """The model's output and what its head reads after each layer [B,T,C]: final_norm(stream); the last is `output.hidden`."""
    output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids, want_layers=True, **more)
    if output.layers is None:
        raise ValueError(
            f"objective {name}: {type(model).__name__} does not give the stream of every layer; it must answer want_layers=True with `layers`, "
            "as architecture transformer does"
        )
    return output, [*(model.final_norm(stream_BTC) for stream_BTC in output.layers[:-1]), output.hidden]


def earlier_heads(model: LanguageModel, length: int) -> float:
    """Forward FLOPs of the head on every layer but the last, for one sequence."""
    return (model.num_streams - 1) * count_flops(model.lm_head, length)[0]


def by_chunks(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor, vocab_size: int, most_logits: int = 0) -> tuple[Tensor, ...]:
    """`function(*rows)`, tensors [N,...] to tensors [N], on so many rows at a time that at most `most_logits` logits exist (0: as suits the device).

    More than one chunk: each is computed again in the backward pass instead of kept.
    """
    most_logits = most_logits or most_logits_on(rows[0].device.type, rows[0].device.index)
    size, total = max(1, most_logits // vocab_size), len(rows[0])
    if size >= total:
        return function(*rows)
    chunks = [checkpoint(function, *(row[i : i + size] for row in rows), use_reentrant=False) for i in range(0, total, size)]
    return tuple(torch.cat(each) for each in zip(*chunks, strict=True))


def nll_per_token(head: Callable[[Tensor], Tensor], hidden_BTC: Tensor, targets_BT: Tensor, mask_BT: Tensor, vocab_size: int) -> Tensor:
    """[B,T] fp32: -log p of each target; of targets that do not count, which may hold anything, that of token 0."""

    def nll(hidden_NC: Tensor, targets_N: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(head(hidden_NC).float(), targets_N, reduction="none"),)

    targets_BT = targets_BT.masked_fill(~mask_BT, 0)
    return by_chunks(nll, hidden_BTC.flatten(0, 1), targets_BT.flatten(), vocab_size=vocab_size)[0].view_as(targets_BT)
