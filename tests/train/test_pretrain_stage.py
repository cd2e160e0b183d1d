"""Stage pretrain in its chain, from text files to a model that loads."""

from __future__ import annotations

import re
import signal

import pytest

from feebcore.artifacts import Workspace
from feebcore.errors import ArtifactError, Interrupted, RecipeError
from feebcore.files import read_jsonl
from feebcore.model.fp8 import exchange
from feebcore.recipe import load
from feebcore.run.build import run_all

TIMES = ("elapsed", "tokens_per_second", "data_wait")

RECIPE = """
name: small
stages: [download, tokenizer, shard, pretrain]
download: {sources: [{name: files, paths: [./corpus]}], split_modulus: 4}
tokenizer: {tokenizer: byte}
pretrain:
  architecture: {name: transformer, num_layers: 1, d_model: 32, num_heads: 2}
  schedule: {name: wsd, warmup_steps: 2}
  seq_len: 32
  batch_size: 4
  max_steps: 6
  validation_every: 3
  checkpoint_every: 2
  log_every: 2
  threads: 1
  callbacks: [metrics, progress, {name: samples, every: 4, max_new_tokens: 4, prompts: [""]}]
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(24):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"number {i} and the next is {i + 1}; " * 12)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


def test_text_files_become_a_model_whose_score_can_be_had_again(recipe, tmp_path):
    from feebcore.data.store import TokenStore
    from feebcore.evaluate.scorer import score_store
    from feebcore.model.io import load_model

    built = run_all(load(recipe), Workspace(tmp_path / "ws"))
    artifact = built["pretrain"]
    metrics = artifact.metrics
    store = TokenStore.open(built["shard"].path / "tokens.zarr", "validation")
    again = score_store(load_model(artifact.path / "model"), store, 32, 16, "cpu", metrics["precision"])
    assert metrics["val_bits_per_byte"] == pytest.approx(again.bits_per_byte, rel=1e-6)
    assert (metrics["steps"], metrics["tokens"]) == (6, 6 * 4 * 32)
    rows = read_jsonl(artifact.path / "metrics.jsonl")
    assert [(r["step"], r["split"]) for r in rows] == [(2, "train"), (3, "validation"), (4, "train"), (6, "train"), (6, "validation")]
    assert rows[-1]["bits_per_byte"] == pytest.approx(metrics["val_bits_per_byte"], rel=1e-5)
    assert {r["step"] for r in read_jsonl(artifact.path / "samples.jsonl")} == {4, 6}
    assert (artifact.path / "model" / "tokenizer" / "part.json").exists()


def test_a_run_in_fp8_ends_with_a_model_and_its_score(recipe, tmp_path, monkeypatch):
    """Emulated and uncompiled, as the hardware is a GPU's; the model that is scored and saved has plain layers again."""
    pytest.importorskip("torchao")
    from feebcore.model.io import load_model
    from feebcore.train import compilation, pretrain

    monkeypatch.setattr(pretrain, "convert_to_fp8", lambda model: exchange(model, emulate=True))
    monkeypatch.setattr(compilation, "should_compile", lambda *unused: ("", ""))
    built = run_all(load(recipe, ["pretrain.precision=fp8", "pretrain.callbacks=[metrics]"]), Workspace(tmp_path / "ws"))["pretrain"]
    assert built.metrics["precision"] == "fp8"
    assert built.metrics["val_bits_per_byte"] > 0
    assert load_model(built.path / "model").count().total == built.metrics["parameters"]["total"]


def test_the_model_is_saved_before_it_is_scored(recipe, tmp_path, monkeypatch):
    from feebcore.train import pretrain

    def fail(*unused):
        raise ArtifactError("the score failed")

    monkeypatch.setattr(pretrain, "_score", fail)
    with pytest.raises(ArtifactError, match="the score failed"):
        run_all(load(recipe), Workspace(tmp_path / "ws"))
    assert list((tmp_path / "ws").rglob("model/model.safetensors"))


def test_each_source_is_scored_by_itself_where_there_are_several(recipe, tmp_path):
    (tmp_path / "more").mkdir()
    for i in range(24):
        (tmp_path / "more" / f"{i}.txt").write_text(f"other words, said {i} times over; " * 9)
    two = "sources: [{name: files, paths: [./corpus], source_name: numbers}, {name: files, paths: [./more], source_name: words}]"
    recipe.write_text(RECIPE.replace("sources: [{name: files, paths: [./corpus]}]", two))
    metrics = run_all(load(recipe), Workspace(tmp_path / "ws"))["pretrain"].metrics
    one, other = metrics["val_bits_per_byte_by_source"].values()
    assert min(one, other) <= metrics["val_bits_per_byte"] <= max(one, other)
    assert one != other
    assert metrics["data"]["epochs"] > 0


def test_an_altered_token_shard_is_refused(recipe, tmp_path):
    workspace = Workspace(tmp_path / "ws")
    built = run_all(load(recipe), workspace, stages=["shard"])
    name = max((n for n in built["shard"].manifest["files"] if n.startswith("tokens.zarr/train")), key=lambda n: (built["shard"].path / n).stat().st_size)
    shard = built["shard"].path / name
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match="was altered"):
        run_all(load(recipe), workspace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretrain.micro_batch=3", "micro_batch: 3 does not divide batch_size 4"),
        ("pretrain.schedule.warmup_steps=9", "schedule.warmup_steps: 9 is more than max_steps 6"),
        ("pretrain.callbacks=[metrics, metrics]", "'metrics' is listed twice"),
        ("pretrain.init_from=nowhere", "init_from: no folder .*nowhere"),
        ("pretrain.max_step=3", "did you mean 'max_steps'"),
        ("pretrain.optimizer={name: muon, lrr: 1}", "lrr"),
        ("pretrain.schedule={name: wsd, warmup_fraction: 0.6, decay_fraction: 0.6}", "4 steps of warmup and 4 of decay are more than max_steps 6"),
        ("pretrain.data_order={name: mixture, proportions: {file: 1}}", "no source 'file' in stage download; did you mean 'files'"),
        ("pretrain.data_order={name: repeat_batches, data_order: {name: mixture, proportions: {web: 1}}}", "no source 'web' in stage download"),
        ("pretrain.data_order={name: mixture, proportions: {files: 1}, phases: [{begin_step: 9, proportions: {files: 1}}]}", "the run ends after 6"),
        ("download.validation_sources=[web]", "validation_sources: no source 'web'"),
        ("download.validation_sources=[files]", "every source is a validation source"),
        ("pretrain.architecture=byte_patches tokenizer.tokenizer=char", "patches with boundaries words reads tokens as bytes, and the tokenizer is char"),
        ("pretrain.keep_best=1 pretrain.validation_every=0", "keep_best: it needs validation"),
        ("pretrain.weight_decay_schedule=linear pretrain.optimizer={name: adamw, weight_decay: 0}", "weight_decay is 0"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(recipe, change, message):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        load(recipe, re.split(r" (?=pretrain\.|tokenizer\.)", change))


def test_what_an_objective_says_of_a_model_is_one_sentence(recipe, tmp_path):
    change = ["pretrain.objective=myopic", "pretrain.architecture.attention={name: sliding_window, window: 4}"]
    with pytest.raises(RecipeError, match=r"^pretrain\.objective: objective myopic: .*choose attention mha or gqa"):
        run_all(load(recipe, change), Workspace(tmp_path / "data"))


def test_the_weights_a_run_starts_from_are_part_of_its_identity(recipe, tmp_path):
    """By content: other weights under the same path make another model, the same weights elsewhere the same one."""
    from feebcore.config import identity_of

    for folder, weights in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
    scratch, a, b, c = (identity_of(load(recipe, [f"pretrain.init_from={f}"]).stages["pretrain"].section) for f in ("''", "a", "b", "c"))
    assert a == c
    assert a != b
    assert a != scratch
    assert "init_content" not in scratch


def test_what_the_final_score_looks_at_is_part_of_the_identity(recipe):
    """It decides val_bits_per_byte, and in a sweep the losses that the law is fitted to."""
    from feebcore.config import identity_of

    assert identity_of(load(recipe, ["pretrain.validation_stride=8"]).stages["pretrain"].section)["validation_stride"] == 8


def test_a_stop_during_validation_saves_at_once_and_the_validation_is_done_again(recipe, tmp_path, monkeypatch):
    from feebcore.train import validation

    changed = ["pretrain.checkpoint_every=0", "pretrain.validation_tokens=64", "pretrain.callbacks=[metrics]"]
    whole = run_all(load(recipe, changed), Workspace(tmp_path / "whole"))["pretrain"]
    looks = 0
    parts = validation.micro_batches

    def interrupted(*arguments):
        nonlocal looks
        looks += 1
        if looks == 1:
            signal.raise_signal(signal.SIGTERM)
        return parts(*arguments)

    monkeypatch.setattr(validation, "micro_batches", interrupted)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        run_all(load(recipe, changed), Workspace(tmp_path / "cut"))
    again = run_all(load(recipe, changed), Workspace(tmp_path / "cut"))["pretrain"]
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(a.path / "metrics.jsonl")] for a in (whole, again)]
    assert rows[0] == rows[1]
    assert (whole.path / "model/model.safetensors").read_bytes() == (again.path / "model/model.safetensors").read_bytes()


def test_the_best_checkpoint_is_kept_whenever_it_is_looked_at(recipe, tmp_path):
    changed = ["pretrain.checkpoint_every=5", "pretrain.validation_every=2", "pretrain.keep_best=1", "pretrain.keep_checkpoints=1", "pretrain.max_steps=9"]
    run = run_all(load(recipe, changed), Workspace(tmp_path / "ws"))["pretrain"]
    looked = {row["step"]: row["loss"] for row in read_jsonl(run.path / "metrics.jsonl") if row["split"] == "validation" and not row.get("whole_split")}
    best = min(looked, key=looked.__getitem__)
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {f"step-{best:08d}", "step-00000009"}
