"""A run of a study: what it is to be (RunSpec), and what the ledger knows of it (RunRecord)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import plural
from feebcore.files import digest_of
from feebcore.recipe import Recipe
from feebcore.run.inputs import find_input
from feebcore.run.plan import identity, stages_for

Role = Literal["baseline", "candidate", "cell", "trial", "stable"]
"""baseline, candidate: what is compared. cell: a point of a sweep. trial: a short run that decides an option. stable: the
phase of constant learning rate that others branch from."""

Status = Literal["planned", "leased", "done", "failed", "diverged"]
ENDED = ("done", "failed", "diverged")


@dataclass(frozen=True)
class RunSpec:
    """A run that a proposer asks for: `stages` of `recipe`, and whatever they need.

    overrides: what sets it apart from its study's other runs, as plain JSON; its identity is the recipe's. flops: training
    FLOPs it will take. budget: FLOPs that were asked for. priority: higher ones are begun first. after: names of runs that must
    be done before it. heldout: predicted from the other cells of a sweep, never fitted.
    """

    name: str
    recipe: Recipe
    stages: tuple[str, ...] = ("pretrain",)
    role: Role = "candidate"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    budget: float = 0.0
    priority: int = 0
    after: tuple[str, ...] = ()
    heldout: bool = False


@dataclass(frozen=True)
class RunRecord:
    """One run as the ledger has it. id: see `run_id`. lease_until: Unix time. attempts: how often it was leased and not given back. failures: how
    often it failed since it was planned or requeued. result: what `done` was given. reason: why it failed or diverged."""

    name: str
    id: str
    role: str
    overrides: dict[str, Any]
    flops: float
    budget: float
    heldout: bool
    priority: int
    status: str
    owner: str
    lease_until: float
    attempts: int
    failures: int
    result: dict[str, Any]
    reason: str

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def stages_to_build(recipe: Recipe, targets: Iterable[str] | None, built: Mapping[str, Artifact]) -> list[str]:
    """`targets` (None: all) and what they need but for what is in `built`, in running order. Raises RecipeError for one the recipe lacks."""
    todo = list(recipe.stages if targets is None else targets)
    stages_for(recipe, todo)
    needed: set[str] = set()
    while todo:
        stage = todo.pop()
        if stage in recipe.stages and stage not in built and stage not in needed:
            needed.add(stage)
            todo += recipe.needs(stage).values()
    return [stage for stage in recipe.stages if stage in needed]


def run_id(recipe: Recipe, stages: Iterable[str], workspace: Workspace, built: Mapping[str, Artifact]) -> str:
    """12 hex digits: the fingerprint of the artifact that the last of `stages` will make.

    Where a stage that it needs is not in `built`, that stage's own id stands for its content: then it is the fingerprint of
    the whole chain, and names no folder.
    """
    ids = {stage: find_input(named, workspace).digest for stage, named in recipe.inputs.items()}
    ids |= {stage: artifact.digest for stage, artifact in built.items()}
    targets = list(stages)
    for stage in stages_to_build(recipe, targets, built):
        own = identity(recipe, stage, {}) | {"inputs": {name: ids[provider] for name, provider in sorted(recipe.needs(stage).items())}}
        ids[stage] = digest_of(own)[:12]
    return ids[targets[0]] if len(targets) == 1 else digest_of([ids[stage] for stage in targets])[:12]


def missing(records: Iterable[RunRecord]) -> list[str]:
    """A sentence for each run without a result: one that failed for good. A run that diverged has one: that it did."""
    return [
        f"{r.name} failed {plural(r.failures, 'time')}: {r.reason.splitlines()[0] if r.reason else 'no reason is known'}"
        for r in records
        if r.status == "failed"
    ]
