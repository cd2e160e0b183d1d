"""`feeb import` makes an artifact that other commands take; `feeb export` writes a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from feeb_pipelines.cli import run_command
from feebcore.api import open_run
from feebcore.artifacts import Workspace
from feebcore.errors import DataError, RecipeError
from feebcore.model.build import build_model
from feebcore.model.io import save_model
from feebcore.parts import resolve_part
from feebcore.recipe import load
from feebcore.run.build import run_all


def exported_model(folder: Path) -> Path:
    """A small Llama in Hugging Face form, with a codec of bytes."""
    from feeb_interchange.imported import EXAMPLE_CODEC
    from feeb_interchange.imported.tokenizer import write_codec_folder

    part = resolve_part("architectures", {"name": "llama", "num_layers": 1, "d_model": 32})
    write_codec_folder(folder / "codec", EXAMPLE_CODEC.read_text(), "<|begin|>", "<|end|>", 0)
    save_model(folder / "made", build_model(part, 258, 32), part, folder / "codec")
    resolve_part("exporters", "huggingface").build()(folder / "made", folder / "hf")
    return folder / "hf"


def test_a_model_is_imported_found_by_its_name_continues_text_and_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, workspace = exported_model(tmp_path), tmp_path / "data"
    assert run_command(["import", str(source), "smol", "--workspace", str(workspace), "--option", "seq_len=24", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    run = open_run("smol", workspace)
    assert (str(run.path), run.stage, run.model().seq_len) == (said["path"], "pretrain", 24)
    assert run.manifest["identity"]["note"] == f"imported from {source} by huggingface"
    assert run_command(["generate", "smol", "ab", "--max-new-tokens", "4", "--workspace", str(workspace)]) == 0
    assert capsys.readouterr().out.startswith("ab")
    assert run_command(["import", str(source), "smol", "--workspace", str(workspace), "--option", "seq_len=24"]) == 0  # the same again
    assert capsys.readouterr().out.strip() == said["path"]
    assert run_command(["export", "smol", str(tmp_path / "back"), "--workspace", str(workspace)]) == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not list(workspace.glob(".import-*"))


RECIPE = """
inputs: {pretrain: smol}
stages: [sft, rl, evaluate, report]
sft: {task: {name: sort, digits: 3}, max_steps: 3, batch_size: 4, eval_prompts: 8}
rl: {task: {name: sort, digits: 3}, max_steps: 1, prompts_per_step: 2, group_size: 2, eval_prompts: 8}
evaluate: {benchmarks: [{name: task_accuracy, task: {name: sort, digits: 3}, problems: 8}]}
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a workspace, data/, that holds an imported model called smol."""
    folder = tmp_path_factory.mktemp("imported")
    assert run_command(["import", str(exported_model(folder)), "smol", "--workspace", str(folder / "data")]) == 0
    return folder


def test_an_imported_model_is_tuned_evaluated_and_reported_by_a_short_recipe(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text(RECIPE)
    workspace = Workspace(imported / "data")
    built = run_all(load(tmp_path / "tune.yaml"), workspace)
    smol = open_run("pretrain/smol", workspace.root)
    assert smol.manifest["makes"] == ["model", "tokenizer"]
    assert built["sft"].manifest["inputs"]["model"]["fingerprint"] == smol.fingerprint
    assert built["rl"].manifest["inputs"]["model"]["fingerprint"] == built["sft"].fingerprint
    assert set(built["evaluate"].metrics["task_accuracy"]) == {"pretrain", "sft", "rl"}
    assert (built["report"].path / "report.html").exists()
    tuned = open_run("tune", workspace.root)
    assert (tuned.stage, isinstance(tuned.generate("sort 1 2 3:", max_new_tokens=2), str)) == ("rl", True)


def test_what_an_imported_model_lacks_is_said_before_anything_runs(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "score.yaml").write_text("inputs: {pretrain: smol}\nstages: [evaluate]\n")
    with pytest.raises(RecipeError, match=r"score.yaml: evaluate.benchmarks.0: bits_per_byte needs tokens, which no stage before this one makes"):
        load(tmp_path / "score.yaml")


def test_text_is_scored_with_the_imported_tokenizer_and_never_with_another(imported: Path, tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text number {i} of forty\n")
    text = f"name: score\nstages: [download, tokenizer, shard, evaluate]\ndownload: {{sources: [{{name: files, paths: [{tmp_path}/*.txt]}}]}}\n"
    (tmp_path / "score.yaml").write_text(text + "tokenizer: {tokenizer: byte}\n")
    workspace = Workspace(imported / "data")
    with pytest.raises(DataError, match=r"not by the tokenizer of the pretrain model; name that one, as in `inputs: \{tokenizer: pretrain/smol\}`"):
        run_all(load(tmp_path / "score.yaml", ["inputs.pretrain=smol"]), workspace)
    built = run_all(load(tmp_path / "score.yaml", ["inputs.pretrain=smol", "inputs.tokenizer=pretrain/smol"]), workspace)
    assert 0 < built["evaluate"].metrics["bits_per_byte"]["pretrain"] < 20


def test_input_names_an_artifact_on_the_command_line(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tune.yaml").write_text(RECIPE.replace("inputs: {pretrain: smol}\n", ""))
    options = ["--workspace", str(imported / "data")]
    assert run_command(["plan", str(tmp_path / "tune.yaml"), "sft", *options]) == 1
    assert "stage 'sft' needs model; add 'pretrain'" in capsys.readouterr().err
    folder = open_run("pretrain/smol", imported / "data").path
    for reference in ("smol", str(folder), os.path.relpath(folder)):
        assert run_command(["plan", str(tmp_path / "tune.yaml"), "sft", "--input", f"pretrain={reference}", "--json", *options]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["stage"], len(row["fingerprint"])) == ("sft", 12)
    assert run_command(["plan", str(tmp_path / "tune.yaml"), "--input", "smol", *options]) == 2
    assert "write STAGE=ARTIFACT" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x")
    for arguments, message in (
        (["import", str(tmp_path / "nothing"), "a"], "does not exist"),
        (["import", str(tmp_path / "empty"), "a"], "has no config.json"),
        (["import", str(tmp_path / "empty"), "a/b"], "cannot name an artifact"),
        (["import", str(tmp_path / "model.onnx"), "a"], "no part 'onnx' of kind 'importers'"),
        (["import", str(tmp_path / "empty"), "a", "--option", "seq_len"], "write --option key=value"),
        (["import", str(tmp_path / "empty"), "a", "--option", "seq_len=0"], "seq_len"),
        (["export", "nobody", str(tmp_path / "out")], "no run 'nobody'"),
    ):
        assert run_command([*arguments, "--workspace", str(tmp_path / "data")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list((tmp_path / "data").glob("pretrain/*"))
