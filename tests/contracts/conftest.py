"""What tests of contracts share: which file tests the parts of which kind, and what the contract says against a broken part."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from feebcore.parts import Part
from feebcore.registry import BUILTIN, Registry, get_registry
from feebcore.testing import check_part
from feebcore.testing.models import BLOCK_KEYS

FILES = {
    "test_contracts_architectures": {"architectures"},
    "test_contracts_attentions": {"attentions"},
    "test_contracts_blocks": {*BLOCK_KEYS} - {"attentions"},
}
"""The kinds whose contracts take long have a file of their own, so that workers share them; test_contracts has every other kind."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `builtin_part` runs for each built-in part of its file's kinds."""
    if "builtin_part" in metafunc.fixturenames:
        file = metafunc.module.__name__.rpartition(".")[2]
        elsewhere = set().union(*FILES.values())
        parts = [(kind, spec.name) for kind, spec in get_registry().parts() if spec.distribution == BUILTIN]
        mine = [(kind, name) for kind, name in parts if (kind in FILES[file] if file in FILES else kind not in elsewhere)]
        metafunc.parametrize("builtin_part", mine, ids=[f"{kind}-{name}" for kind, name in mine])


@pytest.fixture
def failures() -> Callable[[str, Part], list[str]]:
    """`failures(kind, part)`: what the whole contract says against a part, which recipes can name for the time being."""

    def check(kind: str, part: Part) -> list[str]:
        registry = Registry()
        registry._parts[kind][part.name] = [part.spec]
        return [str(result) for result in check_part(kind, part, registry=registry) if not result.passed]

    return check
