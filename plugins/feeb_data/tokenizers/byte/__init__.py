"""Tokenizer `byte`: UTF-8 bytes."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.TokenizerSpec("byte", build=f"{__name__}.byte:ByteTrainer", summary="Byte-level tokenizer: 256 bytes plus BOS and EOS; no training.")
