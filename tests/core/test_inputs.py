"""Named inputs: a finished artifact in the place of building a stage."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from feeb_pipelines.cli.options import with_inputs
from feebcore import recipe as recipes
from feebcore.artifacts import Workspace
from feebcore.errors import RecipeError
from feebcore.run.build import run_all
from feebcore.run.inputs import find_input
from feebcore.run.plan import plan

ALONE = "plugins: [./toy_stages.py]\nstages: [total]\ninputs: {numbers: REFERENCE}\n"


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(__file__).with_name("toy_stages.py"), tmp_path)
    (tmp_path / "toy.yaml").write_text("name: toy\nplugins: [./toy_stages.py]\nstages: [numbers, total]\n")
    sys.modules.pop("toy_stages", None)
    yield tmp_path
    sys.modules.pop("toy_stages", None)


@pytest.fixture
def workspace(folder):
    """Numbers 1 to 3, called three, and their sum."""
    space = Workspace(folder / "data")
    run_all(recipes.load(folder / "toy.yaml", ["name=three", "numbers.count=3"]), space)
    return space


def alone(folder, reference, *overrides):
    (folder / "alone.yaml").write_text(ALONE.replace("REFERENCE", str(reference)))
    return recipes.load(folder / "alone.yaml", overrides)


def test_a_named_artifact_takes_the_place_of_a_stage(folder, workspace):
    (numbers,) = (a for _, a in workspace.all(stage="numbers"))
    for reference in ("three", "numbers/three", numbers.path.name, f"numbers/{numbers.path.name}", numbers.path, f"./data/numbers/{numbers.path.name}"):
        recipe = alone(folder, reference)
        (item,) = plan(recipe, workspace)
        assert (item.stage, item.status) == ("total", "reuse"), reference  # the same content, so the same identity as when it was built
        assert run_all(recipe, workspace)["total"].metrics == {"total": 6}


def test_a_named_artifact_feeds_what_is_built(folder, workspace):
    built = run_all(alone(folder, "three", "total.power=2"), workspace, in_process=False)
    assert built["total"].metrics == {"total": 14}
    assert built["total"].manifest["inputs"]["numbers"]["stage"] == "numbers"
    again = recipes.load(built["total"].path / "recipe.json")  # the run's own record runs again
    assert [i.status for i in plan(again, workspace)] == ["reuse"]


def test_a_listed_stage_is_not_built_when_its_artifact_is_named(folder, workspace):
    recipe = recipes.load(folder / "toy.yaml", ["inputs.numbers=three", "total.power=3"])
    assert list(recipe.stages) == ["total"]
    with pytest.raises(RecipeError, match="stage 'numbers' is not built, as inputs names an artifact in its place"):
        plan(recipe, workspace, ["numbers"])
    assert run_all(recipe, workspace)["total"].metrics == {"total": 36}


def test_an_input_that_spares_a_listed_stage_but_feeds_none_is_not_written_down(folder):
    recipe = recipes.load(folder / "toy.yaml", ["stages=[tokenizer, numbers, total]", "inputs.tokenizer=any"])
    assert list(recipe.stages) == ["numbers", "total"]
    again = recipes.from_resolved(recipe.resolved(), folder / "recipe.json")
    assert (list(again.stages), again.inputs) == (["numbers", "total"], {})


def test_null_drops_an_inherited_input(folder, workspace):
    alone(folder, "three")
    (folder / "child.yaml").write_text("extends: alone.yaml\nstages: [numbers, total]\ninputs: {numbers: null}\n")
    assert list(recipes.load(folder / "child.yaml").stages) == ["numbers", "total"]


def test_the_newest_of_a_name_is_taken_and_its_content_is_identity(folder, workspace):
    first = plan(alone(folder, "three"), workspace)[0].fingerprint
    run_all(recipes.load(folder / "toy.yaml", ["name=three", "numbers.count=4"]), workspace, ["numbers"])
    (item,) = plan(alone(folder, "three"), workspace)
    assert item.fingerprint != first
    assert run_all(alone(folder, "three"), workspace)["total"].metrics == {"total": 10}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{numbers: thre}", r"alone.yaml:3: inputs.numbers: no artifact 'thre' of stage numbers in .*did you mean 'three'"),
        (
            "{numbers: total/three}",
            r"alone.yaml:3: inputs.numbers: .* holds nothing that another stage needs; instead of stage numbers it must hold numbers",
        ),
        ("{numbers: ./nowhere}", r"alone.yaml:3: inputs.numbers: there is no folder .*nowhere; `feeb artifacts import FOLDER numbers NAME`"),
        ("{numbers: ./data}", r"data is not a finished artifact"),
        ("{nmbers: three}", r"alone.yaml:3: inputs.nmbers: no part 'nmbers' of kind 'stages'; did you mean 'numbers'"),
        ("{numbers: 3}", r"alone.yaml:3: inputs is a mapping of stages to artifacts"),
        ("[three]", r"inputs is a mapping of stages to artifacts"),
        ("{total: three}", r"every stage of the recipe is a named input"),
        ("{}", r"stage 'total' needs numbers; add 'numbers' to `stages:` before it, or name a finished artifact under `inputs:`"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(folder, workspace, inputs, message):
    (folder / "alone.yaml").write_text(ALONE.replace("{numbers: REFERENCE}", inputs))
    with pytest.raises(RecipeError, match=message):
        plan(recipes.load(folder / "alone.yaml"), workspace)


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("toy", ["numbers=thre"], r"^--input numbers=thre: no artifact 'thre' of stage numbers in .*; did you mean 'three'\?$"),
        ("toy", ["nmbers=three"], r"^--input nmbers=three: no part 'nmbers' of kind 'stages'; did you mean 'numbers'\?$"),
        ("toy", ["pretrain=three"], r"^--input pretrain=three: no stage of this recipe needs an artifact of stage 'pretrain'; it runs numbers, total$"),
        ("toy", ["total=thre"], r"^--input total=thre: no artifact 'thre' of stage total in "),
        ("toy", ["numbers=/nowhere"], r"^--input numbers=/nowhere: there is no folder /nowhere"),
        ("toy", ["numbers=total/three"], r"^--input numbers=total/three: .* it must hold numbers"),
        ("toy", ["numbers=three", "numbers.count=9"], r"^--set numbers.count: stage 'numbers' is not built, as a finished artifact takes its place"),
    ],
)
def test_a_wrong_option_input_is_said_in_its_own_words(folder, workspace, recipe, given, message):
    texts = [text for option in given for text in (with_inputs([], [option]) if "." not in option else [option])]
    with pytest.raises(RecipeError, match=message):
        plan(recipes.load(folder / f"{recipe}.yaml", texts), workspace)


def test_an_unfinished_artifact_is_refused(folder, workspace):
    (numbers,) = (a for _, a in workspace.all(stage="numbers"))
    (numbers.path / "manifest.json").unlink()
    with pytest.raises(RecipeError, match="'three' is unfinished"):
        find_input(alone(folder, "three").inputs["numbers"], workspace)
