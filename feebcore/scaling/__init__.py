"""Scaling laws: what a sweep measures, the fits, and the stage that runs one."""

from collections.abc import Iterable

from feebcore.hookspecs import hookimpl
from feebcore.specs import StageSpec


@hookimpl
def feeb_stages() -> Iterable[StageSpec]:
    from feebcore.scaling.stage import PART

    yield PART
