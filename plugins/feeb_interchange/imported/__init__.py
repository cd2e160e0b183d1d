"""The tokenizer of an imported model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb
from feebcore.files import expand_user

EXAMPLE_CODEC = Path(__file__).with_name("example_codec.json")


class ImportedTokenizerConfig(feeb.PartConfig):
    """A tokenizer.json, and which of its ids stand before and after a document."""

    example: ClassVar[dict[str, Any]] = {"path": str(EXAMPLE_CODEC), "bos": "<|begin|>", "eos": "<|end|>"}

    path: feeb.Execution[str] = Field("", description="the tokenizer.json, relative to the recipe; it is copied into the artifact")
    bos: str = Field("<|endoftext|>", description="BOS token, before every document")
    eos: str = Field("<|endoftext|>", description="EOS token, after every document and completion")
    num_ids: int = Field(0, ge=0, description="vocabulary size of the model, where it has more ids than the file; 0: that of the file")
    content: str = Field("", description="SHA-256 of the file; set automatically")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        return str(((info.context or {}).get("recipe_folder", Path()) / expand_user(value)).absolute()) if value else ""

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


PART = feeb.TokenizerSpec(
    "imported",
    ImportedTokenizerConfig,
    build=f"{__name__}.tokenizer:ImportedTrainer",
    revision=2,
    summary="The tokenizer.json of another model, read by Hugging Face tokenizers; nothing is trained.",
    reference="https://huggingface.co/docs/tokenizers",
    since="1.1",
)
