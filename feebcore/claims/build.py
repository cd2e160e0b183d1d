"""The page of a study as an artifact: `claims/<name>-<fingerprint>/` with page.md, result.json, figure.png and curves.png."""

from __future__ import annotations

import functools
import math
import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from feebcore.artifacts import Artifact, StageOutput, Workspace
from feebcore.claim import Claim, Reaches, Trains
from feebcore.claims import page
from feebcore.claims.judge import Judgment, Kind, judge, judge_reaches
from feebcore.claims.measures import LOG, STAGE, end_of, measure
from feebcore.compare.measured import measured
from feebcore.compare.statistics import holm
from feebcore.errors import FeebError
from feebcore.files import digest_of, read_json, read_jsonl, write_atomic, write_json
from feebcore.recipe import Recipe, claims_of
from feebcore.run.artifact import Made, build_artifact
from feebcore.run.contracts import unchecked_in

KIND = "claims"
REVISION = 3
"""Of what the page says; a higher one makes it be written anew."""

Runs = Mapping[str, Mapping[str, Artifact]]
"""Name of the run to stage to artifact."""


def write_page(recipes: Sequence[Recipe], runs: Runs, lost: Mapping[str, str], workspace: Workspace, command: str) -> Artifact | None:
    """The page of a study's claims, written or reused; None for a study without any.

    runs: what was built. lost: recipes that diverged, with what was said. command: what made the runs, for the page.
    """
    claims = claims_of(recipes[0].data)
    if not claims or not any(claim.stage in stages for stages in runs.values() for claim in claims.values()):
        return None
    name = str(recipes[0].data.get("name") or recipes[0].path.stem)
    result = make(recipes, claims, runs, lost)

    def write(out: StageOutput, environment: Mapping[str, Any]) -> Made:
        write_json(out.path / "result.json", result)
        write_atomic(out.path / "page.md", page.text(result, command, environment))
        write_atomic(out.path / "figure.png", page.figure(result))
        write_atomic(out.path / "curves.png", page.curves(result))
        out.content("result.json")
        return Made(_metrics(result), {f"{r.name}/{stage}": a for r in recipes for stage, a in runs.get(r.name, {}).items()})

    return build_artifact(workspace, KIND, name, {"revision": REVISION, "result": digest_of(result)}, write)


def make(recipes: Sequence[Recipe], claims: Mapping[str, Claim], runs: Runs, lost: Mapping[str, str]) -> dict[str, Any]:
    """Everything the page says, as plain JSON."""
    seeds = list(dict.fromkeys(recipe.seed for recipe in recipes))
    by_place = {(recipe.variant, recipe.seed): recipe.name for recipe in recipes}
    variants = list(dict.fromkeys(recipe.variant for recipe in recipes))

    def run_of(variant: str, seed: int, claim: Claim) -> Artifact | None:
        name = by_place[variant, seed]
        artifact = runs.get(name, {}).get(claim.stage)
        if artifact is None and name not in lost:
            raise FeebError(f"{name} was not made: it failed, or its stage {claim.stage} was not asked for")
        return artifact

    def value(variant: str, seed: int, step: int | None, claim: Claim) -> float | None:
        artifact = run_of(variant, seed, claim)
        if artifact is None:
            return None
        if isinstance(claim.expectation, Trains):
            return measure(artifact, "val_loss") / math.log(_vocabulary(artifact))
        return measure(artifact, claim.metric, step)

    judged: dict[str, Judgment] = {}
    for name, claim in claims.items():
        try:
            if isinstance(claim.expectation, Reaches):
                ended = [run_of(variant, seed, claim) for variant in claim.expectation.variants for seed in seeds]
                judged[name] = judge_reaches(claim.expectation.loss, [None if run is None else end_of(run) for run in ended])
            else:
                judged[name] = judge(claim.expectation, seeds, functools.partial(value, claim=claim))
        except FeebError as error:
            judged[name] = Judgment("cannot tell", str(error))
    tested = [name for name, judgment in judged.items() if judgment.difference is not None and judgment.margin is None]
    adjusted = dict(zip(tested, holm([judged[name].difference.p for name in tested])[0], strict=True))  # type: ignore[union-attr]
    metrics = [runs[r.name][STAGE].metrics for r in recipes if STAGE in runs.get(r.name, {})]
    return {
        "name": recipes[0].data.get("name") or recipes[0].path.stem,
        "description": recipes[0].description,
        "seeds": seeds,
        "tokens": sorted({m["tokens"] for m in metrics}),
        "parameters": sorted(m["parameters"]["total"] for m in metrics),
        "measured": measured((r.stages[STAGE].section for r in recipes if STAGE in r.stages), (m.get("val_share") for m in metrics)),  # type: ignore[misc]
        "claims": [_row(name, claim, judged[name], adjusted.get(name)) for name, claim in claims.items()],
        "unchecked": unchecked_in(a for stages in runs.values() for a in stages.values()),
        "variants": [_variant(variant, seeds, by_place, runs, lost) for variant in variants],
    }


def _row(name: str, claim: Claim, judgment: Judgment, p_holm: float | None) -> dict[str, Any]:
    difference = judgment.difference
    numbers: dict[str, Any] = {}
    if difference is not None:
        numbers = {"difference": difference.mean, "low": difference.low, "high": difference.high, "pairs": difference.num_pairs}
    if difference is not None and p_holm is not None:
        numbers |= {"p": difference.p, "p_holm": p_holm}
    return {
        "name": name,
        **claim.model_dump(mode="json"),
        "kind": judgment.kind,
        "why": judgment.why,
        "margin": judgment.margin,
        "values": list(judgment.values),
        "lost": judgment.lost,
        **numbers,
    }


def _variant(variant: str, seeds: Sequence[int], by_place: Mapping[tuple[str, int], str], runs: Runs, lost: Mapping[str, str]) -> dict[str, Any]:
    artifacts = [runs.get(by_place[variant, seed], {}).get(STAGE) for seed in seeds]
    losses = [None if a is None else a.metrics.get("val_bits_per_byte") for a in artifacts]
    numbers = [loss for loss in losses if loss is not None]
    speeds = [a.metrics["tokens_per_second"] for a in artifacts if a is not None and a.metrics.get("tokens_per_second")]
    sizes = [a.metrics["parameters"]["total"] for a in artifacts if a is not None]
    return {
        "name": variant or "recipe",
        "seeds": list(seeds),
        "bits_per_byte": losses,
        "mean": plain.fmean(numbers) if numbers else None,
        "sd": plain.stdev(numbers) if len(numbers) > 1 else None,
        "curve": _curve([a for a in artifacts if a is not None]),
        "final_loss": [None if a is None else a.metrics.get("final_loss") for a in artifacts],
        "tokens_per_second": plain.median(speeds) if speeds else None,
        "parameters": sizes[0] if sizes else None,
        "diverged": {str(seed): lost[by_place[variant, seed]] for seed in seeds if by_place[variant, seed] in lost},
    }


def _curve(finished: Sequence[Artifact]) -> list[list[float]]:
    """[step, nats of the next token in the batches since the last row, mean over runs], where every run has a number."""
    logs = [[row for row in read_jsonl(a.path / LOG) if row.get("split") == "train"] for a in finished]
    nats = [{row["step"]: value for row in log if (value := row.get("nll", row["loss"])) is not None} for log in logs]
    common = sorted(set.intersection(*map(set, nats))) if nats else []
    return [[step, plain.fmean(run[step] for run in nats)] for step in common]


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = {claim["name"]: claim["kind"] for claim in result["claims"]}
    counts = {kind.replace(" ", "_"): list(verdicts.values()).count(kind) for kind in get_args(Kind)}
    return {"report": "page.md", **counts, "verdicts": verdicts}


def _vocabulary(run: Artifact) -> int:
    return int(read_json(run.path / "model" / "model.json")["vocab_size"])
