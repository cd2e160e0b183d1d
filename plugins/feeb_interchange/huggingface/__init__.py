"""Model folders of Hugging Face transformers: an importer and an exporter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feeb_interchange.options import ImportConfig


class HuggingfaceExportConfig(feeb.PartConfig):
    """How the weights are stored."""

    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="data type of the stored weights")


PARTS = (
    feeb.ImporterSpec(
        "huggingface",
        ImportConfig,
        build=f"{__name__}.huggingface:build_importer",
        summary="A folder of config.json and safetensors: Llama, Mistral, Qwen2, Qwen3 or GPT-2.",
        reference="https://huggingface.co/docs/transformers",
        since="1.1",
    ),
    feeb.ExporterSpec(
        "huggingface",
        HuggingfaceExportConfig,
        build=f"{__name__}.huggingface:build_exporter",
        summary="A folder that transformers loads, for models whose parts are those of Llama, Qwen2, Qwen3 or GPT-2.",
        reference="https://huggingface.co/docs/transformers",
        since="1.1",
    ),
)
