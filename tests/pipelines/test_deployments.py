"""prefect.yaml, a process work pool, a worker, and `prefect deployment run` in both forms."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from feeb_pipelines.flows import NAMES
from feeb_pipelines.prefect_hook import bare_name

from .conftest import RECIPE, ROOT, Feeb, clean_environment, wait_until


@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        ("deployment run pretrain", 2),
        ("--no-prompt deployment run pretrain --param recipe=x.yaml", 3),
        ("--profile local deployment run --param recipe=a -p b=c --watch pretrain", 9),
        ("deployment run --params {} pretrain", 4),
        ("deployment run pretrain/pretrain", None),
        ("deployment run --id 1234", None),
        ("deployment run --help", None),
        ("deployment run", None),
        ("deployment inspect pretrain", None),
        ("deploy --all", None),
        ("flow-run ls", None),
    ],
)
def test_the_hook_completes_bare_names_and_nothing_else(arguments: str, index: int | None) -> None:
    assert bare_name(arguments.split()) == index


def test_every_flow_has_a_deployment_whose_entrypoint_is_it() -> None:
    from prefect import Flow
    from ruamel.yaml import YAML

    from feeb_pipelines.flows import stages

    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert {d["name"] for d in deployments} == {flow.name for flow in vars(stages).values() if isinstance(flow, Flow)} == set(NAMES)
    for deployment in deployments:
        path, name = deployment["entrypoint"].split(":")
        assert ROOT / path == Path(stages.__file__)
        assert getattr(stages, name).name == deployment["name"]


@pytest.mark.slow
@pytest.mark.e2e
def test_deployments_run_on_a_process_work_pool(own_server: Feeb) -> None:
    ui = own_server.start("ui", "--no-open")
    worker = None
    try:
        assert ui.stdout is not None
        line = wait_until(lambda: re.search(r"PREFECT_API_URL=(\S+)", ui.stdout.readline()), 120, "feeb ui printed no address")  # type: ignore[union-attr]
        secret = (own_server.workspace / ".prefect" / "secret").read_text()
        environment = clean_environment(
            PREFECT_API_URL=line[1],
            PREFECT_API_AUTH_STRING=secret,
            PREFECT_HOME=str(own_server.workspace / ".prefect-client"),
            FEEB_WORKSPACE=str(own_server.workspace),
            PREFECT_WORKER_QUERY_SECONDS="1",
        )

        def prefect(*arguments: str) -> str:
            done = subprocess.run(
                [str(Path(sys.executable).with_name("prefect")), *arguments],
                capture_output=True,
                text=True,
                env=environment,
                cwd=ROOT,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        prefect("work-pool", "create", "feeb", "--type", "process")
        deployed = prefect("--no-prompt", "deploy", "--all")
        assert deployed.count("successfully created") >= len(NAMES), deployed
        worker = subprocess.Popen(
            [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", "feeb", "--limit", "3"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        parameters = ("--params", json.dumps({"recipe": str(RECIPE), "overrides": ["slow.steps=3"]}))
        prefect("deployment", "run", "pipeline/pipeline", *parameters, "--flow-run-name", "my-own-name", "--tag", "alice")
        said = prefect("--no-prompt", "deployment", "run", "--param", "stage=sum_numbers", *("--param", f"recipe={RECIPE}"), "stage")
        assert "'stage' is taken as the deployment stage/stage" in said

        prefect("deployment", "run", "pipeline/pipeline", "--param", "recipe=nowhere.yaml", "--flow-run-name", "wrong")

        def states() -> list[tuple[str, str]]:
            with contextlib.closing(sqlite3.connect(own_server.workspace / ".prefect" / "prefect.db")) as database:
                return sorted(database.execute("select name, state_name from flow_run").fetchall())

        wanted = [("my-own-name", "Completed"), ("tiny-sum_numbers", "Completed"), ("wrong", "Failed")]
        ended = {"Completed", "Failed", "Crashed", "Cancelled"}
        wait_until(lambda: len(states()) == 3 and {state for _, state in states()} <= ended, 120, f"the runs did not end: {states()}")
        assert states() == wanted
        (wrong,) = own_server.api("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": ["wrong"]}}})
        sentence = wrong["state"]["message"]
        assert sentence.startswith("no recipe nowhere.yaml")

        def messages() -> list[str]:
            return [row["message"] for row in own_server.api("POST", "/logs/filter", {})]

        wait_until(lambda: sentence in messages(), 20, f"{sentence!r} is not in {messages()}")
        assert not [message for message in messages() if "Traceback" in message]
        assert {r["stage"] for r in own_server.json("runs")} == {"make_numbers", "sum_numbers", "slow", "page"}
        (named,) = own_server.api("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": ["my-own-name"]}}})
        assert set(named["tags"]) == {"feeb", "pipeline", "tiny", "alice"}
        bearers = [p for p in own_server.workspace.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
        assert bearers == [own_server.workspace / ".prefect" / "secret"]
        assert not [command for command in own_server.processes().values() if secret in command]

        longer = json.dumps({"recipe": str(RECIPE), "overrides": ["slow.steps=150", "slow.step_seconds=0.05"]})
        prefect("deployment", "run", "pipeline/pipeline", "--params", longer, "--flow-run-name", "orphan")
        wait_until(lambda: len([*own_server.workspace.glob("slow/*/state.json")]) == 2, 60, "the third run did not begin")
        worker.kill()  # the run's output goes nowhere from now on
        ui.send_signal(signal.SIGINT)
        assert "still in progress: orphan; the server stops when they have ended" in ui.communicate(timeout=30)[0]
        wait_until(lambda: dict(states())["orphan"] in ended, 60, "the run did not end")
        assert dict(states())["orphan"] == "Completed"
    finally:
        for process in (worker, ui):
            if process is not None:
                process.send_signal(signal.SIGTERM if process is ui else signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
    assert ui.returncode == 0
