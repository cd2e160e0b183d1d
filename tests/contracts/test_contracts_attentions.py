"""Every built-in attention keeps the contract of its kind."""

from __future__ import annotations

import pytest


def test_part_keeps_its_contract(builtin_part: tuple[str, str], broken) -> None:
    assert broken(builtin_part, False) == ""


@pytest.mark.slow
def test_part_agrees_with_its_compiled_form(compiled_part: tuple[str, str], broken) -> None:
    assert broken(compiled_part, True) == ""
