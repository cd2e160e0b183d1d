"""A study that is run in this process ends with a page of what its runs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feeb_pipelines.cli.run import run
from feebcore.artifacts import Workspace
from feebcore.errors import StageFailed
from feebcore.files import read_jsonl
from feebcore.recipe import load_study

STUDY = """
name: study
stages: [download, tokenizer, shard, pretrain]
download: {sources: [{name: files, paths: [text.jsonl]}], split_modulus: 2}
tokenizer: {tokenizer: byte}
pretrain:
  architecture: {num_layers: 1, d_model: 16, num_heads: 2}
  seq_len: 16
  batch_size: 4
  max_steps: 6
  log_every: 3
  validation_every: 3
  compile: "off"
  device: cpu
  threads: 1
  callbacks: [metrics, residual_stream]
variants:
  slow: {pretrain.optimizer: {name: adamw, lr: 1e-5}}
  fast: {pretrain.optimizer: {name: adamw, lr: 1e-2}}
  exploding: {pretrain.optimizer: {name: sgd, lr: 1e30}, pretrain.precision: fp32, pretrain.grad_clip: 0.0}
seeds: [0, 1, 2]
claims:
  rate: {claim: a higher rate learns faster, expect: fast < slow}
  early: {claim: and the gap widens, expect: slow - fast > slow@3 - fast@3}
  stream: {claim: the stream has a size, expect: fast > 0, metric: "residual_stream:blocks.-1.after"}
  explodes: {claim: an absurd rate trains, expect: exploding trains}
  unknown: {claim: nobody wrote this, expect: fast > slow, metric: charm}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = [{"text": "abcdefgh " * 20 + str(i)} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_the_page_says_what_the_runs_said(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "data"
    assert run(str(study), workspace=space, in_process=True) == 0
    assert "exploding-seed0 diverged, the other runs continue" in capsys.readouterr().out
    (folder,) = (space / "claims").glob("study-*")
    result = json.loads((folder / "result.json").read_text())
    kinds = {claim["name"]: claim["kind"] for claim in result["claims"]}
    assert kinds == {"rate": "agrees", "early": "agrees", "stream": "agrees", "explodes": "disagrees", "unknown": "cannot tell"}
    losses = {v["name"]: v["bits_per_byte"] for v in result["variants"]}
    for member in load_study(study):
        if member.variant != "exploding":
            (manifest,) = (space / "pretrain").glob(f"{member.name}-*/manifest.json")
            assert json.loads(manifest.read_text())["metrics"]["val_bits_per_byte"] == losses[member.variant][member.seed]
    assert losses["exploding"] == [None, None, None]
    rate = result["claims"][0]
    assert rate["values"] == pytest.approx([f - s for f, s in zip(losses["fast"], losses["slow"], strict=True)])
    page = (folder / "page.md").read_text()
    assert f"    feeb run {study}\n" in page
    assert "| rate | a higher rate learns faster | `fast < slow` |" in page
    assert "no 'charm'" in page
    assert "Bits per byte are of the weights after the last step, on all of the validation text, which is the same for every seed." in page
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    fast = next(v for v in result["variants"] if v["name"] == "fast")
    logs = [read_jsonl(path) for path in sorted((space / "pretrain").glob("study-fast-*/metrics.jsonl"))]
    wanted = [[step, sum(r["loss"] for rows in logs for r in rows if r["step"] == step and r["split"] == "train") / len(logs)] for step in (3, 6)]
    assert fast["curve"] == [[step, pytest.approx(loss)] for step, loss in wanted]
    assert not [p for p in Workspace(space).unreferenced() if "exploding" not in p.name]


def test_without_findings_a_member_that_failed_is_an_error_at_the_end(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY[: STUDY.index("claims:")].replace("seeds: [0, 1, 2]", "seeds: [0]"))
    with pytest.raises(StageFailed, match=r"1 of 3 runs failed(.|\n)*study-exploding"):
        run(str(study), workspace=tmp_path / "data", in_process=True)
    assert len(list((tmp_path / "data" / "pretrain").glob("*/manifest.json"))) == 2
