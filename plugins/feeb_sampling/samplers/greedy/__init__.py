"""Sampler `greedy`."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.SamplerSpec("greedy", build=f"{__name__}.greedy:greedy", summary="Greedy decoding: the most likely token.")
