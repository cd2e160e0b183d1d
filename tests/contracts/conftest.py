"""What tests of deliberately broken parts share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from feebcore.parts import Part
from feebcore.registry import Registry
from feebcore.testing import check_part


@pytest.fixture
def failures() -> Callable[[str, Part], list[str]]:
    """`failures(kind, part)`: what the whole contract says against a part, which recipes can name for the time being."""

    def check(kind: str, part: Part) -> list[str]:
        registry = Registry()
        registry._parts[kind][part.name] = [part.spec]
        return [str(result) for result in check_part(kind, part, registry=registry) if not result.passed]

    return check
