"""Law and planner `mixture`: regressions, the best mixture, what it gains; the swarm, what is refused, and a sweep over three kinds of text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeb_evals.laws.mixture.regression import FORMS, leave_one_out, regress
from feeb_evals.planners.mixture.design import rounded, space_filling
from feeb_pipelines.cli import run_command
from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import FeebError, RecipeError
from feebcore.files import read_json
from feebcore.parts import resolve_part
from feebcore.protocols import Counts
from feebcore.recipe import Recipe, load
from feebcore.run.build import run_all
from feebcore.scaling.mixture import MixtureLaw, shares_in, within
from feebcore.scaling.planning import Planner, Situation
from feebcore.scaling.points import Cost, NotIdentifiable, Point

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from mixture_worlds import effective_tokens, mixing_law, nothing_to_gain, row, swarm, two_kinds

NAMES = ["a", "b", "c"]
LOW, HIGH = np.full(3, 0.05), np.ones(3)
SWARM = space_filling(np.full(3, 1 / 3), 16, LOW, HIGH, 0)
EQUAL = dict.fromkeys(["s0", "s1", "s2"], 1 / 3)


@pytest.fixture
def law() -> MixtureLaw:
    return resolve_part("laws", "mixture").build()


# --- the law ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "loss"),
    [
        ("log_linear", lambda w: np.exp(w @ [1.0, 1.4, 1.2])),
        ("quadratic", lambda w: np.exp(w @ [1.0, 1.4, 1.2] - 0.7 * w[:, 0] * w[:, 2])),
        ("exponential", lambda w: 1.3 + np.exp(w @ [-0.5, 0.8, 0.6])),
        ("transfer", lambda w: 1.3 + (w @ [1.0, 0.1, 0.3]) ** -0.4),
    ],
)
def test_each_form_is_found_exactly_where_it_is_the_truth(form: str, loss) -> None:
    """At mixtures that were not fitted."""
    losses = loss(SWARM)[None, :, None]
    fit = regress(FORMS[form], SWARM, losses)
    others = space_filling(np.array([0.2, 0.5, 0.3]), 30, LOW, HIGH, 5)
    np.testing.assert_allclose(fit.losses(others)[0, :, 0], loss(others), rtol=1e-6)
    assert leave_one_out(fit, SWARM, losses[0], np.ones(1), np.arange(len(SWARM))) < 1e-4


def test_a_left_out_mixture_is_left_out_with_its_repeats() -> None:
    """Two runs of one mixture agree on a loss that is wrong: only without both is all of the error seen."""
    shares = np.concatenate([SWARM[[1]], SWARM[:7]])
    losses = np.exp(shares @ [1.0, 1.4, 1.2])[:, None]
    losses[[0, 2]] *= 1.2
    fit = regress(FORMS["log_linear"], shares, losses[None])
    together, apart = np.array([0, 1, 0, 2, 3, 4, 5, 6]), np.arange(len(shares))
    assert leave_one_out(fit, shares, losses, np.ones(1), together) > 1.1 * leave_one_out(fit, shares, losses, np.ones(1), apart)


@pytest.mark.parametrize("make", [effective_tokens, two_kinds, mixing_law])
def test_the_best_mixture_gains_nearly_what_can_be_gained(law: MixtureLaw, make) -> None:
    world = make(np.random.default_rng(3), 3)
    fit = law.fit(swarm(world, 18, 0.002, np.random.default_rng(4), 0), "total", 100, 0)
    found = law.best(fit, EQUAL, {})
    equal, mine = (world.loss(np.array([list(shares.values())]))[0] for shares in (EQUAL, found.shares))
    possible = math.log(equal / world.loss(world.best()[None])[0])
    assert sum(found.shares.values()) == pytest.approx(1)
    assert math.log(equal / mine) > 0.9 * possible - 0.0005
    assert found.gain_low - 0.001 <= math.log(equal / mine) <= found.gain_high + 0.001
    assert all(low <= found.shares[name] <= high for name, (low, high) in found.intervals.items())


def test_a_gain_that_is_none_is_not_called_one(law: MixtureLaw) -> None:
    world = nothing_to_gain(np.random.default_rng(0), 3)
    found = law.best(law.fit(swarm(world, 18, 0.005, np.random.default_rng(1), 0), "total", 200, 0), EQUAL, {})
    assert found.gain > 0  # the least of many predictions
    assert found.gain_low < 0 < found.gain_high
    assert not found.is_better


def test_a_limit_holds_a_source_back(law: MixtureLaw) -> None:
    fit = law.fit(swarm(mixing_law(np.random.default_rng(3), 3), 18, 0.002, np.random.default_rng(4), 0), "total", 0, 0)
    free = law.best(fit, EQUAL, {})
    most = max(free.shares, key=lambda name: free.shares[name])
    held = law.best(fit, EQUAL, {most: 0.2})
    assert held.shares[most] == pytest.approx(0.2, abs=0.005)
    assert most in held.at_edge
    assert held.gain < free.gain
    with pytest.raises(NotIdentifiable, match="within the limits"):
        law.best(fit, EQUAL, dict.fromkeys(EQUAL, 0.3))


def test_losses_of_sources_that_are_not_trained_on_count_too(law: MixtureLaw) -> None:
    """The aim is a fourth text, which is nearest to the first source."""
    points = []
    for point, shares in zip(swarm(mixing_law(np.random.default_rng(3), 3), 18, 0.0, np.random.default_rng(4), 0), SWARM[[0, *range(16), 1]], strict=True):
        aim = 2.0 + float(shares @ [1.0, 0.2, 0.1]) ** -0.5
        mixture = dict(zip(EQUAL, map(float, shares), strict=True))
        points.append(dataclasses.replace(point, shares=mixture, source_losses={"aim": aim}, source_weights={"aim": 1.0}, loss=aim))
    assert law.best(law.fit(points, "total", 0, 0), EQUAL, {}).shares["s0"] == pytest.approx(0.9, abs=0.01)


def test_another_size_is_predicted_from_the_runs_there(law: MixtureLaw) -> None:
    points = swarm(mixing_law(np.random.default_rng(3), 3), 18, 0.002, np.random.default_rng(4), 0)
    large = [dataclasses.replace(points[0], name=f"large{k}", total=9000, tokens=1e5, loss=0.8 * points[0].loss) for k in range(3)]
    fit = law.fit([*points, *large], "total", 100, 0)
    assert fit.num_points == 18
    wanted = dataclasses.replace(points[5], name="wanted", loss=math.nan)
    here, there = law.predict_point(fit, wanted), law.predict_point(fit, dataclasses.replace(wanted, total=9000, tokens=1e5))
    same = law.predict_point(fit, dataclasses.replace(points[0], loss=math.nan))
    assert there.loss == pytest.approx(0.8 * points[0].loss * here.loss / same.loss)
    assert there.low < there.loss < there.high
    nowhere = law.predict_point(fit, dataclasses.replace(wanted, total=5000))
    assert math.isnan(nowhere.loss)
    assert nowhere.flags[0].startswith("no_level")
    for asked in (lambda: law.predict(fit, 1e4, 1e5), lambda: law.optimum(fit, 1e9)):
        with pytest.raises(FeebError, match="nothing of other sizes"):
            asked()


def test_points_that_cannot_tell_are_refused_by_name(law: MixtureLaw) -> None:
    points = swarm(mixing_law(np.random.default_rng(3), 3), 18, 0.002, np.random.default_rng(4), 0)
    with pytest.raises(NotIdentifiable, match="4 distinct mixtures of one size cannot tell 3 sources apart"):
        law.fit(points[:5], "total", 0, 0)
    with pytest.raises(NotIdentifiable, match="run m3: its mixture"):
        law.fit([*points[:3], dataclasses.replace(points[3], shares={}), *points[4:]], "total", 0, 0)
    with pytest.raises(NotIdentifiable, match="run m3: its loss weighs"):
        law.fit([*points[:3], dataclasses.replace(points[3], source_weights={"s0": 1.0}), *points[4:]], "total", 0, 0)
    with pytest.raises(NotIdentifiable, match="one source"):
        law.fit([dataclasses.replace(p, shares={"s0": 1.0}) for p in points], "total", 0, 0)
    fit = law.fit(points[:7], "total", 200, 0)
    assert fit.flags[0].startswith("no_intervals: 6 distinct mixtures")
    assert not law.best(fit, EQUAL, {}).is_better


@pytest.mark.slow
@pytest.mark.parametrize(("make", "noise"), [(two_kinds, 0.01), (nothing_to_gain, 0.003)])
def test_intervals_hold(law: MixtureLaw, make, noise: float) -> None:
    found = row(law, make, 3, 18, noise, 30)  # more worlds, and others: benchmarks/mixture_worlds.py
    assert found["gain"] >= 78
    assert found["share"] >= 78
    assert found["wrong"] <= 10


# --- the planner --------------------------------------------------------------------------------------------------------


def test_the_design_fills_the_simplex_and_depends_on_nothing_but_its_arguments() -> None:
    shares = space_filling(np.full(3, 1 / 3), 16, LOW, np.array([1.0, 0.4, 1.0]), 7)
    assert (shares == space_filling(np.full(3, 1 / 3), 16, LOW, np.array([1.0, 0.4, 1.0]), 7)).all()
    assert not (shares == space_filling(np.full(3, 1 / 3), 16, LOW, np.array([1.0, 0.4, 1.0]), 8)).all()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    assert shares[1:].min() >= 0.0495
    assert shares[:, 1].max() <= 0.4005
    apart = np.linalg.norm(shares[:, None] - shares[None], axis=2) + np.eye(16)
    assert apart.min() > 0.1
    at_random = np.random.default_rng(0).dirichlet(np.ones(3), (200, 16))
    distances = np.linalg.norm(at_random[:, :, None] - at_random[:, None], axis=3) + np.eye(16)
    assert apart.min() > np.quantile(distances.min((1, 2)), 0.99)


def test_shares_are_moved_into_their_limits_and_stay_shares() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 500)
    low, high = np.array([0.0, 0.1, 0.05, 0.2]), np.array([0.3, 0.9, 0.3, 0.5])
    moved = within(shares, low, high)
    np.testing.assert_allclose(moved.sum(1), 1)
    assert (moved >= low - 1e-12).all()
    assert (moved <= high + 1e-12).all()
    assert within(moved, low, high) == pytest.approx(moved)
    np.testing.assert_allclose(rounded(moved).sum(1), 1, atol=1e-12)


OPTIONS: dict[str, Any] = {"name": "mixture", "sources": NAMES, "flops": 6e9, "scale": {"flops": 4.8e10, "size": {"d_model": 20}, "seeds": 3}}


def planner(**changes: Any) -> Planner:
    return resolve_part("planners", OPTIONS | changes).build()


def situation(**changes: Any) -> Situation:
    """Models of 100 d_model parameters, which cost 6 N a token; 16 sequences of 10 tokens a step."""

    def measure(overrides: Mapping[str, Any]) -> Cost:
        size = 100 * overrides.get("architecture.d_model", 10)
        return Cost(Counts(size, size, size, 2.0 * size, 2.0 * size, 0), 6.0 * size, overrides.get("batch_size", 16), 10)

    known = Situation(measure, lambda overrides, factor: {}, "total", resolve_part("laws", "mixture").build(), source_tokens=dict.fromkeys(NAMES, 10**7))
    return dataclasses.replace(known, scored_documents=dict.fromkeys(NAMES, 5), **changes)


def measured(cells: list[Any], known: Situation) -> dict[str, Point]:
    """Losses of a world where source a is worth most."""
    points = {}
    for number, cell in enumerate(cells):
        shares = shares_in(cell.overrides)
        vector = np.array([shares[name] for name in NAMES])
        losses = (1.5 + (np.eye(3) * [1.0, 0.4, 0.4] + 0.05) @ vector + 0.1) ** -0.5 * (1 + 1e-3 * math.sin(7 * number))
        counts = known.measure(cell.overrides).counts
        each = dict(zip(NAMES, map(float, losses), strict=True))
        tokens = cell.flops / known.measure(cell.overrides).flops_per_token
        points[cell.name] = Point(
            cell.name, counts.total, counts.total, counts.total, tokens, cell.flops, float(losses.mean()), heldout=cell.heldout,
            shares=shares, source_losses=each, source_weights=dict.fromkeys(NAMES, 1.0),
        )  # fmt: skip
    return points


def test_the_swarm_comes_first_and_then_the_recommended_mixture_at_scale() -> None:
    known = situation()
    first = planner().propose(known)
    assert [cell.round for cell in first] == [0] * 21
    assert len({cell.overrides["seed"] for cell in first[:18]}) == 18
    assert shares_in(first[0].overrides) == shares_in(first[1].overrides) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=1e-3)
    assert all(cell.overrides["max_steps"] * 16 * 10 * 6000 == cell.flops for cell in first[:18])
    points = measured(first, known)
    almost = dict(list(points.items())[1:])
    assert planner().propose(dataclasses.replace(known, points=almost, ended=frozenset(almost))) == first
    ended = dataclasses.replace(known, points=points, ended=frozenset(points))
    cells = planner().propose(ended)
    assert cells[:21] == first
    assert [(cell.round, cell.heldout, cell.predicted) for cell in cells[21:]] == [(1, True, True)] * 3
    assert [cell.overrides["seed"] for cell in cells[21:]] == [cell.overrides["seed"] for cell in cells[18:21]]
    shares = shares_in(cells[-1].overrides)
    assert shares["a"] > 0.5
    assert planner().propose(dataclasses.replace(ended, points=dict(reversed(points.items())))) == cells
    assert len(planner(scale=None).propose(ended)) == 18
    assert [cell.name for cell in planner().plan(known)][:21] == [cell.name for cell in first]


def test_what_the_sweep_says_of_its_mixture() -> None:
    known = situation()
    points = measured(planner().propose(known), known)
    cells = planner().propose(dataclasses.replace(known, points=points, ended=frozenset(points)))
    points = measured(cells, known)
    done = dataclasses.replace(known, points=points, ended=frozenset(points))
    fit = known.law.fit(planner().fitted(list(points.values())), "total", 200, 0)
    mixture = planner().conclusion(done, fit)["mixture"]
    json.dumps(mixture, allow_nan=False)
    assert mixture["shares"] == shares_in(cells[-1].overrides)
    assert mixture["better"]
    losses = {key: [points[c.name].loss for c in cells if c.name.startswith(key)] for key in ("baseline", "recommended")}
    assert mixture["measured"]["gain"] == pytest.approx(100 * (1 - math.prod(losses["recommended"]) ** (1 / 3) / math.prod(losses["baseline"]) ** (1 / 3)))
    assert mixture["measured"]["gain_interval"][0] < mixture["measured"]["gain"] < mixture["measured"]["gain_interval"][1]
    assert mixture["epochs"]["a"] == pytest.approx(4.8e10 / 12000 * mixture["shares"]["a"] / 10**7)
    scarce = dataclasses.replace(done, source_tokens={"a": 400_000, "b": 10**7, "c": 10**7})
    held = planner(max_epochs=4).best(scarce, fit, 4.8e10)
    assert shares_in(held)["a"] == pytest.approx(0.4, abs=0.001)  # four epochs of a in 4e6 tokens


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"source_tokens": {"a": 10**7, "b": 10**7, "cc": 10**7}}, {}, "no source 'c'; did you mean 'cc'"),
        ({"scored_documents": {"a": 1, "b": 1}}, {}, "no validation document of source 'c'.*eval_documents"),
        ({"source_tokens": dict.fromkeys(NAMES, 10**5)}, {}, "not enough for that within 4 epochs"),
        ({"source_tokens": {"a": 10**5, "b": 10**7, "c": 10**7}}, {}, "repeats source 'a' 13.4 times"),
        ({"source_tokens": {"a": 10**4, "b": 10**7, "c": 10**7}}, {"scale": None, "baseline": {"b": 1, "c": 1}}, "source 'a' has 1e.04 tokens, too few"),
        ({}, {"flops": 1e5}, "fewer than min_steps"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeebError, match=message):
        planner(**options).plan(dataclasses.replace(situation(), **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["a", "a"]}, "listed twice"),
        ({"sources": ["a"]}, "at least 2"),
        ({"baseline": {"d": 1}}, "'d' is not in sources"),
        ({"baseline": {"a": -1, "b": 2}}, "baseline: weights of sources, none negative"),
        ({"loss_weights": {"a": 0}}, "loss_weights: weights"),
        ({"least_share": 0.4}, "leaves nothing to vary"),
        ({"runs": 5}, "at least 8"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        planner(**options)


# --- a sweep ------------------------------------------------------------------------------------------------------------

TEXTS = {"words": "some plain words {} of the day and the night\n", "sums": "{0} + {0} = {0}\n", "code": "def f{0}(x):\n    return x * {0}\n"}


def recipe(root: Path, **changes: Any) -> Recipe:
    for name, text in TEXTS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(40):
            (root / name / f"{i}.txt").write_text(text.format(i) * 6)
    sources = [{"name": "files", "source_name": name, "paths": [name]} for name in TEXTS]
    sweep = {
        "train": {
            "architecture": {"name": "transformer", "num_layers": 1, "num_heads": 2, "d_model": 8},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "seq_len": 16,
            "batch_size": 4,
            "precision": "fp32",
            "threads": 1,
        },
        "planner": {"name": "mixture", "sources": list(TEXTS), "flops": 1.5e7, "runs": 9, "scale": {"flops": 6e7, "seeds": 2, "size": {"d_model": 12}}, "min_steps": 5, "tolerance": 0.1},
        "law": "mixture",
        "bootstrap": 100,
        "eval_documents": 0,
    }  # fmt: skip
    stages = {"download": {"sources": sources, "split_modulus": 4}, "tokenizer": {"tokenizer": "byte"}}
    (root / "r.yaml").write_text(json.dumps({"name": "mixed", "stages": ["download", "tokenizer", "shard", "sweep"], **stages, "sweep": sweep | changes}))
    return load(root / "r.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("mixture")
    return root, run_all(recipe(root), Workspace(root / "data"), ["sweep"])["sweep"]


def test_a_sweep_over_mixtures_fits_the_mean_of_the_sources_losses(finished) -> None:
    root, artifact = finished
    document = read_json(artifact.path / "law.json")
    runs = {a.name: a.metrics for _, a in Workspace(root / "data").all() if a is not None and a.stage == "pretrain"}
    assert len(document["points"]) == len(runs) == 13
    for point in document["points"]:
        losses = runs[f"mixed-{point['name']}"]["val_loss_by_source"]
        assert point["source_losses"] == losses
        assert point["loss"] == pytest.approx(sum(losses.values()) / 3)
        epochs = runs[f"mixed-{point['name']}"]["data"]["epochs_by_source"]
        assert set(epochs) == {name for name, share in point["shares"].items() if share}
    predictions = read_json(artifact.path / "predictions.json")
    assert [p["name"].split("-")[0] for p in predictions] == ["recommended"] * 2
    assert not any(p["begun"] for p in predictions)
    assert all(p["low"] < p["loss"] < p["high"] for p in predictions)
    mixture = document["mixture"]
    assert mixture["shares"] == document["points"][-1]["shares"]
    assert len(mixture["measured"]["baseline"]) == 2


def test_the_commands_say_which_mixture_and_write_its_recipe(finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, artifact = finished
    where = ["--workspace", str(root / "data")]
    mixture = read_json(artifact.path / "law.json")["mixture"]
    assert run_command(["sweep", "plan", str(root / "r.yaml"), *where]) == 0
    assert "13 runs" in capsys.readouterr().out
    assert run_command(["sweep", "status", "mixed", *where]) == 0
    assert "13 of 13 runs finished" in capsys.readouterr().out
    assert run_command(["sweep", "report", "mixed", *where]) == 0
    out = capsys.readouterr().out
    assert "recommended mixture for 6e+07 FLOPs" in out
    assert "measured at scale" in out
    page = (artifact.path / "page.html").read_text()
    assert "<h3>Mixture</h3>" in page
    assert "<h3>Residuals</h3>" not in page
    made = tmp_path / "mixed.json"
    assert run_command(["sweep", "recommend", "mixed", "--out", str(made), *where]) == 0
    assert "expected gain over the baseline" in capsys.readouterr().out
    pretrain = load(made).stages["pretrain"].section
    assert pretrain.data_order.config.proportions == mixture["shares"]
    assert pretrain.architecture.config.d_model == 12
    assert run_command(["sweep", "recommend", "mixed", "--flops", "2e8", *where, "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert forecast["flags"][0].startswith("no_level")
    assert forecast["mixture"]["flops"] == 2e8
    assert run_command(["sweep", "fit", "mixed", "--law", "mixture", *where]) == 0
    capsys.readouterr()
    assert run_command(["sweep", "fit", "mixed", "--law", "mixture", "--target", "1e9", *where]) == 1
    assert "nothing of other sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"law": "chinchilla"}, "planner mixture, which differ in their mixtures; take a law of mixtures, such as mixture"),
        ({"planner": {"name": "isoflop", "sizes": [{"d_model": 8}], "budgets": [1e7]}}, "planner isoflop, which differ in their sizes"),
        ({"planner": {"name": "mixture", "sources": ["word", "sums"], "flops": 1e7}}, "planner: no source 'word' in stage download; did you mean 'words'"),
    ],
)
def test_a_recipe_whose_parts_do_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **changes)


def test_a_misspelled_source_of_the_shared_settings_is_refused(tmp_path: Path) -> None:
    made = json.loads((recipe(tmp_path).path).read_text())
    made["sweep"]["train"]["data_order"] = {"name": "mixture", "proportions": {"word": 1}}
    (tmp_path / "r.yaml").write_text(json.dumps(made))
    with pytest.raises(RecipeError, match=r"train\.data_order: no source 'word' in stage download"):
        load(tmp_path / "r.yaml")
