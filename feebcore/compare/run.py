"""A comparison from recipes to its artifact: shared stages, costs, then a study of learning-rate trials, runs in pairs and the baseline's curve, the verdict.

Every run is an artifact of stage pretrain, so none is done twice and each can be opened afterwards. A killed comparison
continues where it was. One with a run that failed for good says so in its page, and is not finished: the next call tries that run again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, Workspace
from feebcore.compare import cost, figure, page, report
from feebcore.compare.plan import (
    STAGE,
    Candidate,
    LRChoice,
    Run,
    Settings,
    candidates_of,
    check_plan,
    choose_lr,
    curve_runs,
    equal_steps,
    has_lr,
    lr_run,
    main_runs,
    next_factor,
    section_for,
    study_identity,
    token_steps,
    with_section,
)
from feebcore.errors import NO_VALIDATION_TEXT, DataError, Diverged, FeebError, StageFailed, plural
from feebcore.files import digest_of, read_json, write_atomic, write_json
from feebcore.provenance import describe_plugins
from feebcore.recipe import Recipe
from feebcore.run.artifact import Made, build_artifact
from feebcore.run.contracts import require_checked, unchecked_in, unchecked_note
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import plan_stage, stages_for
from feebcore.study.executors import InProcess, ProgressFn, current_execution
from feebcore.study.ledger import Ledger
from feebcore.study.run import build_stages, run_study
from feebcore.study.runs import RunRecord, RunSpec, missing

KIND = "compare"
COST_STEPS = {"time": 40, "flops": 8, "tokens": 8}
"""Steps that are timed, by budget: for equal time they decide, else they only measure memory."""


def compare(
    recipes: Sequence[Recipe],
    settings: Settings,
    workspace: Workspace,
    on_progress: ProgressFn | None = None,
    command: str = "",
    unchecked: bool = False,
) -> Artifact:
    """The finished comparison of `recipes`, the baseline first: its artifact has result.json, verdict.txt, and page.html and page.md with their figures.

    unchecked: also with parts of plugins that fail their contract; the page then names them. Runs are built by the executor that was chosen (feebcore.study.executing), else in this process. command: what was typed, for
    the page. Raises RecipeError where the recipes cannot be compared, before anything is built; Interrupted when asked to stop;
    StageFailed where runs failed for good, after the page that says so is written.
    """
    candidates = candidates_of(recipes, settings)
    if settings.budget == "tokens":  # the only budget that is known before there are data
        check_plan(candidates, token_steps(candidates), settings)
    require_checked(recipes, [STAGE], workspace, on_progress, unchecked)
    publish = on_progress or (lambda row: None)
    shared = shared_stages(recipes, STAGE, workspace, publish)
    name = name_of(candidates, settings)

    def make(out: StageOutput, environment: Mapping[str, Any]) -> Made:
        with Comparison(candidates, settings, workspace, shared, out, out.path.name.rpartition("-")[0]) as comparison:
            result = comparison.run()
            inputs = shared | comparison.artifacts()
        write_json(out.path / "result.json", result)
        write_atomic(out.path / "verdict.txt", report.text(result))
        pictures, description = figure.pictures(result), str(candidates[0].recipe.data.get("description", ""))
        for picture in pictures:
            write_atomic(out.path / f"{picture.name}.png", picture.png)
        write_atomic(out.path / "page.md", page.text(result, name, description, command, environment, pictures))
        write_atomic(out.path / "page.html", page.html(result, name, description, command, pictures))
        if result["missing"]:
            raise StageFailed(f"{KIND}: {'; '.join(result['missing'])}. {out.path / 'page.md'} is based on the other runs; run the same command to retry")
        out.content("result.json")
        plugins = {digest_of(p): p for c in candidates for p in describe_plugins(c.recipe, STAGE)}
        return Made(report.headline(result), inputs, settings.model_dump(mode="json"), list(plugins.values()))

    resolved: dict[str, Any] = {"name": name, "plugins": sorted({str(p) for c in candidates for p in c.recipe.plugins})}
    resolved[KIND] = settings.model_dump(mode="json")
    resolved["recipes"] = {c.name: c.recipe.resolved() for c in candidates}
    inputs = {c.name: finished_inputs(c.recipe, STAGE, workspace, shared) for c in candidates}
    return build_artifact(workspace, KIND, name, study_identity(candidates, settings, inputs), make, on_progress, resolved, shared)


def name_of(candidates: Sequence[Candidate], settings: Settings) -> str:
    return settings.name or "-vs-".join(candidate.name for candidate in candidates[:4])[:80]


def shared_stages(recipes: Sequence[Recipe], trained: str, workspace: Workspace, on_progress: ProgressFn) -> dict[str, Artifact]:
    """The artifacts of the stages before the one that is compared, built once, by stage. Raises DataError without validation text."""
    base = recipes[0]
    before = [stage for stage in stages_for(base, [trained]) if stage != trained]
    built = build_stages(base.name, base, before, workspace, {}, current_execution(), on_progress) if before else {}
    for other in recipes[1:]:
        for stage in before:
            if plan_stage(other, stage, workspace, built).fingerprint != built[stage].fingerprint:
                raise FeebError(f"{other.path}: its stage {stage} is not that of {base.path}, so the two are not trained on the same data")
    if not read_json(finished_inputs(base, trained, workspace, built)["tokens"].file("tokens.json"))["validation"]["documents"]:
        raise DataError(f"{KIND}: the validation split is empty, so nothing can be compared; {NO_VALIDATION_TEXT}")
    return built


class Comparison:
    """One comparison in one folder. Use as a context manager: it holds the ledger."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        settings: Settings,
        workspace: Workspace,
        shared: Mapping[str, Artifact],
        out: StageOutput,
        name: str,
    ) -> None:
        self.candidates, self.settings, self.workspace, self.shared, self.out, self.name = candidates, settings, workspace, shared, out, name
        self.by_name = {candidate.name: candidate for candidate in candidates}
        self.in_process = isinstance(current_execution().executor, InProcess)
        self.steps: dict[str, int] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.ledger = Ledger(out.path / "ledger.sqlite")

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    def run(self) -> dict[str, Any]:
        """Everything; the result as plain JSON."""
        self.costs = self.measure_costs()
        self.steps = self.equal_budgets()
        records = run_study(self.propose, self.ledger, self.workspace, self.shared, self.record, self.forward, lambda: self.out.stop_requested, self.on_ended)
        by_name = {r.name: r for r in records}
        choices = self.lr_choices(by_name)
        assert choices is not None
        for choice in choices.values():
            if choice.note:
                self.out.log(choice.note)
        runs = self.planned(choices)
        result = report.make(self.candidates, self.settings, self.costs, self.steps, choices, [by_name[r.name] for r in runs], records)
        unchecked = unchecked_in(self.artifacts().values())
        verdict = [*unchecked_note(unchecked), *result["verdict"]]
        return result | {"missing": missing(records), "unchecked": unchecked, "verdict": verdict, "notes": missing(records) + result["notes"]}

    # --- budgets --------------------------------------------------------------------------------------------------

    def measure_costs(self) -> dict[str, dict[str, Any]]:
        """FLOPs, tokens, seconds and memory of a step of every recipe, measured once and kept: time is another each time."""
        path = self.out.path / "costs.json"
        if path.exists():
            return read_json(path)
        costs: dict[str, dict[str, Any]] = {}
        measured = self.settings.budget == "time" or not self.in_process
        for turn in range(2 if self.settings.budget == "time" else 1):
            for number, candidate in enumerate(self.candidates):
                section = candidate.section
                entry = costs.setdefault(candidate.name, {"tokens": section.batch_size * section.seq_len, "flops": self.flops_per_step(candidate)})
                if measured:
                    self.out.log(f"{candidate.name}: measuring the cost of a step")
                    own = self.measure_cost(candidate, self.out.path / "costs" / f"{number}-{turn}")
                    if turn and own["step_seconds"] >= entry["step_seconds"]:
                        continue  # the faster of two turns: what slows a step down is other work on the machine
                    entry |= own
        write_json(path, costs)
        return costs

    def measure_cost(self, candidate: Candidate, folder: Path) -> dict[str, Any]:
        steps = min(COST_STEPS[self.settings.budget], max(3, candidate.section.max_steps))
        short = with_section(candidate.recipe, candidate.name, candidate.section)
        return (cost.measure if self.in_process else cost.measure_apart)(short, self.inputs(candidate), folder, steps)

    def flops_per_step(self, candidate: Candidate) -> float:
        return cost.flops_per_step(candidate.recipe, self.inputs(candidate)["tokens"])

    def inputs(self, candidate: Candidate) -> dict[str, Artifact]:
        return finished_inputs(candidate.recipe, STAGE, self.workspace, self.shared)

    def equal_budgets(self) -> dict[str, int]:
        """Steps of every recipe; the baseline keeps its own. Raises RecipeError when a recipe's section does not fit its steps."""
        unit = {"tokens": "tokens", "flops": "flops", "time": "step_seconds"}[self.settings.budget]
        base = self.candidates[0]
        steps = {
            candidate.name: base.section.max_steps
            if candidate is base
            else equal_steps(base.section.max_steps, self.costs[base.name][unit], self.costs[candidate.name][unit])
            for candidate in self.candidates
        }
        check_plan(self.candidates, steps, self.settings)
        return steps

    # --- the proposer ---------------------------------------------------------------------------------------------------

    def propose(self, records: Mapping[str, RunRecord]) -> list[RunSpec]:
        """Learning-rate trials first; once they have ended, the runs in pairs and the baseline's curve."""
        choices = self.lr_choices(records)
        runs = self.planned(choices) if choices is not None else [run for c in self.candidates for run in self.trials(c, records)[0]]
        return [self.spec(run) for run in runs]

    def planned(self, choices: Mapping[str, LRChoice]) -> list[Run]:
        """The runs in pairs and the baseline's curve at the learning rates that were chosen."""
        factors = {name: choice.factor for name, choice in choices.items()}
        base = self.candidates[0]
        return [*main_runs(self.candidates, self.steps, factors), *curve_runs(base, self.steps[base.name], factors[base.name], self.settings)]

    def spec(self, run: Run) -> RunSpec:
        candidate = self.by_name[run.recipe]
        recipe = with_section(candidate.recipe, f"{self.name}-{run.name}", section_for(candidate.section, run, self.steps[candidate.name]))
        role = "trial" if run.role == "lr" else "baseline" if candidate is self.candidates[0] else "candidate"
        return RunSpec(run.name, recipe, (STAGE,), role, run.overrides(), flops=run.max_steps * self.costs[candidate.name]["flops"])  # type: ignore[arg-type]

    def lr_choices(self, records: Mapping[str, RunRecord]) -> dict[str, LRChoice] | None:
        """The learning rate of every recipe; None while trials are wanted. The same recipe twice gets one learning rate, so that only chance differs."""
        choices: dict[str, LRChoice] = {}
        for candidate in self.candidates:
            if candidate.same_as:
                choices[candidate.name] = dataclasses.replace(choices[candidate.same_as], note="")
                continue
            runs, tried = self.trials(candidate, records)
            if tried is None:
                return None
            choices[candidate.name] = choose_lr(candidate.name, tried, self.settings) if runs else self.own_lr(candidate)
        return choices

    def own_lr(self, candidate: Candidate) -> LRChoice:
        note = ""
        if self.settings.tune_lr != "off":
            note = f"{candidate.name}: optimizer {candidate.section.optimizer.name} has no option `lr`, so its learning rate was not tuned."
        return LRChoice(1.0, 1.0, {}, False, note)

    def trials(self, candidate: Candidate, records: Mapping[str, RunRecord]) -> tuple[list[Run], dict[float, float | None] | None]:
        """The trials of a recipe so far and their losses by factor; losses None until all have ended and no other is wanted."""
        settings = self.settings
        if settings.tune_lr == "off" or candidate.same_as or not has_lr(candidate.section.optimizer):
            return [], {}
        factors: list[float] = list(settings.lr_factors)
        while True:
            runs = {factor: lr_run(candidate, self.steps[candidate.name], factor, settings) for factor in factors}
            if not all(run.name in records and records[run.name].ended for run in runs.values()):
                return list(runs.values()), None
            tried = {factor: _loss(records[run.name]) for factor, run in runs.items()}
            if (more := next_factor(tried, settings)) is None:
                return list(runs.values()), tried
            factors.append(more)

    # --- runs -----------------------------------------------------------------------------------------------------------

    def record(self, spec: RunSpec, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the verdict needs of a run. Raises Diverged when it has no finite loss."""
        artifact = artifacts[STAGE]
        metrics = artifact.metrics
        loss, chance = metrics["val_loss"], math.log(read_json(self.inputs(self.by_name[spec.overrides["recipe"]])["tokens"].file("tokens.json"))["vocab_size"])
        if not math.isfinite(loss) or loss > 1.05 * chance:
            raise Diverged(f"its validation loss of {loss:.3f} nats per token is worse than a uniform guess ({chance:.3f})")
        numbers = {
            key: metrics.get(key) for key in ("steps", "tokens", "flops", "seconds", "tokens_per_second", "parameters", "compiled", "precision", "val_share")
        }
        measured = {"bits_per_byte": metrics["val_bits_per_byte"], "loss": loss, "fingerprint": artifact.fingerprint, "path": str(artifact.path)}
        return measured | numbers | {"bad_steps": len(metrics.get("anomalous_steps", []))}

    def artifacts(self) -> dict[str, Artifact]:
        """Of every run that was made, diverged ones too, by the run's name: the comparison's inputs, which gc then keeps."""
        artifacts = {r.name: self.workspace.find(STAGE, r.id) for r in self.ledger.records()}
        return {name: artifact for name, artifact in artifacts.items() if artifact is not None}

    def forward(self, row: dict[str, Any]) -> None:
        """Progress of runs to whoever follows the comparison; their own logs stay in their folders."""
        if row["kind"] == "progress":
            self.out.event("progress", **{k: v for k, v in row.items() if k not in ("kind", "time")})

    def on_ended(self, record: RunRecord) -> None:
        counts = self.ledger.counts()
        settings = self.settings
        tuned = [c for c in self.candidates if settings.tune_lr != "off" and not c.same_as and has_lr(c.section.optimizer)]
        trials = max(len(settings.lr_factors) * len(tuned), sum(r.role == "trial" for r in self.ledger.records()))
        total = len(self.candidates) * settings.seeds + len(settings.curve) + trials
        words = {"done": "", "diverged": f"diverged: {record.reason}", "failed": f"failed: {record.reason}"}[record.status]
        if record.status == "done":
            words = f"{record.result['bits_per_byte']:.4f} bits per byte, {record.result['seconds']:.1f} s"
        ended = counts["done"] + counts["failed"] + counts["diverged"]
        self.out.log(f"{record.name}: {words} ({ended} of {plural(total, 'run')})")


def _loss(record: RunRecord) -> float | None:
    """Bits per byte of a finished run; None for one that diverged or failed."""
    return float(record.result["bits_per_byte"]) if record.status == "done" else None
