"""A task that a stage or benchmark leaves out is the recipe's own, and 'auto' means one thing in a fingerprint."""

import pytest

from feebcore import hardware
from feebcore.config import identity_of
from feebcore.recipe import from_resolved, load

RECIPE = """
stages: [download, tokenizer, shard, pretrain, sft, rl, evaluate]
download: {sources: [stdlib]}
evaluate: {benchmarks: [task_accuracy]}
"""


def tasks(path, *overrides):
    recipe = load(path, overrides)
    benchmark = recipe.stages["evaluate"].section.benchmarks[0].config.task
    return [recipe.stages["sft"].section.task.name, recipe.stages["rl"].section.task.name, benchmark.name]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["sort", "sort", "sort"]),
        (("sft.task=countdown",), ["countdown"] * 3),
        (("rl.task=countdown",), ["countdown"] * 3),
        (("sft.task=sort", "rl.task=countdown"), ["sort", "countdown", "countdown"]),
        (("sft.task=countdown", "evaluate.benchmarks=[{name: task_accuracy, task: sort}]"), ["countdown", "countdown", "sort"]),
    ],
)
def test_the_task_that_is_left_out_is_the_recipes_own(tmp_path, overrides, expected):
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert tasks(tmp_path / "r.yaml", *overrides) == expected


def test_its_options_come_with_it_and_the_resolved_recipe_spells_it_out(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load(tmp_path / "r.yaml", ["sft.task={name: sort, digits: 3}"])
    resolved = recipe.resolved()
    assert resolved["rl"]["task"] == resolved["evaluate"]["benchmarks"][0]["task"] == {"name": "sort", "digits": 3}
    assert from_resolved(resolved, tmp_path / "r.yaml").resolved() == resolved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_precision_is_what_it_means_here_before_it_enters_a_fingerprint(tmp_path, monkeypatch, precision):
    monkeypatch.setattr("feebcore.recipe.auto_precision", lambda device: precision)
    (tmp_path / "r.yaml").write_text(RECIPE)
    auto = load(tmp_path / "r.yaml", ["pretrain.optimizer=muon"])
    said = load(tmp_path / "r.yaml", [f"pretrain.optimizer={{name: muon, ns_precision: {precision}}}", f"pretrain.precision={precision}"])
    section = auto.stages["pretrain"].section
    assert (section.precision, section.optimizer.config.ns_precision) == (precision, precision)
    assert identity_of(section) == identity_of(said.stages["pretrain"].section)
    assert identity_of(section)["precision"] == precision
    assert auto.stages["evaluate"].section.precision == auto.stages["sft"].section.precision == precision
    assert section.device == "auto"  # how the work is done, no matter of identity


def test_what_auto_means_is_found_without_torch_and_is_what_torch_says():
    import torch

    from feebcore.model.precision import resolve_device, resolve_precision

    for device in ("auto", "cpu"):
        assert hardware.auto_precision(device) == resolve_precision("auto", resolve_device(device))
    assert hardware._cpu_multiplies_bf16() == (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
