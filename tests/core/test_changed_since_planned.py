"""What a fingerprint says of a file is of the file that is read: one that changes in the meantime ends the run before it begins."""

import shutil
import sys
from pathlib import Path

import pytest

from feebcore.artifacts import Workspace
from feebcore.errors import ArtifactError
from feebcore.provenance import describe_environment, engine_source, made_elsewise
from feebcore.recipe import load
from feebcore.run.build import build, run_all
from feebcore.run.plan import plan, reused_from_another_feeb

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from small_compare import RECIPE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with texts, a recipe, its workspace and the model that it made."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 3)
    (folder / "base.yaml").write_text(RECIPE.replace("max_steps: 16", "max_steps: 4"))
    return folder, run_all(load(folder / "base.yaml"), Workspace(folder / "data"))


def other_weights(folder: Path) -> None:
    """Other bytes, of the same size."""
    weights = folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize("when", ["before it begins", "while it begins"])
def test_weights_that_change_between_plan_and_start_are_refused(trained, tmp_path, when):
    folder, built = trained
    start = tmp_path / "start"
    shutil.copytree(built["pretrain"].path, start)
    recipe = load(folder / "base.yaml", [f"pretrain.init_from={start}"])
    workspace, make = Workspace(folder / "data"), {stage: built[stage] for stage in ("download", "tokenizer", "shard")}
    if when == "before it begins":
        other_weights(start)
        with pytest.raises(ArtifactError, match=r"what pretrain depends on has changed since it was planned \(init_content: .*run the same command again"):
            build(recipe, "pretrain", workspace, make, in_process=True)
        assert not workspace.find("pretrain", plan(recipe, workspace)[-1].fingerprint)
    else:
        with pytest.raises(ArtifactError, match="init_content"):
            build(recipe, "pretrain", workspace, make, before=lambda place: other_weights(start))
    again = load(folder / "base.yaml", [f"pretrain.init_from={start}"])
    assert plan(again, workspace)[-1].fingerprint != plan(recipe, workspace)[-1].fingerprint


def test_texts_that_change_between_plan_and_start_are_refused(trained, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("data"))
    recipe = load(folder / "base.yaml")
    (folder / "text" / "0.py").write_text("x = 1\n")
    with pytest.raises(ArtifactError, match=r"what download depends on has changed since it was planned \(sources"):
        run_all(recipe, Workspace(folder / "data"))


def test_reuse_of_what_another_feeb_made_is_said_in_one_line(trained):
    _, built = trained
    assert reused_from_another_feeb(built.values()) == ""
    environment = describe_environment()
    assert made_elsewise(environment) == ""
    assert environment["source"] == engine_source()
    assert made_elsewise({**environment, "feeb": "0.0.1"}).startswith("feeb 0.0.1, this is ")
    assert made_elsewise({**environment, "source": "0" * 16, "commit": "c" * 40}).startswith("feeb at commit cccccccc, this is ")
    assert made_elsewise({**environment, "source": "0" * 16}).startswith("other source files of feeb ")
    for artifact in built.values():
        artifact.manifest["environment"]["feeb"] = "0.0.1"
    text = reused_from_another_feeb(built.values())
    assert text.startswith("reused download/base, tokenizer/base, shard/base and 1 more: made with feeb 0.0.1, this is ")
    assert "\n" not in text
