"""What torch.compile may take as a constant, said without loading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_result(function: F) -> F:
    """As torch.compiler.assume_constant_result, which imports torch._dynamo: nearly two processor seconds in every process that has a model."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
