"""A tiny comparison of two laws, also as a process of its own that is killed: `python small_law.py FOLDER KILL_AFTER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.compare.law import LawSettings, compare_laws
from feebcore.recipe import Recipe, load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scaling"))
from small_sweep import killing
from small_sweep import recipe as sweep_recipe

PLANNER = {"sizes": [{"d_model": 4}, {"d_model": 8}, {"d_model": 16}], "budgets": [1.5e7, 3e7, 6e7], "min_steps": 10, "tolerance": 0.05}
IDEA = """extends: r.yaml
name: idea
sweep:
  train: {architecture: {block: parallel}, optimizer: {name: adamw, lr: 0.02}}
"""


def recipes(root: Path, idea: str = IDEA, **changes: Any) -> list[Recipe]:
    """r.yaml with a sweep of nine runs, and idea.yaml, which extends it."""
    base = sweep_recipe(root, **{"planner": {"name": "isoflop", **PLANNER}} | changes)
    (root / "idea.yaml").write_text(idea)
    return [base, load(root / "idea.yaml")]


def run(root: Path, on_progress: Any = None, workspace: Path | None = None, **settings: Any) -> Artifact:
    return compare_laws(recipes(root), LawSettings(**settings), Workspace(workspace or root / "data"), on_progress)


if __name__ == "__main__":
    run(Path(sys.argv[1]), killing(int(sys.argv[2])))
