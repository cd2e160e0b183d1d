"""The end of a study: its page, and whether what failed is an error or a result."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace, read_artifact
from feebcore.errors import Diverged, FeebError, RecipeError, StageFailed, plural
from feebcore.recipe import Recipe, quick_overrides


def conclude(
    recipes: Sequence[Recipe], results: Mapping[str, Mapping[str, Any]], failures: Mapping[str, FeebError], workspace: Workspace, command: str
) -> Artifact | None:
    """The page of the study's claims, None where it has none. results: {run: {stage: {"path": ...}}}; failures: by run.

    Raises StageFailed, after the page is written, when a run failed; one that diverged is a result of a study with claims.
    """
    from feebcore.claims.build import write_page

    runs: dict[str, dict[str, Artifact]] = {}
    for name, stages in results.items():
        finished = {stage: read_artifact(Path(row["path"])) for stage, row in stages.items()}
        runs[name] = {stage: artifact for stage, artifact in finished.items() if artifact is not None}
    page = write_page(recipes, runs, {name: str(error) for name, error in failures.items() if isinstance(error, Diverged)}, workspace, command)
    wrong = {name: error for name, error in failures.items() if page is None or not isinstance(error, Diverged)}
    if wrong:
        first = "\n".join(f"{name}: {error}" for name, error in itertools.islice(wrong.items(), 5))
        more = f"\nand {len(wrong) - 5} more" if len(wrong) > 5 else ""
        others = f"; the page of the others is {page.file('page.md')}" if page is not None else ""
        raise StageFailed(f"{len(wrong)} of {plural(len(recipes), 'run')} failed; what the others made is kept{others}.\n{first}{more}")
    return page


def command_of(recipe: str, overrides: Sequence[str]) -> str:
    """`feeb run` as one would type it; overrides that are the recipe's own `quick:` section are written `--quick`."""
    words, rest = ["feeb", "run", str(recipe)], list(overrides)
    try:
        quick = quick_overrides(recipe)
    except RecipeError:
        quick = []
    if quick and rest[: len(quick)] == quick:
        words.append("--quick")
        rest = rest[len(quick) :]
    return shlex.join(words + [word for text in rest for word in ("--set", text)])
