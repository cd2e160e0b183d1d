"""Known models as choices of parts: the transformer with other defaults. Sizes stay small unless they are given.

What a recipe leaves out of a part's options keeps the preset's value: `attention: {num_kv_heads: 4}` of `qwen3` still
normalizes queries and keys. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, model_validator

from feeb_models import TransformerConfig
from feebcore import Part, PartKey, default_part
from feebcore.specs import ArchitectureSpec

BUILD = "feeb_models.architectures:build_transformer"
NARROW_HEAD, WIDE_HEAD, DEEP = 64, 128, 12


class PresetConfig(TransformerConfig):
    """A transformer whose sizes may be set by one number."""

    depth: int | None = Field(
        None,
        ge=1,
        description="one number for the size: fills in those of num_layers (= depth), d_model (width_per_layer a layer) and num_heads (heads of 64; from 12 layers "
        "on of 128, d_model rounded up to whole heads) that are not given, and key/value heads in groups where the preset has these",
    )
    width_per_layer: int = Field(64, ge=2, description="with depth: d_model / num_layers; below 64, heads are as narrow")

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_the_dial(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        depth, width = (data.get(key, cls.model_fields[key].default) for key in ("depth", "width_per_layer"))
        if not (isinstance(depth, int) and isinstance(width, int) and depth >= 1 and width >= 2):
            return data
        sizes: dict[str, Any] = {**depth_scaled_sizes(depth, width), **data}
        attention = cls.model_fields["attention"].default
        if "attention" not in data and attention["name"] == "gqa" and isinstance(sizes["num_heads"], int):
            sizes["attention"] = {**attention, "num_kv_heads": grouped(sizes["num_heads"])}
        return sizes


def depth_scaled_sizes(depth: int, width_per_layer: int = 64) -> dict[str, int]:
    """num_layers, d_model and num_heads of one number: width grows with depth, as in nanochat.

    Example: 4 -> 4 layers, d_model 256, 4 heads of 64; 20 -> 20 layers, d_model 1280, 10 heads of 128.
    """
    head_dim = width_per_layer if width_per_layer < NARROW_HEAD else WIDE_HEAD if depth >= DEEP else NARROW_HEAD
    num_heads = -(-width_per_layer * depth // head_dim)
    return {"num_layers": depth, "d_model": num_heads * head_dim, "num_heads": num_heads}


def grouped(num_heads: int) -> int:
    """Key/value heads for so many query heads: groups as small as can be, but of at least two. 4 -> 2, 9 -> 3, 7 -> 1."""
    return next((num_heads // size for size in range(2, num_heads + 1) if num_heads % size == 0), 1)


class DepthScaledConfig(PresetConfig):
    """The transformer of the default recipe, sized by `depth` alone."""

    depth: int | None = Field(4, ge=1, description=PresetConfig.model_fields["depth"].description)


class Gpt2Config(PresetConfig):
    """Learned positions, layer norms and biases everywhere, gelu of four times the width, tied head. GPT-2's dropout
    of 0.1 is left off; `dropout` and `attention_dropout` set it."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("mha", bias=True)
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("gelu", bias=True)
    norm: Annotated[Part, PartKey("norms")] = default_part("layernorm")
    position: Annotated[Part, PartKey("positions")] = default_part("learned")
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("tied")


class LlamaConfig(PresetConfig):
    """Llama 3: grouped queries, SwiGLU, RMS norms (eps 1e-5), rotary positions of base 500,000, a head of its own, no biases."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("gqa")
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("swiglu")
    norm: Annotated[Part, PartKey("norms")] = default_part("rmsnorm", eps=1e-5)
    position: Annotated[Part, PartKey("positions")] = default_part("rope", base=500_000.0)


class Qwen3Config(PresetConfig):
    """The small Qwen3: grouped queries with normalized queries and keys, SwiGLU of three times the width, rotary positions of base 1,000,000, tied head."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("gqa", qk_norm=True)
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("swiglu", multiple=3.0)
    norm: Annotated[Part, PartKey("norms")] = default_part("rmsnorm")
    position: Annotated[Part, PartKey("positions")] = default_part("rope", base=1_000_000.0)
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("tied")


class Gemma3Config(PresetConfig):
    """Gemma 3: five layers that see a window to one that sees all, one key/value head, normalized queries and keys, geglu, norms on
    both sides, embedding times sqrt(d_model), tied head. Its windows are of 512 or 1024 tokens; global layers turn with base
    1,000,000 there, here all layers have one base."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("local_global", pattern="LLLLLG", window=64, num_kv_heads=1, qk_norm=True)
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("geglu", multiple=6.0)
    block: Annotated[Part, PartKey("blocks")] = default_part("sandwich")
    embedding: Annotated[Part, PartKey("embeddings")] = default_part("scaled")
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("tied")


class DeepseekConfig(PresetConfig):
    """DeepSeek-V3: latent attention, one shared and many routed experts, sigmoid router balanced by a bias, a second token foretold.

    The head learns its second token only with `objective: {name: multi_token, k: 2, weights: [1, 0.3]}`; with next_token its
    blocks stay as they were drawn. DeepSeek's first layers have a dense feedforward instead of experts, which is left out.
    """

    attention: Annotated[Part, PartKey("attentions")] = default_part("mla")
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("moe", num_experts=8, top_k=2, num_shared=1, router="sigmoid", gate_scale=2.5)
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("multi_token_sequential")


class LoopedConfig(PresetConfig):
    """One block, run num_layers times; the embedded tokens are added again before each pass, and norms on both sides hold the
    stream's size."""

    block: Annotated[Part, PartKey("blocks")] = default_part("sandwich")
    stack: Annotated[Part, PartKey("stacks")] = default_part("looped", inject=True)


class NgptConfig(PresetConfig):
    """nGPT: stream, queries, keys and the rows of matrices have unit norm, and each block is a step on the sphere.

    Matrices are normed in the forward pass, not after every step (see feeb_models/sphere.py). The paper warms up for no
    steps and decays no weights: `schedule: {warmup: 0}` and `optimizer: {weight_decay: 0}` are the recipe's to say.
    """

    attention: Annotated[Part, PartKey("attentions")] = default_part("ngpt")
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("ngpt", multiple=4.0)
    norm: Annotated[Part, PartKey("norms")] = default_part("rmsnorm", learnable=False)
    block: Annotated[Part, PartKey("blocks")] = default_part("ngpt")
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("ngpt")
    initialization: Annotated[Part, PartKey("initializations")] = default_part("fan_in", residual_scale=False)


class ModdedConfig(PresetConfig):
    """What the GPT-2 speedrun settled on: relu^2, normalized queries and keys, half of each head turned, value residual and value
    embeddings, learned shares of stream and embedding, skips from the first half to the second, capped logits, norms without
    gain, what adds to the stream and the head zero at first. Its optimizer is Muon: `optimizer: muon`."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("mha", qk_norm=True, value_residual="learned", value_embeddings=True)
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("relu_squared")
    norm: Annotated[Part, PartKey("norms")] = default_part("rmsnorm", learnable=False)
    position: Annotated[Part, PartKey("positions")] = default_part("rope", fraction=0.5)
    block: Annotated[Part, PartKey("blocks")] = default_part("residual_lambdas")
    stack: Annotated[Part, PartKey("stacks")] = default_part("unet")
    embedding: Annotated[Part, PartKey("embeddings")] = default_part("normed")
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("linear", logit_softcap=15.0)
    initialization: Annotated[Part, PartKey("initializations")] = default_part("normal", zero_residual=True, zero_lm_head=True)


class GatedDeltaHybridConfig(PresetConfig):
    """Three layers of gated delta rule to one of full attention with normalized queries and keys, swiglu: three quarters of the
    layers keep a state of fixed size instead of a cache."""

    attention: Annotated[Part, PartKey("attentions")] = default_part(
        "interleaved", pattern="AAAB", a=default_part("gated_delta"), b=default_part("mha", qk_norm=True)
    )
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("swiglu")


class BytePatchesConfig(PresetConfig):
    """Bytes read in patches that end with words: hashed n-grams at the entry, one layer on bytes that sees a window, num_layers layers on
    patches that see all, one layer on bytes again. Its tokenizer is `byte`. Of the byte latent transformer it has the n-grams and the
    two scales; patches end where words do, as in SpaceByte, not where a small model is surprised."""

    stack: Annotated[Part, PartKey("stacks")] = default_part("patches", boundaries="words", window=64)
    embedding: Annotated[Part, PartKey("embeddings")] = default_part("hash_ngrams", buckets=5000)


def specs() -> Iterable[ArchitectureSpec]:
    yield ArchitectureSpec(
        "depth_scaled",
        DepthScaledConfig,
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
        summary="Qwen3: Llama's parts with normalized queries and keys and a tied head.",
        reference="arXiv:2505.09388",
        since="1.1",
    )
    yield ArchitectureSpec(
        "gemma3",
        Gemma3Config,
        build=BUILD,
        summary="Gemma 3: local and global layers 5:1, geglu, norms on both sides, tied head.",
        reference="arXiv:2503.19786",
        since="1.1",
    )
    # as of its head, what predicts further gets no gradient from the next token's loss
    yield ArchitectureSpec(
        "deepseek",
        DeepseekConfig,
        build=BUILD,
        summary="DeepSeek-V3: latent attention, shared and routed experts, two tokens ahead; use objective multi_token.",
        reference="arXiv:2412.19437",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
    )
    yield ArchitectureSpec(
        "looped",
        LoopedConfig,
        build=BUILD,
        summary="One block run again and again, the embedding added before each pass.",
        reference="arXiv:1807.03819",
        since="1.1",
    )
    yield ArchitectureSpec(
        "ngpt",
        NgptConfig,
        build=BUILD,
        summary="nGPT: everything on the unit sphere, with learned step sizes.",
        reference="arXiv:2410.01131",
        since="1.1",
    )
    yield ArchitectureSpec(
        "modded",
        ModdedConfig,
        build=BUILD,
        summary="The GPT-2 speedrun: relu^2, value residual and embeddings, lambdas, skips, capped logits.",
        reference="https://github.com/KellerJordan/modded-nanogpt",
        since="1.1",
    )
    yield ArchitectureSpec(
        "gated_delta_hybrid",
        GatedDeltaHybridConfig,
        build=BUILD,
        summary="Three layers of gated delta rule to one of full attention.",
        reference="arXiv:2412.06464",
        since="1.1",
    )
    yield ArchitectureSpec(
        "byte_patches",
        BytePatchesConfig,
        build=BUILD,
        summary="Bytes in patches that end with words: most layers take one step a word; use tokenizer byte.",
        reference="arXiv:2404.14408, arXiv:2412.09871",
        since="1.1",
    )
