"""Source `urls`: files from the web."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

import feebcore as feeb
from feeb_data.sources.text_options import TextOptions
from feebcore.data.addresses import with_host, without_secrets


class Download(BaseModel):
    """One URL. sha256: of the file, checked after the download; strongly advised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="address of the file; ${NAME} in it is an environment variable, for tokens and signatures")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of the file, checked after the download; empty: not checked")

    @field_validator("url")
    @classmethod
    def _usable(cls, value: str) -> str:
        return without_secrets(with_host(value))


class UrlsConfig(TextOptions):
    """Files from the web; downloads resume and are verified; .zip and .tar archives are unpacked."""

    urls: list[Download] = Field(min_length=1, description="files to download: url and, strongly advised, sha256")
    retries: feeb.Execution[int] = Field(8, ge=0, description="failed attempts in a row, without a byte of progress, before giving up")
    timeout: feeb.Execution[float] = Field(30.0, gt=0, description="seconds without a byte after which a request counts as failed")


PART = feeb.SourceSpec("urls", UrlsConfig, build=f"{__name__}.urls:UrlsSource", revision=2, summary="Files from the web, resumed and verified.")
