"""What a rate rule sees and says: rates found at one size, carried to another."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainShape:
    """The sizes a rate rule may look at. d_model and num_layers are 0 for a model that has none."""

    d_model: int
    num_layers: int
    batch_tokens: int
    steps: int


@dataclass(frozen=True)
class LRScale:
    """Factors on the optimizer's options by role ('matrix', 'embedding', 'lm_head', 'vector'); a role left out keeps its own.

    roles: on rates. weight_decay: on weight decay.
    """

    roles: dict[str, float] = field(default_factory=dict)
    weight_decay: dict[str, float] = field(default_factory=dict)

    def of(self, role: str) -> float:
        return self.roles.get(role, 1.0)

    def decay_of(self, role: str) -> float:
        return self.weight_decay.get(role, 1.0)
