"""The training loop: batch, objective, backward, clip, optimizer. Everything optional is a callback.

A step is a function of (weights, optimizer state, step): data and learning rates are stateless in the step and the random
generator is seeded anew from (seed, step, rank), so a run that is killed and resumed from a checkpoint continues bit for
bit, and nothing that watches the run can change it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from feebcore.errors import Interrupted
from feebcore.train.callbacks import Callback, LoopCallback, RunContext
from feebcore.train.data import Data
from feebcore.train.ema import WeightAverage
from feebcore.train.loss_spike import LossSpikeGuard, Rollback
from feebcore.train.optimizer import Optimizer
from feebcore.train.optimizer_schedules import OptimizerSchedules
from feebcore.train.state import TrainState
from feebcore.train.step import GradientAccumulator


class Trainer:
    """One run. callbacks: the recipe's by key, on the first rank only. loop_callbacks: validation, checkpointing and others of
    the engine, on every rank, in the order in which they follow the recipe's."""

    def __init__(
        self,
        run: RunContext,
        data: Data,
        gradients: GradientAccumulator,
        optimizer: Optimizer,
        schedules: OptimizerSchedules,
        callbacks: dict[str, Callback],
    ) -> None:
        self.run, self.section, self.data, self.optimizer, self.schedules = run, run.section, data, optimizer, schedules
        self.gradients, self.parallel, self.callbacks = gradients, gradients.parallel, callbacks
        self.loop_callbacks: list[LoopCallback] = []
        self.state = TrainState()
        self.stopping = False  # a rank was asked to stop
        self.guard = LossSpikeGuard(self.section, run.out.log)
        self.average = WeightAverage(run.model, self.section.ema_decay) if self.section.ema_decay else None
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.positions = self.section.batch_size * self.section.seq_len  # of the global batch; what gradients are divided by first
        folds = optimizer._step_supports_amp_scaling and self.parallel.strategy != "fsdp"
        self.fold = (torch.ones((), device=run.device), torch.zeros((), device=run.device)) if folds else None  # grad_scale and found_inf
        self.watch_batches = [c for c in callbacks.values() if type(c).on_batch is not Callback.on_batch]
        self.watch_gradients = [c for c in callbacks.values() if type(c).on_gradients is not Callback.on_gradients]

    def train(self) -> TrainState:
        """Run from the current state to `max_steps`. Raises Interrupted, after saving, when a stop is requested."""
        started = time.perf_counter() - self.state.elapsed
        self.run.model.train()
        while True:
            for callback in (*self.callbacks.values(), *self.loop_callbacks):
                callback.on_start(self.run)
            try:
                self._steps(started)
                break
            except Rollback as reason:
                for callback in self.loop_callbacks:
                    callback.on_rollback(str(reason))
                for watcher in self.callbacks.values():
                    watcher.on_close()
        for callback in self.loop_callbacks:
            callback.on_train_end()
        return self.state

    def _steps(self, started: float) -> None:
        run, state = self.run, self.state
        if state.validation_due:  # a stop has cut short the validation of the last step
            self._after_step({})
        while state.step < self.section.max_steps:
            for callback in self.loop_callbacks:
                callback.on_step_begin(state.step)
            metrics = self.step(state.step)
            state.step = run.step = state.step + 1
            state.elapsed = time.perf_counter() - started
            for watcher in self.callbacks.values():
                watcher.on_step_end(run.step, metrics | {"elapsed": state.elapsed})
            self._after_step(metrics)

    def _after_step(self, metrics: dict[str, Any]) -> None:
        for callback in self.loop_callbacks:
            callback.on_step_end(self.run.step, metrics)
        if self.stopping:
            for callback in self.loop_callbacks:
                callback.on_train_end()
            raise Interrupted(f"stopped after step {self.state.step} of {self.section.max_steps}; run the same command again to continue")

    def step(self, step: int) -> dict[str, Any]:
        """Optimizer step `step`, counted from 0; its metrics. Spikes and non-finite steps follow `on_loss_spike`, `on_nonfinite`."""
        began = time.perf_counter()
        parallel, section, state = self.parallel, self.section, self.state
        place = step + state.data_offset
        batch = self.data.batch(place) if parallel.world == 1 else self.data.batch(place, parallel.rank, parallel.world)
        waited = time.perf_counter() - began
        timed = self.gradients.warmed_up
        for callback in self.watch_batches:
            callback.on_batch(step, batch)
        seed = (section.seed * 0x9E3779B97F4A7C15 + step + parallel.rank * 0xD1B54A32D192ED03) % 2**63
        loss_sum, count, sums = self.gradients.add(batch, self.positions, seed, with_state=bool(self.optimizer.state))
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        own = [loss_sum, count, torch.tensor(float(self.run.out.stop_requested)), *sums.values()]
        summed = parallel.sum(torch.stack([v.to(loss_sum) for v in own]))
        norm, total, counted, stop, *extra = torch.cat([parallel.grad_norm(gradients).reshape(1).to(loss_sum), summed]).tolist()  # the step's only wait
        self.stopping = stop > 0
        scale = self.positions / counted if counted else 1.0  # gradients are of total / positions so far
        loss, norm = total / max(counted, 1), norm * scale
        self.schedules.apply(step)
        if self.guard.skips(step + 1, loss, norm, state):
            self.optimizer.zero_grad(set_to_none=True)
        else:
            if section.grad_clip and norm > section.grad_clip:
                scale *= section.grad_clip / norm
            self._update(gradients, scale, step)
        tokens, seconds = batch.tokens.numel() * parallel.world, time.perf_counter() - began
        state.tokens += tokens
        if timed:
            state.timed_tokens += tokens
            state.timed_seconds += seconds
            state.waited_seconds += waited
        about = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": norm, "tokens": state.tokens, "seconds": seconds, "data_wait": waited}
        more = {k: v / max(counted, 1) for k, v in zip(sums, extra, strict=True)}
        return {"step": step + 1, "loss": loss} | about | more

    def _update(self, gradients: list[Tensor], scale: float, step: int) -> None:
        """The optimizer's step on gradients times `scale`; a fused optimizer multiplies as it reads them."""
        if self.fold is not None:
            self.fold[0].fill_(1.0 / scale)
            self.optimizer.grad_scale, self.optimizer.found_inf = self.fold  # type: ignore[attr-defined]
        elif scale != 1.0:
            torch._foreach_mul_(gradients, scale)
            scale = 1.0
        for callback in self.watch_gradients:
            callback.on_gradients(step + 1, scale)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)

    def use_eval_weights(self) -> None:
        """The model gets the weights that are validated, scored and saved: the optimizer's for evaluation, or their average."""
        self.optimizer.use_eval_weights()
        if self.average is not None:
            self.average.use_eval_weights()

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[None]:
        """The model with the weights of `use_eval_weights`; afterwards with those that are trained, bit for bit."""
        self.use_eval_weights()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.use_train_weights()
            self.optimizer.use_train_weights()
