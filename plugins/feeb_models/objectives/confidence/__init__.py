"""Layers judged by their confidence."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import feebcore as feeb


class ConfidenceConfig(feeb.PartConfig):
    form: Literal[1, 2, 3, 4, 5] = Field(
        1,
        description="what each layer adds: 1: -ce / L; 2: log(1 - exp(-mean ce)) / L; 3: ce p live; 4: (ce where it stops, else 1) p live; "
        "5: as 4 with ce, stops and live of the layer before",
    )
    next_token: float | None = Field(None, description="weight of an additional plain cross-entropy on the last layer; default 1 for forms 1 and 2, else 0")
    targets: Literal["true", "own", "before"] = Field(
        "true", description="target of the cross-entropy: the next token, the layer's own most likely token, or that of the previous layer"
    )
    reward: bool = Field(False, description="forms 4 and 5: live positions that do not stop are rewarded for their confidence (-1 in place of 1)")
    penalise_last: bool = Field(
        False,
        description="forms 4 and 5: sample exits in the last layer too and penalize positions that do not exit; false: every position exits in the last layer",
    )

    @model_validator(mode="after")
    def _variants_of_stopping(self) -> ConfidenceConfig:
        for key in ("reward", "penalise_last"):
            if getattr(self, key) and self.form < 4:
                raise ValueError(f"{key}: form {self.form} does not depend on where places stop; choose form 4 or 5, or leave {key} out")
        return self


PART = feeb.ObjectiveSpec(
    "confidence",
    ConfidenceConfig,
    build=f"{__name__}.confidence:Confidence",
    summary="Ablation: five losses on intermediate layers that penalize confidence (top-1 probability) or train stochastic early exit with that probability.",
    since="1.1",
    equation="ce_l = −log p_l(token_{t+1}),   p_l = max softmax(head(norm(r_l)));   form 1: loss = ce_L − Σ_l ce_l / L\n"
    "form 2: ce_L + Σ_l log(1 − exp(−ce_l)) / L with mean ce_l;   3: Σ_l live_l p_l ce_l;   4: Σ_l live_l p_l (ce_l where it stops, else 1)\n"
    "form 5: as 4 with live, stops and ce of layer l − 1;   all: mean over t",
    revision=2,  # counts the FLOPs of all that it runs
)
