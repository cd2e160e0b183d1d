"""What tests of contracts share: which file tests the parts of which kind, and what the contract says against a broken part."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from feebcore.parts import Part
from feebcore.registry import BUILTIN, Registry, get_registry
from feebcore.testing import candidate, check_part, checks_for
from feebcore.testing.framework import applicable, iterate
from feebcore.testing.models import BLOCK_KEYS

FILES = {
    "test_contracts_architectures": {"architectures"},
    "test_contracts_attentions": {"attentions"},
    "test_contracts_blocks": {*BLOCK_KEYS} - {"attentions"},
}
"""The kinds whose contracts take long have a file of their own, so that workers share them; test_contracts has every other kind."""


COMPILED = "compile_parity"
"""The check that takes as long as all others together, which is why it has a test of its own."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `builtin_part` runs for each built-in part of its file's kinds, one with `compiled_part` for those that are compiled."""
    if argument := next((name for name in ("builtin_part", "compiled_part") if name in metafunc.fixturenames), None):
        file = metafunc.module.__name__.rpartition(".")[2]
        elsewhere = set().union(*FILES.values())
        parts = [(kind, spec.name) for kind, spec in get_registry().parts() if spec.distribution == BUILTIN]
        mine = [(kind, name) for kind, name in parts if (kind in FILES[file] if file in FILES else kind not in elsewhere)]
        if argument == "compiled_part":
            mine = [(kind, name) for kind, name in mine if COMPILED in {check.name for check in checks_for(kind)}]
        metafunc.parametrize(argument, mine, ids=[f"{kind}-{name}" for kind, name in mine])


@pytest.fixture
def broken() -> Callable[[tuple[str, str], bool], str]:
    """`broken((kind, name), compiled)`: what the contract says against a built-in part, by the comparison with its compiled form or by all
    other checks."""

    def check(part: tuple[str, str], compiled: bool) -> str:
        subject = candidate(part[0], f"{BUILTIN}/{part[1]}")
        names = [check.name for check in applicable(subject) if (check.name == COMPILED) is compiled]
        return "\n".join(str(result) for result in iterate(subject, names) if not result.passed) if names else ""

    return check


@pytest.fixture
def failures() -> Callable[[str, Part], list[str]]:
    """`failures(kind, part)`: what the whole contract says against a part, which recipes can name for the time being."""

    def check(kind: str, part: Part) -> list[str]:
        registry = Registry()
        registry._parts[kind][part.name] = [part.spec]
        return [str(result) for result in check_part(kind, part, registry=registry) if not result.passed]

    return check
