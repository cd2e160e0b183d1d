"""`feeb branch`: going on from a checkpoint of another run."""

from __future__ import annotations

import json

import pytest

from feeb_pipelines.cli import run_command


def test_a_finished_run_is_extended_into_an_artifact_of_its_own(tiny_chain, capsys):
    workspace, built = tiny_chain
    trunk = built["pretrain"]
    options = ["--workspace", str(workspace.root), "--in-process", "--json", "--set", "pretrain.max_steps=9"]
    assert run_command(["branch", trunk.fingerprint[:6], *options]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    made = runs["tiny-from-6"]["pretrain"]
    assert made["metrics"]["steps"] == 9
    assert made["path"] != str(trunk.path)
    assert runs["tiny-from-6"]["shard"]["status"] == "reused"
    assert run_command(["branch", "tiny", *options]) == 0, "its name means the same run, and nothing is left to do"
    assert json.loads(capsys.readouterr().out)["runs"]["tiny-from-6"]["pretrain"]["status"] == "reused"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no training run 'nothing'"),
        (["tiny", "--step", "4"], "no checkpoint of step 4; there are 6"),
        (["tiny"], "max_steps: 6 is not beyond step 6"),
        (["t1"], "there are tiny-"),
    ],
)
def test_what_cannot_be_branched_from_is_said_in_one_sentence(tiny_chain, capsys, arguments, message):
    workspace, _ = tiny_chain
    assert run_command(["branch", *arguments, "--workspace", str(workspace.root), "--in-process"]) == 1
    assert message in capsys.readouterr().err
