"""What blocks share goes in and out as a value: recomputation and detached layers see what the forward pass saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.registry import get_registry
from feebcore.testing.framework import candidate
from feebcore.testing.models import LENGTH, ROWS, VOCAB, enliven, some_tokens
from feebcore.train.step import checkpoint_activations

STACKS = [spec.name for _, spec in get_registry().parts("stacks") if spec.distribution == "feeb"]
ATTENTIONS = [spec.name for _, spec in get_registry().parts("attentions") if spec.distribution == "feeb"]
BLOCKS = [spec.name for _, spec in get_registry().parts("blocks") if spec.distribution == "feeb"]


def transformer(num_layers: int = 4, **parts: Any) -> Any:
    architecture = {"name": "transformer", "num_layers": num_layers, "d_model": 32, "num_heads": 4, **parts}
    model = build_model(resolve_part("architectures", architecture), VOCAB, LENGTH, seed=1)
    enliven(model)
    return model


def gradients(objective: str, recompute: bool, **parts: Any) -> dict[str, Tensor]:
    model, tokens = transformer(**parts), some_tokens(ROWS, LENGTH + 1)
    if recompute:
        assert checkpoint_activations(model) == len(blocks_of(model))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    torch.manual_seed(0)
    resolve_part("objectives", objective).build()(model, batch).loss_sum.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def require_same(objective: str = "next_token", **parts: Any) -> None:
    kept, recomputed = (gradients(objective, recompute, **parts) for recompute in (False, True))
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_keys_shared_by_looped_layers_are_those_of_their_own_round() -> None:
    require_same(stack={"name": "looped", "num_blocks": 2}, attention={"name": "cross_layer", "kv_share_layers": 2})


@pytest.mark.parametrize("block", ["residual_lambdas", "prenorm"])
def test_local_gradients_go_with_recomputation(block: str) -> None:
    require_same("local_gradients", block=block, attention={"name": "mha", "value_residual": "learned"})


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_recomputation_gives_the_same_gradient_for_every_attention_in_every_stack(attention: str, stack: str) -> None:
    if stack == "patches" and attention in ("gated_delta", "interleaved"):
        pytest.skip("rows reach patches at different times, which a state of fixed size does not allow")
    options = candidate("attentions", attention).part.dump()
    stacked: Any = {"name": "looped", "num_blocks": 2} if stack == "looped" else stack
    parts = {"attention": {"name": "cross_layer", "kv_share_layers": 1} if attention == "cross_layer" and stack == "patches" else options}
    require_same(stack=stacked, num_layers=2 if stack != "looped" else 4, **parts)


@pytest.mark.parametrize("block", BLOCKS)
def test_recomputation_gives_the_same_gradient_for_every_block(block: str) -> None:
    mha = {"name": "mha", "value_residual": "learned", "value_embeddings": True}
    require_same(block=block, attention=mha, stack={"name": "looped", "num_blocks": 2, "inject": True}, feedforward="moe", dropout=0.1, attention_dropout=0.1)
