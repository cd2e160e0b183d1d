"""Losses on the confidence of layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import feebcore as feeb


class ConfidenceConfig(feeb.PartConfig):
    form: Literal["neg_ce", "log_one_minus_p", "exit_weighted", "exit_or_penalty", "exit_or_penalty_prev"] = Field(
        "neg_ce",
        description="loss term per layer (ce: cross-entropy; p: top-1 probability; L: layers), at positions that have not exited yet for the exit forms. "
        "neg_ce: -ce / L; log_one_minus_p: log(1 - exp(-mean ce)) / L; exit_weighted: ce p; exit_or_penalty: ce p where the position exits, else p; "
        "exit_or_penalty_prev: as exit_or_penalty, with the exits and ce of the previous layer",
    )
    next_token: float | None = Field(
        None, description="weight of an additional plain cross-entropy on the last layer; default: 1 for neg_ce and log_one_minus_p, else 0"
    )
    targets: Literal["true", "own", "before"] = Field(
        "true", description="target of the cross-entropy: the next token, the layer's own most likely token, or that of the previous layer"
    )
    reward: bool = Field(False, description="exit_or_penalty forms: reward the confidence of positions that do not exit (-p) instead of penalizing it (p)")
    penalize_last: bool = Field(
        False,
        description="exit_or_penalty forms: sample exits in the last layer too and penalize positions that do not exit; false: every position exits in the last layer",
    )

    @model_validator(mode="after")
    def _variants_of_exit(self) -> ConfidenceConfig:
        for key in ("reward", "penalize_last"):
            if getattr(self, key) and not self.form.startswith("exit_or_penalty"):
                raise ValueError(f"{key}: form {self.form} does not depend on exits; choose form exit_or_penalty or exit_or_penalty_prev, or leave {key} out")
        return self


PART = feeb.ObjectiveSpec(
    "confidence",
    ConfidenceConfig,
    build=f"{__name__}.confidence:Confidence",
    summary="Ablation: five losses on intermediate layers that penalize confidence (top-1 probability) or train stochastic early exit with that probability.",
    since="1.1",
    equation="ce_l = −log p_l(token_{t+1}),   p_l = max softmax(head(norm(r_l)));   neg_ce: loss = ce_L − Σ_l ce_l / L\n"
    "log_one_minus_p: ce_L + Σ_l log(1 − exp(−ce_l)) / L with mean ce_l;   exit_weighted: Σ_l live_l p_l ce_l\n"
    "exit_or_penalty: Σ_l live_l p_l (ce_l where t exits at l, else 1), live_l: t has not exited before l\n"
    "exit_or_penalty_prev: the same with live, exits and ce of layer l − 1;   all: mean over t",
    revision=2,  # counts the FLOPs of all that it runs
)
