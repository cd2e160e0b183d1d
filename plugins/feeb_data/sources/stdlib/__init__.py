"""Source `stdlib`: the source code of this Python's standard library."""

from __future__ import annotations

from pydantic import Field, field_validator

import feebcore as feeb


class StdlibConfig(feeb.PartConfig):
    """Every .py file of this Python's standard library, including its tests."""

    version: str = Field("", description="Python version; set automatically to the running one")

    @field_validator("version")
    @classmethod
    def _this_python(cls, value: str) -> str:
        import platform

        running = platform.python_version()
        if value not in ("", running):
            raise ValueError(f"the recipe wants the standard library of Python {value}, this is {running}; run it with that Python or leave the key out")
        return running


PART = feeb.SourceSpec("stdlib", StdlibConfig, build=f"{__name__}.stdlib:StdlibSource", summary="The Python standard library's own source, about 30 MB.")
