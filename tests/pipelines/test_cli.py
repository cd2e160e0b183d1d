"""What the command line says, and that it is quick to say it."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from feeb_pipelines.cli import display
from feebcore.errors import RecipeError

from .conftest import RECIPE, ROOT, Feeb, Inside, clean_environment


def test_help_loads_nothing_heavy_and_takes_less_than_a_second() -> None:
    code = "import sys\nfrom feeb_pipelines.cli import main\ntry: main(['--help'])\nfinally: print(sorted({'torch', 'prefect', 'polars', 'numpy'} & set(sys.modules)))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip().endswith("[]"), done.stdout
    assert "quickstart.yaml" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize(
    "command", ["run", "plan", "show", "parts", "plugins", "runs", "diff", "plot", "check", "generate", "ui", "doctor", "completion", "artifacts"]
)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from feeb_pipelines.cli import main

    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"feeb {command}" in text
    assert command == "artifacts" or "Example" in text
    assert command == "artifacts" or text.count(f"feeb {command}") >= 2


def test_an_unknown_key_is_one_message_with_file_line_and_a_hint(inside: Inside, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(f"extends: {RECIPE}\nslow:\n  stepz: 3\n")
    done = inside("run", recipe)
    assert done.returncode == 1
    assert f"{recipe}:3" in done.stderr
    assert "did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not inside.workspace.exists()


def test_debug_shows_the_traceback(inside: Inside) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        inside("plan", "nowhere.yaml", FEEB_DEBUG="1")
    assert "Traceback" not in inside("plan", "nowhere.yaml").stderr


def test_wrong_usage_is_status_two(inside: Inside) -> None:
    done = inside("run")
    assert done.returncode == 2
    assert done.stderr.startswith("feeb: ")
    done = inside("run", RECIPE, "--sett", "a=1")
    assert done.returncode == 2
    assert done.stderr == "feeb: Unknown option: --sett. Did you mean --set? `feeb run --help` shows the usage.\n"


@pytest.mark.parametrize(
    "command",
    [
        ["runs"],
        ["artifacts", "ls"],
        ["artifacts", "verify"],
        ["artifacts", "gc"],
        ["plan", RECIPE],
        ["run", RECIPE],
        ["run", RECIPE, "--in-process"],
        ["ui", "--no-open"],
    ],
)
def test_a_workspace_that_is_a_file_is_one_sentence_and_status_two(inside: Inside, tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "afile"
    file.write_text("")
    for workspace in (file, file / "below"):
        done = inside(*command, "--workspace", workspace)
        assert done.returncode == 2
        assert done.stderr == f"feeb: the workspace {workspace} cannot be a folder: {file} is a file; choose another with --workspace DIR or FEEB_WORKSPACE\n"
        assert not done.stdout


def test_an_error_of_the_disk_is_the_file_and_what_is_wrong(inside: Inside) -> None:
    name = "a" * 300
    done = inside("run", RECIPE, "--in-process", "--workspace", name)
    assert done.returncode == 1
    assert done.stderr.startswith("feeb: /")
    assert done.stderr.rstrip().endswith(f"{name}/make_numbers: File name too long")


def test_check_of_several_parts_is_a_line_each_and_ends_with_a_summary(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "import feebcore as feeb\n\n@feeb.hookimpl\ndef feeb_schedules():\n"
        "    yield feeb.ScheduleSpec('half', build=lambda config, context: lambda step: 0.5, summary='Half the rate.')\n"
        "    yield feeb.ScheduleSpec('nothing', build=lambda config, context: None, summary='Forgets its return.')\n"
    )
    done = inside("check", "schedules", "--plugin", tmp_path / "twice.py")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(re.fullmatch(r"schedules/cosine: \d+ checks ok, [\d.]+ s", line) for line in lines)
    assert any(re.fullmatch(r"schedules/twice/nothing: \d+ of \d+ checks FAILED, [\d.]+ s", line) for line in lines)
    assert any(line.startswith("schedules/twice/nothing: ") and "is built as None; it must be callable" in line for line in lines)
    assert re.fullmatch(r"12 parts, \d+ checks, \d+ failed, \d+ seconds", lines[-1])
    assert inside("check", "schedules").returncode == 0


def test_a_stage_without_a_recipe_is_explained(inside: Inside) -> None:
    done = inside("run", "pretrain")
    assert done.returncode == 1
    assert "feeb run RECIPE.yaml pretrain" in done.stderr


def test_a_stage_that_the_recipe_does_not_run_is_explained(inside: Inside) -> None:
    done = inside("plan", RECIPE, "slo")
    assert done.returncode == 1
    assert "did you mean 'slow'?" in done.stderr


def test_plan_says_what_runs_what_is_reused_and_which_key_differs(inside: Inside) -> None:
    assert [r["status"] for r in inside.json("plan", RECIPE)] == ["run"] * 4
    assert not inside.workspace.exists()
    assert inside("run", RECIPE, "--in-process").returncode == 0
    assert [r["status"] for r in inside.json("plan", RECIPE)] == ["reuse"] * 4
    changed = inside.json("plan", RECIPE, "--set", "slow.steps=7")
    assert [r["status"] for r in changed] == ["reuse", "reuse", "run", "run"]
    assert changed[2]["differs"] == ["steps: default -> 7"]
    assert "steps: default -> 7" in inside("plan", RECIPE, "--set", "slow.steps=7").stdout


def test_show_prints_a_recipe_that_plans_the_same(inside: Inside, tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(inside("show", RECIPE, "--set", "make_numbers.count=4").stdout)
    assert "seconds: 0.0" in shown.read_text()
    original = inside.json("plan", RECIPE, "make_numbers", "--set", "make_numbers.count=4")
    assert inside.json("plan", shown, "make_numbers") == original
    assert inside.json("show", shown) == inside.json("show", RECIPE, "--set", "make_numbers.count=4")


def test_runs_lists_finished_and_unfinished(inside: Inside) -> None:
    assert inside.json("runs") == []
    failed = inside("run", RECIPE, "--in-process", "--set", "sum_numbers.fail=true")
    assert failed.returncode == 1
    rows = inside.json("runs")
    assert {(r["stage"], r["name"], r["status"]) for r in rows} == {("make_numbers", "tiny", "finished"), ("sum_numbers", "tiny", "unfinished")}
    row = next(r for r in rows if r["stage"] == "make_numbers")
    assert set(row) == {
        *("stage", "name", "fingerprint", "run", "path", "status", "reason", "created", "seconds", "progress", "changes", "metrics", "unchecked")
    }
    assert row["metrics"] == {"count": 10}
    assert Path(row["path"]).is_dir()


def test_run_in_process_gives_json_for_programs(inside: Inside) -> None:
    result = inside.json("run", RECIPE, "--in-process")
    assert result["runs"]["tiny"]["sum_numbers"]["metrics"]["total"] == 45
    assert Path(result["report"]).read_text() == "<h1>numbers</h1>"
    assert not (inside.workspace / ".prefect").exists()


def test_parts_and_plugins_name_a_single_file_plugin(inside: Inside) -> None:
    plugin = RECIPE.with_name("tiny_stages.py")
    rows = {r["name"]: r for r in inside.json("parts", "stages", "--plugin", plugin)}
    assert rows["slow"]["summary"] == "Counts slowly, in a worker."
    assert rows["slow"]["options"]["steps"] == 5
    assert rows["slow"]["origin"] == str(plugin)
    assert rows["pretrain"]["full_name"] == "feeb/pretrain"
    assert {"feeb", "tiny_stages"} <= {r["distribution"] for r in inside.json("plugins", "--plugin", plugin)}
    assert "did you mean 'optimizers'?" in inside("parts", "optimizer").stderr


def test_artifacts_are_verified_adopted_and_cleaned(inside: Inside, tmp_path: Path) -> None:
    inside("run", RECIPE, "--in-process")
    assert inside("artifacts", "verify").returncode == 0
    (Path(inside.artifacts()["sum_numbers"]["path"]) / "total.json").write_text("46.0")
    done = inside("artifacts", "verify", "--json")
    assert done.returncode == 1
    assert [r["bad"] for r in json.loads(done.stdout) if r["bad"]] == [["total.json"]]
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "numbers.json").write_text("[1, 2]")
    imported = inside(
        "artifacts", "import", tmp_path / "made", "make_numbers", "mine", "--note", "by hand", "--plugin", RECIPE.with_name("tiny_stages.py")
    ).stdout.strip()
    assert json.loads((Path(imported) / "manifest.json").read_text())["identity"]["note"] == "by hand"
    inside("run", RECIPE, "--in-process", "--set", "sum_numbers.fail=true")
    assert "pass --yes" in inside("artifacts", "gc").stdout
    assert len(inside.json("artifacts", "gc", "--yes")) == 1
    assert "nothing to remove" in inside("artifacts", "gc").stdout


@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "-1"), ("--top-p", "2"), ("--top-k", "0"), ("--max-new-tokens", "-3"), ("--max-new-tokens", "9" * 30)]
)
def test_generate_refuses_options_out_of_range_in_one_sentence(inside: Inside, option: str, value: str) -> None:
    done = inside("generate", "any", "text", option, value)
    assert done.returncode == 1
    assert done.stderr.startswith(f"feeb: {option} must be ")
    assert "Traceback" not in done.stderr


def test_a_misspelled_hook_in_a_recipes_plugin_is_an_error(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "cli_misspelled.py").write_text("import feebcore as feeb\n@feeb.hookimpl\ndef feeb_optimizer():\n    yield 1\n")
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(f"extends: {RECIPE}\nplugins: [./cli_misspelled.py]\n")
    done = inside("plan", recipe)
    assert done.returncode == 1
    assert "cli_misspelled.py: there is no hook 'feeb_optimizer'; did you mean 'feeb_optimizers'" in done.stderr


def test_a_reader_that_goes_away_is_no_error_and_stops_no_run(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m feeb_pipelines.cli run {RECIPE} --in-process | true; echo ${{PIPESTATUS[0]}}"
    environment = clean_environment(FEEB_WORKSPACE=str(tmp_path / "data"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, cwd=ROOT, check=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("0", "")
    assert list((tmp_path / "data" / "page").glob("tiny-*/manifest.json"))


def test_runs_of_a_stage_that_made_nothing_says_so(inside: Inside) -> None:
    inside("run", RECIPE, "--in-process")
    assert "no artifact of stage 'pretrain'" in inside("runs", "pretrain").stdout


@pytest.mark.slow
def test_a_disk_too_full_for_the_server_is_explained(feeb: Feeb, small_disk: Path) -> None:
    done = feeb("run", RECIPE, "--workspace", small_disk)
    assert done.returncode == 1
    assert "the disk is full while writing" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_checks_the_workspace_and_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feeb_pipelines.cli.doctor import check_compile, check_disk, check_prefect, check_python

    assert check_python().level == "ok"
    assert check_compile().level == "ok"
    monkeypatch.setattr("feeb_pipelines.cli.doctor.COMPILED", "#include <no_such_header.h>")
    assert "no_such_header.h" in check_compile().text
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in check_compile().text
    assert check_disk(tmp_path / "not" / "there").level in ("ok", "note")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert check_prefect(tmp_path).level == "problem"
    monkeypatch.delenv("PREFECT_API_URL")
    assert check_prefect(tmp_path).level == "ok"


def test_the_installed_command_exists() -> None:
    command = Path(sys.executable).with_name("feeb")
    assert command.exists()
    assert os.access(command, os.X_OK)
    assert subprocess.run([str(command), "--version"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()


def test_without_a_terminal_the_end_of_a_progress_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 4.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    shown = display.Display()
    for done in (1, 2, 3, 3, 3, 3, 1, 2, 3, 3):  # two passes under one name, each of which goes on to report its end
        shown({"kind": "progress", "name": "reading", "done": done, "total": 3, "unit": "files"})
    lines = [line.partition("%")[0].split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["67", "100", "33", "100"]
