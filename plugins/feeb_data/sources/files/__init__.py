"""Source `files`: local text, JSONL and Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb
from feeb_data.sources.text_options import TextOptions


class FilesConfig(TextOptions):
    """Local files: text, .jsonl or .parquet."""

    example: ClassVar[dict[str, Any]] = {"paths": [str(Path(__file__).parent / "*.py")]}

    paths: feeb.Execution[list[str]] = Field(description="files, folders or globs, relative to the recipe", min_length=1)
    content: str = Field("", description="hash of file names and contents; set automatically")

    @field_validator("paths")
    @classmethod
    def _absolute(cls, value: list[str], info: ValidationInfo) -> list[str]:
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return [str((folder / Path(p).expanduser()).absolute()) for p in value]

    @model_validator(mode="after")
    def _digested(self) -> FilesConfig:
        from feeb_data.sources.files.paths import digest_files

        object.__setattr__(self, "content", digest_files(self.paths))
        return self


PART = feeb.SourceSpec("files", FilesConfig, build=f"{__name__}.files:FilesSource", summary="Local text, JSONL or Parquet files.")
