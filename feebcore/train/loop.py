"""The training loop: batch, objective, backward, clip, optimizer. Everything optional is a callback.

A step is a function of (weights, optimizer state, step): data and learning rates are stateless in the step and the random
generator is seeded anew from (seed, step, rank), so a run that is killed and resumed from a checkpoint continues bit for
bit, and nothing that watches the run can change it.

No step waits for the device: losses, gradient norms and the factor that normalizes and clips gradients stay there. They are
fetched together when a callback is due, a checkpoint or a validation follows, `log_every` steps have passed, or a second.
Policies that skip a step or roll back have to know before the update, and then wait once a step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feebcore.errors import Interrupted
from feebcore.train.callbacks import Callback, LoopCallback, RunContext
from feebcore.train.data import Data
from feebcore.train.dtensor import local_shard
from feebcore.train.early_stop import EarlyStop
from feebcore.train.ema import WeightAverage
from feebcore.train.loss_spike import LossSpikeGuard, Rollback
from feebcore.train.optimizer import Optimizer
from feebcore.train.optimizer_schedules import OptimizerSchedules
from feebcore.train.state import TrainState
from feebcore.train.step import GradientAccumulator

REPORT_SECONDS = 1.0
"""Numbers of steps are fetched at least this often, for whoever watches."""


@dataclass
class StepRecord:
    """A step whose numbers nobody has seen yet. numbers [4 + K] fp64, on the device: gradient norm and loss as summed so far, targets,
    ranks that were asked to stop, and the K metrics called `names`. metrics: the same for callbacks, once they are fetched."""

    step: int
    names: list[str]
    numbers: Tensor
    about: dict[str, Any]
    timed: bool
    elapsed: float = 0.0
    metrics: dict[str, Any] | None = None


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
        self.stopping = False  # the run ends after this step, as it was asked to
        self.stop_seen = False  # a rank was asked to stop, as far as numbers are fetched
        self.records: list[StepRecord] = []  # of steps that callbacks have not been told of
        self.reported = time.perf_counter()
        self.guard = LossSpikeGuard(self.section, run.out.log)
        self.early_stop = EarlyStop(self.section)
        self.average = WeightAverage(run.model, self.section.ema_decay) if self.section.ema_decay else None
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.positions = self.section.batch_size * self.section.seq_len  # of the global batch; what gradients are divided by first
        folds = optimizer._step_supports_amp_scaling and self.parallel.strategy != "fsdp"
        self.fold = (torch.ones((), device=run.device), torch.zeros((), device=run.device)) if folds else None  # grad_scale and found_inf
        self.watch_batches = [c for c in callbacks.values() if type(c).on_batch is not Callback.on_batch]
        self.watch_gradients = [c for c in callbacks.values() if type(c).on_gradients is not Callback.on_gradients]

    def train(self) -> TrainState:
        """Run from the current state to the last step. Raises Interrupted, after saving, when a stop is requested."""
        started = time.perf_counter() - self.state.elapsed
        self.run.model.train()
        while True:
            for callback in (*self.callbacks.values(), *self.loop_callbacks):
                callback.on_start(self.run)
            try:
                self._steps(started)
                break
            except Rollback as reason:
                self.records.clear()
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
            self._after_step()
        while state.step < self.section.max_steps and not state.ended:
            for callback in self.loop_callbacks:
                callback.on_step_begin(state.step)
            self.step(state.step)
            state.step = run.step = state.step + 1
            state.elapsed = self.records[-1].elapsed = time.perf_counter() - started
            if self.parallel.world == 1:
                self.stopping = run.out.stop_requested
            if self.stopping or self._due(state.step):
                self.report()
            if self._due_everywhere(state.step):
                self.stopping = self.stopping or self.stop_seen
            self._after_step()

    def _after_step(self) -> None:
        for callback in self.loop_callbacks:
            callback.on_step_end(self.run.step, {})
        if self.stopping:
            for callback in self.loop_callbacks:
                callback.on_train_end()
            raise Interrupted(f"stopped after step {self.state.step} of {self.section.max_steps}; run the same command again to continue")

    def _due(self, step: int) -> bool:
        """Whether the numbers of the steps up to this one are wanted now, on this rank."""
        watchers = (*self.callbacks.values(), *self.loop_callbacks)
        return self._due_everywhere(step) or time.perf_counter() - self.reported > REPORT_SECONDS or any(w.due(step) for w in watchers)

    def _due_everywhere(self, step: int) -> bool:
        """Steps at which every rank looks at the numbers, so that all of them stop after the same one."""
        return self.guard.judges_at_once or self.early_stop.due(step) or step % self.section.log_every == 0 or step == self.section.max_steps

    def step(self, step: int) -> None:
        """Optimizer step `step`, counted from 0. Spikes and non-finite steps follow `on_loss_spike`, `on_nonfinite`."""
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
        asked = loss_sum.new_full((), float(self.run.out.stop_requested))
        summed = parallel.sum(torch.stack([v.to(loss_sum) for v in (loss_sum, count, asked, *sums.values())]))
        numbers = torch.cat([parallel.grad_norm(gradients).reshape(1).to(loss_sum), summed]).double()
        self.schedules.apply(step)
        tokens = batch.tokens.numel() * parallel.world
        state.tokens += tokens
        about = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": 0.0, "tokens": state.tokens, "seconds": 0.0, "data_wait": waited}
        record = StepRecord(step + 1, list(sums), numbers, about, timed)
        self.records.append(record)
        if self.guard.judges_at_once and self._skips(record):
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._update(gradients, self._scale(numbers), step)
        about["seconds"] = time.perf_counter() - began
        if timed:
            state.timed_tokens += tokens
            state.timed_seconds += about["seconds"]
            state.waited_seconds += waited
        else:
            parallel.expect_steps()

    def _scale(self, numbers: Tensor) -> Tensor:
        """What gradients are multiplied by, fp64 scalar: they are of total / positions so far, and not clipped."""
        norm, _, counted = numbers[:3]
        scale = torch.where(counted > 0, self.positions / counted, 1.0)
        if not self.section.grad_clip:
            return scale
        norm = norm * scale
        return torch.where(norm > self.section.grad_clip, scale * (self.section.grad_clip / norm), scale)

    def _update(self, gradients: list[Tensor], scale: Tensor, step: int) -> None:
        """The optimizer's step on gradients times `scale`; a fused optimizer multiplies as it reads them."""
        if self.fold is not None:
            self.fold[0].copy_(1.0 / scale)
            self.optimizer.grad_scale, self.optimizer.found_inf = self.fold  # type: ignore[attr-defined]
        else:
            torch._foreach_mul_([local_shard(g) for g in gradients], scale.float())
            scale = torch.ones_like(scale)
        for callback in self.watch_gradients:
            callback.on_gradients(step + 1, scale)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)

    def report(self) -> None:
        """Tell the recipe's callbacks of the steps since the last report. Raises Diverged for the first that ends the run."""
        began = time.perf_counter()
        self._fetch()
        self.reported = time.perf_counter()
        records, self.records = self.records, []
        if records and records[-1].timed:  # steps only launch their work; here it was waited for
            self.state.timed_seconds += self.reported - began
        for record in records:
            assert record.metrics is not None
            if not self.guard.judges_at_once:
                self._skips(record)
            if record is records[-1]:
                record.metrics["seconds"] += self.reported - began
            if self.early_stop.due(record.step) and (end := self.early_stop.judge(record.step, self.state)):
                self.run.ends_at = record.step
                self.run.out.log(end)
            for watcher in self.callbacks.values():
                watcher.on_step_end(record.step, record.metrics | {"elapsed": record.elapsed})

    def _fetch(self) -> None:
        """Metrics of all records that have none."""
        fresh = [record for record in self.records if record.metrics is None]
        values = torch.cat([record.numbers for record in fresh]).tolist() if fresh else []  # the only wait for the device
        for record in fresh:
            norm, total, counted, stop = values[:4]
            extra, values = values[4 : 4 + len(record.names)], values[4 + len(record.names) :]
            self.stop_seen = self.stop_seen or stop > 0
            record.about["grad_norm"] = norm * (self.positions / counted if counted else 1.0)
            more = {name: value / max(counted, 1) for name, value in zip(record.names, extra, strict=True)}
            record.metrics = {"step": record.step, "loss": total / max(counted, 1)} | record.about | more

    def _skips(self, record: StepRecord) -> bool:
        """Whether its update is left out. Raises Diverged, or Rollback."""
        self._fetch()
        assert record.metrics is not None
        return self.guard.skips(record.step, record.metrics["loss"], record.metrics["grad_norm"], self.state)

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
