"""Discovery, lookup and every way a plugin can go wrong."""

import importlib.metadata
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

import feebcore as feeb
from feebcore import hookspecs
from feebcore.errors import PartClashError, PluginError, UnknownPartError
from feebcore.parts import Part
from feebcore.protocols import BuildContext
from feebcore.registry import PluginInfo, Registry


def plugin(hooks: dict) -> types.ModuleType:
    module = types.ModuleType("stranger")
    for name, function in hooks.items():
        function.__name__ = name
        setattr(module, name, feeb.hookimpl(function))
    return module


def offers(*specs):
    def hook():
        yield from specs

    return hook


def optimizer(name="lion", **changes):
    return feeb.OptimizerSpec(name, build=lambda config, context: None, summary="A test optimizer.", **changes)


def registry_with(**distributions) -> Registry:
    registry = Registry(entry_points=False)
    for distribution, module in distributions.items():
        registry._add(PluginInfo(distribution, "1", f"{distribution} = somewhere"), module)
    return registry


def test_every_built_in_plugin_loads():
    registry = Registry(strict=True)
    assert {p.distribution for p in registry.plugins} >= {"feeb"}
    assert [p for p in registry.plugins if p.problem] == []


def test_bare_and_full_names_find_the_same_part():
    registry = registry_with(acme=plugin({"feeb_optimizers": offers(optimizer())}))
    assert registry.resolve("optimizers", "lion") is registry.resolve("optimizers", "acme/lion")


def test_two_distributions_with_one_name_clash_and_the_error_names_both():
    registry = registry_with(acme=plugin({"feeb_optimizers": offers(optimizer())}), zeta=plugin({"feeb_optimizers": offers(optimizer())}))
    with pytest.raises(PartClashError, match=r"acme/lion \(acme = somewhere\) and zeta/lion \(zeta = somewhere\)"):
        registry.resolve("optimizers", "lion")
    assert registry.resolve("optimizers", "zeta/lion").distribution == "zeta"


def test_a_built_in_part_that_came_later_yields_to_a_stranger():
    module = plugin({"feeb_optimizers": offers(optimizer(api="1.0"))})
    late = plugin({"feeb_optimizers": offers(optimizer(since="1.7", api="1.7"))})
    assert registry_with(feeb=late, acme=module).resolve("optimizers", "lion").distribution == "acme"
    early = plugin({"feeb_optimizers": offers(optimizer(since="1.0"))})
    with pytest.raises(PartClashError):
        registry_with(feeb=early, acme=module).resolve("optimizers", "lion")


def test_unknown_names_get_a_near_match():
    registry = registry_with(acme=plugin({"feeb_optimizers": offers(optimizer("lion"))}))
    with pytest.raises(UnknownPartError, match="did you mean 'lion'"):
        registry.resolve("optimizers", "loin")


def test_a_misspelled_hook_is_reported_and_does_not_break_others():
    registry = registry_with(bad=plugin({"feeb_optimisers": offers(optimizer())}), acme=plugin({"feeb_optimizers": offers(optimizer())}))
    assert "did you mean 'feeb_optimizers'" in registry.plugins[0].problem
    assert registry.resolve("optimizers", "lion").distribution == "acme"


def test_a_spec_on_the_wrong_seam_is_reported():
    registry = registry_with(bad=plugin({"feeb_schedules": offers(optimizer())}))
    assert "must yield ScheduleSpec, not OptimizerSpec" in registry.plugins[0].problem


def test_another_major_interface_version_is_refused():
    registry = registry_with(bad=plugin({"feeb_optimizers": offers(optimizer(api="2.0"))}))
    assert "written for plugin interface 2.0" in registry.plugins[0].problem


def test_a_hook_that_raises_is_reported_and_fatal_only_in_strict_mode():
    def broken():
        raise RuntimeError("boom")
        yield

    module = plugin({"feeb_optimizers": broken})
    assert "boom" in registry_with(bad=module).plugins[0].problem
    strict = Registry(entry_points=False, strict=True)
    with pytest.raises(PluginError, match="boom"):
        strict._add(PluginInfo("bad", "1", "x"), module)


def test_the_error_for_an_unknown_name_mentions_plugins_that_failed():
    registry = registry_with(bad=plugin({"feeb_schedules": offers(optimizer())}))
    with pytest.raises(UnknownPartError, match=r"^plugin bad is not loaded"):
        registry.resolve("optimizers", "lion")


def test_block_list_takes_a_built_in_plugin_out(monkeypatch):
    monkeypatch.setenv("FEEB_PLUGINS_BLOCK", "optim")
    registry = Registry()
    assert any(p.problem == "blocked by FEEB_PLUGINS_BLOCK" for p in registry.plugins)
    with pytest.raises(UnknownPartError):
        registry.resolve("optimizers", "adamw")


def test_allow_list_keeps_strangers_out_but_not_built_in_parts(monkeypatch):
    entries = [*importlib.metadata.entry_points(group="feeb")]
    stranger = importlib.metadata.EntryPoint("evil", "evil_module", "feeb")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [*entries, stranger])
    monkeypatch.setenv("FEEB_PLUGINS_ALLOW", "acme")
    registry = Registry()
    assert [p.problem for p in registry.plugins if p.distribution == "evil"] == ["not in FEEB_PLUGINS_ALLOW"]
    assert registry.resolve("optimizers", "adamw")


def test_an_entry_point_that_fails_to_import_is_reported(monkeypatch):
    stranger = importlib.metadata.EntryPoint("evil", "no_such_module_here", "feeb")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [stranger])
    (info,) = Registry().plugins
    assert "ModuleNotFoundError" in info.problem


def test_a_single_file_plugin_offers_its_parts(tmp_path):
    file = tmp_path / "my_idea_file.py"
    file.write_text(
        "import feebcore as feeb\n"
        "def build(config, context):\n    return lambda step: 0.5\n"
        "@feeb.hookimpl\n"
        "def feeb_schedules():\n    yield feeb.ScheduleSpec('half', build='my_idea_file:build', summary='Always a half.')\n"
    )
    registry = Registry((file,))
    spec = registry.resolve("schedules", "my_idea_file/half")
    assert spec.load()(spec.config(), BuildContext(total_steps=10))(3) == 0.5
    del sys.modules["my_idea_file"]


def test_a_file_that_raises_names_itself(tmp_path):
    file = tmp_path / "broken_idea_file.py"
    file.write_text("raise ValueError('half done')")
    with pytest.raises(PluginError, match=r"broken_idea_file.py failed: ValueError: half done"):
        Registry((file,))
    file.write_text("raise SystemExit(3)")
    with pytest.raises(PluginError, match=r"broken_idea_file.py failed: SystemExit: 3"):
        Registry((file,))
    for other in (tmp_path, file.rename(tmp_path / "idea.txt")):
        with pytest.raises(PluginError, match=f"plugins: {other} is not a .py file"):
            Registry((other,))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("x = 1\n", "it has no hook function"),
        ("import feebcore as feeb\n@feeb.hookimpl\ndef feeb_optimizer():\n    yield 1\n", "did you mean 'feeb_optimizers'"),
        ("import feebcore as feeb\n@feeb.hookimpl\ndef feeb_schedules():\n    yield 1\n", "must yield ScheduleSpec, not int"),
        ("import feebcore as feeb\n@feeb.hookimpl\ndef feeb_schedules():\n    raise KeyError('zap')\n", "KeyError: 'zap'"),
    ],
)
def test_a_file_that_offers_nothing_usable_is_refused_with_the_reason(tmp_path, body, why):
    file = tmp_path / "useless_idea_file.py"
    file.write_text(body)
    try:
        with pytest.raises(PluginError, match=f"plugin file {file}: .*{why}"):
            Registry((file,))
    finally:
        sys.modules.pop("useless_idea_file", None)


def test_a_file_may_not_take_the_name_of_a_module(tmp_path):
    file = tmp_path / "json.py"
    file.write_text("")
    with pytest.raises(PluginError, match="rename the file"):
        Registry((file,))


def test_one_plugin_offering_a_name_twice_is_reported():
    registry = registry_with(bad=plugin({"feeb_optimizers": offers(optimizer(), optimizer())}))
    assert any("twice" in p.problem for p in registry.plugins)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package `their_stages` that can be imported."""
    folder = tmp_path / "their_stages"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [m for m in sys.modules if m.partition(".")[0] == "their_stages"]:
        del sys.modules[name]


STAGE = 'import feebcore as feeb\nPART = feeb.StageSpec("{0}", build="m:f", summary="{0}.")\n'


def test_parts_are_collected_from_folders_and_where_asked_from_files(package):
    (package / "alone.py").write_text(STAGE.format("alone"))
    (package / "folder").mkdir()
    (package / "folder" / "__init__.py").write_text(
        'import feebcore as feeb\nPARTS = tuple(feeb.StageSpec(n, build="m:f", summary=n) for n in ("one", "two"))\n'
        'PARTS += (feeb.SourceSpec("text", build="m:f", summary="Of another kind."),)\n'
    )
    assert [s.name for s in feeb.collect("their_stages", feeb.StageSpec)()] == ["one", "two"]
    assert [s.name for s in feeb.collect("their_stages", feeb.StageSpec, modules=True)()] == ["alone", "one", "two"]
    assert [s.name for s in feeb.collect("their_stages", feeb.SourceSpec)()] == ["text"]
    (package / "helpers.py").write_text("X = 1\n")
    with pytest.raises(PluginError, match=r"helpers.py: a file of parts names its spec PART, or several PARTS"):
        list(feeb.collect("their_stages", feeb.StageSpec, modules=True)())


def test_a_built_in_stage_is_one_file_or_folder():
    from feebcore import stages

    files = {path.stem for path in Path(stages.__file__).parent.iterdir() if not path.name.startswith("_")}
    assert {spec.name for spec in stages.feeb_stages()} == files


@pytest.mark.parametrize("kind", [kind for kind in hookspecs.KINDS if kind != "stages"])
def test_what_is_not_a_part_of_its_kind_is_refused_by_name_with_what_it_lacks(kind):
    spec = hookspecs.KINDS[kind]("idea", build=lambda config, context: None, summary="Forgets its return.")
    with pytest.raises(PluginError, match=rf"^{kind}: idea is built as None; (it must be callable|write it as a class that derives from|it lacks )"):
        Part(kind, spec, spec.config()).build()


@pytest.mark.parametrize(
    ("kind", "made", "problem"),
    [
        ("objectives", lambda model, batch: None, "a function; write it as a class that derives from feebcore.protocols.Objective"),
        ("norms", lambda x: x, "a function; write it as a class that derives from torch.nn.Module"),
        ("schedules", 0.5, "a float; it must be callable"),
        ("laws", SimpleNamespace(fit=print), "a SimpleNamespace; it lacks predict, predict_point, estimator, optimum of feebcore.scaling.points.Law"),
        ("architectures", SimpleNamespace(lm_head=0, final_norm=0, vocab_size=2, seq_len=3, training=True, count=print), "it lacks num_streams, __call__, new_cache of"),
    ],
)  # fmt: skip
def test_a_part_of_another_kind_is_refused(kind, made, problem):
    spec = hookspecs.KINDS[kind]("idea", build=lambda config, context: made, summary="Something else.")
    with pytest.raises(PluginError, match=f"{kind}: idea is built as .*{re.escape(problem)}"):
        Part(kind, spec, spec.config()).build()
