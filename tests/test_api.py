"""The Python API, on a real (tiny) chain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import feebcore as feeb
from feebcore.errors import ArtifactError


def test_runs_lists_every_stage_with_its_metrics(tiny_chain) -> None:
    workspace, artifacts = tiny_chain
    frame = feeb.runs(workspace.root)
    assert set(frame["stage"]) == set(artifacts)
    assert set(frame["status"]) == {"finished"}
    row = frame.filter(stage="pretrain").row(0, named=True)
    assert json.loads(row["metrics"]) == artifacts["pretrain"].metrics
    assert row["fingerprint"] == artifacts["pretrain"].fingerprint


def test_an_empty_workspace_is_an_empty_frame(tmp_path) -> None:
    assert feeb.runs(tmp_path).is_empty()


def test_a_run_opens_by_folder_label_fingerprint_and_stage(tiny_chain) -> None:
    workspace, artifacts = tiny_chain
    shard = artifacts["shard"]
    for name in (shard.path, str(shard.path), "shard/tiny", shard.path.name, shard.fingerprint, shard.fingerprint[:6]):
        assert feeb.open_run(name, workspace.root).path == shard.path
    assert feeb.open_run("tiny", workspace.root).stage == "pretrain"  # the furthest model
    assert feeb.open_run("tiny", workspace.root, stage="tokenizer").stage == "tokenizer"


def test_an_unknown_run_is_an_error_with_a_hint(tiny_chain) -> None:
    workspace, _ = tiny_chain
    with pytest.raises(ArtifactError, match="did you mean 'tiny"):
        feeb.open_run("tinny", workspace.root)


def test_the_log_is_a_frame_and_the_recipe_is_the_resolved_one(tiny_chain) -> None:
    workspace, _ = tiny_chain
    run = feeb.open_run("tiny", workspace.root)
    assert {"step", "split", "loss"} <= set(run.log().columns)
    assert set(run.log()["split"]) == {"train"}
    assert run.log()["step"].is_sorted()
    assert run.log("validation").height >= 1
    assert run.log(None).height == run.log().height + run.log("validation").height
    assert run.section["max_steps"] == run.recipe["pretrain"]["max_steps"] == run.metrics["steps"]
    assert feeb.open_run("shard/tiny", workspace.root).log().is_empty()


def test_generate_continues_one_text_or_several_and_is_seeded(tiny_chain) -> None:
    workspace, _ = tiny_chain
    run = feeb.open_run("tiny", workspace.root)
    one = run.generate("def f", max_new_tokens=8, temperature=0.8, top_p=0.9, seed=3)
    assert isinstance(one, str)
    several = run.generate(["def f", "x"], max_new_tokens=8, temperature=0.8, top_p=0.9, seed=3)
    assert several[0] == one
    assert len(several) == 2
    greedy = run.generate("def f", max_new_tokens=8, temperature=0)
    assert greedy == run.generate("def f", max_new_tokens=8, top_k=1, seed=9)


def test_model_and_tokenizer_belong_together(tiny_chain) -> None:
    workspace, artifacts = tiny_chain
    run = feeb.open_run("tiny", workspace.root)
    assert run.model() is run.model()
    assert run.model().vocab_size == run.tokenizer().vocab_size
    opened = feeb.open_model(artifacts["pretrain"].path / "model")
    assert opened.tokenizer.decode(opened.tokenizer.encode("héllo")) == "héllo"
    assert feeb.open_run("tokenizer/tiny", workspace.root).tokenizer().encode("a") == run.tokenizer().encode("a")
    with pytest.raises(ArtifactError, match="no model"):
        feeb.open_run("shard/tiny", workspace.root).model()


def test_a_model_that_was_made_anew_is_read_anew(tiny_chain, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(feeb.open_run("tiny", tiny_chain[0].root, "pretrain").path / "model", folder)
    old = feeb.open_model(folder)
    assert feeb.open_model(folder).model is old.model
    (weights,) = folder.glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    new = feeb.open_model(folder)
    assert not any(torch.equal(a, b) for a, b in zip(old.model.parameters(), new.model.parameters(), strict=True))


def test_an_unfinished_run_shows_its_log_and_no_metrics(tiny_chain, tmp_path) -> None:
    _, artifacts = tiny_chain
    folder = tmp_path / "pretrain" / "half-0123456789ab"
    folder.mkdir(parents=True)
    for name in ("recipe.json", "request.json", "metrics.jsonl"):
        (folder / name).write_bytes((artifacts["pretrain"].path / name).read_bytes())
    run = feeb.open_run("half", tmp_path)
    assert (run.status, run.metrics, run.stage) == ("unfinished", {}, "pretrain")
    assert run.log().height > 0
    assert feeb.runs(tmp_path)["status"].to_list() == ["unfinished"]


def test_importing_the_api_loads_neither_torch_nor_polars() -> None:
    code = "import sys, feebcore; feebcore.open_run; print([m for m in ('torch', 'polars', 'numpy.random') if m in sys.modules and m != 'numpy.random'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_public_names_are_listed_and_load_no_torch() -> None:
    assert set(dir(feeb)) == {*feeb.__all__, "__version__"}
    code = "import feebcore, sys; [getattr(feebcore, name) for name in feebcore.__all__]; assert not {'torch', 'polars'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
