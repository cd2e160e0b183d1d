"""Every built-in part of a block but attention keeps the contract of its kind."""

from __future__ import annotations

from feebcore.registry import BUILTIN
from feebcore.testing import candidate
from feebcore.testing.framework import iterate


def test_part_keeps_its_contract(builtin_part: tuple[str, str]) -> None:
    kind, name = builtin_part
    broken = [str(result) for result in iterate(candidate(kind, f"{BUILTIN}/{name}")) if not result.passed]
    assert not broken, "\n".join(broken)
