"""Rolling back: states kept at fixed steps, and continuing from one of them with the batches after the anomalous step."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from feebcore.errors import FeebError
from feebcore.train.callbacks import LoopCallback, RunContext
from feebcore.train.checkpoint import Checkpointer, checkpoints, step_of
from feebcore.train.checkpointing import Checkpointing
from feebcore.train.loop import Trainer
from feebcore.train.resume import extra_tensors, restore_state, training_state

FOLDER = "rollback"


class RollbackStates(LoopCallback):
    """Keeps a state every `rollback_every` steps, at fixed ones, so that a killed run is rolled back to the same."""

    def __init__(self, trainer: Trainer, checkpointing: Checkpointing) -> None:
        if not checkpointing.enabled:
            raise FeebError("on_loss_spike, on_nonfinite: rollback needs checkpoints, which this run does not keep; use skip or stop")
        self.trainer, self.checkpointing, self.every = trainer, checkpointing, trainer.section.rollback_every
        self.root = trainer.run.folder / FOLDER
        self.checkpointer = Checkpointer(self.root, trainer.parallel, keep=3, asynchronous=trainer.section.async_checkpoints, log=trainer.run.out.log)

    def on_start(self, run: RunContext) -> None:
        step, parallel = self.trainer.state.step, self.trainer.parallel
        if not parallel.any(parallel.is_main and any(step_of(path) <= step for path in checkpoints(self.root))):
            self.keep_state()

    def on_step_begin(self, step: int) -> None:
        if step % self.every == 0:
            self.keep_state()

    def keep_state(self) -> None:
        trainer = self.trainer
        for callback in trainer.callbacks.values():
            callback.on_save(trainer.state.step)
        self.checkpointer.save(trainer.state.step, trainer.run.model, trainer.optimizer, training_state(trainer), extra_tensors(trainer))
        self.checkpointing.save()  # so that the newest checkpoint is never before the states to roll back to

    def on_save(self, step: int) -> None:
        if step % self.every:
            self.checkpointer.wait()  # a checkpoint is never on disk before the state that it may have to roll back to

    def on_rollback(self, reason: str) -> None:
        """Restore the newest of the kept states, and leave out the batches from there to the anomalous step."""
        self.checkpointer.wait()
        trainer, before = self.trainer, self.trainer.state
        anomalous = before.step + 1
        loaded = self.checkpointer.load_latest(trainer.run.model, trainer.optimizer, upto=before.step)
        if loaded is None:
            raise FeebError(f"{reason}; there is no earlier state to roll back to")
        restore_state(trainer, *loaded)
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.state = dataclasses.replace(
            trainer.state,
            elapsed=before.elapsed,
            anomalous_steps=before.anomalous_steps,
            rollbacks=[*before.rollbacks, anomalous],
            data_offset=before.data_offset + anomalous - trainer.state.step,
        )
        trainer.run.out.log(f"{reason}; rollback to step {trainer.state.step}, skipping the batches up to the anomalous step")

    def on_train_end(self) -> None:
        self.checkpointer.wait()

    def on_end(self, metrics: dict[str, Any]) -> None:
        if self.trainer.parallel.is_main:
            shutil.rmtree(self.root, ignore_errors=True)
