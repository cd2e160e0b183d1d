"""Matrices [out, in] whose standard deviation follows from their size or their layer, or that are orthogonal.

Everywhere: embedding tables, the map to the vocabulary and weights of a part's own kind have the standard deviation `std`, so the first
loss stays near ln V; biases are 0; residual projections (ResidualLinear) are smaller by sqrt(2L), L layers, where `residual_scale`. The
one matrix that makes queries, keys and values counts as one map, so its `out` is that of all three.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from feeb_models.initializations.variance_scaling import DepthScaledConfig, GainConfig, TruncatedConfig, VarianceScalingConfig
from feebcore.model.counting import ModelPart, draws_own_weights
from feebcore.model.draws import modules_to_draw
from feebcore.model.parts import BlockPart, ResidualLinear
from feebcore.protocols import BuildContext


class _Initialization:
    """What these have in common; `draw_matrix` differs."""

    def __init__(self, std: float, residual_scale: bool) -> None:
        self.std, self.residual_scale = std, residual_scale

    def __call__(self, model: nn.Module, num_layers: int) -> None:
        scale = 1 / math.sqrt(2 * num_layers) if self.residual_scale else 1.0
        to_vocabulary = vocabulary_maps(model)
        for name, module in modules_to_draw(model):
            if isinstance(module, ModelPart) and draws_own_weights(module):
                module.init_weights(self.std, self.std * scale)
                continue
            if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and id(module) in to_vocabulary):
                self.fill(module.weight, self.std)
            elif isinstance(module, nn.Linear):
                self.draw_matrix(name, module, scale if isinstance(module, ResidualLinear) else 1.0)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        """Any nn.Linear inside the model but the map to the vocabulary; its weights are multiplied by `scale`."""
        raise NotImplementedError

    def fill(self, weight: Tensor, std: float) -> None:
        """The others, in place."""
        nn.init.normal_(weight, std=std)


def vocabulary_maps(model: nn.Module) -> set[int]:
    """Identities of the head's maps to logits: their weights stay small."""
    return {id(m) for m in model.lm_head.modules() if isinstance(m, nn.Linear) and m.out_features == model.vocab_size}  # type: ignore[union-attr]


class TruncatedNormal(_Initialization):
    """N(0, std^2) without what lies beyond cut standard deviations; the deviation that is left is 0.88 std at 2, 0.987 std at 3.
    Weights of a part's own kind are as that part draws them."""

    def __init__(self, config: TruncatedConfig, context: BuildContext) -> None:
        super().__init__(config.std, config.residual_scale)
        self.cut = config.cut

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        self.fill(linear.weight, self.std * scale)

    def fill(self, weight: Tensor, std: float) -> None:
        nn.init.trunc_normal_(weight, std=std, a=-self.cut * std, b=self.cut * std)


class VarianceScaling(_Initialization):
    """std = gain / sqrt(n): n is `in` for fan_in, (in + out) / 2 for average."""

    def __init__(self, config: VarianceScalingConfig, context: BuildContext) -> None:
        super().__init__(config.std, config.residual_scale)
        self.config = config

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        config = self.config
        size = linear.in_features if config.size == "fan_in" else (linear.in_features + linear.out_features) / 2
        std = scale * config.gain / math.sqrt(size)
        if config.uniform:
            nn.init.uniform_(linear.weight, -math.sqrt(3) * std, math.sqrt(3) * std)
        else:
            nn.init.normal_(linear.weight, std=std)


class Spectral(_Initialization):
    """std = gain min(1, sqrt(out / in)) / sqrt(in): the largest singular value is of the size of sqrt(out / in), as feature
    learning at any width wants it (arXiv:2310.17813). The same rule for learning rates is the optimizer's business."""

    def __init__(self, config: GainConfig, context: BuildContext) -> None:
        super().__init__(config.std, config.residual_scale)
        self.gain = config.gain

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        std = scale * self.gain * min(1.0, math.sqrt(linear.out_features / linear.in_features)) / math.sqrt(linear.in_features)
        nn.init.normal_(linear.weight, std=std)


class Orthogonal(_Initialization):
    """gain Q with orthonormal rows or columns, whichever are fewer (arXiv:1312.6120)."""

    def __init__(self, config: GainConfig, context: BuildContext) -> None:
        super().__init__(config.std, config.residual_scale)
        self.gain = config.gain

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        if not linear.weight.is_meta:  # counting needs no values, and its QR cannot run there
            nn.init.orthogonal_(linear.weight, scale * self.gain)


class DepthScaled(_Initialization):
    """N(0, std^2), and residual projections of layer l (from 1) N(0, std^2 / 2l): later layers start smaller. A block that is
    looped counts as the layer of its first pass; outside of layers, as with all num_layers."""

    def __init__(self, config: DepthScaledConfig, context: BuildContext) -> None:
        super().__init__(config.std, True)

    def __call__(self, model: nn.Module, num_layers: int) -> None:
        blocks = model.get_submodule("stack").named_modules(prefix="stack")
        self.layers = {f"{name}.": block.layer + 1 for name, block in blocks if isinstance(block, BlockPart)}
        self.num_layers = num_layers
        super().__call__(model, num_layers)

    def draw_matrix(self, name: str, linear: nn.Linear, scale: float) -> None:
        layer = next((number for block, number in self.layers.items() if name.startswith(block)), self.num_layers)
        nn.init.normal_(linear.weight, std=self.std / math.sqrt(2 * layer) if isinstance(linear, ResidualLinear) else self.std)
