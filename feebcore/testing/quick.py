"""`python -m feebcore.testing.quick`: the quick checks of parts, in a process of their own, so that no part under test touches a run.

Reads {"files": plugin files, "parts": [{"kind", "part": name and options}, …]} from its standard input and writes a line of JSON for
each part: {"check": the first that failed or "", "message", "breaks": those that it says it breaks, "seconds"}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from feebcore.parts import resolve_part
from feebcore.registry import Registry, get_registry, use_registry
from feebcore.testing.framework import Candidate, CheckResult, candidate, checks_for, run_check


def check_quickly(kind: str, value: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """The first quick check that the part fails, with the options of the recipe.

    Where it raises with these, as it may at the checks' small sizes, its own defaults decide: a part that raises ends a run, but
    does not give it a wrong result.
    """
    begun = time.perf_counter()
    chosen = candidate(kind, resolve_part(kind, value, registry), registry)
    plain = candidate(kind, chosen.part.spec.full_name, registry)
    failed: CheckResult | None = None
    for check in checks_for(kind):
        if check.quick and failed is None:
            result = run_check(check, chosen)
            if result.raised and _differ(chosen, plain):
                result = run_check(check, plain)
            failed = None if result.passed else dataclasses.replace(result, message=result.message.removesuffix(f". {check.meaning}"))
    outcome = {"check": failed.check, "message": failed.message} if failed else {"check": "", "message": ""}
    breaks = [check.name for check in checks_for(kind) if check.quick and check.name in chosen.part.spec.breaks]
    return outcome | {"breaks": breaks, "seconds": round(time.perf_counter() - begun, 2)}


def _differ(chosen: Candidate, plain: Candidate) -> bool:
    return plain.complete and chosen.part != plain.part


def main() -> None:
    job = json.loads(sys.stdin.read())
    registry = get_registry(tuple(map(Path, job["files"])))
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), use_registry(registry):
        for row in job["parts"]:
            out.write(json.dumps(check_quickly(row["kind"], row["part"], registry)) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
