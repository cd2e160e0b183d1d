"""Source `package`: text files inside an installed Python package."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

import feebcore as feeb
from feeb_data.sources.text_options import TextOptions


class PackageConfig(TextOptions):
    """Text files inside an installed Python package."""

    example: ClassVar[dict[str, Any]] = {"package": "pluggy"}

    package: str = Field(description="import name, e.g. 'numpy'")
    files: list[str] = Field(["**/*.py"], min_length=1, description="globs relative to the package's folder")
    version: str = Field("", description="version of the package; set automatically to the installed one")

    @model_validator(mode="after")
    def _installed(self) -> PackageConfig:
        from feeb_data.sources.package.installed import installed_version

        installed = installed_version(self.package)
        if self.version not in ("", installed):
            raise ValueError(f"the recipe wants {self.package} {self.version}, {installed} is installed; install that version or leave the key out")
        object.__setattr__(self, "version", installed)
        return self


PART = feeb.SourceSpec(
    "package", PackageConfig, build=f"{__name__}.package:PackageSource", revision=2, summary="Text files inside an installed Python package."
)
