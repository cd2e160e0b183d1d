"""Stage evaluate: Runs benchmarks on every model of the recipe.

Each (benchmark, model) is written to `parts/` as soon as it is known; a run that was killed continues with the next one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from feebcore.artifacts import Artifact, StageOutput, read_artifact
from feebcore.config import DETERMINISTIC, Execution, StageConfig
from feebcore.errors import DataError, Interrupted, did_you_mean
from feebcore.files import read_json, write_json
from feebcore.parts import Part, PartKey, default_part
from feebcore.specs import BenchmarkSpec, Need, StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from feebcore.data.store import TokenStore
    from feebcore.recipe import Recipe


class EvaluateConfig(StageConfig):
    """Options of stage evaluate. Of two benchmarks of one name, the second is called `name_2` in `models:` and in results."""

    benchmarks: list[Annotated[Part, PartKey("benchmarks")]] = Field(
        default_factory=lambda: [default_part("bits_per_byte")], min_length=1, validate_default=True, description="benchmark parts"
    )
    models: dict[str, list[str]] = Field(default_factory=dict, description="by benchmark, the stages whose models it runs on; default: every model")
    seed: int = Field(0, ge=0, description="random seed for sampling")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="matmul precision; weights stay fp32; auto: bf16 if the hardware supports it")

    device: Execution[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto: CUDA if available")
    threads: Execution[Annotated[int, Field(ge=0)]] = Field(0, description="CPU threads; 0: every CPU this process may use")
    deterministic: Execution[bool | Literal["auto"]] = Field("auto", description=DETERMINISTIC)


PART = StageSpec(
    "evaluate",
    EvaluateConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("models", kind="model", many=True), Need("tokens", optional=True)),
    makes=("scores",),
    process="worker",
    revision=2,
    summary="Runs benchmarks on every model of the recipe.",
)


def check(section: EvaluateConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = []
    benchmarks = labeled(section.benchmarks)
    makers = [stage for stage, makes in recipe.before(recipe.key_of(section)).items() if "model" in makes]
    for name, stages in section.models.items():
        if name not in benchmarks:
            problems.append(f"models.{name}: no such benchmark in this section; {did_you_mean(name, benchmarks)}")
        problems += [f"models.{name}: stage {stage!r} makes no model before this one; {did_you_mean(stage, makers)}" for stage in stages if stage not in makers]
        if not stages:
            problems.append(f"models.{name}: name at least one of {', '.join(makers)}")
    kinds = {kind for makes in recipe.before(recipe.key_of(section)).values() for kind in makes}
    for i, part in enumerate(section.benchmarks):
        assert isinstance(part.spec, BenchmarkSpec)
        problems += [
            f"benchmarks.{i}: {part.name} needs {kind}, which no stage before this one makes; add one to `stages:`, name an artifact under `inputs:`, or leave "
            "the benchmark out"
            for kind in part.spec.needs
            if kind not in kinds
        ]
    return problems


def labeled(benchmarks: list[Part]) -> dict[str, Part]:
    """The benchmarks by the names that results have: the part's bare name, numbered from the second of a name on."""
    by_name: dict[str, Part] = {}
    for part in benchmarks:
        name, number = part.spec.name, 1
        while name in by_name:
            number += 1
            name = f"{part.spec.name}_{number}"
        by_name[name] = part
    return by_name


def run(section: EvaluateConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.evaluate.benchmark import Benchmark, summarize
    from feebcore.model.precision import execution, resolve_device, resolve_precision

    device = resolve_device(section.device)
    precision = resolve_precision(section.precision, device)
    benchmarks = labeled(section.benchmarks)
    models = [name for name, artifact in inputs.items() if "model" in artifact.makes and name != "tokens"]
    todo = [(stage, name) for stage in models for name in benchmarks if stage in section.models.get(name, models)]
    (out.path / "parts").mkdir(exist_ok=True)
    with execution(section.threads, section.deterministic, device):
        _run_missing(todo, benchmarks, section, inputs, out, str(device), precision)
    parts = {(stage, name): read_json(_part_file(out.path, stage, name)) for stage, name in todo}
    collect = lambda key: {n: {s: parts[s, n][key] for s in models if (s, n) in parts} for n in benchmarks}  # noqa: E731
    results = collect("result")
    built: dict[str, Benchmark] = {name: part.build() for name, part in benchmarks.items()}
    write_json(out.path / "results.json", results)
    write_json(out.path / "samples.json", collect("samples"))
    write_json(
        out.path / "benchmarks.json",
        {name: {"title": b.title or name, "better": b.better, "percent": b.percent} for name, b in built.items()},
    )
    out.content("results.json", "samples.json", "benchmarks.json")
    return summarize(results)


def _run_missing(
    todo: list[tuple[str, str]],
    benchmarks: Mapping[str, Part],
    section: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    out: StageOutput,
    device: str,
    precision: str,
) -> None:
    """Run what has no file in parts/ yet, one model after the other, each loaded once and only when needed."""
    from feebcore.data.tokenizers import load_tokenizer
    from feebcore.evaluate.benchmark import EvaluatedModel
    from feebcore.model.io import load_model

    target: EvaluatedModel | None = None
    for number, (stage, name) in enumerate(todo):
        if _part_file(out.path, stage, name).exists():
            continue
        label = f"{name} on {stage}"
        if out.stop_requested:
            raise Interrupted(f"evaluate: stopped before {label}; run it again to continue")

        def progress(done: float, total: float, label: str = label) -> None:
            if out.stop_requested:
                raise Interrupted(f"evaluate: stopped in {label}; run it again to continue")
            out.progress(done, total, name=label)

        out.progress(number, len(todo), "benchmarks", "evaluate")
        if target is None or target.name != stage:
            folder = inputs[stage].file("model")
            store = _validation_tokens(inputs, stage) if "tokens" in inputs else None
            target = EvaluatedModel(stage, load_model(folder, device), load_tokenizer(folder / "tokenizer"), store, device, precision, section.seed)
        started = time.monotonic()
        result = dict(benchmarks[name].build().run(dataclasses.replace(target, progress=progress, log=out.log)))
        seconds = round(time.monotonic() - started, 2)
        samples = result.pop("samples", [])
        write_json(_part_file(out.path, stage, name), {"result": result, "samples": samples, "seconds": seconds})
        out.log(f"{label}: {_in_words(result)} ({seconds:.1f} s)")
    out.progress(len(todo), len(todo), "benchmarks", "evaluate")


def _validation_tokens(inputs: Mapping[str, Artifact], stage: str) -> TokenStore:
    """The validation split. Raises DataError where it was made with another tokenizer than the model's."""
    from feebcore.data.store import TokenStore

    tokens, model = inputs["tokens"], inputs[stage]
    source = tokens.manifest["inputs"].get("tokenizer")
    tokenizer = read_artifact(tokens.path.parents[1] / source["path"]) if source else None
    if tokenizer is not None and (made_with := _hashes(tokenizer, "tokenizer/")) and made_with != (_hashes(model, "model/tokenizer/") or made_with):
        raise DataError(
            f"evaluate: {tokens.path} was tokenized by {tokenizer.path}, not by the tokenizer of the {stage} model; name that one, as in "
            f"`inputs: {{tokenizer: {model.stage}/{model.name}}}`, or leave out what needs tokens"
        )
    return TokenStore.open(tokens.file("tokens.zarr"), "validation")


def _hashes(artifact: Artifact, folder: str) -> dict[str, str]:
    return {name.removeprefix(folder): entry["sha256"] for name, entry in artifact.manifest["files"].items() if name.startswith(folder)}


def _part_file(folder: Path, stage: str, benchmark: str) -> Path:
    return folder / "parts" / f"{stage}.{benchmark}.json"


def _in_words(result: Mapping[str, Any]) -> str:
    from feebcore.evaluate.benchmark import intervals

    return (
        ", ".join(
            f"{metric} {entry['value']:.4g} (n {entry['n']})" if "n" in entry else f"{metric} {entry['value']:.4g}"
            for metric, entry in intervals(result).items()
        )
        or "done"
    )
