"""Deliberately broken parts: each is caught by a named check. The bugs are the ones that cost people weeks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import feebcore as feeb
from feeb_models.attentions.gated_delta import GatedDeltaConfig
from feeb_models.attentions.gated_delta.gated_delta import GatedDelta
from feeb_models.attentions.multi_head import MultiHeadConfig
from feeb_models.attentions.multi_head.grouped_query import GroupedQueryAttention
from feeb_models.norms.rmsnorm import RMSNormConfig
from feeb_models.objectives.next_token.next_token import NextToken
from feeb_models.objectives.options import NextTokenConfig
from feebcore.model.context import ForwardContext
from feebcore.model.masks import Masks
from feebcore.parts import Part
from feebcore.protocols import Batch, LanguageModel, ObjectiveOutput
from feebcore.testing import check_part


class PlainConfig(MultiHeadConfig):
    """Of attentions written out here, which have none of these options."""

    inert: ClassVar[tuple[str, ...]] = (*MultiHeadConfig.model_fields, "attention_dropout", "context.window")


class PlainNormConfig(RMSNormConfig):
    inert: ClassVar[tuple[str, ...]] = tuple(RMSNormConfig.model_fields)


def rotate(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
    return context.rotate(q), context.rotate(k), v


def merge(y_BHTD: Tensor) -> Tensor:
    return y_BHTD.transpose(1, 2).flatten(2)


def mutant_attention(
    mix: Callable[..., Tensor], name: str = "mha", turn: Callable[..., Any] = rotate, merge: Callable[[Tensor], Tensor] = merge, **members: Any
) -> Part:
    """mha with its softmax(q k^T) v replaced by `mix(q, k, v, context)`, and so on."""

    class Mutant(GroupedQueryAttention):
        def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
            q, k, v = self.split(self.qkv(x_BTC))
            q, k, v = turn(q, k, v, context)
            k, v = context.update(k.transpose(1, 2), v.transpose(1, 2))
            return self.finish(self.out(merge(mix(q.transpose(1, 2), k, v, context))))

        def split(self, qkv_BTF: Tensor) -> tuple[Tensor, ...]:
            return qkv_BTF.unflatten(2, (3, self.num_heads, self.head_dim)).unbind(2)

        def finish(self, y_BTC: Tensor) -> Tensor:
            return y_BTC

    for key, member in members.items():
        setattr(Mutant, key, member)
    spec = feeb.AttentionSpec(name, PlainConfig, build=Mutant, summary="A broken part.")
    return Part("attentions", spec, PlainConfig())


def allowed(context: ForwardContext, T: int, S: int, shift: int = 0) -> Tensor:
    if context.mask_BTS is not None:
        return context.mask_BTS[:, None]
    return torch.ones(S, S, dtype=torch.bool).tril(shift)[S - T :][None, None]


def mix(
    q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, *, shift: int = 0, masked: bool = True, documents: bool = True, axis: int = -1, power: float = 0.5
) -> Tensor:
    T, S = q.shape[2], k.shape[2]
    scores = q @ k.mT / q.shape[-1] ** power
    if masked:
        mask = allowed(context, T, S, shift) if documents else torch.ones(S, S, dtype=torch.bool).tril()[S - T :][None, None]
        scores = scores.masked_fill(~mask, -1e9)
    return scores.softmax(axis) @ v


def padding_seen(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
    """Every earlier slot is attended, padding too, but never another document."""
    if context.mask_BTS is None:
        return mix(q, k, v, context)
    T, S = q.shape[2], k.shape[2]
    causal = torch.ones(S, S, dtype=torch.bool).tril()[S - T :]
    return mix(q, k, v, dataclasses.replace(context, masks=Masks(causal.expand(len(q), -1, -1))))


def cache_forgotten(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
    """The oldest cached key is dropped as soon as there is a cache."""
    if context.cache is None or k.shape[2] < 3 or q.shape[2] > 1:
        return mix(q, k, v, context)
    return mix(q, k[:, :, 1:], v[:, :, 1:], context if context.mask_BTS is None else dataclasses.replace(context, masks=Masks(context.mask_BTS[:, :, 1:])))


def weights_not_renormalized(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, axis: int = -1) -> Tensor:
    """The mask is put on after the softmax."""
    shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(axis)
    return (shares * allowed(context, q.shape[2], k.shape[2])) @ v


def among_heads(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
    """Each token's heads attend to one another, no token to another one."""
    q, k, v = (x[:, :, -q.shape[2] :].transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)


def among_channels(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
    """Scores [D,D], summed over time, in place of [T,T] summed over head_dim."""
    T = q.shape[2]
    return v[:, :, -T:] @ (q.mT @ k[:, :, -T:] / T**0.5).softmax(-1).mT


def keys_turned_when_read(q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
    """The cache keeps keys as they are; all are turned as if the first one stood where this call begins."""
    T, S = q.shape[2], k.shape[2]
    turned = k.transpose(1, 2)
    return mix(q, torch.cat([context.rotate(turned[:, i : i + T]) for i in range(0, S, T)], 1).transpose(1, 2) if S % T == 0 else k, v, context)


def weaker_each_time(self: Any, y_BTC: Tensor) -> Tensor:
    """What a pass gives depends on how many came before."""
    self.calls = vars(self).get("calls", 0) + 1
    return y_BTC / self.calls


ATTENTIONS = {
    "no mask": (mutant_attention(lambda *a: mix(*a, masked=False)), "causality"),
    "mask off by one": (mutant_attention(lambda *a: mix(*a, shift=1)), "causality"),
    "softmax over queries": (mutant_attention(lambda *a: mix(*a, axis=-2)), "causality"),
    "softmax over the batch": (mutant_attention(lambda *a: mix(*a, axis=0)), "batch_invariance"),
    "documents leak": (mutant_attention(lambda *a: mix(*a, documents=False)), "document_isolation"),
    "padding attended": (mutant_attention(padding_seen), "left_padding_parity"),
    "cache loses its first key": (mutant_attention(cache_forgotten), "cache_parity"),
    "FLOPs declared twice": (mutant_attention(mix, extra_flops=lambda self, T: (8.0 * T * T * 32, 4.0 * T * T * 32)), "counts_are_measured"),
    "FLOPs of attention not declared": (mutant_attention(mix, extra_flops=lambda self, T: (0.0, 0.0)), "counts_are_measured"),
    "cache declared half as large": (mutant_attention(mix, cache_bytes_per_token=4 * 32), "counts_are_measured"),
    "attention among heads": (mutant_attention(among_heads), "attends_to_past"),
    "scores over channels": (mutant_attention(among_channels), "causality"),
    "softmax over heads": (mutant_attention(lambda *a: mix(*a, axis=1)), "causality"),
    "softmax over heads, then masked": (mutant_attention(lambda *a: weights_not_renormalized(*a, axis=1)), "attention_weights_sum_to_one"),
    "masked after the softmax": (mutant_attention(weights_not_renormalized), "attention_weights_sum_to_one"),
    "scores not scaled": (mutant_attention(lambda *a: mix(*a, power=0.0)), "matches_reference"),
    "scores over head_dim, not its root": (mutant_attention(lambda *a: mix(*a, power=1.0)), "matches_reference"),
    "heads split without transposing": (
        mutant_attention(mix, split=lambda self, x: tuple(z.reshape(len(z), 4, -1, 8).transpose(1, 2) for z in x.chunk(3, -1))),
        "causality",
    ),
    "heads joined without transposing": (mutant_attention(mix, merge=lambda y: y.reshape(len(y), y.shape[2], -1)), "causality"),
    "keys not turned": (mutant_attention(mix, turn=lambda q, k, v, c: (c.rotate(q), k, v)), "relative_positions_shift_invariant"),
    "values turned too": (mutant_attention(mix, turn=lambda q, k, v, c: (c.rotate(q), c.rotate(k), c.rotate(v))), "relative_positions_shift_invariant"),
    "cached keys turned when read": (mutant_attention(keys_turned_when_read, turn=lambda q, k, v, c: (c.rotate(q), k, v)), "cache_parity"),
    "norm on what attention returns": (mutant_attention(mix, finish=lambda self, y: F.rms_norm(y, y.shape[-1:])), "output_projection_is_last"),
    "another result when computed again": (mutant_attention(mix, finish=weaker_each_time), "recomputation_parity"),
    "keys and queries detached": (mutant_attention(lambda q, k, v, c: v.cumsum(2) * 0 + mix(q, k, v * 0, c)), "gradient_everywhere"),
}


def mutant_recurrence(**members: Any) -> Part:
    """gated_delta with some of its methods replaced."""
    broken = type("Mutant", (GatedDelta,), members)
    spec = feeb.AttentionSpec("mutant", GatedDeltaConfig, build=broken, summary="A broken part.", breaks=("attention_weights_sum_to_one",))
    return Part("attentions", spec, GatedDeltaConfig(chunk=5))


def state_over_documents(self: Any, q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor, write: Tensor, state: Tensor, mask: Tensor | None) -> Any:
    return GatedDelta.recurrence(self, q, k, v, log_keep, write, state, None)


def state_forgotten(self: Any, x_BTW: Tensor, context: ForwardContext) -> Any:
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


def mutant_norm(forward: Callable[[Tensor], Tensor], evaluation: Callable[[Tensor], Tensor] | None = None) -> Part:
    class Mutant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x) if self.training or evaluation is None else evaluation(x)

    spec = feeb.NormSpec("mutant", PlainNormConfig, build=lambda config, context: Mutant(), summary="A broken part.")
    return Part("norms", spec, PlainNormConfig())


def rms(x: Tensor, upcast: bool = True) -> Tensor:
    y = x.float() if upcast else x
    return (y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def over_the_batch(x: Tensor) -> Tensor:
    return (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-5)


def layer_norm_by_squares(x: Tensor) -> Tensor:
    """var = E[x^2] - E[x]^2 in x's dtype."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) * ((x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0) + 1e-5).rsqrt()


NORMS = {
    "batch norm": (mutant_norm(over_the_batch), "batch_invariance"),
    "batch norm in evaluation": (mutant_norm(rms, over_the_batch), "batch_invariance"),
    "root mean square in bf16": (mutant_norm(lambda x: rms(x, upcast=False)), "computes_in_fp32"),
    "variance in bf16": (mutant_norm(layer_norm_by_squares), "computes_in_fp32"),
    "norm over time": (mutant_norm(lambda x: x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()), "causality"),
    "output far too large": (mutant_norm(lambda x: 40 * F.rms_norm(x, x.shape[-1:])), "initial_loss"),
}


def mutant_objective(change: Callable[[Batch], Batch], result: Callable[[ObjectiveOutput], ObjectiveOutput] = lambda out: out) -> Part:
    """next_token on a changed batch, or with a changed result."""

    class Mutant(NextToken):
        def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
            return result(super().__call__(model, change(batch)))

    spec = feeb.ObjectiveSpec("mutant", NextTokenConfig, build=Mutant, summary="A broken part.")
    return Part("objectives", spec, NextTokenConfig())


def shifted(batch: Batch, by: int) -> Batch:
    return dataclasses.replace(batch, targets=batch.targets.roll(-by, 1))


OBJECTIVES = {
    "targets not shifted": (mutant_objective(lambda b: dataclasses.replace(b, targets=b.tokens)), "targets_are_aligned"),
    "targets shifted twice": (mutant_objective(lambda b: shifted(b, 1)), "targets_are_aligned"),
    "mask ignored": (mutant_objective(lambda b: dataclasses.replace(b, targets=b.targets.clamp(min=0), mask=None)), "loss_mask_is_respected"),
    "padding trained on": (mutant_objective(lambda b: dataclasses.replace(b, doc_ids=None)), "padding_is_left_out"),
    "mean, not sum": (mutant_objective(lambda b: b, lambda o: dataclasses.replace(o, loss_sum=o.loss_sum / o.count)), "adds_up_over_rows"),
    "half the gradient": (
        mutant_objective(lambda b: b, lambda o: dataclasses.replace(o, loss_sum=(o.loss_sum + o.loss_sum.detach()) / 2)),
        "gradient_matches_differences",
    ),
}

MUTANTS = {
    name: (kind, *pair)
    for kind, family in (("attentions", ATTENTIONS | RECURRENCES), ("norms", NORMS), ("objectives", OBJECTIVES))
    for name, pair in family.items()
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    kind, part, wanted = MUTANTS[name]
    (result,) = check_part(kind, part, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"


TWINS = {"attentions": mutant_attention(mix), "recurrences": mutant_recurrence(), "norms": mutant_norm(rms), "objectives": mutant_objective(lambda b: b)}


@pytest.mark.parametrize("kind", TWINS)
def test_the_unbroken_form_of_the_mutants_passes(kind: str, failures: Callable[[str, Part], list[str]]) -> None:
    """But for options: these stand-ins take those of the part that they mutate, and compute without them."""
    assert [said for said in failures(TWINS[kind].kind, TWINS[kind]) if "options_have_an_effect" not in said] == []
