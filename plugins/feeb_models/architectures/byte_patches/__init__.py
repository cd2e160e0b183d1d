"""A byte-level model with patches."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Embedding, Stack


class BytePatchesConfig(PresetConfig):
    """Bytes read in patches that end with words: hashed n-grams at the entry, one sliding-window layer on bytes, num_layers full-attention layers on
    patches, one layer on bytes again. Its tokenizer is `byte`. Of the byte latent transformer it has the n-grams and the
    two scales; patches end where words do, as in SpaceByte, not where a small model is surprised."""

    stack: Stack = default_part("patches", boundaries="words", window=64)
    embedding: Embedding = default_part("hash_ngrams", buckets=5000)


PART = feeb.ArchitectureSpec(
    "byte_patches",
    BytePatchesConfig,
    build=BUILD,
    summary="Byte-level transformer with patches that end with words: most layers take one step per word; use tokenizer byte.",
    reference="arXiv:2404.14408, arXiv:2412.09871",
    since="1.1",
)
