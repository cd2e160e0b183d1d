"""Source `huggingface`: a dataset repository on the Hugging Face Hub."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

import feebcore as feeb
from feeb_data.sources.text_options import TextOptions
from feebcore.data.addresses import without_secrets


class HuggingfaceConfig(TextOptions):
    """Files of a dataset repository on the Hugging Face Hub, at one commit. The token in HF_TOKEN is sent to the Hub, or to the
    address in HF_ENDPOINT, never to an address that only the recipe names."""

    repo: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="e.g. 'roneneldan/TinyStories'")
    revision: str = Field(min_length=1, description="full commit hash; a branch or tag is resolved at the first download and recorded")
    files: list[str] = Field(["*.parquet"], min_length=1, description="patterns over the paths in the repository; '*' matches '/' too")
    endpoint: feeb.Execution[str] = Field("", description="address of the Hub; default: HF_ENDPOINT, else https://huggingface.co")
    retries: feeb.Execution[int] = Field(8, ge=0, description="failed attempts in a row before giving up")
    timeout: feeb.Execution[float] = Field(30.0, gt=0, description="seconds without a byte after which a request counts as failed")

    @field_validator("endpoint")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        return without_secrets(value)

    @field_validator("revision")
    @classmethod
    def _no_short_hash(cls, value: str) -> str:
        if re.fullmatch(r"[0-9a-f]{7,39}", value):
            raise ValueError(f"{value!r} looks like a shortened commit hash; write all 40 digits")
        return value


PART = feeb.SourceSpec(
    "huggingface",
    HuggingfaceConfig,
    build=f"{__name__}.huggingface:HuggingfaceSource",
    revision=2,
    summary="A dataset on the Hugging Face Hub at one commit.",
    reference="https://huggingface.co/docs/hub/api",
)
