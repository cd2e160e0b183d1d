"""Matrices [out, in] whose deviation follows from their size or their layer, or that are orthogonal.

Everywhere: tables, the map to the vocabulary and weights of a part's own kind have the deviation `std`, so the first loss stays near ln V;
biases are 0; maps that add to the stream (ResidualLinear) are smaller by sqrt(2L), L layers, where `residual_scale`. The
one matrix that makes queries, keys and values counts as one map, so its `out` is that of all three.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from feeb_models.initializations import BySizeConfig, DepthScaledConfig, GainConfig, TruncatedConfig
from feebcore.model.parts import ResidualLinear

Initialize = Callable[[nn.Module, int], None]
Fill = Callable[[Tensor, float], object]
"""`fill(weight, std)` in place."""


def initialize(model: nn.Module, num_layers: int, std: float, residual_scale: bool, draw_matrix: Callable[[str, nn.Linear, float], object], fill: Fill) -> None:
    """draw_matrix(name, linear, scale): any nn.Linear inside the model but the map to the vocabulary; multiply by scale. fill: the others."""
    scale = 1 / math.sqrt(2 * num_layers) if residual_scale else 1.0
    to_vocabulary = vocabulary_maps(model)
    for name, module in model.named_modules():
        if callable(init_weights := getattr(module, "init_weights", None)):
            init_weights(std, std * scale)
        elif isinstance(module, nn.Embedding) or id(module) in to_vocabulary:
            fill(module.weight, std)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            draw_matrix(name, module, scale if isinstance(module, ResidualLinear) else 1.0)
        if isinstance(module, nn.Linear) and module.bias is not None and not callable(init_weights):
            nn.init.zeros_(module.bias)


def vocabulary_maps(model: nn.Module) -> set[int]:
    """Identities of the head's maps to logits: their weights stay small."""
    return {id(m) for m in model.lm_head.modules() if isinstance(m, nn.Linear) and m.out_features == model.vocab_size}  # type: ignore[union-attr]


def normal(weight: Tensor, std: float) -> None:
    nn.init.normal_(weight, std=std)


def build_truncated_normal(config: TruncatedConfig) -> Initialize:
    """N(0, std^2) without what lies beyond cut deviations; the deviation that is left is 0.88 std at 2, 0.987 std at 3.
    Weights of a part's own kind are as that part draws them."""

    def fill(weight: Tensor, std: float) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-config.cut * std, b=config.cut * std)

    return lambda model, num_layers: initialize(
        model, num_layers, config.std, config.residual_scale, lambda name, linear, scale: fill(linear.weight, config.std * scale), fill
    )


def build_by_size(config: BySizeConfig) -> Initialize:
    """std = gain / sqrt(n): n is `in` for fan_in, (in + out) / 2 for average."""

    def draw_matrix(name: str, linear: nn.Linear, scale: float) -> None:
        size = linear.in_features if config.size == "fan_in" else (linear.in_features + linear.out_features) / 2
        std = scale * config.gain / math.sqrt(size)
        nn.init.uniform_(linear.weight, -math.sqrt(3) * std, math.sqrt(3) * std) if config.uniform else normal(linear.weight, std)

    return lambda model, num_layers: initialize(model, num_layers, config.std, config.residual_scale, draw_matrix, normal)


def build_spectral(config: GainConfig) -> Initialize:
    """std = gain min(1, sqrt(out / in)) / sqrt(in): the largest singular value is of the size of sqrt(out / in), as feature
    learning at any width wants it (arXiv:2310.17813). The same rule for rates is the optimizer's business."""

    def draw_matrix(name: str, linear: nn.Linear, scale: float) -> None:
        normal(linear.weight, scale * config.gain * min(1.0, math.sqrt(linear.out_features / linear.in_features)) / math.sqrt(linear.in_features))

    return lambda model, num_layers: initialize(model, num_layers, config.std, config.residual_scale, draw_matrix, normal)


def build_orthogonal(config: GainConfig) -> Initialize:
    """gain Q with orthonormal rows or columns, whichever are fewer (arXiv:1312.6120)."""

    def draw_matrix(name: str, linear: nn.Linear, scale: float) -> None:
        if not linear.weight.is_meta:  # counting needs no values, and its QR cannot run there
            nn.init.orthogonal_(linear.weight, scale * config.gain)

    return lambda model, num_layers: initialize(model, num_layers, config.std, config.residual_scale, draw_matrix, normal)


def build_depth_scaled(config: DepthScaledConfig) -> Initialize:
    """N(0, std^2), and what adds to the stream in layer l (from 1) N(0, std^2 / 2l): later layers start smaller. A block that is
    looped counts as the layer of its first pass; outside of layers, as with all num_layers."""

    def run(model: nn.Module, num_layers: int) -> None:
        layers = {
            f"{name}.": block.layer + 1
            for name, block in model.get_submodule("stack").named_modules(prefix="stack")
            if isinstance(getattr(block, "layer", None), int)
        }

        def draw_matrix(name: str, linear: nn.Linear, scale: float) -> None:
            layer = next((number for block, number in layers.items() if name.startswith(block)), num_layers)
            normal(linear.weight, config.std / math.sqrt(2 * layer) if isinstance(linear, ResidualLinear) else config.std)

        initialize(model, num_layers, config.std, True, draw_matrix, normal)

    return run
