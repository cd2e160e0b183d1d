"""What a step of a recipe costs on this machine: `python -m feebcore.compare.cost FOLDER PIPE`, in a process of its own.

A process of its own because memory is that of a whole process, and because the next recipe must not find caches warm. The
folder has recipe.json (up to pretrain) and request.json; the outcome is cost.json. It ends when the pipe closes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, read_artifact
from feebcore.compare.plan import STAGE, Run, section_for
from feebcore.errors import Diverged, StageFailed, plural
from feebcore.files import read_json, write_json
from feebcore.recipe import Recipe, from_resolved
from feebcore.registry import use_registry


def measure_apart(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path, steps: int) -> dict[str, Any]:
    """`measure` in a process of its own. Raises StageFailed with the end of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.json").unlink(missing_ok=True)
    write_json(folder / "recipe.json", recipe.resolved())
    write_json(folder / "request.json", {"inputs": {name: str(a.path) for name, a in inputs.items()}, "steps": steps})
    reader, writer = os.pipe()
    try:
        with open(folder / "log.txt", "wb") as log:
            command = [sys.executable, "-P", "-m", "feebcore.compare.cost", str(folder), str(reader)]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(reader,), start_new_session=True, check=False)
    finally:
        os.close(reader)
        os.close(writer)
    if not (folder / "cost.json").exists():
        text = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
        raise StageFailed(f"{recipe.name}: the first steps could not be run; log {folder / 'log.txt'}:\n" + "\n".join(text[-10:]))
    return read_json(folder / "cost.json")


def measure(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path, steps: int, apart: bool = False) -> dict[str, Any]:
    """Seconds a step, without the first, over `steps` steps of training as the whole run would do them.

    memory_bytes: the most that CUDA had allocated; on CPU, where the process is only for this (`apart`), its resident memory.
    """
    import torch

    from feebcore.data.loader import make_batches
    from feebcore.data.token_artifacts import open_tokens
    from feebcore.model import precision
    from feebcore.train import compilation
    from feebcore.train.parallel_config import ParallelConfig
    from feebcore.train.pretrain import train_model
    from feebcore.train.pretrain_config import PretrainConfig

    folder.mkdir(parents=True, exist_ok=True)
    whole = recipe.stages[STAGE].section
    assert isinstance(whole, PretrainConfig)
    short = section_for(whole, Run("cost", recipe.name, "lr", whole.seed, steps), whole.max_steps)
    with use_registry(recipe.registry):
        device = precision.resolve_device(whole.device)
        flops = _flops_per_step(whole, inputs["tokens"]) * whole.max_steps
        number_format, by_blocks = precision.resolve_precision(whole.precision, device), device.type == "cpu" and whole.parallel.strategy == "none"
        what, _ = compilation.should_compile(whole.compile, device, number_format, flops, whole.max_steps, by_blocks)
        quiet = {
            "callbacks": [],
            "validation_every": 0,
            "checkpoint_every": 0,
            "on_nonfinite": "skip",
            "on_loss_spike": "stop",
            "spike_factor": 0.0,
            "max_recoveries": steps + 1,
        }
        quiet |= {"compile": {"": "off", "blocks": "blocks", "whole": "on"}[what], "parallel": ParallelConfig()}
        short = short.model_copy(update=quiet)
        train = open_tokens(inputs["tokens"], "train", whole.tokens_url)
        data = make_batches(train, short.packing, short.data_order, short.batch_size, short.seq_len, short.seed, short.max_steps)
        out = StageOutput(folder)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            trained = train_model(short, data, None, None, folder, out, vocab_size=train.vocab_size, checkpoint=False, save=False, final_score=False)
        finally:
            out.close()
    rate = trained.metrics["tokens_per_second"]
    if not rate:
        raise Diverged(f"{recipe.name}: {plural(steps, 'step')}: too few to time one")
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() if apart else None
    return {"step_seconds": short.batch_size * short.seq_len / rate, "steps": steps, "memory_bytes": memory, "device": device.type, "compiled": bool(what)}


def _flops_per_step(section: Any, tokens: Artifact) -> float:
    """Counted training FLOPs: 3 x forward with full T x T attention and head, and what the objective runs besides."""
    from feebcore.model.build import count_training

    vocab_size = read_json(tokens.file("tokens.json"))["vocab_size"]
    return count_training(section.architecture, section.objective.build(), vocab_size, section.seq_len)[1] * section.batch_size * section.seq_len


def flops_per_step(recipe: Recipe, tokens: Artifact) -> float:
    """Counted training FLOPs of an optimizer step of the recipe's pretrain section."""
    with use_registry(recipe.registry):
        return _flops_per_step(recipe.stages[STAGE].section, tokens)


def _resident() -> int | None:
    """The most memory that this process has had, in bytes. Not ru_maxrss, which begins with the parent's."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def main(folder: Path, pipe: int) -> int:
    from feebcore.run.worker import end_with_pipe

    os.set_inheritable(pipe, False)
    end_with_pipe(pipe)
    request = read_json(folder / "request.json")
    recipe = from_resolved(read_json(folder / "recipe.json"), folder / "recipe.json")
    inputs = {name: artifact for name, path in request["inputs"].items() if (artifact := read_artifact(Path(path))) is not None}
    try:
        write_json(folder / "cost.json", measure(recipe, inputs, folder, request["steps"], apart=True))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
