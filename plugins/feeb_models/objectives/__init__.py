"""What is minimized: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from feebcore import PartConfig
from feebcore.config import Execution
from feebcore.specs import ObjectiveSpec
from feebcore.train.config import model_digest


class NextTokenConfig(PartConfig):
    z_loss: float = Field(0.0, ge=0.0, description="adds z_loss * logsumexp(logits)^2, which keeps logits small")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


class MultiTokenConfig(NextTokenConfig):
    k: int = Field(2, ge=1, description="tokens that are predicted, the next one among them; the head must predict k - 1 further ones")
    weights: tuple[float, ...] = Field((), description="of each of the k losses, the next token's first; empty: 1 each")

    @model_validator(mode="after")
    def _a_weight_each(self) -> MultiTokenConfig:
        if self.weights and len(self.weights) != self.k:
            raise ValueError(f"weights: {len(self.weights)} of them for k: {self.k} tokens; give one for each, the next token's first")
        return self


class AllLayerConfig(NextTokenConfig):
    reduce: Literal["sum", "mean"] = Field("sum", description="of the layers' losses")


class LocalGradientsConfig(AllLayerConfig):
    stop_change: float = Field(0.0, ge=0.0, description="a place that a layer changes by a smaller share is not trained on in later layers; 0: never stops")


class ConfidenceConfig(PartConfig):
    form: Literal[1, 2, 3, 4, 5] = Field(
        1,
        description="what each layer adds: 1: -ce / L; 2: log(1 - exp(-mean ce)) / L; 3: ce p live; 4: (ce where it stops, else 1) p live; "
        "5: as 4 with ce, stops and live of the layer before",
    )
    next_token: float | None = Field(None, description="weight of the last layer's plain cross-entropy beside it; default 1 for forms 1 and 2, else 0")
    targets: Literal["true", "own", "before"] = Field(
        "true", description="what ce is of: the next token, the layer's own likeliest token, or that of the layer before"
    )
    reward: bool = Field(False, description="forms 4 and 5: live places that do not stop are paid their confidence (-1 in place of 1)")
    penalise_last: bool = Field(
        False, description="forms 4 and 5: in the last layer, too, places stop at random, and those that do not pay their confidence; else all stop there"
    )

    @model_validator(mode="after")
    def _variants_of_stopping(self) -> ConfidenceConfig:
        for key in ("reward", "penalise_last"):
            if getattr(self, key) and self.form < 4:
                raise ValueError(f"{key}: form {self.form} does not depend on where places stop; choose form 4 or 5, or leave {key} out")
        return self


class SelectiveConfig(PartConfig):
    share: float = Field(0.6, gt=0.0, le=1.0, description="of each window's tokens that are trained on")
    reference: Execution[str] = Field(
        "", description="a model folder, or an artifact with one, relative to the recipe, whose loss is taken off; empty: the highest loss counts"
    )
    reference_content: str = Field("", description="digest of its weights; filled in")

    @field_validator("reference")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        return absolute(value, info)

    @model_validator(mode="after")
    def _digested(self) -> SelectiveConfig:
        object.__setattr__(self, "reference_content", model_digest(Path(self.reference)) if self.reference else "")
        return self


class DistillationConfig(PartConfig):
    teacher: Execution[str] = Field(description="a model folder, or an artifact with one, relative to the recipe; of the same tokenizer")
    teacher_content: str = Field("", description="digest of its weights; filled in")
    temperature: float = Field(2.0, gt=0.0, description="both models' logits are divided by it")
    weight: float = Field(0.5, ge=0.0, le=1.0, description="of the teacher; the rest is that of the next token's cross-entropy")

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Options for the contract: a teacher has to be somewhere."""
        from feebcore.testing.objectives import model_folder

        return {"teacher": str(model_folder())}

    @field_validator("teacher")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            raise ValueError("teacher: name the folder of a model")
        return absolute(value, info)

    @model_validator(mode="after")
    def _digested(self) -> DistillationConfig:
        object.__setattr__(self, "teacher_content", model_digest(Path(self.teacher)))
        return self


def absolute(folder: str, info: ValidationInfo) -> str:
    """A folder as an absolute path; relative ones are the recipe's."""
    base = Path((info.context or {}).get("recipe_folder", "."))
    return str((base / Path(folder).expanduser()).absolute()) if folder else ""


def specs() -> Iterable[ObjectiveSpec]:
    yield ObjectiveSpec(
        "next_token",
        NextTokenConfig,
        build="feeb_models.objectives.next_token:build_next_token",
        summary="Cross-entropy of the next token, everywhere.",
        equation="loss = (1/N) Σ_t −log p(token_{t+1} | tokens_≤t)",
    )
    yield ObjectiveSpec(
        "completion_only",
        NextTokenConfig,
        build="feeb_models.objectives.next_token:build_completion_only",
        summary="Cross-entropy of the completion, given the prompt.",
        equation="as next_token; t over the places whose next token belongs to the completion, N of them",
    )
    yield ObjectiveSpec(
        "multi_token",
        MultiTokenConfig,
        build="feeb_models.objectives.multi_token:build_multi_token",
        summary="The next token and further ones, with a head that predicts them.",
        reference="arXiv:2404.19737",
        since="1.1",
        equation="loss = Σ_{j=1…k} w_j (1/N) Σ_t −log p_j(token_{t+j})      p_1: the head; p_j: its future j − 1",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "all_layer",
        AllLayerConfig,
        build="feeb_models.objectives.layers:build_all_layer",
        summary="Cross-entropy of the next token after every layer, through the same norm and head.",
        reference="arXiv:1910.10073",
        since="1.1",
        equation="loss = Σ_l (1/N) Σ_t −log softmax(head(norm(r_l,t)))[token_{t+1}],  l = 1 … L      reduce mean: / L",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "local_gradients",
        LocalGradientsConfig,
        build="feeb_models.objectives.layers:build_local_gradients",
        summary="As all_layer, with gradients that reach one layer only.",
        reference="arXiv:1901.08164",
        since="1.1",
        equation="as all_layer, with r_{l+1} = B_l(sg(r_l)) for every block but the first",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "confidence",
        ConfidenceConfig,
        build="feeb_models.objectives.confidence:build_confidence",
        summary="Layers pay for their confidence, in proportion to which places stop early at random.",
        since="1.1",
        equation="ce_l = −log p_l(token_{t+1}),   p_l = max softmax(head(norm(r_l)));   form 1: loss = ce_L − Σ_l ce_l / L\n"
        "form 2: ce_L + Σ_l log(1 − exp(−ce_l)) / L with mean ce_l;   3: Σ_l live_l p_l ce_l;   4: Σ_l live_l p_l (ce_l where it stops, else 1)\n"
        "form 5: as 4 with live, stops and ce of layer l − 1;   all: mean over t",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "selective",
        SelectiveConfig,
        build="feeb_models.objectives.selective:build_selective",
        summary="Only the tokens with the highest loss over that of a reference model.",
        reference="arXiv:2404.07965",
        since="1.1",
        equation="loss = mean of −log p(token_{t+1}) over the `share` of each window with the largest excess\n"
        "excess_t = −log p(token_{t+1}) + log p_reference(token_{t+1})      without a reference: −log p(token_{t+1})",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "distillation",
        DistillationConfig,
        build="feeb_models.objectives.distillation:build_distillation",
        summary="A teacher's distribution over the next token, mixed with the token itself.",
        reference="arXiv:1503.02531",
        since="1.1",
        equation="loss = (1 − weight) CE + weight τ² KL(softmax(logits_teacher / τ) || softmax(logits / τ)),   τ = temperature",
        revision=2,  # counts the FLOPs of all that it runs
    )
    yield ObjectiveSpec(
        "myopic",
        NextTokenConfig,
        build="feeb_models.objectives.myopic:build_myopic",
        summary="The next token, with no gradient from a later place's loss to an earlier place.",
        reference="arXiv:2404.00859",
        since="1.1",
        equation="as next_token, with att over sg(k_s), sg(v_s) for s < t and k_t, v_t: the loss is the same, the gradient is not",
        revision=2,  # counts the FLOPs of all that it runs
    )
