"""The contract of every kind, as named checks that anyone can run on their own part.

    from feebcore.testing import check_part
    for result in check_part("attentions", "mine"):
        print(result)

framework.py runs checks; the other files hold them, a file for each family of kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feebcore.testing.framework import Candidate, Check, CheckResult, candidate, check_part, checks_for, run_check

__all__ = ["Candidate", "Check", "CheckResult", "candidate", "check_part", "checks_for", "run_check"]


def __getattr__(name: str) -> Any:
    """Names are loaded when used: the pytest plugin next to this is imported by test suites that have no part to check."""
    if name not in __all__:
        raise AttributeError(f"module 'feebcore.testing' has no attribute {name!r}")
    from feebcore.testing import framework

    return getattr(framework, name)
