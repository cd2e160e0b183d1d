"""Built-in models: the transformer, its block parts and the objectives. Options and names only; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

import feebcore as feeb
from feebcore import Part, PartConfig, Seam, use
from feebcore.model.config import TransformerConfig as AnyTransformerConfig


class TransformerConfig(AnyTransformerConfig):
    """A pre-norm transformer with rotary positions, unless parts are chosen otherwise."""

    attention: Annotated[Part, Seam("attentions")] = use("mha")
    feedforward: Annotated[Part, Seam("feedforwards")] = use("gelu")
    norm: Annotated[Part, Seam("norms")] = use("rmsnorm")
    position: Annotated[Part, Seam("positions")] = use("rope")
    wiring: Annotated[Part, Seam("wirings")] = use("prenorm")
    depth: Annotated[Part, Seam("depths")] = use("separate")
    embedding: Annotated[Part, Seam("embeddings")] = use("standard")
    head: Annotated[Part, Seam("heads")] = use("linear")
    initialisation: Annotated[Part, Seam("initialisations")] = use("normal")


class MultiHeadConfig(PartConfig):
    qk_norm: bool = Field(False, description="normalise queries and keys with the model's norm, per head, before rotation")
    bias: bool = False
    softcap: float = Field(0.0, ge=0.0, description="scores become softcap * tanh(scores / softcap); 0 is off")


class GroupedQueryConfig(MultiHeadConfig):
    num_kv_heads: int = Field(2, ge=1)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if num_heads % self.num_kv_heads:
            fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            raise ValueError(f"attention.num_kv_heads {self.num_kv_heads} does not divide num_heads {num_heads}; set num_kv_heads to one of {fits}")


class FeedforwardConfig(PartConfig):
    multiple: float = Field(4.0, gt=0, description="hidden width as a multiple of d_model, rounded to a multiple of 32")
    hidden: int | None = Field(None, ge=1, description="hidden width; wins over multiple")
    bias: bool = False

    def width(self, d_model: int) -> int:
        return self.hidden or max(32, round(self.multiple * d_model / 32) * 32)


class SwigluConfig(FeedforwardConfig):
    multiple: float = Field(8 / 3, gt=0, description="hidden width as a multiple of d_model, rounded to a multiple of 32")


class NormConfig(PartConfig):
    learnable: bool = True
    eps: float = Field(1e-6, gt=0)


class LayerNormConfig(NormConfig):
    eps: float = Field(1e-5, gt=0)
    bias: bool = Field(True, description="with learnable: a shift beside the gain")


class RopeConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"position rope turns pairs, but head_dim {head_dim} is odd; set head_dim to {head_dim + 1} or change d_model / num_heads")


class SinusoidalConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)
    scale: float = Field(0.02, gt=0, description="amplitude; the embedding's own is about 0.02 at the start")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if d_model % 2:
            raise ValueError(f"position sinusoidal needs an even d_model, not {d_model}; set d_model to {d_model + 1}")


class HeadConfig(PartConfig):
    softcap: float = Field(0.0, ge=0.0, description="logits become softcap * tanh(logits / softcap); 0 is off")


class NormalConfig(PartConfig):
    std: float = Field(0.02, gt=0)
    embedding_std: float | None = Field(None, gt=0, description="default: std")
    residual_scale: bool = Field(True, description="what is added to the stream starts smaller by sqrt(2 num_layers)")
    zero_head: bool = Field(False, description="an untied head starts at zero, so the first loss is exactly ln V")


class NextTokenConfig(PartConfig):
    z_loss: float = Field(0.0, ge=0.0, description="adds z_loss * logsumexp(logits)^2, which keeps logits small")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


@feeb.hookimpl
def feeb_architectures() -> Iterable[feeb.ArchitectureSpec]:
    yield feeb.ArchitectureSpec(
        "transformer",
        TransformerConfig,
        build="feeb_models.architectures:build_transformer",
        summary="Decoder-only transformer assembled from block parts.",
        reference="arXiv:1706.03762",
    )


@feeb.hookimpl
def feeb_attentions() -> Iterable[feeb.AttentionSpec]:
    yield feeb.AttentionSpec(
        "mha", MultiHeadConfig, build="feeb_models.attentions:build_mha", summary="Multi-head causal attention.", reference="arXiv:1706.03762"
    )
    yield feeb.AttentionSpec(
        "gqa",
        GroupedQueryConfig,
        build="feeb_models.attentions:build_gqa",
        summary="Grouped-query attention: several query heads share a key/value head.",
        reference="arXiv:2305.13245",
    )


@feeb.hookimpl
def feeb_feedforwards() -> Iterable[feeb.FeedforwardSpec]:
    yield feeb.FeedforwardSpec("gelu", FeedforwardConfig, build="feeb_models.feedforwards:build_gelu", summary="W2 gelu(W1 x).", reference="arXiv:1606.08415")
    yield feeb.FeedforwardSpec("relu", FeedforwardConfig, build="feeb_models.feedforwards:build_relu", summary="W2 relu(W1 x).", reference="arXiv:1706.03762")
    yield feeb.FeedforwardSpec(
        "relu_squared", FeedforwardConfig, build="feeb_models.feedforwards:build_relu_squared", summary="W2 relu(W1 x)^2.", reference="arXiv:2109.08668"
    )
    yield feeb.FeedforwardSpec(
        "swiglu", SwigluConfig, build="feeb_models.feedforwards:build_swiglu", summary="W2 (silu(W1 x) * W3 x).", reference="arXiv:2002.05202"
    )


@feeb.hookimpl
def feeb_norms() -> Iterable[feeb.NormSpec]:
    yield feeb.NormSpec(
        "layernorm",
        LayerNormConfig,
        build="feeb_models.norms:build_layernorm",
        summary="(x - mean) / deviation, with or without gain and shift.",
        reference="arXiv:1607.06450",
    )
    yield feeb.NormSpec(
        "rmsnorm", NormConfig, build="feeb_models.norms:build_rmsnorm", summary="x / root mean square, with or without gain.", reference="arXiv:1910.07467"
    )


@feeb.hookimpl
def feeb_positions() -> Iterable[feeb.PositionSpec]:
    yield feeb.PositionSpec("learned", build="feeb_models.positions:build_learned", summary="A learnt vector a position, added.", reference="arXiv:1705.03122")
    yield feeb.PositionSpec(
        "sinusoidal",
        SinusoidalConfig,
        build="feeb_models.positions:build_sinusoidal",
        summary="Sines and cosines of the position, added.",
        reference="arXiv:1706.03762",
    )
    yield feeb.PositionSpec(
        "rope",
        RopeConfig,
        build="feeb_models.positions:build_rope",
        summary="Queries and keys turned by angles that grow with the position.",
        reference="arXiv:2104.09864",
    )
    yield feeb.PositionSpec("none", build="feeb_models.positions:build_none", summary="No position: causality alone tells order.", reference="arXiv:2305.19466")


@feeb.hookimpl
def feeb_wirings() -> Iterable[feeb.WiringSpec]:
    yield feeb.WiringSpec(
        "prenorm", build="feeb_models.wirings:build_prenorm", summary="Attention, then feedforward, each on the normed stream.", reference="arXiv:2002.04745"
    )
    yield feeb.WiringSpec(
        "parallel",
        build="feeb_models.wirings:build_parallel",
        summary="Attention and feedforward side by side on one normed stream.",
        reference="https://github.com/kingoflolz/mesh-transformer-jax",
    )


@feeb.hookimpl
def feeb_depths() -> Iterable[feeb.DepthSpec]:
    yield feeb.DepthSpec("separate", build="feeb_models.depths:build_separate", summary="Every layer has its own weights.")


@feeb.hookimpl
def feeb_embeddings() -> Iterable[feeb.EmbeddingSpec]:
    yield feeb.EmbeddingSpec("standard", build="feeb_models.embeddings:build_standard", summary="One vector a token.")


@feeb.hookimpl
def feeb_heads() -> Iterable[feeb.HeadSpec]:
    yield feeb.HeadSpec("linear", HeadConfig, build="feeb_models.heads:build_linear", summary="A matrix of its own.")
    yield feeb.HeadSpec("tied", HeadConfig, build="feeb_models.heads:build_tied", summary="The embedding's matrix again.", reference="arXiv:1608.05859")


@feeb.hookimpl
def feeb_initialisations() -> Iterable[feeb.InitialisationSpec]:
    yield feeb.InitialisationSpec(
        "normal",
        NormalConfig,
        build="feeb_models.initialisations:build_normal",
        summary="Normal weights, smaller where they add to the stream.",
        reference="GPT-2",
    )


@feeb.hookimpl
def feeb_objectives() -> Iterable[feeb.ObjectiveSpec]:
    yield feeb.ObjectiveSpec(
        "next_token", NextTokenConfig, build="feeb_models.objectives:build_next_token", summary="Cross-entropy of the next token, everywhere."
    )
    yield feeb.ObjectiveSpec(
        "completion_only", NextTokenConfig, build="feeb_models.objectives:build_completion_only", summary="Cross-entropy of the completion, given the prompt."
    )
