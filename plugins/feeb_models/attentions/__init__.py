"""How tokens look at each other: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from feebcore import Part, PartConfig, PartKey, default_part
from feebcore.specs import AttentionSpec


class AttentionConfig(PartConfig):
    qk_norm: bool = Field(False, description="normalize queries and keys with the model's norm, per head, before rotation")
    bias: bool = False
    logit_softcap: float = Field(0.0, ge=0.0, description="scores become logit_softcap * tanh(scores / logit_softcap); 0 is off")


class MultiHeadConfig(AttentionConfig):
    value_residual: Literal["none", "constant", "learned"] = Field(
        "none", description="mix the first layer's values into later ones (arXiv:2410.17897): by halves, or with two learned weights a layer"
    )
    value_embeddings: bool = Field(False, description="add to the values a learned vector a token, of a table of the layer's own")


class GroupedQueryConfig(MultiHeadConfig):
    num_kv_heads: int = Field(2, ge=1)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.num_kv_heads, num_heads)


class WindowConfig(MultiHeadConfig):
    example: ClassVar[dict[str, Any]] = {"window": 4}
    window: int = Field(128, ge=1, description="tokens that a query sees, itself among them")
    num_kv_heads: int | None = Field(None, ge=1, description="default num_heads")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.num_kv_heads or num_heads, num_heads)


class LocalGlobalConfig(WindowConfig):
    example: ClassVar[dict[str, Any]] = {"window": 4, "pattern": "LG"}
    pattern: str = Field("LLLLLG", pattern="^[LG]+$", description="one letter a layer, repeated: L sees `window` tokens, G all")
    rotate_global: bool = Field(True, description="false: no position is turned into the queries and keys of G layers (arXiv:2501.18795)")


class CrossLayerConfig(AttentionConfig):
    share: int = Field(2, ge=1, description="so many neighboring layers use the keys and values of the first of them")
    num_kv_heads: int | None = Field(None, ge=1, description="default num_heads")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.num_kv_heads or num_heads, num_heads)


class LatentConfig(PartConfig):
    query_latent: int = Field(0, ge=0, description="width of what queries are made from; 0: the stream itself")
    kv_latent: int | None = Field(None, ge=1, description="width of what keys and values are made from, and what is cached; default 4 head_dim")
    content_dim: int | None = Field(None, ge=1, description="dimensions of a head's query and key that are not rotated; default head_dim")
    rope_dim: int | None = Field(None, ge=2, description="dimensions of a head's query that are rotated, and of the one key for them; default head_dim / 2")
    value_dim: int | None = Field(None, ge=1, description="dimensions of a head's value; default content_dim")
    latent_norm: bool = Field(True, description="normalize both latents with the model's norm")
    logit_softcap: float = Field(0.0, ge=0.0, description="scores become logit_softcap * tanh(scores / logit_softcap); 0 is off")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if self.rope_dim and self.rope_dim % 2:
            raise ValueError(f"attention.rope_dim {self.rope_dim} is odd, but positions turn pairs; set it to {self.rope_dim + 1}")


class NoValueConfig(AttentionConfig):
    projection: bool = Field(True, description="multiply the result with an output matrix")


class DifferentialConfig(AttentionConfig):
    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if num_heads % 2:
            raise ValueError(f"attention differential subtracts heads in pairs, but num_heads is {num_heads}; set num_heads to {num_heads + 1}")


class ScaledConfig(PartConfig):
    scale: float = Field(2.0, description="what the attention's result is multiplied with before it joins the stream")
    inner: Annotated[Part, PartKey("attentions")] = default_part("mha")


class GatedDeltaConfig(PartConfig):
    value_dim: int | None = Field(None, ge=1, description="dimensions of a head's value; default head_dim, the paper takes twice as many")
    conv: int = Field(4, ge=1, description="tokens, each its own among them, that a short convolution mixes into queries, keys and values; 1: none")
    chunk: int = Field(64, ge=1, description="tokens that are computed side by side; changes cost, not the result")
    example: ClassVar[dict[str, Any]] = {"chunk": 5}  # so that a short row has several


class InterleavedConfig(PartConfig):
    """A recipe that changes an option of `a` or `b` without naming the part means the default part."""

    pattern: str = Field("AAAB", pattern="^[AB]+$", description="one letter a layer, repeated")
    a: Annotated[Part, PartKey("attentions")] = default_part("gated_delta")
    b: Annotated[Part, PartKey("attentions")] = default_part("mha")


class NgptConfig(PartConfig):
    scale: float = Field(1.0, gt=0, description="of the learned gains on normalized queries and keys, at first")


def check_groups(num_kv_heads: int, num_heads: int) -> None:
    if num_heads % num_kv_heads:
        fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise ValueError(f"attention.num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; set num_kv_heads to one of {fits}")


def specs() -> Iterable[AttentionSpec]:
    yield AttentionSpec(
        "mha",
        MultiHeadConfig,
        build="feeb_models.attentions.grouped:build_mha",
        summary="Multi-head causal attention.",
        reference="arXiv:1706.03762",
        equation="q, k, v = rot(W_q x), rot(W_k x), W_v x      H heads of width D each\ny = W_o [att(q_h, k_h, v_h)]_h",
    )
    yield AttentionSpec(
        "gqa",
        GroupedQueryConfig,
        build="feeb_models.attentions.grouped:build_gqa",
        summary="Grouped-query attention: several query heads share a key/value head.",
        reference="arXiv:2305.13245",
        equation="as mha with G = num_kv_heads key and value heads:\ny = W_o [att(q_h, k_g, v_g)]_h,   g = ⌊h G / H⌋",
    )
    yield AttentionSpec(
        "mqa",
        MultiHeadConfig,
        build="feeb_models.attentions.grouped:build_mqa",
        summary="Multi-query attention: all query heads share one key/value head.",
        reference="arXiv:1911.02150",
        since="1.1",
        equation="y = W_o [att(q_h, k, v)]_h      one k and one v for all heads",
    )
    yield AttentionSpec(
        "sliding_window",
        WindowConfig,
        build="feeb_models.attentions.grouped:build_sliding_window",
        summary="Each token sees so many tokens before it.",
        reference="arXiv:2004.05150",
        since="1.1",
        equation="as gqa (G = H unless num_kv_heads), att over the s with t − window < s ≤ t only",
    )
    yield AttentionSpec(
        "local_global",
        LocalGlobalConfig,
        build="feeb_models.attentions.grouped:build_local_global",
        summary="Layers that see a window and layers that see all, in a pattern.",
        reference="arXiv:2408.00118",
        since="1.1",
        equation="layer l, letter = pattern[l mod length of pattern]:\nL: as sliding_window;   G: att over all s ≤ t, without rot if rotate_global is false",
    )
    yield AttentionSpec(
        "cross_layer",
        CrossLayerConfig,
        build="feeb_models.attentions.cross_layer:build_cross_layer",
        summary="Neighboring layers share the keys and values of the first of them, and their cache.",
        reference="arXiv:2405.12981",
        since="1.1",
        equation="q = rot(W_q x_l);   k, v = rot(W_k x_j), W_v x_j  with x_j and matrices of layer j = share ⌊l / share⌋\n"
        "y = W_o [att(q_h, k_g, v_g)]_h      g as in gqa, G = H unless num_kv_heads",
    )
    yield AttentionSpec(
        "mla",
        LatentConfig,
        build="feeb_models.attentions.latent:build_mla",
        summary="Multi-head latent attention: keys and values are made from a narrow latent, which is all that is cached.",
        reference="arXiv:2405.04434",
        since="1.1",
        equation="c = norm(W_dkv x);   q_h = [W_uq,h x; rot(W_qr,h x)],   k_h = [W_uk,h c; rot(W_kr x)],   v_h = W_uv,h c\n"
        "y = W_o [att(q_h, k_h, v_h)]_h      with query_latent, queries read norm(W_dq x) in place of x",
    )
    yield AttentionSpec(
        "differential",
        DifferentialConfig,
        build="feeb_models.attentions.differential:build_differential",
        summary="The difference of two softmax maps a head, so that what both attend to cancels.",
        reference="arXiv:2410.05258",
        since="1.1",
        equation="A_i = softmax(rot(q_i) rot(k_i)ᵀ / √D + b_i);   y_h = (1 − λ0) rms((A_2h − λ A_2h+1) v_h) * gain,   y = W_o [y_h]_h\n"
        "λ = exp(a1·b1) − exp(a2·b2) + λ0,   λ0 = 0.8 − 0.6 exp(−0.3 l);   H/2 values of width 2D",
    )
    yield AttentionSpec(
        "no_value",
        NoValueConfig,
        build="feeb_models.attentions.no_value:build_no_value",
        summary="The sum of the heads' weights times the input itself: no value matrix.",
        reference="arXiv:2311.01906",
        since="1.1",
        equation="A_h = softmax(rot(q_h) rot(k_h)ᵀ / √D + b_h);   y = W_o (Σ_h A_h) x",
    )
    yield AttentionSpec(
        "scaled",
        ScaledConfig,
        build="feeb_models.attentions.scaled:build_scaled",
        summary="Another attention, its result multiplied by a constant.",
        since="1.1",
        equation="y = scale inner(x)",
    )
    yield AttentionSpec(
        "gated_delta",
        GatedDeltaConfig,
        build="feeb_models.attentions.gated_delta:build_gated_delta",
        summary="A linear recurrence that forgets by a gate and overwrites by the delta rule: a state of fixed size instead of a cache.",
        reference="arXiv:2412.06464",
        since="1.1",
        breaks=("averages_values",),
        equation="S_t = a_t S_{t−1} + k_t (b_t (v_t − a_t S_{t−1}ᵀ k_t))ᵀ, o_t = S_tᵀ q_t, y = W_out (rms(o) gain * silu(W_g x)), a head\n"
        "q, k, v = silu(conv(W x)), q and k of unit norm;  a = exp(−A softplus(W_a x + d)), b = σ(W_b x)",
    )
    yield AttentionSpec(
        "interleaved",
        InterleavedConfig,
        build="feeb_models.attentions.interleaved:build_interleaved",
        summary="Two attentions in a pattern over layers, such as three linear ones to one that sees all.",
        reference="arXiv:2403.19887",
        since="1.1",
        breaks=("averages_values",),
        equation="y = a(x) in layers where the pattern, repeated, has an A, else b(x)",
    )
    yield AttentionSpec(
        "ngpt",
        NgptConfig,
        build="feeb_models.attentions.ngpt:build_ngpt",
        summary="Queries and keys of unit norm with learned gains, from matrices of unit rows.",
        reference="arXiv:2410.01131",
        since="1.1",
        breaks=("only_distance_counts", "residual_maps_are_last"),  # gains come after the rotation; W_out is normed as it is used
        equation="q = s u(rot_t(W_q x)), k = s u(rot_s(W_k x)), y = W_out [softmax(√D q kᵀ) v]_h, u(x) = x / |x|\n"
        "s learned; rows of W_q, W_k, W_v and columns of W_out have unit norm",
    )
    yield AttentionSpec(
        "none",
        build="feeb_models.attentions.scaled:build_none",
        summary="No attention: adds nothing, so each token is alone.",
        since="1.1",
        breaks=("gradient_everywhere", "overfits_one_batch", "looks_back"),
        equation="y = 0",
    )
