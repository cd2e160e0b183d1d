"""Built-in models: the transformer, its block parts and the objectives. A folder a kind; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import feebcore as feeb
from feeb_models import attentions, blocks, embeddings, feedforwards, initializations, lm_heads, norms, objectives, positions, stacks
from feebcore import Part, PartKey, default_part
from feebcore.model.config import TransformerConfig as AnyTransformerConfig


class TransformerConfig(AnyTransformerConfig):
    """A pre-norm transformer with rotary positions, unless parts are chosen otherwise."""

    attention: Annotated[Part, PartKey("attentions")] = default_part("mha")
    feedforward: Annotated[Part, PartKey("feedforwards")] = default_part("gelu")
    norm: Annotated[Part, PartKey("norms")] = default_part("rmsnorm")
    position: Annotated[Part, PartKey("positions")] = default_part("rope")
    block: Annotated[Part, PartKey("blocks")] = default_part("prenorm")
    stack: Annotated[Part, PartKey("stacks")] = default_part("sequential")
    embedding: Annotated[Part, PartKey("embeddings")] = default_part("standard")
    lm_head: Annotated[Part, PartKey("lm_heads")] = default_part("linear")
    initialization: Annotated[Part, PartKey("initializations")] = default_part("normal")


@feeb.hookimpl
def feeb_architectures() -> Iterable[feeb.ArchitectureSpec]:
    yield feeb.ArchitectureSpec(
        "transformer",
        TransformerConfig,
        build="feeb_models.architectures:build_transformer",
        summary="Decoder-only transformer assembled from block parts.",
        reference="arXiv:1706.03762",
    )
    from feeb_models import presets  # its configs are subclasses of the one above

    yield from presets.specs()


@feeb.hookimpl
def feeb_attentions() -> Iterable[feeb.AttentionSpec]:
    yield from attentions.specs()


@feeb.hookimpl
def feeb_feedforwards() -> Iterable[feeb.FeedforwardSpec]:
    yield from feedforwards.specs()


@feeb.hookimpl
def feeb_norms() -> Iterable[feeb.NormSpec]:
    yield from norms.specs()


@feeb.hookimpl
def feeb_positions() -> Iterable[feeb.PositionSpec]:
    yield from positions.specs()


@feeb.hookimpl
def feeb_blocks() -> Iterable[feeb.BlockSpec]:
    yield from blocks.specs()


@feeb.hookimpl
def feeb_stacks() -> Iterable[feeb.StackSpec]:
    yield from stacks.specs()


@feeb.hookimpl
def feeb_embeddings() -> Iterable[feeb.EmbeddingSpec]:
    yield from embeddings.specs()


@feeb.hookimpl
def feeb_lm_heads() -> Iterable[feeb.LMHeadSpec]:
    yield from lm_heads.specs()


@feeb.hookimpl
def feeb_initializations() -> Iterable[feeb.InitializationSpec]:
    yield from initializations.specs()


@feeb.hookimpl
def feeb_objectives() -> Iterable[feeb.ObjectiveSpec]:
    yield from objectives.specs()
