"""Kills training with SIGKILL at random moments and compares the run that was taken up again and again with one that was not.

    python benchmarks/kill_training.py [--kills 20] [--compile on] [--ranks 2] [--seed 0]

A third of the kills falls into steps, a third into the writing of checkpoints, a third into validation; one of
three hits the parent process instead of a training process. Compared bit for bit: weights, optimizer state, the training log
without its times, the tokens of every batch. Exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS_A_KILL = 12  # on average a killed run gets on by fewer before the next kill
CHECKPOINT_EVERY, EVAL_EVERY = 4, 6
MOMENTS = ("step", "checkpoint", "evaluation")
TIMES = ("elapsed", "tokens_per_second", "data_wait", "seconds")

RECIPE = """
name: killed
plugins: [./watch.py]
stages: [download, tokenizer, shard, pretrain]
download: {{sources: [{{name: package, package: pydantic, files: ["_internal/*.py"]}}]}}
tokenizer: {{tokenizer: byte}}
pretrain:
  architecture: {{num_layers: {layers}, d_model: 32, num_heads: 2, dropout: 0.1}}
  optimizer: muon
  ema_decay: 0.9
  seq_len: 64
  batch_size: 8
  max_steps: {steps}
  micro_batch: {micro}
  threads: 1
  precision: {precision}
  compile: {compile}
  checkpoint_every: {checkpoint}
  keep_checkpoints: 3
  validation_every: {eval}
  log_every: 1
  callbacks: [metrics, watch]
  parallel: {{strategy: {strategy}, ranks: {ranks}}}
"""

WATCH = '''
"""Tells what training is about to do, and what it read."""
import hashlib
import os

import feebcore as feeb


@feeb.hookimpl
def feeb_callbacks():
    yield feeb.CallbackSpec("watch", build=build, summary="Tells what training does.")


def build(config, context):
    from feebcore.train.callbacks import Callback

    class Watch(Callback):
        def tell(self, *words):
            with open(os.environ["WATCH_LOG"], "a") as stream:
                stream.write(" ".join(map(str, words)) + "\\n")

        def on_batch(self, step, batch):
            self.tell("step", os.getpid(), step, hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest())

        def on_step_end(self, step, metrics):
            if step % self.run.section.validation_every == 0:
                self.tell("evaluation", os.getpid(), step)

        def on_save(self, step):
            self.tell("checkpoint", os.getpid(), step)

    return Watch()
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--compile", choices=("on", "blocks", "off"), default="off")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=3, metavar=("RECIPE", "WORKSPACE", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return build(*options.run)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options)
    print(json.dumps(found, indent=1))
    return 1 if found["differences"] or found["kills"] < options.kills else 0


def build(recipe: str, workspace: str, stage: str) -> int:
    """What a flow does: build the stage, training in a worker process."""
    from feebcore.artifacts import Workspace
    from feebcore.recipe import load
    from feebcore.run.build import run_all

    run_all(load(recipe), Workspace(workspace), [stage], in_process=False)
    return 0


def compare(folder: Path, options: Any) -> dict[str, Any]:
    """One undisturbed run, one that is killed `options.kills` times; what differs between them."""
    strategy = options.strategy if options.ranks > 1 else "none"
    steps = STEPS_A_KILL * max(2, options.kills)
    text = RECIPE.format(
        steps=steps,
        layers=options.layers,
        micro=2,  # for any number of ranks, so that compiled code is the same
        compile=options.compile,
        precision=options.precision,
        checkpoint=CHECKPOINT_EVERY,
        eval=EVAL_EVERY,
        strategy=strategy,
        ranks=options.ranks if options.ranks > 1 else 0,
    )
    (folder / "recipe.yaml").write_text(text)
    (folder / "watch.py").write_text(WATCH)
    if code := start(folder, "whole", "shard").wait():
        raise SystemExit(f"the data could not be made, status {code}: {(folder / 'whole.log').read_text()[-2000:]}")
    shutil.copytree(folder / "whole", folder / "killed")
    began = time.monotonic()
    if code := start(folder, "whole").wait():
        raise SystemExit(f"the undisturbed run ended with status {code}: {(folder / 'whole.log').read_text()[-2000:]}")
    moments = kill_and_resume(folder, options.kills, steps, random.Random(options.seed))
    return {
        "kills": len(moments),
        "moments": {m: sum(k["moment"] == m for k in moments) for m in MOMENTS},
        "parents_killed": sum(k["parent"] for k in moments),
        "compile": compiled(folder, steps),
        "precision": options.precision,
        "ranks": options.ranks,
        "strategy": strategy,
        "seconds": round(time.monotonic() - began, 1),
        "differences": differences(folder, steps),
    }


def start(folder: Path, name: str, stage: str = "pretrain") -> subprocess.Popen[bytes]:
    environment = os.environ | {"WATCH_LOG": str(folder / f"{name}.watch"), "OMP_NUM_THREADS": "1"}
    with open(folder / f"{name}.log", "ab") as log:
        command = [sys.executable, __file__, "--run", str(folder / "recipe.yaml"), str(folder / name), stage]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def kill_and_resume(folder: Path, kills: int, steps: int, chance: random.Random) -> list[dict[str, Any]]:
    """Run, kill at a random moment, run again; the last run is left alone."""
    done: list[dict[str, Any]] = []
    first = chance.randrange(len(MOMENTS))
    log = folder / "killed.watch"
    log.touch()
    while len(done) < kills:
        moment, parent = MOMENTS[(first + len(done)) % len(MOMENTS)], len(done) % 3 == 2
        every = {"step": 1, "checkpoint": CHECKPOINT_EVERY, "evaluation": EVAL_EVERY}[moment]
        left = (kills - len(done)) * CHECKPOINT_EVERY  # steps that the kills to come need
        process, position = start(folder, "killed"), log.stat().st_size
        after = chance.randint(1, max(1, min(3, (steps - last_step(log) - left) // every)))
        pid = wait_for(log, position, moment, after, process)
        if pid is None:
            raise SystemExit(f"the run ended before kill {len(done) + 1}: {(folder / 'killed.log').read_text()[-2000:]}")
        time.sleep(chance.uniform(0.0, 0.03 if moment != "step" else 0.01))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid if parent else pid, signal.SIGKILL)
        process.wait()
        wait_until_gone(log, position)
        done.append({"moment": moment, "parent": parent, "step": last_step(log)})
    if code := start(folder, "killed").wait():
        raise SystemExit(f"the last run ended with status {code}: {(folder / 'killed.log').read_text()[-2000:]}")
    return done


def wait_for(log: Path, position: int, moment: str, count: int, process: subprocess.Popen[bytes]) -> int | None:
    """The pid that announced `moment` for the `count`-th time after `position`; None when the process ended before."""
    while process.poll() is None:
        lines = [line.split() for line in log.read_bytes()[position:].decode().splitlines()]
        found = [line for line in lines if line[0] == moment]
        if len(found) >= count and len(found[count - 1]) >= 3:
            return int(found[count - 1][1])
        time.sleep(0.001)
    return None


def wait_until_gone(log: Path, position: int) -> None:
    """Until the training processes that told something after `position` have ended: those whose parent was killed end by
    themselves, and what they still tell must not be taken for the next run's."""
    pids = {int(line.split()[1]) for line in log.read_bytes()[position:].decode().splitlines() if line.count(" ") >= 2}
    while any(alive(pid) for pid in pids):
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def last_step(log: Path) -> int:
    steps = [int(line.split()[2]) for line in log.read_text().splitlines() if line.count(" ") >= 2]
    return max(steps, default=0)


def compiled(folder: Path, steps: int) -> bool:
    """Whether the killed run says that it was compiled."""
    (state,) = (folder / "killed" / "pretrain").glob(f"killed-*/checkpoints/step-{steps:08d}/state.json")
    return bool(json.loads(state.read_text())["compiled"])


def differences(folder: Path, steps: int) -> list[str]:
    """Names of what is not bit for bit the same."""
    from feebcore.files import read_jsonl

    found = []
    whole, killed = (next((folder / name / "pretrain").glob("killed-*")) for name in ("whole", "killed"))
    last = f"checkpoints/step-{steps:08d}"
    for path in sorted([*(whole / last).rglob("*.safetensors"), *(whole / "model").rglob("*.safetensors")]):
        twin = killed / path.relative_to(whole)
        if not twin.is_file() or twin.read_bytes() != path.read_bytes():
            found.append(str(path.relative_to(whole)))
    logs = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(run / "metrics.jsonl")] for run in (whole, killed)]
    if logs[0] != logs[1]:
        found.append("metrics.jsonl")
    read = [dict(line.split()[2:4] for line in (folder / f"{n}.watch").read_text().splitlines() if line.startswith("step ")) for n in ("whole", "killed")]
    if read[0] != read[1] or len(read[0]) != steps:
        found.append("batches")
    return found


if __name__ == "__main__":
    sys.exit(main())
