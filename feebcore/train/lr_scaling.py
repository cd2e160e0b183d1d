"""Learning rates found at one size, carried to another: what a scaling sees and returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from feebcore.config import PartConfig
from feebcore.protocols import BuildContext

LEAST_BETA2, LARGEST_BETA2 = 0.9, 0.9999
"""Between these a decay rate is moved; one that lies outside as written may stay there, but moves no further."""


@dataclass(frozen=True)
class TrainShape:
    """The sizes that a scaling depends on; 0: not known.

    d_model: width of the hidden states; num_layers: the transformer's option, of another model its `num_streams`; batch_tokens: tokens
    per optimizer step; steps: optimizer steps of the run. block_parameters: weights of matrices outside embedding and output head;
    head_parameters: those of the head, tied or not; block_flops: training FLOPs per token without the head's, attention counted in full.
    """

    d_model: int
    num_layers: int
    batch_tokens: int
    steps: int
    block_parameters: int = 0
    head_parameters: int = 0
    block_flops: float = 0.0

    @property
    def tokens(self) -> int:
        """Of the whole run: its token horizon."""
        return self.batch_tokens * self.steps


@dataclass(frozen=True)
class LRScale:
    """Factors on the optimizer's options, by role ('matrix', 'embedding', 'lm_head', 'vector') or for all; what is left out stays as written.

    roles: on learning rates. weight_decay: on weight decay. beta2_power: exponent of the decay rate of Adam's average of squared
    gradients; eps: on what is added to that average's root. Of an optimizer without such an average both change nothing.
    batch_tokens: tokens per step that the rule's source found best for this run, where the rule does not correct for others; changes nothing.
    """

    roles: dict[str, float] = field(default_factory=dict)
    weight_decay: dict[str, float] = field(default_factory=dict)
    beta2_power: float = 1.0
    eps: float = 1.0
    batch_tokens: float | None = None

    def of(self, role: str) -> float:
        return self.roles.get(role, 1.0)

    def decay_of(self, role: str) -> float:
        return self.weight_decay.get(role, 1.0)

    def scaled_beta2(self, beta2: float) -> float:
        """`beta2` ** beta2_power, from 0.9 to 0.9999."""
        return min(max(beta2**self.beta2_power, min(beta2, LEAST_BETA2)), max(beta2, LARGEST_BETA2))

    def facts(self) -> dict[str, Any]:
        """What is set, as JSON values."""
        untouched = dataclasses.asdict(LRScale())
        return {key: value for key, value in dataclasses.asdict(self).items() if value != untouched[key]}


class LRScaling:
    """Base class of learning-rate scalings: a pure function of sizes."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.config = config

    def __call__(self, shape: TrainShape) -> LRScale:
        raise NotImplementedError
