"""The pytest plugin for authors of parts, as an author's own test suite would meet it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGIN = """
import feebcore as feeb

def late(config, context):
    return lambda step: min(1.0, step / 10 if context.total_steps > 5 else 1.0)

@feeb.hookimpl
def feeb_schedules():
    yield feeb.ScheduleSpec("sound", build=lambda config, context: lambda step: max(0.0, 1 - step / context.total_steps), summary="Falls in a line.")
    yield feeb.ScheduleSpec("from_zero", build=late, summary="Begins at a rate of zero in long runs.")
"""

TEST = """
from feebcore.testing.pytest_plugin import contract

test_sound = contract("schedules/sound", plugin="../two_schedules.py")
test_from_zero = contract("schedules/from_zero", plugin="../two_schedules.py")
test_with_options = contract("logits_processors/top_k", k=3)
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "feebcore.testing.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", "--color=no", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"})


@pytest.mark.slow
def test_an_authors_file_has_a_test_for_every_check_and_the_checks_sentence_as_failure(tmp_path):
    from feebcore.testing import checks_for

    (tmp_path / "two_schedules.py").write_text(PLUGIN)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_two.py").write_text(TEST)
    done = run_pytest(tmp_path, "-v", "tests")
    schedules, processors = (len(checks_for(kind)) for kind in ("schedules", "logits_processors"))
    assert f"1 failed, {2 * schedules + processors - 1} passed" in done.stdout, done.stdout + done.stderr
    assert "test_two.py::test_sound[pure_and_bounded] PASSED" in done.stdout
    assert "test_two.py::test_from_zero[no_step_is_wasted] FAILED" in done.stdout
    meaning = next(c.meaning for c in checks_for("schedules") if c.name == "no_step_is_wasted")
    assert f"the learning rate is 0 at step 0 of 100. {meaning}" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_other_test_suites_load_no_torch_and_mistakes_are_told(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n    found = {m for m in sys.modules if m.startswith('feebcore')}\n"
        "    assert found == {'feebcore', 'feebcore.testing', 'feebcore.testing.pytest_plugin'}\n    assert 'torch' not in sys.modules\n"
    )
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    (tmp_path / "test_wrong.py").write_text("from feebcore.testing.pytest_plugin import contract\n\ntest_it = contract('schedule/cosine')\n")
    done = run_pytest(tmp_path, "test_wrong.py")
    assert done.returncode == 4 or "error" in done.stdout
    assert "did you mean 'schedules'" in done.stdout + done.stderr


def test_pytest_finds_the_plugin_of_an_installed_feeb_under_the_name_that_p_takes():
    """Registered under another name it would be loaded twice where somebody also asks for it."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    name = "feebcore.testing.pytest_plugin"
    assert project["entry-points"]["pytest11"] == {name: name}
