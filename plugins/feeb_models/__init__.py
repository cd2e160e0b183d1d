"""Built-in models: the transformer, its block parts and the objectives. A folder a seam; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import feebcore as feeb
from feeb_models import attentions, depths, embeddings, feedforwards, heads, initialisations, norms, objectives, positions, wirings
from feebcore import Part, Seam, use
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
def feeb_wirings() -> Iterable[feeb.WiringSpec]:
    yield from wirings.specs()


@feeb.hookimpl
def feeb_depths() -> Iterable[feeb.DepthSpec]:
    yield from depths.specs()


@feeb.hookimpl
def feeb_embeddings() -> Iterable[feeb.EmbeddingSpec]:
    yield from embeddings.specs()


@feeb.hookimpl
def feeb_heads() -> Iterable[feeb.HeadSpec]:
    yield from heads.specs()


@feeb.hookimpl
def feeb_initialisations() -> Iterable[feeb.InitialisationSpec]:
    yield from initialisations.specs()


@feeb.hookimpl
def feeb_objectives() -> Iterable[feeb.ObjectiveSpec]:
    yield from objectives.specs()
