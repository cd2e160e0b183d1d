"""Deliberately broken parts: each is caught by a named check. The bugs are the ones that cost people weeks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import feebcore as feeb
from feeb_models.attentions import GatedDeltaConfig, MultiHeadConfig
from feeb_models.attentions.gated_delta import GatedDelta
from feeb_models.attentions.grouped import GroupedQueryAttention
from feeb_models.norms import NormConfig
from feeb_models.objectives import NextTokenConfig
from feeb_models.objectives.next_token import NextToken
from feebcore.config import Part
from feebcore.model.context import Context
from feebcore.protocols import Batch, ObjectiveOutput
from feebcore.testing import candidate, check_part


def mutant_attention(mix: Callable[..., Tensor], **members: Any) -> Part:
    """mha with its softmax(q k^T) v replaced by `mix(q, k, v, context)`."""

    class Mutant(GroupedQueryAttention):
        def forward(self, x_BTC: Tensor, context: Context) -> Tensor:
            B, T, C = x_BTC.shape
            q, k, v = self.qkv(x_BTC).view(B, T, 3, self.num_heads, self.head_dim).unbind(2)
            q, k = context.rotate(q), context.rotate(k)
            k, v = context.extend(k.transpose(1, 2), v.transpose(1, 2))
            return self.out(mix(q.transpose(1, 2), k, v, context).transpose(1, 2).reshape(B, T, C))

    for name, member in members.items():
        setattr(Mutant, name, member)
    spec = feeb.AttentionSpec("mutant", MultiHeadConfig, build=lambda config, block: Mutant(config, block, block.num_heads), summary="A broken part.")
    return Part("attentions", spec, MultiHeadConfig())


def allowed(context: Context, T: int, S: int, shift: int = 0) -> Tensor:
    if context.mask_BTS is not None:
        return context.mask_BTS[:, None]
    return torch.ones(S, S, dtype=torch.bool).tril(shift)[S - T :][None, None]


def mix(q: Tensor, k: Tensor, v: Tensor, context: Context, *, shift: int = 0, masked: bool = True, documents: bool = True, axis: int = -1) -> Tensor:
    T, S = q.shape[2], k.shape[2]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if masked:
        mask = allowed(context, T, S, shift) if documents else torch.ones(S, S, dtype=torch.bool).tril()[S - T :][None, None]
        scores = scores.masked_fill(~mask, -1e9)
    return scores.softmax(axis) @ v


def padding_seen(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """Every earlier slot is attended, padding too, but never another document."""
    if context.mask_BTS is None:
        return mix(q, k, v, context)
    T, S = q.shape[2], k.shape[2]
    causal = torch.ones(S, S, dtype=torch.bool).tril()[S - T :]
    return mix(q, k, v, dataclasses.replace(context, mask_BTS=causal.expand(len(q), -1, -1)))


def cache_forgotten(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """The oldest cached key is dropped as soon as there is a cache."""
    if context.cache is None or k.shape[2] < 3 or q.shape[2] > 1:
        return mix(q, k, v, context)
    return mix(q, k[:, :, 1:], v[:, :, 1:], context if context.mask_BTS is None else dataclasses.replace(context, mask_BTS=context.mask_BTS[:, :, 1:]))


ATTENTIONS = {
    "no mask": (mutant_attention(lambda *a: mix(*a, masked=False)), "causality"),
    "mask off by one": (mutant_attention(lambda *a: mix(*a, shift=1)), "causality"),
    "softmax over queries": (mutant_attention(lambda *a: mix(*a, axis=-2)), "causality"),
    "softmax over the batch": (mutant_attention(lambda *a: mix(*a, axis=0)), "batch_invariance"),
    "documents leak": (mutant_attention(lambda *a: mix(*a, documents=False)), "document_isolation"),
    "padding attended": (mutant_attention(padding_seen), "left_padding_parity"),
    "cache loses its first key": (mutant_attention(cache_forgotten), "cache_parity"),
    "FLOPs declared twice": (mutant_attention(mix, extra_flops=lambda self, T: (8.0 * T * T * 32, 4.0 * T * T * 32)), "counts_are_measured"),
    "keys and queries detached": (mutant_attention(lambda q, k, v, c: v.cumsum(2) * 0 + mix(q, k, v * 0, c)), "gradient_everywhere"),
}


def mutant_recurrence(**members: Any) -> Part:
    """gated_delta with some of its methods replaced."""
    broken = type("Mutant", (GatedDelta,), members)
    spec = feeb.AttentionSpec("mutant", GatedDeltaConfig, build=lambda config, block: broken(config, block), summary="A broken part.")
    return Part("attentions", spec, GatedDeltaConfig(chunk=5))


def state_over_documents(self: Any, q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor, write: Tensor, state: Tensor, mask: Tensor | None) -> Any:
    return GatedDelta.recurrence(self, q, k, v, log_keep, write, state, None)


def state_forgotten(self: Any, x_BTW: Tensor, context: Context) -> Any:
    """As if nothing had been before, whatever the cache holds."""
    inputs, state = GatedDelta.past(self, x_BTW, context)
    return inputs, torch.zeros_like(state)


def convolution_turned_round(self: Any, past: Tensor, x_BTW: Tensor, mask: Tensor | None) -> Tensor:
    return GatedDelta.convolved(self, past, x_BTW.flip(1), None).flip(1)


RECURRENCES = {
    "state seen by the next document": (mutant_recurrence(recurrence=state_over_documents), "document_isolation"),
    "state not kept": (mutant_recurrence(past=state_forgotten), "cache_parity"),
    "convolution sees the future": (mutant_recurrence(convolved=convolution_turned_round), "causality"),
    "state not declared": (mutant_recurrence(cache_bytes_fixed=0), "counts_are_measured"),
}


def mutant_norm(forward: Callable[[Tensor], Tensor]) -> Part:
    class Mutant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    spec = feeb.NormSpec("mutant", NormConfig, build=lambda config, dim: Mutant(), summary="A broken part.")
    return Part("norms", spec, NormConfig())


NORMS = {
    "batch norm": (mutant_norm(lambda x: (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-5)), "batch_invariance"),
    "norm over time": (mutant_norm(lambda x: x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()), "causality"),
    "output far too large": (mutant_norm(lambda x: 40 * F.rms_norm(x, x.shape[-1:])), "initial_loss"),
}


def mutant_objective(change: Callable[[Batch], Batch], result: Callable[[ObjectiveOutput], ObjectiveOutput] = lambda out: out) -> Part:
    """next_token on a changed batch, or with a changed result."""
    plain = NextToken(NextTokenConfig())
    spec = feeb.ObjectiveSpec(
        "mutant", NextTokenConfig, build=lambda config: lambda model, batch: result(plain(model, change(batch))), summary="A broken part."
    )
    return Part("objectives", spec, NextTokenConfig())


def shifted(batch: Batch, by: int) -> Batch:
    return dataclasses.replace(batch, targets=batch.targets.roll(-by, 1))


OBJECTIVES = {
    "targets not shifted": (mutant_objective(lambda b: dataclasses.replace(b, targets=b.tokens)), "targets_are_aligned"),
    "targets shifted twice": (mutant_objective(lambda b: shifted(b, 1)), "targets_are_aligned"),
    "mask ignored": (mutant_objective(lambda b: dataclasses.replace(b, targets=b.targets.clamp(min=0), mask=None)), "mask_decides"),
    "padding trained on": (mutant_objective(lambda b: dataclasses.replace(b, doc_ids=None)), "padding_is_left_out"),
    "mean, not sum": (mutant_objective(lambda b: b, lambda o: dataclasses.replace(o, loss_sum=o.loss_sum / o.count)), "adds_up_over_rows"),
    "half the gradient": (
        mutant_objective(lambda b: b, lambda o: dataclasses.replace(o, loss_sum=(o.loss_sum + o.loss_sum.detach()) / 2)),
        "gradient_matches_differences",
    ),
}

MUTANTS = {
    name: (seam, *pair)
    for seam, family in (("attentions", ATTENTIONS | RECURRENCES), ("norms", NORMS), ("objectives", OBJECTIVES))
    for name, pair in family.items()
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    seam, part, wanted = MUTANTS[name]
    (result,) = check_part(seam, part, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"


def test_the_unbroken_form_of_the_mutants_passes() -> None:
    names = {wanted for _, wanted in ATTENTIONS.values()}
    assert all(r.passed for r in check_part("attentions", mutant_attention(mix), only=names))
    assert all(r.passed for r in check_part("attentions", mutant_recurrence(), only={wanted for _, wanted in RECURRENCES.values()}))
    names = {wanted for _, wanted in OBJECTIVES.values()}
    assert all(r.passed for r in check_part("objectives", mutant_objective(lambda b: b), only=names))
    assert candidate("attentions", mutant_attention(mix)).spec.name == "mutant"
