"""Model folders: tied weights, damage, other architectures, altered files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from feebcore.errors import ArtifactError
from feebcore.files import sha256_file
from feebcore.model.build import build_model
from feebcore.model.io import load_model, save_model
from feebcore.parts import resolve_part


def transformer(**options: Any) -> Any:
    return resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 16, "num_heads": 2, **options})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = tmp_path / "tok"
    tokenizer.mkdir()
    (tokenizer / "part.json").write_text("{}")
    architecture = transformer(lm_head="tied")
    save_model(tmp_path / "model", build_model(architecture, 30, 8, seed=3), architecture, tokenizer)
    return tmp_path / "model"


def test_tied_weights_are_stored_once_and_stay_tied(saved: Path) -> None:
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")
    model = load_model(saved)
    assert model.lm_head.weight is model.embedding.weight
    assert not model.training
    assert torch.equal(model.embedding.weight, build_model(transformer(lm_head="tied"), 30, 8, seed=3).embedding.weight)
    assert (saved / "tokenizer" / "part.json").exists()


def test_saving_again_replaces_and_leaves_nothing_behind(saved: Path) -> None:
    architecture = transformer()
    save_model(saved, build_model(architecture, 30, 8), architecture)
    assert "lm_head.weight" in load_file(saved / "model.safetensors")
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model", "tok"]


def test_loads_in_another_dtype(saved: Path) -> None:
    assert {p.dtype for p in load_model(saved, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_truncated_file_is_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated or damaged"):
        load_model(saved)


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    description = json.loads((saved / "model.json").read_text())
    for change, why in (
        ({"norm": "layernorm"}, r"without .*shift"),
        ({"feedforward": {"name": "gelu", "intermediate_size": 99}}, r"the model wants \(99, 16\)"),
    ):
        other = description | {"architecture": description["architecture"] | change}
        (saved / "model.json").write_text(json.dumps(other))
        with pytest.raises(ArtifactError, match=why):
            load_model(saved)


def test_an_unknown_part_is_explained(saved: Path) -> None:
    description = json.loads((saved / "model.json").read_text())
    description["architecture"]["name"] = "transfromer"
    (saved / "model.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="did you mean 'transformer'"):
        load_model(saved)
    with pytest.raises(ArtifactError, match="not a model folder"):
        load_model(saved / "nowhere")


def test_an_altered_file_of_a_finished_artifact_is_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    entry = {"size": file.stat().st_size, "sha256": sha256_file(file)}
    manifest = {"schema": 2, "stage": "pretrain", "name": "x", "makes": ["model"], "fingerprint": "a" * 12, "digest": "", "inputs": {}, "metrics": {}}
    manifest["files"] = {"model/model.safetensors": entry}
    (saved.parent / "manifest.json").write_text(json.dumps(manifest))
    load_model(saved)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="altered"):
        load_model(saved)
