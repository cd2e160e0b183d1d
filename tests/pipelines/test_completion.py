"""Completion in real shells, and what it answers."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from feeb_pipelines.cli.complete import candidates, split_line
from feeb_pipelines.cli.completion import SCRIPTS

from .conftest import ROOT, Inside, clean_environment

PROGRAM = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for all of these tests: to make it takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FEEB_WORKSPACE", raising=False)
        yield patch


@pytest.fixture
def place(tmp_path: Path, cache: pytest.MonkeyPatch) -> Path:
    """A folder with recipes and runs to complete."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "base.yaml").write_text("name: base\n")
    (tmp_path / "mine.yaml").write_text("extends: experiments/base.yaml\npretrain: {optimizer: lion}\n")
    (tmp_path / "notes.txt").write_text("")
    for run in ("pretrain/base-0123456789ab", "pretrain/twice-0123456789ab", "pretrain/twice-ba9876543210", "sft/base-0123456789ab"):
        (tmp_path / "data" / run).mkdir(parents=True)
    cache.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ru", {"run", "runs"}),
        ("plugin n", {"plugin new"[7:]}),
        ("run exper", {"experiments/"}),
        ("run experiments/", {"experiments/base.yaml"}),
        ("run m", {"mine.yaml"}),
        ("run mine.yaml pre", {"pretrain"}),
        ("run pretrain m", {"mine.yaml"}),
        ("plan mine.yaml s", {"shard", "sweep", "sft"}),
        ("show pretrain/b", {"pretrain/base"}),
        ("generate pretrain/t", {"pretrain/twice-0123456789ab", "pretrain/twice-ba9876543210"}),
        ("parts optimiz", {"optimizers"}),
        ("check lio", {"lion"}),
        ("runs sf", {"sft"}),
        ("compare mine.yaml --budget ", {"tokens", "flops", "time"}),
        ("compare mine.yaml --budget=f", {"--budget=flops"}),
        ("run mine.yaml --input pretrain=", {"pretrain=base", "pretrain=twice-0123456789ab", "pretrain=twice-ba9876543210"}),
        ("run mine.yaml --set pretrain.max_st", {"pretrain.max_steps="}),
        ("run mine.yaml --set pretrain.optimizer=lio", {"pretrain.optimizer=lion"}),
        ("run mine.yaml --set pretrain.compile=", {"pretrain.compile=auto", "pretrain.compile=on", "pretrain.compile=blocks", "pretrain.compile=off"}),
        ("plugin new idea --kind optimizer", {"optimizer", "optimizers"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("run --works", {"--workspace"}),
    ],
)
def test_what_may_stand_at_the_cursor(place: Path, line: str, expected: set[str]) -> None:
    assert set(candidates(split_line(line))) == expected


def test_options_of_the_part_that_the_recipe_names_are_completed(place: Path) -> None:
    found = candidates(split_line("run mine.yaml --set pretrain.optimizer.b"))
    assert "pretrain.optimizer.betas=" in found
    assert "pretrain.optimizer.momentum=" not in candidates(split_line("run mine.yaml --set pretrain.optimizer."))


def test_the_workspace_of_the_line_is_used(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "rl" / "other-0123456789ab").mkdir(parents=True)
    assert candidates(split_line("show -w elsewhere rl/")) == ["rl/other"]


def test_an_answer_loads_nothing_heavy(place: Path) -> None:
    candidates(["ru"])  # makes the cache
    code = "import sys\nsys.argv = ['feeb', '__complete', 'fish', 'ru']\nfrom feeb_pipelines.cli import main\ntry: main()\nfinally: print({'torch', 'cyclopts', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment(), cwd=ROOT)
    assert done.stdout.split() == ["run", "runs", "set()"]


def keys(shell: list[str], script: Path, typed: str, place: Path, until: str, seconds: float = 20.0) -> str:
    """What a shell in a terminal shows after `typed`, once it has sourced the completion script."""
    environment = clean_environment(PATH=f"{PROGRAM}:{os.environ['PATH']}", TERM="dumb", PS1="$ ", HOME=str(place), XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(shell[0], shell, environment)
    shown = ""
    try:
        os.write(terminal, f"source {script}; echo re''ady\n".encode())
        deadline, sent = time.monotonic() + seconds, False
        while until not in shown.partition("ready\r\n")[2] and time.monotonic() < deadline:
            if wait([terminal], 0.1):
                shown += os.read(terminal, 4096).decode(errors="replace")
            if "ready\r\n" in shown and not sent:
                sent = bool(os.write(terminal, typed.encode()))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown.partition("ready\r\n")[2]


SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"], "fish": ["fish", "--no-config", "-i"]}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("typed", "until"), [("feeb run exper\tba\t", "base.yaml"), ("feeb parts optimiz\t", "optimizers")])
def test_the_tab_key_completes(place: Path, shell: str, typed: str, until: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    candidates(["ru"])
    script = place / f"feeb.{shell}"
    script.write_text(SCRIPTS[shell])
    assert until in keys(SHELLS[shell], script, typed, place, until)


def test_a_value_after_an_equals_sign_completes_in_bash(place: Path) -> None:
    candidates(["ru"])
    script = place / "feeb.bash"
    script.write_text(SCRIPTS["bash"])
    assert "optimizer=lion" in keys(SHELLS["bash"], script, "feeb run mine.yaml --set pretrain.optimizer=lio\t", place, "optimizer=lion")


def test_scripts_print_install_and_survive_a_closed_pipe(place: Path, inside: Inside) -> None:
    for shell, startup in (("bash", ".bashrc"), ("zsh", ".zshrc")):
        for _ in range(2):
            assert inside("completion", shell, "--install", HOME=str(place)).returncode == 0
        assert (place / startup).read_text().count("completion.") == 1
    assert inside("completion", "fish", "--install", HOME=str(place)).returncode == 0
    assert (place / ".config" / "fish" / "completions" / "feeb.fish").read_text() == SCRIPTS["fish"]
    assert "name one of bash, zsh, fish" in inside("completion", SHELL="/bin/tcsh").stderr
    command = f"'{sys.executable}' -m feeb_pipelines.cli completion bash | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=clean_environment(), cwd=ROOT, check=False)
    assert done.stderr == ""
