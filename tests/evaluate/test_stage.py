"""Stage evaluate on a real chain."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from feebcore.artifacts import StageOutput
from feebcore.errors import Interrupted
from feebcore.stages import evaluate
from feebcore.stages.evaluate import EvaluateConfig


def inputs_of(artifacts: dict) -> dict:
    """The same model as pretrain and as sft."""
    return {"pretrain": artifacts["pretrain"], "sft": artifacts["pretrain"], "tokens": artifacts["shard"]}


def section_of(artifacts: dict, **changes: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate(artifacts["evaluate"].manifest["section"] | changes)


def test_bits_per_byte_is_the_number_that_pretraining_reported(tiny_chain) -> None:
    _, artifacts = tiny_chain
    result = json.loads(artifacts["evaluate"].file("results.json").read_text())["bits_per_byte"]["pretrain"]
    assert result["bits_per_byte"]["value"] == pytest.approx(artifacts["pretrain"].metrics["val_bits_per_byte"], rel=1e-5)
    assert artifacts["evaluate"].metrics["bits_per_byte"]["pretrain"] == result["bits_per_byte"]["value"]
    assert {"bits_per_byte", "python_parses", "task_accuracy", "task_accuracy_greedy"} == set(artifacts["evaluate"].metrics)


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(tiny_chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, artifacts = tiny_chain
    section = section_of(artifacts)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = evaluate.run(section, inputs_of(artifacts), StageOutput(tmp_path / "a"))

    out = StageOutput(tmp_path / "b")
    out.log = lambda text: setattr(out, "stop_requested", True)  # asked to stop after the first benchmark
    with pytest.raises(Interrupted):
        evaluate.run(section, inputs_of(artifacts), out)
    done = list((tmp_path / "b" / "parts").iterdir())
    assert len(done) == 1
    stamp = done[0].stat().st_mtime_ns
    assert evaluate.run(section, inputs_of(artifacts), StageOutput(tmp_path / "b")) == whole
    assert done[0].stat().st_mtime_ns == stamp
    for name in ("results.json", "samples.json", "benchmarks.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_benchmark_runs_on_the_named_subjects_only(tiny_chain, tmp_path: Path) -> None:
    _, artifacts = tiny_chain
    section = section_of(artifacts, benchmarks=["bits_per_byte", {"name": "bits_per_byte", "max_tokens": 10}], models={"bits_per_byte_2": ["sft"]})
    metrics = evaluate.run(section, inputs_of(artifacts), StageOutput(tmp_path))
    assert set(metrics["bits_per_byte"]) == {"pretrain", "sft"}
    assert set(metrics["bits_per_byte_2"]) == {"sft"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 < results["bits_per_byte_2"]["sft"]["tokens"] < results["bits_per_byte"]["sft"]["tokens"] / 2


def test_wrong_subjects_are_refused_before_anything_runs() -> None:
    recipe = SimpleNamespace(key_of=lambda section: "evaluate", before=lambda key: {"shard": ("tokens",), "pretrain": ("model",)})
    section = EvaluateConfig.model_validate({"benchmarks": ["bits_per_byte"], "models": {"bits_per_bite": ["pretrain"], "bits_per_byte": ["rl"]}})
    problems = evaluate.check(section, recipe)
    assert any("bits_per_byte" in p and "did you mean" in p for p in problems)
    assert any("stage 'rl' makes no model before this one" in p for p in problems)
    recipe.before = lambda key: {"pretrain": ("model",)}
    assert any("bits_per_byte needs tokens, which no stage before this one makes" in p for p in evaluate.check(section, recipe))
