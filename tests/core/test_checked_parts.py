"""A plugin's part is checked before a run uses it, and what was not checked is named wherever its results are."""

import json
import sys
from pathlib import Path

import pytest

from feebcore.artifacts import Workspace
from feebcore.compare.plan import Settings
from feebcore.compare.run import compare
from feebcore.errors import PluginError
from feebcore.recipe import load
from feebcore.registry import get_registry
from feebcore.run.build import run_all
from feebcore.run.contracts import require_checked
from feebcore.study.executors import InProcess
from feebcore.study.variants import run_variants
from feebcore.testing.framework import WITHOUT_QUICK_CHECKS, checks_for

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from small_compare import QUICK, RECIPE

LEAK = '''
import feebcore as feeb
from feeb_models.attentions.multi_head import MultiHeadConfig


class LeakConfig(MultiHeadConfig):
    ahead: int = 1


def build(config, context):
    from feeb_models.attentions.multi_head.grouped_query import GroupedQueryAttention

    class Leak(GroupedQueryAttention):
        """Sees tokens that are still to come."""

        def forward(self, x_BTC, context):
            seen = x_BTC.roll(-config.ahead, 1) if config.ahead else 0.0
            return super().forward(x_BTC + seen, context)

    return Leak(config, context)


@feeb.hookimpl
def feeb_attentions():
    yield feeb.AttentionSpec("leaky", LeakConfig, build=build, summary="Sees one token ahead.")
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 3)
    (tmp_path / "leaky_idea.py").write_text(LEAK)
    (tmp_path / "base.yaml").write_text(RECIPE.replace("max_steps: 16", "max_steps: 4"))
    head = "extends: base.yaml\nplugins: [./leaky_idea.py]\n"
    (tmp_path / "leak.yaml").write_text(f"{head}name: leak\npretrain: {{architecture: {{attention: leaky}}}}\n")
    (tmp_path / "sound.yaml").write_text(f"{head}name: sound\npretrain: {{architecture: {{attention: {{name: leaky, ahead: 0}}}}}}\n")
    yield tmp_path
    sys.modules.pop("leaky_idea", None)


def records(workspace):
    return sorted((workspace.root / ".checks").glob("*.json"))


@pytest.mark.slow
def test_a_comparison_with_an_attention_that_sees_the_future_is_refused_before_anything_is_built(folder):
    workspace = Workspace(folder / "data")
    with pytest.raises(PluginError) as refused:
        compare([load(folder / "base.yaml"), load(folder / "leak.yaml")], Settings(**QUICK), workspace)
    text = str(refused.value)
    assert text.startswith("attentions/leaky_idea/leaky fails the check causality, so results with it cannot be believed: changing tokens")
    assert f"`feeb check attentions/leaky_idea/leaky --plugin {folder / 'leaky_idea.py'}`" in text
    assert "--unchecked" in text
    assert "\n" not in text
    assert ". " not in text  # one sentence
    assert not workspace.root.exists()


@pytest.mark.slow
def test_a_part_that_keeps_its_contract_is_checked_once_with_the_options_of_the_recipe(folder):
    workspace, told = Workspace(folder / "data"), []
    require_checked([load(folder / "sound.yaml")], None, workspace, told.append)
    assert [row["text"] for row in told] == ["checking attentions/leaky_idea/leaky (once, some seconds)"]
    assert [json.loads(path.read_text())["options"]["ahead"] for path in records(workspace)] == [0]
    require_checked([load(folder / "sound.yaml")], None, workspace, told.append)
    assert len(told) == 1
    with open(folder / "leaky_idea.py", "a") as stream:
        stream.write("# edited\n")
    require_checked([load(folder / "sound.yaml")], ["pretrain"], workspace, told.append)
    assert len(records(workspace)) == len(told) == 2
    require_checked([load(folder / "leak.yaml")], ["shard"], workspace, told.append)  # no stage up to there uses it
    assert len(told) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run_all", "run_variants"])
def test_a_run_is_refused_and_with_unchecked_says_so_everywhere(folder, how):
    workspace = Workspace(folder / "data")
    (folder / "leak.yaml").write_text((folder / "leak.yaml").read_text() + "stages: [download, tokenizer, shard, pretrain, evaluate, report]\n")
    recipe = load(folder / "leak.yaml")
    run = {
        "run_all": lambda **options: run_all(recipe, workspace, **options),
        "run_variants": lambda **options: run_variants([recipe], None, workspace, lambda row: None, InProcess(), **options),
    }[how]
    with pytest.raises(PluginError, match="causality"):
        run()
    assert not list(workspace.all())
    run(unchecked=True)
    made = {artifact.stage: artifact for _, artifact in workspace.all()}
    unchecked = {stage: artifact.manifest["unchecked"] for stage, artifact in made.items()}
    name = ["attentions/leaky_idea/leaky"]
    assert unchecked == {"download": [], "tokenizer": [], "shard": [], "pretrain": name, "evaluate": name, "report": name}
    assert "Unchecked parts: attentions/leaky_idea/leaky" in made["report"].file("report.html").read_text()
    with pytest.raises(PluginError, match="causality"):  # not the second time either
        run()


def test_the_page_and_the_verdict_of_an_unchecked_comparison_say_so(folder):
    workspace = Workspace(folder / "data")
    artifact = compare([load(folder / "base.yaml"), load(folder / "leak.yaml")], Settings(**QUICK), workspace, unchecked=True)
    for page in ("page.md", "verdict.txt"):
        assert "unchecked parts: attentions/leaky_idea/leaky" in artifact.file(page).read_text()
    assert artifact.manifest["unchecked"] == ["attentions/leaky_idea/leaky"]
    assert artifact.metrics["verdict"].startswith("unchecked parts: attentions/leaky_idea/leaky")


@pytest.mark.slow
def test_a_part_that_says_what_it_breaks_is_named_too(folder):
    (folder / "leaky_idea.py").write_text(
        LEAK.replace('summary="Sees', 'breaks=("causality", "cache_parity", "document_isolation", "left_padding_parity"), summary="Sees')
    )
    workspace = Workspace(folder / "data")
    made = run_all(load(folder / "leak.yaml"), workspace)
    (said,) = made["pretrain"].manifest["unchecked"]
    assert said.startswith("attentions/leaky_idea/leaky (said to break causality")


def test_the_kinds_without_quick_checks_are_those_that_are_said_to_have_none():
    kinds = set(get_registry()._parts)
    assert {kind for kind in kinds if not any(check.quick for check in checks_for(kind))} == set(WITHOUT_QUICK_CHECKS)
