"""What a checkpoint holds of a run, and how one continues from it: resuming, and branching off another run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from feebcore.errors import ArtifactError, FeebError
from feebcore.model.precision import environment
from feebcore.train import compilation
from feebcore.train.checkpoint import Checkpointer, Extras, checkpoints, read_state, step_of
from feebcore.train.config import checkpoint_digest, checkpoint_of
from feebcore.train.loop import Trainer
from feebcore.train.state import TrainState


@dataclass(frozen=True)
class OriginalRun:
    """A longer run that trains its first `same_steps` steps exactly as this one. folder: its artifact. max_steps: its length."""

    folder: Path
    max_steps: int
    same_steps: int


def training_state(trainer: Trainer) -> dict[str, Any]:
    """state.json of a checkpoint: everything but tensors."""
    section = trainer.section
    return {
        "train_state": trainer.state.state_dict(),
        "seed": section.seed,  # with the step, all there is of the random state
        "compiled": trainer.gradients.compiled,
        "precision": trainer.run.precision,
        "micro_batch": trainer.gradients.size,
        "data": {"batch_size": section.batch_size, "seq_len": section.seq_len},
        "optimizer_part": section.optimizer.name,
        "environment": current_environment(trainer),
        "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
    }


def extra_tensors(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """Groups of tensors other than those of model and optimizer."""
    return {} if trainer.average is None else {"ema": trainer.average.average}


def current_environment(trainer: Trainer) -> dict[str, Any]:
    return environment(trainer.run.device) | {"ranks": trainer.parallel.world, "strategy": trainer.parallel.strategy}


def restore_state(trainer: Trainer, state: dict[str, Any], extras: Extras) -> None:
    """Take over what `training_state` and `extra_tensors` returned; model and optimizer have their tensors already."""
    trainer.state = TrainState.from_state_dict(state["train_state"])
    trainer.run.step = trainer.state.step
    trainer.run.ends_at = trainer.state.step if trainer.state.ended else None
    if trainer.average is not None:
        if "ema" in extras:
            trainer.average.load(extras["ema"])
        else:
            trainer.average.restart()
    for name, callback in trainer.callbacks.items():
        if name in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][name])


def resume(trainer: Trainer, checkpointer: Checkpointer, own: bool = True, training_flops: float = 0.0, original: OriginalRun | None = None) -> int:
    """Continue from the newest whole checkpoint (own: this run's, where it keeps some), else from one of `original`, else from the run to
    branch from, else from the start. Decides about compiling, or takes over the decision. training_flops: of the whole run, on this rank.

    Returns the step whose checkpoint is up to date, -1 when there is none. Raises FeebError for a checkpoint of another model
    or format.
    """
    loaded = checkpointer.load_latest(trainer.run.model, trainer.optimizer) if own else None
    if loaded is not None:
        _continue(trainer, *loaded)
        return -1 if trainer.state.validation_due else trainer.state.step
    if original is not None and (loaded := _of_original(trainer, checkpointer, original)) is not None:
        _continue(trainer, *loaded)
        return -1
    section = trainer.section
    if section.branch_from:
        _branch(trainer, checkpointer)
    elif trainer.average is not None:
        trainer.average.restart()
    steps = section.max_steps - trainer.state.step
    by_blocks = trainer.gradients.can_compile_blocks
    what, notice = compilation.should_compile(section.compile, trainer.run.device, trainer.run.precision, training_flops, steps, by_blocks)
    if notice:
        trainer.run.out.log(notice)
    if what:
        trainer.gradients.compile(what)
    return -1


def _of_original(trainer: Trainer, checkpointer: Checkpointer, original: OriginalRun) -> tuple[dict[str, Any], Extras] | None:
    """State and extras of the newest checkpoint within the steps that the original run shares, as this run would have written it; None where it
    keeps none, and then this run trains these steps itself."""
    log = trainer.run.out.log
    for path in checkpoints(original.folder):
        if step_of(path) > original.same_steps:
            continue
        try:
            state, extras = checkpointer.load(path, trainer.run.model, trainer.optimizer)
        except ArtifactError as error:
            log(f"{error}; trying the one before it")
            continue
        past = _of_another(TrainState.from_state_dict(state["train_state"]))
        log(f"the first {past.step} steps are those of {original.folder.name}, which trains them alike")
        return state | {"train_state": past.state_dict(), "callbacks": {}}, extras
    log(f"{original.folder.name} keeps no checkpoint of the {original.same_steps} steps that it trains alike, so this run trains them itself")
    return None


def _of_another(state: TrainState) -> TrainState:
    """The state of another run, whose time was not this one's, nor its end."""
    fresh = {"elapsed": 0.0, "timed_tokens": 0, "timed_seconds": 0.0, "waited_seconds": 0.0, "lowest": None, "ended": ""}
    return dataclasses.replace(state, began_at=state.step, **fresh)  # type: ignore[arg-type]


def _continue(trainer: Trainer, state: dict[str, Any], extras: Extras) -> None:
    run, gradients, section = trainer.run, trainer.gradients, trainer.section
    restore_state(trainer, state, extras)
    if state["precision"] != run.precision:  # 'auto' is chosen once a run, not once a machine
        run.out.log(f"the run was begun in {state['precision']}; it continues so, where auto would mean {run.precision} here")
        run.precision = gradients.module.precision = state["precision"]
    if not section.micro_batch and state["micro_batch"] and trainer.parallel.world == 1:
        gradients.size = state["micro_batch"]  # found by trial; the same again, for the same bits
    if state["compiled"] and compilation.has_compiler(run.device):
        gradients.compile(state["compiled"])
    elif state["compiled"]:
        run.out.log("the run was compiled before, but no compiler is available: continuing uncompiled")
    now = current_environment(trainer)
    changed = [f"{k} {was} -> {now.get(k)}" for k, was in state["environment"].items() if now.get(k) != was]
    run.out.log(f"resumed after step {trainer.state.step} of {section.max_steps}")
    if changed:
        run.out.log(f"environment changed since the checkpoint ({', '.join(changed)}): results may not be bitwise identical to an uninterrupted run")


def _branch(trainer: Trainer, checkpointer: Checkpointer) -> None:
    """Take weights, optimizer state and place in the data from another run; options are those of this recipe."""
    section, optimizer, log = trainer.section, trainer.optimizer, trainer.run.out.log
    source = Path(section.branch_from)
    path = checkpoint_of(source, section.branch_step)
    if path is None:
        raise FeebError(f"branch_from: {source} has no checkpoint" + (f" of step {section.branch_step}" if section.branch_step else ""))
    if checkpoint_digest(path) != section.branch_content:
        raise FeebError(f"branch_from: {path} is not the checkpoint that this run was planned with; run it again")
    same_optimizer = read_state(path)["optimizer_part"] == section.optimizer.name
    try:
        state, extras = checkpointer.load(path, trainer.run.model, optimizer if same_optimizer else None)
    except ArtifactError as error:
        raise FeebError(f"branch_from: {error}; a branch must have the architecture of the original run") from error
    restore_state(trainer, state | {"callbacks": {}}, extras)
    offset = _branch_offset(trainer, state["data"])
    trainer.state, trainer.run.ends_at = dataclasses.replace(_of_another(trainer.state), data_offset=offset), None
    if not same_optimizer:
        log(f"optimizer {section.optimizer.name} starts with fresh state: the original run used {state['optimizer_part']}")
    if trainer.state.step >= section.max_steps:
        raise FeebError(f"branch_from: {path} is at step {trainer.state.step}, and max_steps is {section.max_steps}; raise it, or set branch_step")
    log(f"branched from {path} after step {trainer.state.step}, on to {section.max_steps}")


def _branch_offset(trainer: Trainer, original: dict[str, int]) -> int:
    """Batches to leave out, so that the data continue where the original run was, even if batch_size differs."""
    step, size, length = trainer.state.step, trainer.section.batch_size, trainer.section.seq_len
    if original["seq_len"] != length:
        trainer.run.out.log(f"seq_len {length} differs from the original run ({original['seq_len']}): some text may be repeated or skipped")
    sequences = (step + trainer.state.data_offset) * original["batch_size"] * original["seq_len"] / length
    return math.ceil(sequences / size) - step
