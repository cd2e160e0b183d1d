"""Source `files`: local text, JSON, CSV and Parquet files."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb
from feeb_data.sources.text_options import TextOptions
from feebcore.files import expand_user


class FilesConfig(TextOptions):
    """Local files: text, JSON, CSV or Parquet, compressed or not. Of a folder, files of other suffixes are left out and counted."""

    example: ClassVar[dict[str, Any]] = {"paths": [str(Path(__file__).parent / "*.py")]}

    paths: feeb.Execution[list[str]] = Field(description="files, folders or globs, relative to the recipe", min_length=1)
    content: str = Field("", description="hash of file names and contents; set automatically")

    @field_validator("paths")
    @classmethod
    def _absolute(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if not all(path.strip() for path in value):
            raise ValueError("an empty path; write . for the folder of the recipe")
        folder = Path((info.context or {}).get("recipe_folder", "."))
        return [_located(folder, p) for p in value]

    @model_validator(mode="after")
    def _digested(self) -> FilesConfig:
        from feeb_data.sources.files.paths import digest_files

        object.__setattr__(self, "content", digest_files(self.paths))
        return self


def _located(folder: Path, path: str) -> str:
    """The path from the root. What a recipe writes may be a pattern, the name of the folder that it lies in is none."""
    place = folder.absolute() / expand_user(path)
    pattern = glob.has_magic(path) and not expand_user(path).is_absolute() and not os.path.exists(place)
    return os.path.join(glob.escape(str(folder.absolute())), path) if pattern else str(place)


PART = feeb.SourceSpec("files", FilesConfig, build=f"{__name__}.files:FilesSource", revision=2, summary="Local text, JSON, CSV or Parquet files.")
