"""Stage pretrain on two real ranks: kills and stops of any process leave no orphan, and the rest is the same bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import rows

from feebcore import recipe
from feebcore.artifacts import Artifact, Workspace, read_artifact
from feebcore.errors import StageFailed
from feebcore.files import read_jsonl
from feebcore.run.build import build
from feebcore.run.plan import plan
from feebcore.train.checkpoint import checkpoints, step_of

STEPS = 100
CHANGES = {
    "max_steps": STEPS,
    "checkpoint_every": 20,
    "validation_every": 0,
    "log_every": 1,
    "optimizer": "muon",
    "parallel": "{strategy: fsdp, ranks: 2}",
}
SETTINGS = [f"pretrain.{key}={value}" for key, value in CHANGES.items()]

DRIVER = """
import sys
from feebcore import recipe
from feebcore.artifacts import Workspace
from feebcore.run.build import run_all
run_all(recipe.load(sys.argv[1], sys.argv[3:]), Workspace(sys.argv[2]), ["pretrain"], in_process=False)
"""


class Place:
    """A workspace with the inputs of pretrain, in which it is run again and again."""

    def __init__(self, chain: Workspace, root: Path) -> None:
        shutil.copytree(chain.root, root)
        shutil.rmtree(root / "pretrain")
        self.recipe, self.root = chain.root.parent / "tiny.yaml", root

    def begin(self, *command: str) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def begin_run(self) -> subprocess.Popen:
        return self.begin("-c", DRIVER, str(self.recipe), str(self.root), *SETTINGS)

    def finish(self) -> Artifact:
        loaded, workspace = recipe.load(self.recipe, SETTINGS), Workspace(self.root)
        built = {item.stage: item.artifact for item in plan(loaded, workspace, ["pretrain"]) if item.artifact is not None}
        return build(loaded, "pretrain", workspace, built)

    @property
    def folder(self) -> Path:
        return next(iter((self.root / "pretrain").glob("tiny-*")), self.root / "none yet")

    def steps(self) -> int:
        return max((row["step"] for row in read_jsonl(self.folder / "metrics.jsonl")), default=0)

    def ranks(self) -> dict[int, int]:
        """Pids of the living ranks, by rank."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                environment = dict(line.partition("=")[::2] for line in (process / "environ").read_bytes().decode().split("\0"))
            except OSError:
                continue
            mine = any(word.startswith(str(self.root)) for word in words)
            if mine and "RANK" in environment and (process / "stat").read_text().split()[2] != "Z":
                found[int(environment["RANK"])] = int(process.name)
        return found

    def until(self, step: int, process: subprocess.Popen | None = None) -> None:
        """Wait for a step of the training."""
        deadline = time.time() + 120
        while self.steps() < step:
            if time.time() > deadline or (process is not None and process.poll() is not None):
                raise AssertionError(f"no step {step}: {process.communicate()[0].decode() if process else ''}")
            time.sleep(0.05)

    def gone(self, seconds: float) -> bool:
        until = time.time() + seconds
        while self.ranks():
            if time.time() > until:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture(scope="module")
def whole(tiny_chain, tmp_path_factory) -> Artifact:
    """A run of two ranks that nobody interrupts."""
    return Place(tiny_chain[0], tmp_path_factory.mktemp("whole") / "data").finish()


def assert_same_run(artifact: Artifact, whole: Artifact) -> None:
    for name in ("model/model.safetensors", *(f"checkpoints/step-{STEPS:08d}/optimizer-{rank:05d}-of-00002.safetensors" for rank in range(2))):
        assert artifact.file(name).read_bytes() == whole.file(name).read_bytes(), name
    assert rows(artifact.path) == rows(whole.path)
    assert artifact.digest == whole.digest


@pytest.mark.slow
def test_one_process_trains_on_the_same_text_with_the_same_losses(tiny_chain, tmp_path, monkeypatch):
    """With adamw: muon orthogonalizes in bf16 where the hardware has it, each rank its own batch of matrices, and drifts apart."""
    found = []
    for name, parallel in (("alone", "{strategy: none}"), ("ranks", CHANGES["parallel"])):
        changes = CHANGES | {"optimizer": "adamw", "max_steps": 20, "parallel": parallel}
        monkeypatch.setattr(sys.modules[__name__], "SETTINGS", [f"pretrain.{key}={value}" for key, value in changes.items()])
        found.append(Place(tiny_chain[0], tmp_path / name).finish())
    alone, ranks = found
    assert alone.fingerprint == ranks.fingerprint
    losses = [[row["loss"] for row in rows(artifact.path) if row["split"] == "train"] for artifact in found]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert alone.metrics["tokens"] == ranks.metrics["tokens"]
    assert alone.metrics["val_bits_per_byte"] == pytest.approx(ranks.metrics["val_bits_per_byte"], rel=1e-3)


@pytest.mark.slow
def test_kills_of_the_parent_and_of_a_rank_and_a_stop_change_no_bit_and_leave_no_orphan(tiny_chain, whole, tmp_path):
    place = Place(tiny_chain[0], tmp_path / "data")

    process = place.begin_run()
    place.until(5, process)
    assert set(place.ranks()) == {0, 1}
    process.kill()
    process.wait()
    assert place.gone(11)
    saved = step_of(checkpoints(place.folder)[0])
    assert saved >= 5

    process = place.begin_run()
    place.until(saved + 4, process)
    os.kill(place.ranks()[1], signal.SIGKILL)
    told = process.communicate(timeout=20)[0].decode()
    assert "rank 1 of 2 was killed by signal 9" in told
    assert place.gone(0.5)

    process = place.begin_run()
    place.until(saved + 12, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=20)[0].decode()
    assert time.monotonic() - began < 10
    assert "Interrupted: stopped after step" in told
    assert place.gone(0.5)
    assert step_of(checkpoints(place.folder)[0]) >= saved + 12

    assert_same_run(place.finish(), whole)


@pytest.mark.slow
def test_torchrun_runs_the_same_stage_and_its_ranks_end_with_it(tiny_chain, whole, tmp_path):
    place = Place(tiny_chain[0], tmp_path / "data")
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "feebcore.run.launch", str(place.recipe)]
    command += ["--workspace", str(place.root), *options]

    process = place.begin(*command)
    place.until(5, process)
    assert set(place.ranks()) == {0, 1}
    process.kill()
    process.wait()
    assert place.gone(11)

    saved = step_of(checkpoints(place.folder)[0])
    process = place.begin(*command)
    place.until(saved + 12, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert place.gone(0.5)
    assert step_of(checkpoints(place.folder)[0]) >= saved + 12

    process = place.begin(*command)
    told = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 0, told
    assert place.gone(0.5)
    artifact = read_artifact(place.folder)
    assert artifact is not None, told
    assert_same_run(artifact, whole)


@pytest.mark.slow
def test_a_rank_under_torchrun_says_what_is_not_finished(tiny_chain, tmp_path):
    place = Place(tiny_chain[0], tmp_path / "data")
    shutil.rmtree(place.root / "shard")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "feebcore.run.launch", str(place.recipe)]
    process = place.begin(*command, "--workspace", str(place.root), "--set", "pretrain.parallel.strategy=ddp")
    told = process.communicate(timeout=100)[0].decode()
    assert process.returncode != 0
    assert "stage shard, which pretrain needs, is not finished" in told


@pytest.mark.slow
def test_an_error_inside_one_rank_reaches_the_caller_with_its_traceback(tiny_chain, tmp_path, monkeypatch):
    """A plugin of the recipe that breaks on rank 1 only."""
    place = Place(tiny_chain[0], tmp_path / "data")
    idea = tmp_path / "idea.py"
    idea.write_text(
        "import os\nimport feebcore as feeb\nfrom feebcore.protocols import Objective, ObjectiveOutput\n\n"
        "@feeb.hookimpl\ndef feeb_objectives():\n"
        "    yield feeb.ObjectiveSpec('idea', feeb.PartConfig, build='idea:Broken', summary='Breaks')\n\n"
        "class Broken(Objective):\n    def __init__(self, config, context):\n        pass\n\n"
        "    def __call__(self, model, batch):\n"
        "        if os.environ.get('RANK') == '1':\n            raise ZeroDivisionError('an idea that fails')\n"
        "        model(batch.tokens)\n        raise AssertionError('unreachable: the other rank is waited for')\n"
    )
    (tmp_path / "tiny.yaml").write_text(place.recipe.read_text() + f"\nplugins: [{idea}]\n")
    place.recipe = tmp_path / "tiny.yaml"
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", [*SETTINGS, "pretrain.objective=idea"])
    began = time.monotonic()
    with pytest.raises(StageFailed, match=r"rank 1 of 2: ZeroDivisionError: an idea that fails") as caught:
        place.finish()
    assert "idea.py" in str(caught.value)
    assert "ChildFailedError" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert place.gone(0.5)
