"""A comparison from recipes to its artifact: shared stages, costs, rates, runs in pairs, the baseline's curve, the verdict.

Every run is an artifact of stage pretrain, so none is done twice and each can be opened afterwards; the ledger in the
comparison's folder says in which order they were run and what came of them. A killed comparison continues where it was.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, Workspace, commit
from feebcore.compare import cost, figure, page, report
from feebcore.compare.plan import (
    STAGE,
    RateChoice,
    Run,
    Settings,
    Side,
    check_plan,
    choose_rate,
    curve_runs,
    equal_steps,
    has_rates,
    main_runs,
    next_factor,
    rate_run,
    section_for,
    sides_of,
    study_identity,
    token_steps,
    with_section,
)
from feebcore.errors import NO_HELD_OUT_TEXT, DataError, Diverged, FeebError
from feebcore.files import digest_of, explain, read_json, write_atomic, write_json
from feebcore.protocols import Cell
from feebcore.provenance import describe_environment, describe_plugins
from feebcore.recipe import Recipe
from feebcore.run.build import build
from feebcore.run.plan import plan_stage, stages_for
from feebcore.run.processes import Publish
from feebcore.studies import Ledger, Row, this_owner

KIND = "compare"
COST_STEPS = {"time": 40, "flops": 8, "tokens": 8}
"""Steps that are timed, by budget: for equal time they decide, else they only publish memory."""


def compare(
    recipes: Sequence[Recipe], settings: Settings, workspace: Workspace, on_progress: Publish | None = None, in_process: bool = False, command: str = ""
) -> Artifact:
    """The finished comparison of `recipes`, the baseline first: its artifact has result.json, verdict.txt, page.md and figure.png.

    in_process: everything in this process, else each run in one of its own. command: what was typed, for the page. Raises RecipeError where the recipes cannot be
    compared, before anything is built; Interrupted when asked to stop.
    """
    sides = sides_of(recipes, settings)
    if settings.budget == "tokens":  # the only budget that is known before there are data
        check_plan(sides, token_steps(sides), settings)
    publish = on_progress or (lambda row: None)
    shared = _shared_stages(sides, workspace, publish, in_process)
    wanted = study_identity(sides, settings, shared)
    fingerprint = digest_of(wanted)[:12]
    name = settings.name or "-vs-".join(side.name for side in sides[:4])[:80]
    waiting = lambda text: publish({"kind": "log", "time": time.time(), "text": f"{KIND}: {text}"})  # noqa: E731
    with workspace.building(KIND, name, fingerprint, waiting) as place:
        if isinstance(place, Artifact):
            return place
        started = time.time()
        environment = describe_environment()
        out = None
        try:
            head = {"name": name, "plugins": sorted({str(p) for side in sides for p in side.recipe.plugins})}
            write_json(place / "recipe.json", head | {KIND: settings.model_dump(mode="json"), "sides": {s.name: s.recipe.resolved() for s in sides}})
            write_json(place / "environment.json", environment)
            write_json(place / "request.json", {"stage": KIND, "fingerprint": fingerprint, "inputs": {n: str(a.path) for n, a in shared.items()}})
            out = StageOutput(place, on_progress)
            out.event("begin", stage=KIND, pid=os.getpid())
            with Comparison(sides, settings, workspace, shared, out, place.name.rpartition("-")[0], in_process) as comparison:
                result = comparison.run()
                inputs = shared | comparison.artifacts()
            _write(place, result)
            described = str(sides[0].recipe.data.get("description", ""))
            write_atomic(place / "page.md", page.text(result, name, described, command, environment))
            out.content("result.json")
            return commit(
                out,
                stage=KIND,
                name=place.name.rpartition("-")[0],
                fingerprint=fingerprint,
                identity=wanted,
                metrics=report.headline(result),
                section=settings.model_dump(mode="json"),
                inputs=inputs,
                plugins=list({digest_of(p): p for side in sides for p in describe_plugins(side.recipe, STAGE)}.values()),
                environment=environment,
                started=started,
            )
        except OSError as error:
            raise explain(error, place) from error
        finally:
            if out is not None:
                out.close()


def _write(place: Path, result: Mapping[str, Any]) -> None:
    write_json(place / "result.json", result)
    write_atomic(place / "verdict.txt", report.text(result))
    write_atomic(place / "figure.png", figure.draw(result))


def _shared_stages(sides: Sequence[Side], workspace: Workspace, publish: Publish, in_process: bool) -> dict[str, Artifact]:
    """The artifacts of the stages before pretrain, built once, by stage. Raises DataError without held-out text."""
    base = sides[0].recipe
    order = [stage for stage in stages_for(base, [STAGE]) if stage != STAGE]
    built: dict[str, Artifact] = {}
    for index, stage in enumerate(order):
        item = plan_stage(base, stage, workspace, built)
        publish({"kind": "stage", "time": time.time(), "label": base.name, "stage": stage, "status": item.status, "index": index, "total": len(order)})
        began = time.monotonic()
        built[stage] = item.artifact or build(base, stage, workspace, built, publish, in_process)
        done = {"status": "reused" if item.artifact else "built", "seconds": time.monotonic() - began, "metrics": built[stage].metrics}
        publish({"kind": "done", "time": time.time(), "label": base.name, "stage": stage} | done)
        for side in sides[1:]:
            if plan_stage(side.recipe, stage, workspace, built).fingerprint != built[stage].fingerprint:
                raise FeebError(f"{side.recipe.path}: its stage {stage} is not that of {base.path}, so the two are not trained on the same data")
    tokens = built[base.needs(STAGE)["tokens"]]
    if not read_json(tokens.file("tokens.json"))["val"]["documents"]:
        raise DataError(f"{KIND}: no document is held out, so nothing can be compared; {NO_HELD_OUT_TEXT}")
    return built


class Comparison:
    """One comparison in one folder. Use as a context manager: it holds the ledger."""

    def __init__(
        self, sides: Sequence[Side], settings: Settings, workspace: Workspace, shared: Mapping[str, Artifact], out: StageOutput, name: str, in_process: bool
    ) -> None:
        self.sides, self.settings, self.workspace, self.shared, self.out, self.name, self.in_process = sides, settings, workspace, shared, out, name, in_process
        self.by_name = {side.name: side for side in sides}
        self.steps: dict[str, int] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.ledger = Ledger(out.path / "ledger.sqlite")

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    def run(self) -> dict[str, Any]:
        """Everything; the result as plain JSON."""
        self.ledger.expire(everyone=True)  # we hold the artifact's lock, so whoever leased before us is gone
        self.costs = self.measure_costs()
        self.steps = self.equal_budgets()
        rates: dict[str, RateChoice] = {}
        for side in self.sides:  # the same recipe twice has one rate, so that chance alone differs
            rates[side.name] = dataclasses.replace(rates[side.same_as], note="") if side.same_as else self.probe_rate(side)
        factors = {name: choice.factor for name, choice in rates.items()}
        base = self.sides[0]
        runs = main_runs(self.sides, self.steps, factors)
        curve = curve_runs(base, self.steps[base.name], factors[base.name], self.settings)
        self.train([*runs, *curve])
        rows = {row.name: row for row in self.ledger.rows()}
        return report.make(self.sides, self.settings, self.costs, self.steps, rates, [rows[r.name] for r in [*runs, *curve]], list(rows.values()))

    # --- budgets --------------------------------------------------------------------------------------------------

    def measure_costs(self) -> dict[str, dict[str, Any]]:
        """FLOPs, tokens, seconds and memory of a step of every side, measured once and kept: time is another each time."""
        path = self.out.path / "costs.json"
        if path.exists():
            return read_json(path)
        found: dict[str, dict[str, Any]] = {}
        measured = self.settings.budget == "time" or not self.in_process
        for turn in range(2 if self.settings.budget == "time" else 1):
            for number, side in enumerate(self.sides):
                section = side.section
                entry = found.setdefault(side.name, {"tokens": section.batch_size * section.seq_len, "flops": self.flops_per_step(side)})
                if measured:
                    self.out.log(f"{side.name}: measuring the cost of a step")
                    own = self.measure_cost(side, self.out.path / "costs" / f"{number}-{turn}")
                    if turn and own["step_seconds"] >= entry["step_seconds"]:
                        continue  # the faster of two turns: what slows a step down is other work on the machine
                    entry |= own
        write_json(path, found)
        return found

    def measure_cost(self, side: Side, folder: Path) -> dict[str, Any]:
        steps = min(COST_STEPS[self.settings.budget], max(3, side.section.max_steps))
        member = with_section(side.recipe, side.name, side.section)
        return (cost.measure if self.in_process else cost.measure_apart)(member, self.inputs(side), folder, steps)

    def flops_per_step(self, side: Side) -> float:
        return cost.flops_per_step(side.recipe, self.inputs(side)["tokens"])

    def inputs(self, side: Side) -> dict[str, Artifact]:
        return {name: self.shared[provider] for name, provider in side.recipe.needs(STAGE).items()}

    def equal_budgets(self) -> dict[str, int]:
        """Steps of every side; the baseline keeps its own. Raises RecipeError when a side's section does not fit its steps."""
        unit = {"tokens": "tokens", "flops": "flops", "time": "step_seconds"}[self.settings.budget]
        base = self.sides[0]
        steps = {
            side.name: base.section.max_steps if side is base else equal_steps(base.section.max_steps, self.costs[base.name][unit], self.costs[side.name][unit])
            for side in self.sides
        }
        check_plan(self.sides, steps, self.settings)
        return steps

    # --- learning rates ---------------------------------------------------------------------------------------------

    def probe_rate(self, side: Side) -> RateChoice:
        """The side's own rate, or the best of a few around it in short runs."""
        settings = self.settings
        if settings.rates == "off":
            return RateChoice(1.0, 1.0, {}, False)
        if not has_rates(side.section.optimizer):
            return RateChoice(1.0, 1.0, {}, False, f"{side.name}: optimizer {side.section.optimizer.name} has no option `lr`, so its rate was not probed.")
        wanted: list[float] = list(settings.rate_factors)
        while True:
            runs = {factor: rate_run(side, self.steps[side.name], factor, settings) for factor in wanted}
            self.train(list(runs.values()))
            rows = {row.name: row for row in self.ledger.rows()}
            tried = {factor: _loss(rows[run.name]) for factor, run in runs.items()}
            if (more := next_factor(tried, settings)) is None:
                break
            wanted.append(more)
        choice = choose_rate(side.name, tried, settings)
        if choice.note:
            self.out.log(choice.note)
        return choice

    # --- runs -------------------------------------------------------------------------------------------------------

    def train(self, runs: Sequence[Run]) -> None:
        """Train what is not finished yet, in order. A run that diverges is censored in the ledger, and never tried again."""
        cells = [Cell(run.name, run.overrides(), run.max_steps * self.costs[run.side]["flops"]) for run in runs]
        self.ledger.plan(cells, {"settings": self.settings.model_dump(mode="json", exclude={"name"})})
        while (row := self.ledger.lease(this_owner(), seconds=30 * 86400.0)) is not None:
            try:
                result = self.train_one(Run(row.name, **row.overrides))
                self.ledger.done(row.name, result, owner=this_owner())
                self.publish(f"{row.name}: {result['bits_per_byte']:.4f} bits per byte, {result['seconds']:.1f} s")
            except Diverged as error:
                self.ledger.censor(row.name, str(error), owner=this_owner())
                self.publish(f"{row.name} diverged: {error}")
            except BaseException:
                self.ledger.release(row.name, this_owner())
                raise

    def train_one(self, run: Run) -> dict[str, Any]:
        """One run as an artifact of pretrain; what the verdict needs of it. Raises Diverged when it is no measurement."""
        side = self.by_name[run.side]
        member = with_section(side.recipe, f"{self.name}-{run.name}", section_for(side.section, run, self.steps[side.name]))
        artifact = build(member, STAGE, self.workspace, self.shared, lambda row: self.forward(run, row), self.in_process)
        metrics = artifact.metrics
        loss, chance = metrics["val_loss"], math.log(read_json(self.inputs(side)["tokens"].file("tokens.json"))["vocab_size"])
        if not math.isfinite(loss) or loss > 1.05 * chance:
            raise Diverged(f"its held-out loss of {loss:.3f} nats per token is worse than guessing ({chance:.3f})")
        kept = {key: metrics.get(key) for key in ("steps", "tokens", "flops", "seconds", "tokens_per_second", "parameters", "compiled", "precision")}
        bad = len(metrics.get("bad_steps", []))
        return (
            {"bits_per_byte": metrics["val_bits_per_byte"], "loss": loss, "fingerprint": artifact.fingerprint, "path": str(artifact.path)}
            | kept
            | {"bad_steps": bad}
        )

    def artifacts(self) -> dict[str, Artifact]:
        """Of every run that finished, by the run's name: the comparison's inputs, which gc then keeps."""
        found = {row.name: self.workspace.find(STAGE, row.result["fingerprint"]) for row in self.ledger.rows() if row.status == "done"}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    def forward(self, run: Run, row: dict[str, Any]) -> None:
        """Progress of a run to whoever listens to the comparison; its own log stays in its folder."""
        if row["kind"] == "progress":
            named = {"name": f"{run.name} {row.get('name') or STAGE}"}
            self.out.event("progress", **{k: v for k, v in row.items() if k not in ("kind", "time")} | named)

    def publish(self, text: str) -> None:
        rows, settings = self.ledger.rows(), self.settings
        ended = sum(row.status in ("done", "failed", "censored") for row in rows)
        probed = [side for side in self.sides if settings.rates != "off" and not side.same_as and has_rates(side.section.optimizer)]
        rates = max(len(settings.rate_factors) * len(probed), sum(row.overrides["role"] == "rate" for row in rows))
        self.out.log(f"{text} ({ended} of {len(self.sides) * settings.seeds + len(settings.curve) + rates} runs)")


def _loss(row: Row) -> float | None:
    """Bits per byte of a finished run; None for one that diverged."""
    return float(row.result["bits_per_byte"]) if row.status == "done" else None
