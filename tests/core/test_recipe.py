"""Recipes: scalars, merging, and errors that name file, line and key."""

import sys
from pathlib import Path

import pytest

from feebcore import recipe as recipes
from feebcore import recipe_yaml
from feebcore.errors import PluginError, RecipeError
from feebcore.registry import PluginInfo, Registry

IDEA = """
import feebcore as feeb
from typing import Annotated
from pydantic import Field

class Options(feeb.PartConfig):
    lines: int = 3
    mode: str = "on"

class CountConfig(feeb.StageConfig):
    seed: int = 0
    rate: float = 1.0
    word: str = "x"
    schedule: Annotated[feeb.Part, feeb.PartKey("schedules")] = feeb.default_part("steady")
    several: list[Annotated[feeb.Part, feeb.PartKey("schedules")]] = []
    limit: int = Field(default=10, ge=1)

class SumConfig(feeb.StageConfig):
    pass

def check(section, recipe):
    return ["limit: 13 is unlucky; take another"] if section.limit == 13 else []

@feeb.hookimpl
def feeb_stages():
    yield feeb.StageSpec("count_it", CountConfig, build="m:f", makes=("counts",), check="recipe_idea:check", summary="Counts.")
    yield feeb.StageSpec("sum_it", SumConfig, build="m:f", needs=(feeb.Need("counts"),), summary="Sums.")

@feeb.hookimpl
def feeb_schedules():
    yield feeb.ScheduleSpec("steady", Options, build="m:f", summary="Steady.")
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "recipe_idea.py").write_text(IDEA)
    yield lambda text, name="r.yaml": _write(tmp_path / name, text)
    import sys

    sys.modules.pop("recipe_idea", None)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


HEAD = "plugins: [./recipe_idea.py]\nstages: [count_it, sum_it]\n"


def test_scalars_follow_yaml_1_2(write):
    recipe = recipes.load(write(HEAD + "count_it:\n  word: off\n  rate: 1e-4\n"))
    section = recipe.stages["count_it"].section
    assert (section.word, section.rate) == ("off", 1e-4)


def test_unknown_key_names_line_and_near_match(write):
    path = write(HEAD + "count_it:\n  rate: 1.0\n  limmit: 3\n")
    with pytest.raises(RecipeError, match=rf"{path}:5: unknown key 'count_it.limmit'; did you mean 'limit'"):
        recipes.load(path)


def test_unknown_option_of_a_part_names_line_and_near_match(write):
    path = write(HEAD + "count_it:\n  schedule:\n    name: steady\n    linse: 4\n")
    with pytest.raises(RecipeError, match=rf"{path}:6: unknown key 'count_it.schedule.linse'; did you mean 'lines'"):
        recipes.load(path)


def test_unknown_part_names_line_and_near_match(write):
    path = write(HEAD + "count_it:\n  schedule: stedy\n")
    with pytest.raises(RecipeError, match=r"r.yaml:4: count_it.schedule: no part 'stedy' of kind 'schedules'; did you mean 'steady'"):
        recipes.load(path)


def test_unknown_top_key_and_unknown_stage(write):
    with pytest.raises(RecipeError, match=r"r.yaml:3: unknown key 'count_itt'; did you mean 'count_it'"):
        recipes.load(write(HEAD + "count_itt: {}\n"))
    with pytest.raises(RecipeError, match=r"r.yaml:2: no part 'sum_at' of kind 'stages'; did you mean"):
        recipes.load(write("plugins: [./recipe_idea.py]\nstages: [count_it, sum_at]\n"))


def test_a_bad_value_names_key_and_line(write):
    with pytest.raises(RecipeError, match=r"r.yaml:4: count_it.limit: Input should be greater than or equal to 1, not 0$"):
        recipes.load(write(HEAD + "count_it:\n  limit: 0\n"))
    with pytest.raises(RecipeError, match=r"r.yaml:4: count_it.limit: Input should be a valid integer, not 'many'$"):
        recipes.load(write(HEAD + "count_it:\n  limit: many\n"))
    with pytest.raises(RecipeError, match=r"r.yaml:4: count_it.schedule.lines: Input should be a valid integer, not 'many'$"):
        recipes.load(write(HEAD + "count_it:\n  schedule: {lines: many}\n"))


def test_a_stage_check_speaks_with_file_and_line(write):
    with pytest.raises(RecipeError, match=r"r.yaml:4: count_it.limit: 13 is unlucky"):
        recipes.load(write(HEAD + "count_it:\n  limit: 13\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty"),
        ("- a\n- b\n", "a recipe is a mapping .*, not a list$"),
        ("hello\n", "a recipe is a mapping .*, not 'hello'$"),
        ("stages: [a\n  b: {", "not YAML"),
        ("a: 1\na: 2\n", "r.yaml:2: key 'a' is here for the second time; remove one of the two"),
        (HEAD + "count_it: {limit: 1, 'limit': 2}\n", "r.yaml:3: key 'limit' is here for the second time"),
        (HEAD + "extends: nowhere.yaml\n", "r.yaml:3: extends: no recipe .*nowhere.yaml; did you mean .*r.yaml"),
        (HEAD + "extends: .\n", "r.yaml:3: extends: no recipe"),
        (HEAD + "pipelines: {}\n", "unknown key 'pipelines'"),
        (HEAD.replace(", sum_it", "") + "variants: {a: 3}\nsum_it: {}\n", "does not run stage 'sum_it'"),
        (HEAD + "count_it: {several: steady}\n", r"count_it.several: Input should be a valid list, not 'steady'; write \[steady\]"),
        (HEAD + "---\n" + HEAD, "r.yaml:3: a second recipe begins here"),
        ("name: x\n", "stages must be a list"),
        (HEAD + "count_it: 3\n", "section 'count_it' is a mapping"),
        (HEAD + "quick: 5\n", "r.yaml:3: quick is a mapping"),
        (HEAD + "count_it: ''\n", "section 'count_it' is a mapping of options, not ''"),
        (HEAD + "seed: -1\n", "seed must be a whole number"),
        (HEAD + "seed: 1.0\n", "r.yaml:3: seed must be a whole number of at least 0, not 1.0"),
        (HEAD + "seed: 9223372036854775808\n", "r.yaml: seed: a number of 19 digits; whole numbers have 64 bits"),
        (HEAD + f"count_it: {{limit: {'9' * 5000}}}\n", "r.yaml: not YAML: a number or date that cannot be$"),
        (HEAD + "name: 2026-02-31\n", "r.yaml: not YAML: a number or date that cannot be$"),
        (HEAD + "count_it: {limit: true}\n", "r.yaml:3: count_it.limit: Input should be a valid integer, not 'true'"),
        (HEAD + "name: 2026-02-28\n", r"r.yaml: name: 2026-02-28 is a date; use text \(in quotes\)"),
        (HEAD + "count_it: {limit: 0,001}\n", "r.yaml:3: key 1 must be text"),
        (HEAD + "seed: !!python/object/apply:os.system ['true']\n", "r.yaml: seed: tag '.*os.system'; a recipe has no tags"),
        (HEAD + "count_it: !own {limit: 3}\n", "r.yaml: count_it: tag '!own'; a recipe has no tags"),
        (HEAD + "name: a\0b\n", "r.yaml: not YAML: .*special characters are not allowed$"),
        (HEAD + "extends: ''\n", "r.yaml:3: extends is the path of one recipe, not ''"),
        (HEAD + "extends: [a.yaml]\n", "r.yaml:3: extends is the path of one recipe"),
        (HEAD + "extends: ~nobody-at-all/a.yaml\n", "r.yaml:3: extends: ~nobody-at-all/a.yaml: there is no home folder"),
        ("stages: [x]\nplugins: ['']\n", "r.yaml:2: plugins is a list of files"),
        (HEAD + "name: -a\n", "r.yaml:3: name '-a' becomes a folder name"),
        (HEAD + f"name: {'a' * 101}\n", "r.yaml:3: name 'a+'… has 101 characters; use at most 100"),
        (HEAD + "name: a/b\n", "becomes a folder name"),
        (HEAD.replace("count_it, sum_it", "sum_it"), "stage 'sum_it' needs counts; add 'count_it'"),
        (HEAD.replace("count_it, sum_it", "sum_it, count_it"), "listed after it"),
        (HEAD.replace("count_it, sum_it", "count_it, count_it"), "listed twice"),
    ],
)
def test_what_is_no_recipe_is_refused(write, text, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load(write(text))


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        recipes.load(tmp_path / "b.yaml")
    with pytest.raises(RecipeError, match=r"no recipe .*bb.yaml; did you mean .*b.yaml"):
        recipes.load(tmp_path / "bb.yaml")


@pytest.mark.slow
def test_endless_nesting_is_refused(write):
    with pytest.raises(RecipeError, match="nested too deeply"):
        recipes.load(write("stages: " + "[" * 3000))


def test_yaml_tags_build_no_objects(write):
    with pytest.raises(RecipeError):
        recipes.load(write(HEAD + "count_it: !!python/object/apply:os.system ['true']\n"))


def test_set_overrides_and_is_named_in_errors(write):
    path = write(HEAD)
    recipe = recipes.load(path, ["count_it.limit=7", "count_it.schedule.lines=9", "count_it.word=off"])
    section = recipe.stages["count_it"].section
    assert (section.limit, section.schedule.config.lines, section.word) == (7, 9, "off")
    with pytest.raises(RecipeError, match=r"^--set count_it.limit: Input should be"):
        recipes.load(path, ["count_it.limit=0"])
    for text, message in {
        "count_it.limit": "write key=value",
        "extends=other.yaml": "only a recipe can extend another",
        "count_it=": "section 'count_it' is a mapping of options, not ''",
        f"count_it.limit={'9' * 5000}": "is not a YAML value",
        f"count_it.limit={'[' * 3000}": "is not a YAML value .nested too deeply.$",
        "count_it.limit=99999999999999999999": "--set 99999999999999999999: a number of 20 digits",
    }.items():
        with pytest.raises(RecipeError, match=message):
            recipes.load(path, [text])


def test_paths_in_recipes_may_begin_with_the_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/base.yaml").write_text("stages: [x]\nplugins: [~/own.py]\n")
    (tmp_path / "home/own.py").write_text("")
    with pytest.raises(PluginError, match=r"home/own\.py: it has no hook function"):
        recipes.load(write("extends: ~/base.yaml\n"))


def test_seeds_are_a_list_of_some(write):
    with pytest.raises(RecipeError, match=r"r.yaml:3: seeds is a list of whole numbers"):
        recipes.load_study(write(HEAD + "seeds: []\n"))
    with pytest.raises(RecipeError, match=r"r.yaml:3: seed must be a whole number of at least 0, not '1'"):
        recipes.load_study(write(HEAD + "seed: '1'\n"))


def test_set_reaches_into_lists(write):
    path = write(HEAD + "count_it:\n  several: [steady, {name: steady, lines: 2}]\n")
    section = recipes.load(path, ["count_it.several.0.lines=5"]).stages["count_it"].section
    assert [p.config.lines for p in section.several] == [5, 2]


def test_nested_aliases_are_refused_before_they_fill_the_memory(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="more than 100,000 values with its aliases"):
        recipes.load(tmp_path / "bomb.yaml")


def test_extends_merges_and_a_renamed_part_starts_from_its_defaults(write):
    write(HEAD + "count_it:\n  rate: 2.0\n  schedule: {name: steady, lines: 8}\n", "base.yaml")
    recipe = recipes.load(write("extends: base.yaml\ncount_it:\n  limit: 4\n  schedule: {mode: 'off'}\n", "child.yaml"))
    section = recipe.stages["count_it"].section
    assert (section.rate, section.limit, section.schedule.config.lines, section.schedule.config.mode) == (2.0, 4, 8, "off")
    assert recipe.name == "child"
    merged = recipe_yaml.merge({"o": {"name": "a", "x": 1}}, {"o": {"name": "b"}})
    assert merged == {"o": {"name": "b"}}


def test_extends_in_a_circle_is_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        recipes.load(write("extends: a.yaml\n", "b.yaml"))


def test_an_error_in_an_extended_recipe_names_that_file(write):
    write(HEAD + "count_it:\n  limit: 0\n", "base.yaml")
    with pytest.raises(RecipeError, match=r"base.yaml:4"):
        recipes.load(write("extends: base.yaml\n", "child.yaml"))


def test_the_recipe_seed_reaches_sections_that_have_one(write):
    path = write(HEAD + "seed: 5\n")
    assert recipes.load(path).stages["count_it"].section.seed == 5
    assert recipes.load(path, ["count_it.seed=2"]).stages["count_it"].section.seed == 2


def test_a_study_is_variants_times_seeds(write):
    text = HEAD + "seeds: [1, 2]\nvariants:\n  low: {count_it.limit: 2}\n  high: {count_it.limit: 9}\n"
    cells = [(r.variant, r.seed, r.stages["count_it"].section.limit) for r in recipes.load_study(write(text))]
    assert cells == [("low", 1, 2), ("low", 2, 2), ("high", 1, 9), ("high", 2, 9)]
    assert [r.name for r in recipes.load_study(write(text))] == ["r-low-seed1", "r-low-seed2", "r-high-seed1", "r-high-seed2"]
    assert [r.name for r in recipes.load_study(write(text.replace("[1, 2]", "[1]")))] == ["r-low", "r-high"]


def test_an_error_in_a_variant_names_the_line_of_the_variant(write):
    path = write(HEAD + "variants:\n  low: {count_it.limit: 2}\n  high:\n    count_it.limit: 0\n")
    with pytest.raises(RecipeError, match=r"r.yaml:6 \(variant 'high'\): count_it.limit: Input should be"):
        recipes.load_study(path)
    path = write(HEAD + "variants:\n  low: {}\n  a/b: {}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:5: name 'r-a/b' becomes a folder name"):
        recipes.load_study(path)


def test_an_unknown_section_that_set_made_is_blamed_on_set(write):
    with pytest.raises(RecipeError, match=r"^--set count_itt: unknown key 'count_itt'; did you mean 'count_it'"):
        recipes.load(write(HEAD), ["count_itt.limit=3"])


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", ["sum_it.limit=3"], "--set sum_it.limit: this recipe does not run stage 'sum_it'"),
        ("sum_it: {limit: 3}\n", [], "r.yaml:3: this recipe does not run stage 'sum_it', whose options these are; add it to `stages:` or remove them"),
        ("seeds: [1, 2]\n", ["seed=3"], "^--set seed: seed changes nothing where `seeds:`"),
        ("seed: 3\nseeds: [1, 2]\n", [], "r.yaml:3: seed changes nothing where `seeds:` lists the seed of every run; remove one of the two"),
        ("variants: {a: {sum_it.limit: 3}}\n", [], r"r.yaml:3 \(variant 'a'\): this recipe does not run stage 'sum_it'"),
    ],
)
def test_what_nothing_reads_is_refused(write, text, overrides, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load_study(write(HEAD.replace(", sum_it", "") + text), overrides)


def test_sections_that_came_with_other_stages_are_left_alone(write):
    write(HEAD + "sum_it: {}\nquick: {sum_it.limit: 3}\n", "base.yaml")
    child = write("extends: base.yaml\nstages: [count_it]\n", "child.yaml")
    assert list(recipes.load(child, recipes.quick_overrides(child)).stages) == ["count_it"]
    assert list(recipes.load(child.with_name("base.yaml"), ["stages=[count_it]"]).stages) == ["count_it"]
    shared = write(HEAD.replace(", sum_it", "") + "sum_it: {}\nvariants: {alone: {}, both: {stages: [count_it, sum_it]}}\n")
    assert [list(r.stages) for r in recipes.load_study(shared)] == [["count_it"], ["count_it", "sum_it"]]
    with pytest.raises(RecipeError, match=r"late.yaml:2: this recipe does not run stage 'sum_it'"):
        recipes.load(write("extends: child.yaml\nsum_it: {}\n", "late.yaml"))


def test_a_plugin_that_did_not_load_is_named_once_before_what_lacks_it(write):
    registry = Registry((write("").with_name("recipe_idea.py"),))
    registry.plugins.append(PluginInfo("feeb-broken", "1.0", "broken", "ImportError: no module 'x'"))
    with pytest.raises(RecipeError) as error:
        recipes.load(write(HEAD + "count_it: {schedule: mine, several: [mine, mine]}\n"), registry=registry)
    first, *rest = str(error.value).splitlines()
    assert first == "plugin feeb-broken is not loaded (ImportError: no module 'x')"
    assert len(rest) == 3
    assert all("no part 'mine'" in line and "feeb-broken" not in line for line in rest)


def test_a_recipe_that_uses_a_clashing_name_in_full_loads_again_when_resolved(write):
    """What `feeb run RUN/recipe.json` and every worker process do."""
    text = """
import feebcore as feeb

@feeb.hookimpl
def feeb_schedules():
    yield feeb.ScheduleSpec("cosine", build="recipe_clash:make", summary="Another cosine.")
"""
    write(text, "recipe_clash.py")
    path = write("plugins: [./recipe_idea.py, ./recipe_clash.py]\nstages: [count_it]\ncount_it: {schedule: feeb/cosine, several: [recipe_clash/cosine]}\n")
    try:
        recipe = recipes.load(path)
        section = recipes.from_resolved(recipe.resolved(), Path("somewhere")).stages["count_it"].section
        assert [p.spec.full_name for p in (section.schedule, *section.several)] == ["feeb/cosine", "recipe_clash/cosine"]
        assert section == recipe.stages["count_it"].section
    finally:
        sys.modules.pop("recipe_clash", None)


def test_resolved_loads_to_the_same_recipe(write):
    recipe = recipes.load(write(HEAD + "count_it: {limit: 3, several: [steady]}\n"))
    again = recipes.from_resolved(recipe.resolved(), Path("somewhere"))
    assert again.resolved() == recipe.resolved()
    assert again.stages["count_it"].section == recipe.stages["count_it"].section


def test_the_yaml_that_show_prints_loads_to_the_same_recipe(write):
    recipe = recipes.load(write(HEAD + "name: r\ncount_it: {limit: 3, word: 'off', rate: 1e-4}\n"))
    again = recipes.load(write(recipes.to_yaml(recipe), "shown.yaml"))
    assert again.resolved() == recipe.resolved()


def test_another_part_starts_from_its_own_defaults():
    data = {"name": "recipe", "pretrain": {"optimizer": {"name": "adamw", "lr": 0.5}}}
    recipe_yaml.set_key(data, "pretrain.optimizer.name", "adamw")
    assert data["pretrain"]["optimizer"] == {"name": "adamw", "lr": 0.5}
    recipe_yaml.set_key(data, "pretrain.optimizer.name", "muon")
    recipe_yaml.set_key(data, "name", "other")
    assert data == {"name": "other", "pretrain": {"optimizer": {"name": "muon"}}}
