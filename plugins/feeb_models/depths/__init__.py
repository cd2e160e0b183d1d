"""How blocks are stacked: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from feebcore.specs import DepthSpec


def specs() -> Iterable[DepthSpec]:
    yield DepthSpec("separate", build="feeb_models.depths.separate:build_separate", summary="Every layer has its own weights.")
