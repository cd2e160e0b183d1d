"""Deliberately broken block parts, attentions and norms aside: each is caught by a named check, and its unbroken form by none."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import feebcore as feeb
from feeb_models.blocks.prenorm.prenorm import PreNorm
from feeb_models.embeddings.standard.standard import StandardEmbedding
from feeb_models.feedforwards.dense.dense import Gelu, gelu
from feeb_models.feedforwards.moe import MoeConfig
from feeb_models.feedforwards.moe.moe import MixtureOfExperts
from feeb_models.feedforwards.moe.routers import Router, Routing
from feeb_models.feedforwards.options import FeedforwardConfig
from feeb_models.initializations.normal import NormalConfig
from feeb_models.initializations.normal.normal import Normal
from feeb_models.lm_heads.linear.linear import TiedHead
from feeb_models.lm_heads.multi_token import SequentialConfig
from feeb_models.lm_heads.multi_token.multi_token import SequentialHeads
from feeb_models.lm_heads.options import HeadConfig
from feeb_models.positions.learned.learned import Learned
from feeb_models.positions.rope import RopeConfig
from feeb_models.positions.rope.rope import Rope, plain
from feeb_models.stacks.patches import PatchesConfig
from feeb_models.stacks.patches.patches import Boundaries, Patches
from feeb_models.stacks.sequential.sequential import Sequential
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.model.parts import LMHeadPart
from feebcore.model.position import rows_of
from feebcore.parts import Part
from feebcore.protocols import Batch, BuildContext, ModelOutput
from feebcore.testing import check_part


def part(
    spec: type[feeb.PartSpec], kind: str, build: Callable[..., Any], config: type[feeb.PartConfig] = NoOptions, name: str = "mutant", **options: Any
) -> Part:
    return Part(kind, spec(name, config, build=build, summary="A broken part."), config(**options))


# --- feedforwards -----------------------------------------------------------------------------------------------


def feedforward(finish: Callable[[Tensor], Tensor] = lambda y: y, start: Callable[[Tensor], Tensor] = lambda x: x, **members: Any) -> Part:
    class Mutant(Gelu):
        def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
            return finish(super().forward(start(x_BTC), context))

    for name, member in members.items():
        setattr(Mutant, name, member)
    return part(feeb.FeedforwardSpec, "feedforwards", Mutant, FeedforwardConfig, "gelu")


def moe(route: Callable[[Router, Routing], Routing] = lambda router, routing: routing, made: Callable[..., Tensor] | None = None, **options: Any) -> Part:
    """Experts with another routing, or another way from choices to results."""

    class Mutant(MixtureOfExperts):
        def _dropless(self, x_BTC: Tensor, experts_BTK: Tensor, gates_BTK: Tensor) -> Tensor:
            return (made or MixtureOfExperts._dropless)(self, x_BTC, experts_BTK, gates_BTK)

    class MutantRouter(Router):
        def forward(self, x_BTC: Tensor, real_BT: Tensor | None = None) -> Routing:
            return route(self, super().forward(x_BTC, real_BT))

    def build(config: MoeConfig, context: BuildContext) -> nn.Module:
        mutant = Mutant(config, context)
        mutant.router = MutantRouter(config, context)
        return mutant

    return part(feeb.FeedforwardSpec, "feedforwards", build, MoeConfig, **options)


def with_experts(router: Router, routing: Routing, experts_BTK: Tensor) -> Routing:
    """The routing with other choices, and what follows from them."""
    gates_BTK = routing.shares_BTE.gather(-1, experts_BTK)
    load_BE = F.one_hot(experts_BTK, router.num_experts).sum((1, 2))
    return routing._replace(experts_BTK=experts_BTK, gates_BTK=gates_BTK, load_BE=load_BE)


def to_the_first(router: Router, routing: Routing) -> Routing:
    return with_experts(router, routing, torch.arange(router.top_k).expand_as(routing.experts_BTK))


def balanced_over_the_batch(router: Router, routing: Routing) -> Routing:
    """Scores are compared with those of all tokens at hand, so that experts get equal shares of a batch."""
    fair_BTE = routing.logits_BTE - routing.logits_BTE.mean((0, 1))
    return with_experts(router, routing, fair_BTE.topk(router.top_k, -1).indices)


def chosen_by_experts(router: Router, routing: Routing) -> Routing:
    """Each expert takes its best tokens of the row, later ones too (arXiv:2202.09368 is not causal)."""
    taken = routing.shares_BTE.transpose(1, 2)
    rank = taken.argsort(-1, descending=True).argsort(-1).transpose(1, 2)
    return routing._replace(gates_BTK=routing.gates_BTK * (rank < 3).gather(-1, routing.experts_BTK))


def left_in_experts_order(module: MixtureOfExperts, x_BTC: Tensor, experts_BTK: Tensor, gates_BTK: Tensor) -> Tensor:
    """What experts made is not put back to where the tokens came from."""
    order = experts_BTK.flatten().argsort(stable=True)
    rows = MixtureOfExperts._dropless(module, x_BTC, experts_BTK, gates_BTK).flatten(0, 1)
    return rows[order[:: experts_BTK.shape[-1]] // experts_BTK.shape[-1]].view_as(x_BTC)


def gate_forgotten(module: MixtureOfExperts, x_BTC: Tensor, experts_BTK: Tensor, gates_BTK: Tensor) -> Tensor:
    return MixtureOfExperts._dropless(module, x_BTC, experts_BTK, torch.ones_like(gates_BTK))


FEEDFORWARDS = {
    "norm on the feedforward's output": (feedforward(lambda y: F.rms_norm(y, y.shape[-1:])), "output_projection_is_last"),
    "norm on the feedforward's output, by its formula": (feedforward(lambda y: F.rms_norm(y, y.shape[-1:])), "matches_reference"),
    "activation on the output": (feedforward(gelu), "output_projection_is_last"),
    "input detached": (feedforward(start=lambda x: x.detach(), finish=lambda y: y.detach()), "gradient_everywhere"),
    "one token back and one ahead mixed in": (feedforward(start=lambda x: x + x.roll(-1, 1)), "causality"),
    "the token before, of whatever document": (feedforward(start=lambda x: x + F.pad(x[:, :-1], (0, 0, 1, 0))), "document_isolation"),
    "FLOPs of the feedforward twice": (feedforward(extra_flops=lambda self, T: (2.0 * T * self.out.weight.numel(),) * 2), "counts_are_measured"),
    "router's gradient cut": (moe(lambda router, r: r._replace(gates_BTK=r.gates_BTK.detach())), "gradient_everywhere"),
    "router's gate forgotten": (moe(made=gate_forgotten), "gradient_everywhere"),
    "one expert, its gate divided by itself": (moe(lambda router, r: r._replace(gates_BTK=r.gates_BTK / r.gates_BTK), top_k=1), "gradient_everywhere"),
    "router that routes nothing": (moe(lambda router, r: r._replace(gates_BTK=r.gates_BTK * 0)), "gradient_everywhere"),
    "router that always takes the same": (moe(to_the_first), "routing_is_not_collapsed"),
    "experts balanced over the batch": (moe(balanced_over_the_batch), "batch_invariance"),
    "experts choose tokens": (moe(chosen_by_experts), "causality"),
    "results in the experts' order": (moe(made=left_in_experts_order), "batch_invariance"),
}


# --- positions --------------------------------------------------------------------------------------------------


def rope(turn: Callable[..., Tensor] | None = None, frequencies: Callable[[int, float], Tensor] = plain, **changes: Any) -> Part:
    class Mutant(Rope):
        def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return (turn or Rope._rotated)(self, x, cos, sin)

        def frequencies(self, dim: int) -> Tensor:
            return frequencies(dim, self.config.base)

    def build(config: RopeConfig, context: BuildContext) -> nn.Module:
        return Mutant(config.model_copy(update=changes), context)

    return part(feeb.PositionSpec, "positions", build, RopeConfig, "rope")


def halves_with_angles_of_neighbors(self: Rope, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x_i is turned with x_(i+D/2), but by angles laid out for x_2i and x_2i+1: the two of a pair get different ones."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def backwards(self: Rope, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return Rope._rotated(self, x, cos, -sin)


def learned(shift: Callable[[Tensor | None, int], Tensor | None]) -> Part:
    class Mutant(Learned):
        def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
            return stream_BTC + rows_of(self.table.weight, stream_BTC.shape[1], shift(positions_BT, stream_BTC.shape[1]))

    return part(feeb.PositionSpec, "positions", Mutant)


def one_further(positions: Tensor | None, length: int) -> Tensor | None:
    """Right without a cache, where positions are None; one too far with it."""
    return None if positions is None else (positions + 1).clamp(max=11)


POSITIONS = {
    "pairs of one kind, angles of the other": (rope(halves_with_angles_of_neighbors), "relative_positions_shift_invariant"),
    "neighbors turned where halves are promised": (rope(interleaved=True), "matches_reference"),
    "turned backwards": (rope(backwards), "matches_reference"),
    "frequencies of a head twice as wide": (rope(frequencies=lambda dim, base: plain(2 * dim, base)[: dim // 2]), "matches_reference"),
    "cache offset by one": (learned(one_further), "cache_parity"),
    "cache begins at 0 again": (learned(lambda positions, length: None), "cache_parity"),
    "positions run on over documents": (learned(lambda positions, length: None), "document_isolation"),
    "positions count padding": (learned(lambda positions, length: None), "left_padding_parity"),
}


# --- heads and embeddings ---------------------------------------------------------------------------------------


def head(build: Callable[..., nn.Module], config: type[HeadConfig] = HeadConfig, **options: Any) -> Part:
    return part(feeb.LMHeadSpec, "lm_heads", build, config, **options)


def tied(**members: Any) -> Part:
    return head(type("Mutant", (TiedHead,), members))


def untied_on_load() -> Part:
    """Shares the table in the first model that is built; one that is built to be loaded into has a copy of its own."""
    built: list[nn.Module] = []

    def build(config: HeadConfig, context: BuildContext) -> nn.Module:
        made = TiedHead(config, context)
        if built:
            made.weight = nn.Parameter(made.weight.detach().clone())
        built.append(made)
        return made

    return head(build)


class CopyOfTheTable(LMHeadPart):
    """The table is copied when it is first used, and neither learns nor is saved."""

    def __init__(self, config: HeadConfig, context: BuildContext) -> None:
        super().__init__()
        self.draws = [torch.randn_like(context.embedding.weight)]

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.draws[0])

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * self.draws[0].numel(),) * 2


def sequential(change: Callable[[Batch], Batch] = lambda batch: batch, detach: bool = False, flops: Callable[..., list[float]] | None = None) -> Part:
    """Heads for further tokens that are given another batch to read, or say that they cost something else."""

    class Mutant(SequentialHeads):
        def mtp_outputs(self, model: Any, batch: Batch, output: ModelOutput) -> Any:
            found = super().mtp_outputs(model, change(batch), output)
            return [(hidden.detach(), module) for hidden, module in found] if detach else found

        def mtp_flops(self, model: Any, length: int) -> list[float]:
            return flops(model, length) if flops else super().mtp_flops(model, length)

    made = head(Mutant, SequentialConfig, num_mtp=2)
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, breaks=("gradient_everywhere", "compile_parity")))


def one_token_on(batch: Batch) -> Batch:
    return dataclasses.replace(batch, targets=batch.targets.roll(-1, 1))


HEADS = {
    "tied weights untied on load": (untied_on_load(), "saves_and_loads"),
    "table copied, not shared": (head(CopyOfTheTable), "saves_and_loads"),
    "FLOPs of the head twice": (tied(extra_flops=lambda self, T: (4.0 * T * self.weight.numel(),) * 2), "counts_are_measured"),
    "further tokens read as inputs": (sequential(one_token_on), "mtp_does_not_leak"),
    "further tokens cost nothing": (sequential(flops=lambda model, length: [0.0, 0.0]), "mtp_flops_are_measured"),
    "heads for further tokens never learn": (sequential(detach=True), "further_tokens_learn"),
}


def embedding(change: Callable[[Tensor], Tensor]) -> Part:
    class Mutant(StandardEmbedding):
        def forward(self, tokens: Tensor, context: ForwardContext) -> Tensor:  # type: ignore[override]
            return change(super().forward(tokens, context))

    return part(feeb.EmbeddingSpec, "embeddings", Mutant)


EMBEDDINGS = {
    "the next token embedded": (embedding(lambda x: x.roll(-1, 1)), "causality"),
    "the row before embedded": (embedding(lambda x: x.roll(1, 0)), "batch_invariance"),
}


# --- blocks, stacks, initializations ---------------------------------------------------------------------------


def block(forward: Callable[[PreNorm, Tensor, ForwardContext], Tensor]) -> Part:
    mutant = type("Mutant", (PreNorm,), {"forward": forward})
    return part(feeb.BlockSpec, "blocks", mutant)


def without_attention(self: PreNorm, x: Tensor, context: ForwardContext) -> Tensor:
    return x + self.feedforward(self.feedforward_norm(x), context)


def attention_detached(self: PreNorm, x: Tensor, context: ForwardContext) -> Tensor:
    x = x + self.attention(self.attention_norm(x), context).detach()
    return x + self.feedforward(self.feedforward_norm(x), context)


class LastStreamTwice(Sequential):
    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        streams, context = super().forward(stream, context)
        return [*streams, streams[-1]], context


def patches(**members: Any) -> Part:
    """Stack patches with members of `Boundaries` replaced while it runs."""

    class Mutant(Patches):
        def forward(self, stream_BTC: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
            with pytest.MonkeyPatch.context() as patch:
                for name, member in members.items():
                    patch.setattr(Boundaries, name, member)
                return super().forward(stream_BTC, context)

    return part(feeb.StackSpec, "stacks", Mutant, PatchesConfig, boundaries="words")


right_spread = Boundaries.spread


def spread_too_early(self: Boundaries, change_BPC: Tensor, before_B1C: Tensor | None) -> Tensor:
    """A token is given what the next boundary changed."""
    return right_spread(self, change_BPC.roll(-1, 1), before_B1C)


def spread_from_the_left(self: Boundaries, change_BPC: Tensor, before_B1C: Tensor | None) -> Tensor:
    """As if the short rows of all rows stood at the left, whatever stands there."""
    shifted, self.shift_B1 = self.shift_B1, torch.zeros_like(self.shift_B1)
    found = right_spread(self, change_BPC, before_B1C)
    self.shift_B1 = shifted
    return found


STACKS = {
    "patches given out a patch too early": (patches(spread=spread_too_early), "causality"),
    "short rows read from the wrong end": (patches(spread=spread_from_the_left), "left_padding_parity"),
    "a stream too many": (part(feeb.StackSpec, "stacks", LastStreamTwice), "streams_are_counted"),
}

BLOCKS = {
    "attention made and not called": (block(without_attention), "gradient_everywhere"),
    "attention detached": (block(attention_detached), "gradient_everywhere"),
    "the stream's mean over places added": (block(lambda self, x, context: PreNorm.forward(self, x + x.mean(1, keepdim=True), context)), "causality"),
}


def initialization(change: Callable[[nn.Module], object] = lambda model: None, **options: Any) -> Part:
    class Mutant(Normal):
        def __call__(self, model: nn.Module, num_layers: int) -> None:
            super().__call__(model, num_layers)
            change(model)

    return part(feeb.InitializationSpec, "initializations", Mutant, NormalConfig, **options)


@torch.no_grad()
def by_another_generator(model: nn.Module) -> None:
    for p in model.parameters():
        p.mul_(1 + 0.1 * random.random())


@torch.no_grad()
def head_of_unit_scale(model: nn.Module) -> None:
    next(model.lm_head.parameters()).normal_()  # type: ignore[union-attr]


@torch.no_grad()
def all_alike(model: nn.Module) -> None:
    for p in model.parameters():
        p.fill_(0.01)


INITIALIZATIONS = {
    "deviation 1": (initialization(std=1.0), "initial_loss"),
    "head of unit scale": (initialization(head_of_unit_scale), "initial_loss"),
    "Python's random numbers": (initialization(by_another_generator), "built_from_the_seed_alone"),
    "all weights alike": (initialization(all_alike), "built_from_the_seed_alone"),
}

FAMILIES = (FEEDFORWARDS, POSITIONS, HEADS, EMBEDDINGS, BLOCKS, STACKS, INITIALIZATIONS)
MUTANTS = {name: pair for family in FAMILIES for name, pair in family.items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    broken, wanted = MUTANTS[name]
    (result,) = check_part(broken.kind, broken, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"


TWINS = {
    "feedforward": feedforward(),
    "experts": moe(),
    "rope": rope(),
    "learned": learned(lambda positions, length: positions),
    "tied": tied(),
    "further tokens": sequential(),
    "embedding": embedding(lambda x: x),
    "block": block(PreNorm.forward),
    "patches": patches(),
    "stack": part(feeb.StackSpec, "stacks", Sequential),
    "initialization": initialization(),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_unbroken_form_of_the_mutants_passes(name: str, failures: Callable[[str, Part], list[str]]) -> None:
    assert failures(TWINS[name].kind, TWINS[name]) == []
