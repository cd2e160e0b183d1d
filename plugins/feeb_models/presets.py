"""Known models as choices of parts: the transformer with other defaults. Sizes stay small unless they are given.

What a recipe leaves out of a part's options keeps the preset's value: `attention: {num_kv_heads: 4}` of `qwen3` still
normalises queries and keys. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, model_validator

from feeb_models import TransformerConfig
from feebcore import Part, Seam, use
from feebcore.specs import ArchitectureSpec

BUILD = "feeb_models.architectures:build_transformer"
WIDTH_PER_LAYER, NARROW_HEAD, WIDE_HEAD, DEEP = 64, 64, 128, 12


class PresetConfig(TransformerConfig):
    """A transformer whose sizes may be set by one number."""

    dial: int | None = Field(
        None,
        ge=1,
        description="one number for the size: fills in those of num_layers (= dial), d_model (64 a layer) and num_heads (heads of 64; from 12 layers on of 128, "
        "d_model rounded up to whole heads) that are not given",
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_the_dial(cls, data: Any) -> Any:
        dial = data.get("dial", cls.model_fields["dial"].default) if isinstance(data, dict) else None
        return {**dialled(dial), **data} if isinstance(dial, int) and dial >= 1 else data

    @model_validator(mode="before")
    @classmethod
    def _options_without_a_name_keep_the_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        named = dict(data)
        for key, field in cls.model_fields.items():
            value = data.get(key)
            if isinstance(value, dict) and "name" not in value and isinstance(field.default, dict) and any(isinstance(m, Seam) for m in field.metadata):
                named[key] = {**field.default, **value}
        return named


def dialled(dial: int) -> dict[str, int]:
    """num_layers, d_model and num_heads of one number: width grows with depth, as in nanochat, here 64 a layer.

    Example: 4 -> 4 layers, d_model 256, 4 heads of 64; 20 -> 20 layers, d_model 1280, 10 heads of 128.
    """
    head_dim = WIDE_HEAD if dial >= DEEP else NARROW_HEAD
    num_heads = -(-WIDTH_PER_LAYER * dial // head_dim)
    return {"num_layers": dial, "d_model": num_heads * head_dim, "num_heads": num_heads}


class DialConfig(PresetConfig):
    """The transformer of the default recipe, sized by `dial` alone."""

    dial: int | None = Field(4, ge=1, description=PresetConfig.model_fields["dial"].description)


class Gpt2Config(PresetConfig):
    """Learned positions, layer norms and biases everywhere, gelu of four times the width, tied head. GPT-2's dropout of 0.1 is left off."""

    attention: Annotated[Part, Seam("attentions")] = use("mha", bias=True)
    feedforward: Annotated[Part, Seam("feedforwards")] = use("gelu", bias=True)
    norm: Annotated[Part, Seam("norms")] = use("layernorm")
    position: Annotated[Part, Seam("positions")] = use("learned")
    head: Annotated[Part, Seam("heads")] = use("tied")


class LlamaConfig(PresetConfig):
    """Llama 3: grouped queries, SwiGLU, RMS norms (eps 1e-5), rotary positions of base 500,000, a head of its own, no biases."""

    attention: Annotated[Part, Seam("attentions")] = use("gqa")
    feedforward: Annotated[Part, Seam("feedforwards")] = use("swiglu")
    norm: Annotated[Part, Seam("norms")] = use("rmsnorm", eps=1e-5)
    position: Annotated[Part, Seam("positions")] = use("rope", base=500_000.0)


class Qwen3Config(PresetConfig):
    """The small Qwen3: grouped queries with normalised queries and keys, SwiGLU of three times the width, rotary positions of base 1,000,000, tied head."""

    attention: Annotated[Part, Seam("attentions")] = use("gqa", qk_norm=True)
    feedforward: Annotated[Part, Seam("feedforwards")] = use("swiglu", multiple=3.0)
    norm: Annotated[Part, Seam("norms")] = use("rmsnorm")
    position: Annotated[Part, Seam("positions")] = use("rope", base=1_000_000.0)
    head: Annotated[Part, Seam("heads")] = use("tied")


def specs() -> Iterable[ArchitectureSpec]:
    yield ArchitectureSpec(
        "dial",
        DialConfig,
        build=BUILD,
        summary="The transformer sized by one number: layers, width and heads follow from it.",
        reference="https://github.com/karpathy/nanochat",
        since="1.1",
    )
    yield ArchitectureSpec(
        "gpt2",
        Gpt2Config,
        build=BUILD,
        summary="GPT-2: learned positions, layer norms, biases, gelu, tied head.",
        reference="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
        since="1.1",
    )
    yield ArchitectureSpec(
        "llama",
        LlamaConfig,
        build=BUILD,
        summary="Llama 3: grouped queries, SwiGLU, RMS norms, rotary positions, no biases.",
        reference="arXiv:2407.21783",
        since="1.1",
    )
    yield ArchitectureSpec(
        "qwen3",
        Qwen3Config,
        build=BUILD,
        summary="Qwen3: Llama's parts with normalised queries and keys and a tied head.",
        reference="arXiv:2505.09388",
        since="1.1",
    )
