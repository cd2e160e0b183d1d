"""Learning rates found at one size, carried to another: what a scaling sees and returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from feebcore.config import PartConfig
from feebcore.protocols import BuildContext


@dataclass(frozen=True)
class TrainShape:
    """The sizes that a scaling depends on. d_model: width of the hidden states; num_layers: the transformer's option, of another model its
    `num_streams`; batch_tokens: tokens per optimizer step."""

    d_model: int
    num_layers: int
    batch_tokens: int
    steps: int


@dataclass(frozen=True)
class LRScale:
    """Factors on the optimizer's options by role ('matrix', 'embedding', 'lm_head', 'vector'); a role left out keeps its own.

    roles: on learning rates. weight_decay: on weight decay.
    """

    roles: dict[str, float] = field(default_factory=dict)
    weight_decay: dict[str, float] = field(default_factory=dict)

    def of(self, role: str) -> float:
        return self.roles.get(role, 1.0)

    def decay_of(self, role: str) -> float:
        return self.weight_decay.get(role, 1.0)


class LRScaling:
    """Base class of learning-rate scalings: a pure function of sizes."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.config = config

    def __call__(self, shape: TrainShape) -> LRScale:
        raise NotImplementedError
