"""GGUF files of llama.cpp."""

from __future__ import annotations

import feebcore as feeb
from feeb_interchange.options import ImportConfig

PART = feeb.ImporterSpec(
    "gguf",
    ImportConfig,
    build=f"{__name__}.gguf_models:build_importer",
    summary="A GGUF file of llama.cpp: the Llama and Qwen families, quantized weights dequantized to fp32.",
    reference="https://github.com/ggml-org/ggml/blob/master/docs/gguf.md",
    since="1.1",
)
