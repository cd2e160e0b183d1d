"""Feedforward of nGPT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feeb_models.feedforwards.options import GatedConfig


class NgptConfig(GatedConfig):
    bias: Literal[False] = Field(False, description="has none: rows of unit norm leave no place for it")


PART = feeb.FeedforwardSpec(
    "ngpt",
    NgptConfig,
    build=f"{__name__}.ngpt:NgptFeedforward",
    summary="Feedforward of nGPT: W2 (s_u W1 x * silu(s_v W3 x)) with unit rows or columns and learned gains.",
    reference="arXiv:2410.01131",
    since="1.1",
    breaks=("output_projection_is_last",),  # the last matrix is normed as it is used
    equation="y = W_2 (s_u W_1 x * silu(√C s_v W_3 x)), s_u and s_v learned, 1 at first; rows of W_1, W_3 and columns of W_2 have unit norm",
)
