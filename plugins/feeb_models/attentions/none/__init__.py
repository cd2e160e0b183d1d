"""No attention."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.AttentionSpec(
    "none",
    build=f"{__name__}.no_attention:NoAttention",
    summary="No attention: adds nothing, so no token sees another.",
    since="1.1",
    breaks=("gradient_everywhere", "overfits_one_batch", "attends_to_past", "attention_dropout_is_applied", "context_window_is_kept"),
    equation="y = 0",
)
