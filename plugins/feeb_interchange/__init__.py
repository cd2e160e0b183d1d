"""Models of other libraries: importers, exporters, and the codec that comes with an imported model. Loads no torch.

One file knows the families (families.py: which parts and which names a Llama, Qwen or GPT-2 has), one reads and writes
Hugging Face folders, two read GGUF (file format; its names and tokenizer), one is the tokenizer part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb

EXAMPLE_CODEC = Path(__file__).with_name("example_codec.json")


class ImportConfig(feeb.PartConfig):
    """How much context the model keeps."""

    seq_len: int | None = Field(None, ge=1, description="longest row of tokens; default: what the model was made for")


class HuggingfaceExportConfig(feeb.PartConfig):
    """How the weights are stored."""

    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="storage dtype of the weights")


class ImportedTokenizerConfig(feeb.PartConfig):
    """A tokenizer.json, and which of its ids stand before and after a document."""

    example: ClassVar[dict[str, Any]] = {"path": str(EXAMPLE_CODEC), "bos": "<|begin|>", "eos": "<|end|>"}

    path: feeb.Execution[str] = Field("", description="the tokenizer.json, relative to the recipe; it is copied into the artifact")
    bos: str = Field("<|endoftext|>", description="token before every document")
    eos: str = Field("<|endoftext|>", description="token after every document and completion")
    num_ids: int = Field(0, ge=0, description="ids of the model, where it has more than the file; 0: those of the file")
    content: str = Field("", description="SHA-256 of the file; filled in, so that another file makes other data")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        return str(((info.context or {}).get("recipe_folder", Path()) / Path(value).expanduser()).absolute()) if value else ""

    @model_validator(mode="after")
    def _digested(self) -> ImportedTokenizerConfig:
        if self.content:  # decided before: the file may be gone by now, a copy is in the artifact
            return self
        if not self.path:
            raise ValueError("tokenizer imported needs path, a tokenizer.json")
        if not Path(self.path).is_file():
            raise ValueError(f"path: there is no file {self.path}; paths in a recipe are relative to the recipe")
        object.__setattr__(self, "content", hashlib.sha256(Path(self.path).read_bytes()).hexdigest())
        return self


@feeb.hookimpl
def feeb_tokenizers() -> Iterable[feeb.TokenizerSpec]:
    yield feeb.TokenizerSpec(
        "imported",
        ImportedTokenizerConfig,
        build="feeb_interchange.tokenizer:build",
        summary="The tokenizer.json of another model, read by Hugging Face tokenizers; nothing is learned.",
        reference="https://huggingface.co/docs/tokenizers",
        since="1.1",
    )


@feeb.hookimpl
def feeb_importers() -> Iterable[feeb.ImporterSpec]:
    yield feeb.ImporterSpec(
        "huggingface",
        ImportConfig,
        build="feeb_interchange.huggingface:build_importer",
        summary="A folder of config.json and safetensors: Llama, Mistral, Qwen2, Qwen3 or GPT-2.",
        reference="https://huggingface.co/docs/transformers",
        since="1.1",
    )
    yield feeb.ImporterSpec(
        "gguf",
        ImportConfig,
        build="feeb_interchange.gguf_models:build_importer",
        summary="A GGUF file of llama.cpp: the Llama and Qwen families, quantized weights made fp32.",
        reference="https://github.com/ggml-org/ggml/blob/master/docs/gguf.md",
        since="1.1",
    )


@feeb.hookimpl
def feeb_exporters() -> Iterable[feeb.ExporterSpec]:
    yield feeb.ExporterSpec(
        "huggingface",
        HuggingfaceExportConfig,
        build="feeb_interchange.huggingface:build_exporter",
        summary="A folder that transformers loads, for models whose parts are those of Llama, Qwen2, Qwen3 or GPT-2.",
        reference="https://huggingface.co/docs/transformers",
        since="1.1",
    )
