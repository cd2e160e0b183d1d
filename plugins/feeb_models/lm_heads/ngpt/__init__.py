"""LM head of nGPT."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.LMHeadSpec(
    "ngpt",
    build=f"{__name__}.ngpt:NgptHead",
    summary="LM head of nGPT: cosines with a token's vector, times a learned gain per token.",
    reference="arXiv:2410.01131",
    since="1.1",
    equation="logits_v = s_v cos(z, E_v), s_v learned, 1 at first",
)
