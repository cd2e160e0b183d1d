"""Tokenizer `byte`: UTF-8 bytes."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.TokenizerSpec("byte", build=f"{__name__}.byte:ByteTrainer", summary="UTF-8 bytes: 258 ids, nothing to train.")
