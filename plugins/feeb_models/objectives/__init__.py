"""What is minimised: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import ObjectiveSpec


class NextTokenConfig(PartConfig):
    z_loss: float = Field(0.0, ge=0.0, description="adds z_loss * logsumexp(logits)^2, which keeps logits small")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


def specs() -> Iterable[ObjectiveSpec]:
    yield ObjectiveSpec(
        "next_token", NextTokenConfig, build="feeb_models.objectives.next_token:build_next_token", summary="Cross-entropy of the next token, everywhere."
    )
    yield ObjectiveSpec(
        "completion_only",
        NextTokenConfig,
        build="feeb_models.objectives.next_token:build_completion_only",
        summary="Cross-entropy of the completion, given the prompt.",
    )
