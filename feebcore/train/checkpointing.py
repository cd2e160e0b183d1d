"""When a checkpoint is written: every `checkpoint_every` steps and at `keep_steps`, after a validation where the best are kept, and at the end."""

from __future__ import annotations

from typing import Any

from feebcore.train.callbacks import LoopCallback
from feebcore.train.checkpoint import Checkpointer
from feebcore.train.loop import Trainer
from feebcore.train.resume import extra_tensors, training_state


class Checkpointing(LoopCallback):
    """enabled: whether state is kept on disk at all."""

    def __init__(self, trainer: Trainer, enabled: bool = True) -> None:
        section = trainer.section
        self.trainer, self.enabled = trainer, enabled
        self.checkpointer = Checkpointer(
            trainer.run.folder,
            trainer.parallel,
            keep=section.keep_checkpoints,
            keep_every=section.keep_every,
            keep_steps=section.keep_steps,
            keep_best=section.keep_best,
            asynchronous=section.async_checkpoints,
            log=trainer.run.out.log,
        )
        self.saved_step = -1

    def due(self, step: int) -> bool:
        section = self.trainer.section
        return step in section.keep_steps or (bool(section.checkpoint_every) and step % section.checkpoint_every == 0)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        validation = self.trainer.state.validation
        validated = validation is not None and validation[0] == step
        if self.due(step) or (validated and self.trainer.section.keep_best):
            self.save()

    def on_rollback(self, reason: str) -> None:
        self.saved_step = -1

    def on_train_end(self) -> None:
        self.save()
        self.checkpointer.wait()

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, once."""
        trainer, step = self.trainer, self.trainer.state.step
        if not self.enabled or self.saved_step == step:
            return
        for callback in (*trainer.callbacks.values(), *trainer.loop_callbacks):
            callback.on_save(step)
        validation = trainer.state.validation
        metric = validation[1] if validation and validation[0] == step else None
        self.checkpointer.save(step, trainer.run.model, trainer.optimizer, training_state(trainer), extra_tensors(trainer), metric=metric)
        self.saved_step = step
