"""Options that several heads have."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class HeadConfig(feeb.PartConfig):
    logit_softcap: float = Field(0.0, ge=0.0, description="logits become logit_softcap * tanh(logits / logit_softcap) (final_logit_softcapping); 0: off")
