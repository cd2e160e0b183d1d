"""Which runs a comparison plans, and which recipes it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from feebcore.compare.plan import (
    Candidate,
    Run,
    Settings,
    candidates_of,
    choose_lr,
    curve_runs,
    equal_steps,
    has_lr,
    main_runs,
    next_factor,
    scaled_lrs,
    section_for,
    token_steps,
)
from feebcore.errors import RecipeError
from feebcore.model.build import count_architecture
from feebcore.parts import resolve_part
from feebcore.recipe import load

sys.path.insert(0, str(Path(__file__).parent))
from small_compare import recipes


def test_equal_flops_are_steps_in_inverse_proportion_to_the_cost_of_a_step(tmp_path):
    base, wide = (r.stages["pretrain"].section for r in recipes(tmp_path))
    costs = [3 * count_architecture(s.architecture, 258, s.seq_len).flops_per_token * s.batch_size * s.seq_len for s in (base, wide)]
    steps = equal_steps(10_000, *costs)
    assert steps * costs[1] == pytest.approx(10_000 * costs[0], rel=1e-4)
    assert steps < 10_000


def test_equal_steps_never_are_none():
    assert equal_steps(3, 1.0, 100.0) == 1
    with pytest.raises(ValueError, match="above 0"):
        equal_steps(3, 0.0, 1.0)


def test_equal_tokens_account_for_batch_and_window(tmp_path):
    sides = candidates_of(recipes(tmp_path, "batch_size: 2", "seq_len: 16"), Settings())
    assert token_steps(sides) == {"base": 16, "wide": 64}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tokenizer: {tokenizer: char}", r"tokenizer\.tokenizer: 'feeb/byte' .*'feeb/char'"),
        ("download: {split_modulus: 7}", r"download\.split_modulus: the default .* 7 in"),
        ("download: {sources: [{name: files, paths: [text, more]}]}", r"download\.sources\.0"),
        ("seed: 3", r"seed"),
    ],
)
def test_recipes_on_other_data_are_refused_by_the_key_that_differs(tmp_path, text, key):
    first, _ = recipes(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.py").write_text("x = 1\n")
    (tmp_path / "other.yaml").write_text(f"extends: base.yaml\nname: other\n{text}\n")
    other = load(tmp_path / "other.yaml")
    if key == "seed" and not any("seed" in type(e.section).model_fields for s, e in other.stages.items() if s != "pretrain"):
        assert candidates_of([first, other], Settings())[1].same_as == "base"  # seeds of training are the comparison's to choose
        return
    with pytest.raises(RecipeError, match=key):
        candidates_of([first, other], Settings())


def test_recipes_with_other_named_inputs_are_refused(tmp_path):
    first, _ = recipes(tmp_path)
    (tmp_path / "other.yaml").write_text("extends: base.yaml\nname: other\ninputs: {shard: mine, tokenizer: mine}\n")
    with pytest.raises(RecipeError, match=r"inputs: \{\} in .*base.yaml and \{'shard': 'mine', 'tokenizer': 'mine'\} in .*other.yaml"):
        candidates_of([first, load(tmp_path / "other.yaml")], Settings())


def test_recipes_with_other_stages_before_training_are_refused(tmp_path):
    first, second = recipes(tmp_path)
    (tmp_path / "none.yaml").write_text("extends: base.yaml\nstages: [download, tokenizer, shard]\n")
    with pytest.raises(RecipeError, match="no stage 'pretrain'"):
        candidates_of([first, load(tmp_path / "none.yaml")], Settings())
    with pytest.raises(RecipeError, match="at least two"):
        candidates_of([second], Settings())


def test_names_are_told_apart(tmp_path):
    first, _ = recipes(tmp_path)
    (tmp_path / "b.yaml").write_text("extends: base.yaml\npretrain: {max_steps: 20}\n")
    assert [s.name for s in candidates_of([first, load(tmp_path / "b.yaml"), first], Settings())] == ["base", "b", "base-3"]


def test_every_seed_trains_every_side_and_turns_alternate(tmp_path):
    sides = candidates_of(recipes(tmp_path), Settings(seeds=3))
    runs = main_runs(sides, {"base": 10, "wide": 8}, {"base": 1.0, "wide": 2.0})
    assert [r.name for r in runs] == ["base-seed0", "wide-seed0", "wide-seed1", "base-seed1", "base-seed2", "wide-seed2"]
    assert {r.factor for r in runs if r.recipe == "wide"} == {2.0}


def test_the_curve_keeps_the_form_of_the_schedule(tmp_path):
    side = candidates_of(recipes(tmp_path), Settings())[0]
    long = curve_runs(side, 16, 1.0, Settings(curve=(2.0,)))[0]
    section = section_for(side.section, long, 16)
    assert (section.max_steps, section.schedule.config.warmup_steps) == (32, 8)
    plain = section_for(side.section, Run("r", "base", "run", 5, 32), 16)
    assert (plain.seed, plain.schedule.config.warmup_steps) == (5, 4)  # a side at its own budget keeps its own options


def test_every_learning_rate_of_an_optimizer_is_scaled_and_nothing_else():
    muon = resolve_part("optimizers", {"name": "muon", "lr": 0.02, "vector_lr": None})
    scaled = scaled_lrs(muon, 0.5)
    assert (scaled.config.lr, scaled.config.embedding_lr, scaled.config.vector_lr) == (0.01, 0.01, None)
    assert scaled.config.model_dump(exclude={"lr", "embedding_lr", "lm_head_lr"}) == muon.config.model_dump(exclude={"lr", "embedding_lr", "lm_head_lr"})
    inner = scaled_lrs(resolve_part("optimizers", {"name": "grokfast", "optimizer": {"name": "adamw", "lr": 0.004}}), 2.0)
    assert inner.config.optimizer.config.lr == 0.008
    assert has_lr(muon)


def test_the_search_is_extended_where_the_best_factor_is_at_its_edge():
    settings = Settings()
    assert next_factor({0.5: 1.0, 1.0: 0.9, 2.0: 0.8}, settings) == 4.0
    assert next_factor({0.5: 0.7, 1.0: 0.9, 2.0: 0.8}, settings) == 0.25
    assert next_factor({0.5: 1.0, 1.0: 0.7, 2.0: 0.8}, settings) is None
    assert next_factor({0.5: 1.0, 1.0: 0.9, 2.0: None}, settings) is None  # a diverged run is not better
    assert next_factor({0.5: 1.0, 1.0: 0.9, 2.0: 0.8, 4.0: 0.7, 8.0: 0.6}, settings) is None


def test_the_learning_rate_is_changed_only_for_a_gain_that_matters():
    settings = Settings(effect=0.01)
    assert choose_lr("a", {0.5: 1.0, 1.0: 0.9, 2.0: 0.896}, settings).factor == 1.0
    better = choose_lr("a", {0.5: 1.0, 1.0: 0.9, 2.0: 0.85, 4.0: 0.88}, settings)
    assert (better.factor, better.at_edge) == (2.0, False)
    assert "used" in better.note
    assert choose_lr("a", {0.5: 1.0, 1.0: 0.9, 2.0: 0.85}, Settings(tune_lr="report")).factor == 1.0
    assert "may lie outside" in choose_lr("a", {0.5: 1.0, 1.0: 0.9, 2.0: 0.85}, settings).note
    assert choose_lr("a", {0.5: 1.0, 1.0: None, 2.0: None}, settings).factor == 0.5
    assert choose_lr("a", {0.5: None, 1.0: None}, settings).factor == 1.0


@pytest.mark.parametrize("options", [{"seeds": 1}, {"effect": 0}, {"curve": (1.0,)}, {"lr_factors": (0.5, 2.0)}, {"name": "a/b"}, {"budget": "money"}])
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(ValidationError):
        Settings(**options)


def test_a_side_says_whose_twin_it_is(tmp_path):
    twins = candidates_of(recipes(tmp_path, names=("base", "base")), Settings(seeds=2))
    assert isinstance(twins[0], Candidate)
    assert [(s.seeds, s.same_as) for s in twins] == [((0, 1), ""), ((2, 3), "base")]
