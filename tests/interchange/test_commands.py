"""`feeb import` makes an artifact that other commands take; `feeb export` writes a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feeb_pipelines.cli import run_command
from feebcore.api import open_run
from feebcore.model.build import build_model
from feebcore.model.io import save_model
from feebcore.parts import resolve_part


def exported_model(folder: Path) -> Path:
    """A small Llama in Hugging Face form, with a codec of bytes."""
    from feeb_interchange import EXAMPLE_CODEC
    from feeb_interchange.tokenizer import write_codec_folder

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


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x")
    for arguments, message in (
        (["import", str(tmp_path / "nothing"), "a"], "there is no"),
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
