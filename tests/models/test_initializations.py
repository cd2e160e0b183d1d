"""Initial weights have the sizes that their rules say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from feebcore.model.build import build_model, count_architecture
from feebcore.model.parts import ResidualLinear
from feebcore.parts import resolve_part

L, C = 3, 96


def architecture(initialization: Any, **parts: Any) -> Any:
    return resolve_part("architectures", {"name": "transformer", "num_layers": L, "d_model": C, "num_heads": 4, "initialization": initialization, **parts})


def model_of(initialization: Any, **parts: Any) -> Any:
    return build_model(architecture(initialization, **parts), 300, 12, seed=1)


def inner(model: nn.Module) -> list[tuple[str, nn.Linear, float]]:
    """Maps inside blocks, and the factor that those to the stream have."""
    return [(n, m, 1 / math.sqrt(2 * L) if isinstance(m, ResidualLinear) else 1.0) for n, m in model.stack.named_modules() if isinstance(m, nn.Linear)]


RULES = {
    "fan_in": lambda out, into: 1 / math.sqrt(into),
    "xavier": lambda out, into: math.sqrt(2 / (into + out)),
    "spectral": lambda out, into: min(1, math.sqrt(out / into)) / math.sqrt(into),
    "truncated_normal": lambda out, into: 0.02 * 0.9866,  # what is left of a normal cut at 3
}


@pytest.mark.parametrize("name", RULES)
def test_deviations_follow_the_rule(name: str) -> None:
    model = model_of(name)
    for where, linear, scale in inner(model):
        assert linear.weight.std().item() == pytest.approx(scale * RULES[name](*linear.weight.shape), rel=0.04), where
    for table in (model.embedding.weight, model.lm_head.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.04)


def test_uniform_weights_have_bounds_and_the_same_deviation() -> None:
    for _, linear, scale in inner(model_of({"name": "fan_in", "uniform": True, "gain": 2.0})):
        std = 2 * scale / math.sqrt(linear.in_features)
        assert linear.weight.std().item() == pytest.approx(std, rel=0.03)
        assert linear.weight.abs().max().item() <= math.sqrt(3) * std


def test_nothing_lies_beyond_the_cut() -> None:
    model = model_of({"name": "truncated_normal", "std": 0.05, "cut": 2.0})
    for _, linear, scale in [*inner(model), ("lm_head", model.lm_head, 1.0)]:
        assert 1.8 * 0.05 * scale < linear.weight.abs().max().item() <= 2 * 0.05 * scale * (1 + 1e-5)
    assert model.embedding.weight.abs().max().item() <= 0.1


def test_orthogonal_matrices_keep_lengths() -> None:
    for where, linear, scale in inner(model_of({"name": "orthogonal", "gain": 1.5})):
        values = torch.linalg.svdvals(linear.weight.detach())
        torch.testing.assert_close(values, torch.full_like(values, 1.5 * scale), rtol=1e-4, atol=1e-4, msg=where)


@pytest.mark.parametrize(("out", "into"), [(400, 100), (100, 400), (300, 300)])
def test_spectral_norms_are_of_the_size_of_the_root_of_out_over_in(out: int, into: int) -> None:
    from feeb_models.initializations.variance_scaling import GainConfig
    from feeb_models.initializations.variance_scaling.variance_scaling import Spectral
    from feebcore.protocols import BuildContext

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.lm_head, self.vocab_size = nn.Linear(into, out), nn.Linear(2, 7), 7

    holder = Holder()
    Spectral(GainConfig(), BuildContext())(holder, L)
    norm = torch.linalg.matrix_norm(holder.inner.weight.detach(), 2).item()
    assert 0.9 < norm / math.sqrt(out / into) < 2.3  # a Gaussian's is std (sqrt(in) + sqrt(out))
    assert holder.inner.bias.abs().max() == 0


def test_later_layers_start_smaller_by_depth() -> None:
    model = model_of("depth_scaled")
    for i, block in enumerate(model.stack.blocks, 1):
        assert block.attention.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * i), rel=0.03)
        assert block.feedforward.hidden.weight.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("name", ["truncated_normal", "fan_in", "xavier", "spectral", "orthogonal", "depth_scaled"])
def test_counting_needs_no_memory_and_biases_begin_at_zero(name: str) -> None:
    parts = {"attention": {"name": "mha", "bias": True}, "block": "hyper_connections", "stack": "act", "embedding": "factorized", "lm_head": "multi_token"}
    model = model_of(name, **parts)
    assert count_architecture(architecture(name, **parts), 300, 12) == model.count()
    block = model.stack.blocks[0]
    assert block.attention.qkv.bias.abs().max() == 0
    assert block.attention_mix.weights.weight.abs().max() == 0, "weights of a part's own kind are drawn by the part"


@pytest.mark.parametrize("name", ["normal", *RULES, "orthogonal", "depth_scaled"])
def test_a_part_that_differs_leaves_all_other_weights_as_they_are(name: str) -> None:
    """So that runs under one seed differ by that part, not by every weight that is drawn after it."""
    plain = dict(model_of(name).named_parameters())
    for parts in ({"attention": {"name": "gqa", "num_kv_heads": 2}}, {"feedforward": "moe"}, {"num_layers": 2}, {"embedding": "factorized"}):
        other = dict(build_model(architecture(name, **parts), 300, 12, seed=1).named_parameters())
        alike = [key for key, weight in plain.items() if key in other and other[key].shape == weight.shape and weight.std() > 0]
        assert len(alike) > 3
        scale = math.sqrt(2 / 3) if "num_layers" in parts else 1.0  # the maps to the stream are smaller in a deeper model
        for key in alike:
            ratio = (plain[key].norm() / other[key].norm()).item()
            assert torch.allclose(plain[key], ratio * other[key], atol=1e-6), (parts, key)
            assert min(abs(ratio - 1), abs(ratio - scale)) < 1e-3, (parts, key)
