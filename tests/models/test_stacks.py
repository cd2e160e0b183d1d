"""Depths against models written out layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from feeb_models.stacks.looped import LoopedConfig
from feeb_models.stacks.looped.looped import passes_run
from feebcore.model.build import build_model, count_architecture
from feebcore.model.context import ForwardContext
from feebcore.parts import resolve_part
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.models import enliven, some_tokens

QUICK = ["causality", "document_isolation", "cache_parity", "left_padding_parity", "gradient_everywhere", "counts_are_measured", "bf16_is_close"]


def architecture(num_layers: int = 4, **parts: Any) -> Any:
    return resolve_part("architectures", {"name": "transformer", "num_layers": num_layers, "d_model": 32, "num_heads": 4, **parts})


def transformer(num_layers: int = 4, vivid: bool = True, **parts: Any) -> Any:
    model = build_model(architecture(num_layers, **parts), 61, 12, seed=3)
    if vivid:
        enliven(model)
    return model


def unrolled(looped: Any, num_layers: int = 4) -> Any:
    """A model of separate layers, each with the weights of the block that the pass runs through."""
    model = transformer(num_layers)
    for name in ("embedding", "final_norm", "lm_head"):
        getattr(model, name).load_state_dict(getattr(looped, name).state_dict())
    for block, i in zip(model.stack.blocks, looped.stack.order, strict=True):
        block.load_state_dict(looped.stack.blocks[i].state_dict())
    return model


@pytest.mark.parametrize("options", [{}, {"num_blocks": 2}, {"num_blocks": 2, "order": "sequence"}, {"num_blocks": 2, "order": "cycle_reversed"}])
def test_a_looped_model_is_a_deep_one_with_shared_weights(options: dict[str, Any]) -> None:
    looped = transformer(stack={"name": "looped", **options})
    deep = unrolled(looped)
    for model in (looped, deep):
        model(some_tokens()).hidden.pow(3).sum().backward()
    assert torch.equal(looped(some_tokens()).hidden, deep(some_tokens()).hidden)
    for i, block in enumerate(looped.stack.blocks):
        twins = [deep.stack.blocks[n] for n, j in enumerate(looped.stack.order) if j == i]
        for name, parameter in block.named_parameters():
            torch.testing.assert_close(parameter.grad, sum(dict(t.named_parameters())[name].grad for t in twins), rtol=1e-4, atol=1e-4)
    counts, wanted = looped.count(), deep.count()
    assert (counts.flops_per_token, counts.flops_per_token_causal, counts.cache_bytes_per_token) == (
        wanted.flops_per_token,
        wanted.flops_per_token_causal,
        wanted.cache_bytes_per_token,
    )
    assert counts.total < wanted.total


def test_passes_run_in_the_order_that_is_asked_for() -> None:
    assert LoopedConfig().passes(3) == [0, 0, 0]
    assert LoopedConfig(num_blocks=2, loops=3).passes(99) == [0, 1, 0, 1, 0, 1]
    assert LoopedConfig(num_blocks=3, order="sequence").passes(6) == [0, 0, 1, 1, 2, 2]
    assert LoopedConfig(num_blocks=3, order="cycle_reversed").passes(9) == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert LoopedConfig(num_blocks=3, order="cycle_reversed").passes(3) == [0, 1, 2]
    assert all(
        set(LoopedConfig(num_blocks=k, order=o).passes(n)) == set(range(k))
        for o in ("cycle", "sequence", "cycle_reversed")
        for n in range(1, 8)
        for k in range(1, n + 1)
    )
    with pytest.raises(ValueError, match="set num_blocks to 2 or less"):
        LoopedConfig(num_blocks=3).passes(2)
    with pytest.raises(ValidationError, match="order"):
        LoopedConfig(order="AB")


def test_injection_adds_the_embedded_tokens_and_pass_embeddings_tell_passes_apart() -> None:
    model = transformer(stack={"name": "looped", "inject": True, "pass_embedding": True})
    seen: list[Tensor] = []
    model.stack.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        layers = model(some_tokens(), want_layers=True).layers
        start, table = model.embedding(some_tokens(), ForwardContext(model.position)), model.stack.pass_table.weight
    torch.testing.assert_close(seen[0], start + table[0])
    for i in (1, 2, 3):
        torch.testing.assert_close(seen[i], layers[i - 1] + start + table[i])


OPTIONS = [
    {"name": "looped", "num_blocks": 2, "loops": 2, "inject": True, "pass_embedding": True},
    {"name": "act", "by_token": False, "loops": 3, "ponder": 0.01},
    {"name": "early_exit", "while_training": True, "threshold": 0.8, "loops": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o["name"])
def test_depths_keep_the_contract_with_other_options(options: dict[str, Any]) -> None:
    broken = [str(r) for r in iterate(candidate("stacks", resolve_part("stacks", options)), QUICK) if not r.passed]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("by_token", [False, True])
def test_halting_is_a_mean_by_the_probability_to_halt(by_token: bool) -> None:
    model = transformer(stack={"name": "act", "by_token": by_token, "ponder": 0.5})
    plain = unrolled(model)
    with torch.no_grad():
        output, streams = model(some_tokens(), want_layers=True), plain(some_tokens(), want_layers=True).layers
        bias, weight = model.stack.bias, model.stack.weight
        wanted, steps = torch.zeros(3, 12, 32), torch.zeros(3, 12)
        for b in range(3):
            for t in range(12):
                left = 1.0
                for n, s in enumerate(x[b, t] for x in streams):
                    halt = torch.sigmoid(s @ weight + bias[0] if by_token else bias[n]).item() if n < 3 else 1.0
                    wanted[b, t] += left * halt * s
                    steps[b, t] += left * halt * (n + 1)
                    left *= 1 - halt
    torch.testing.assert_close(output.layers[-1], wanted, rtol=1e-4, atol=1e-4)
    assert output.losses["ponder"].item() == pytest.approx(0.5 * steps.mean().item(), rel=1e-4)


def test_halting_begins_with_the_same_chance_at_every_pass() -> None:
    model = transformer(vivid=False, stack={"name": "act", "by_token": False})
    assert [p.item() for p in model.stack.halting_weights([torch.zeros(1, 1, 32)] * 4)] == pytest.approx([0.25] * 4)
    model = transformer(vivid=False, stack={"name": "act"})
    first, *_ = model.stack.halting_weights([torch.zeros(1, 1, 32)] * 4)
    assert first.item() == pytest.approx(0.25)
    assert count_architecture(architecture(stack="act"), 61, 12) == model.count()


def test_halting_with_one_pass_is_that_pass() -> None:
    model = transformer(1, stack="act")
    with torch.no_grad():
        assert torch.equal(model(some_tokens()).hidden, unrolled(model, 1)(some_tokens()).hidden)


@torch.no_grad()
def test_a_token_stops_when_a_pass_hardly_changes_it() -> None:
    threshold = 0.8
    model = transformer(6, stack={"name": "early_exit", "threshold": threshold})
    start = model.embedding(some_tokens(), ForwardContext(model.position))
    assert torch.equal(model(some_tokens()).hidden, unrolled(model, 6)(some_tokens()).hidden), "training runs all passes"
    streams = model.eval()(some_tokens(), want_layers=True).layers
    counted = passes_run(streams, start)
    assert counted.min() < 6 <= counted.max() or len(counted.unique()) > 1
    for b in range(3):
        for t in range(12):
            path = [start[b, t], *(s[b, t] for s in streams)]
            for n in range(1, 7):
                stopped = any((path[j] - path[j - 1]).norm() < threshold * path[j - 1].norm() for j in range(1, n))
                assert torch.equal(path[n], path[n - 1]) == stopped
            assert counted[b, t] == next((n for n in range(6, 0, -1) if not torch.equal(path[n], path[n - 1])), 0)


@torch.no_grad()
def test_convergence_thresholds_have_their_limits() -> None:
    always = transformer(stack={"name": "early_exit", "threshold": 0.0}).eval()
    assert torch.equal(always(some_tokens()).hidden, unrolled(always)(some_tokens()).hidden)
    once = transformer(stack={"name": "early_exit", "threshold": 1e9}).eval()
    assert (passes_run(once(some_tokens(), want_layers=True).layers) == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("stack", ["denseformer", "unet"])
def test_skips_begin_as_separate_layers(stack: str) -> None:
    model, plain = transformer(vivid=False, stack=stack), transformer(vivid=False)
    torch.testing.assert_close(model(some_tokens()).hidden, plain(some_tokens()).hidden)


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [4, 5])
def test_a_unet_gives_each_late_layer_what_its_mirror_read(num_layers: int) -> None:
    model = transformer(num_layers, stack="unet")
    read: list[Tensor] = []
    for block in model.stack.blocks:
        block.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    layers = model(some_tokens(), want_layers=True).layers
    for i in range(1, num_layers):
        mirror = num_layers - 1 - i
        wanted = layers[i - 1] + (model.stack.weights[mirror] * read[mirror] if mirror < i else 0)
        torch.testing.assert_close(read[i], wanted)


@torch.no_grad()
def test_a_dense_average_weighs_what_every_layer_made() -> None:
    model = transformer(stack="denseformer")
    made: list[Tensor] = [model.embedding(some_tokens(), ForwardContext(model.position))]
    for block in model.stack.blocks:
        block.register_forward_hook(lambda module, inputs, result: made.append(result))
    layers = model(some_tokens(), want_layers=True).layers
    for i, layer in enumerate(layers):
        torch.testing.assert_close(layer, torch.einsum("j,jbtc->btc", model.stack.alphas[i], torch.stack(made[: i + 2])))
