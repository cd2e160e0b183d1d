"""Sampler `sampling`."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.SamplerSpec("sampling", build=f"{__name__}.sampling:sampling", summary="Samples from the processed distribution, with one random stream per row.")
