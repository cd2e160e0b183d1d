"""A loss after every layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feeb_models.objectives.options import NextTokenConfig


class AllLayerConfig(NextTokenConfig):
    reduce: Literal["sum", "mean"] = Field("sum", description="how the layers' losses are combined")


class LocalGradientsConfig(AllLayerConfig):
    stop_change: float = Field(0.0, ge=0.0, description="a position that a layer changes by a smaller share is not trained on in later layers; 0: off")


ALL_LAYER = f"{__name__}.all_layer"

PARTS = (
    feeb.ObjectiveSpec(
        "all_layer",
        AllLayerConfig,
        build=f"{ALL_LAYER}:AllLayer",
        summary="Deep supervision: next-token cross-entropy after every layer, through the same final norm and LM head.",
        reference="arXiv:1910.10073",
        since="1.1",
        equation="loss = Σ_l (1/N) Σ_t −log softmax(head(norm(r_l,t)))[token_{t+1}],  l = 1 … L      reduce mean: / L",
        revision=2,  # counts the FLOPs of all that it runs
    ),
    feeb.ObjectiveSpec(
        "local_gradients",
        LocalGradientsConfig,
        build=f"{ALL_LAYER}:LocalGradients",
        summary="Decoupled greedy learning: all_layer loss with gradients stopped between layers, so each layer is trained by its own loss only.",
        reference="arXiv:1901.08164",
        since="1.1",
        equation="as all_layer, with r_{l+1} = B_l(sg(r_l)) for every block but the first",
        revision=2,  # counts the FLOPs of all that it runs
    ),
)
