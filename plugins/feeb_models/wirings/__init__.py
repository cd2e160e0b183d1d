"""How attention, feedforward and norms stand around the stream: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from feebcore.specs import WiringSpec


def specs() -> Iterable[WiringSpec]:
    yield WiringSpec(
        "prenorm",
        build="feeb_models.wirings.basic:build_prenorm",
        summary="Attention, then feedforward, each on the normed stream.",
        reference="arXiv:2002.04745",
    )
    yield WiringSpec(
        "parallel",
        build="feeb_models.wirings.basic:build_parallel",
        summary="Attention and feedforward side by side on one normed stream.",
        reference="https://github.com/kingoflolz/mesh-transformer-jax",
    )
