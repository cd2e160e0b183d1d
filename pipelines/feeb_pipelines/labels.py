"""What the members of a study are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


def label_of(member: Recipe, members: Sequence[Recipe]) -> str:
    """Recipe, variant, and seed where there are several."""
    return member.name + (f"-seed{member.seed}" if len({m.seed for m in members}) > 1 else "")
