"""The training loop: batch, objective, backward, clip, optimizer. Everything optional is a callback.

A step is a function of (weights, optimizer state, step): data and rates are stateless in the step and the random
generator is seeded anew from (seed, step, rank), so a run that is killed and resumed from a checkpoint continues bit for
bit, and nothing that looks at the run can change it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from feebcore.errors import ArtifactError, FeebError, Interrupted
from feebcore.model.precision import environment
from feebcore.protocols import Batch
from feebcore.train import compilation
from feebcore.train.callbacks import Callback, RunContext
from feebcore.train.checkpoint import Checkpointer, checkpoints, read_state
from feebcore.train.config import checkpoint_digest, checkpoint_of
from feebcore.train.ema import WeightAverage
from feebcore.train.loss_spike import LossSpikeGuard, Rollback
from feebcore.train.optimizer_schedules import OptimizerSchedules
from feebcore.train.step import Gradients
from feebcore.train.validation import LeftEarly

ROLL_BACK_FOLDER = "rollback"


class Data(Protocol):
    """`batch(step)`, counted from 0, gives the whole batch of an optimizer step, `batch(step, rank, world)` this rank's
    rows of it; the same step, the same batch."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch: ...


@dataclasses.dataclass
class TrainState:
    """What a checkpoint keeps of the loop itself. step: optimizer steps done. recent: the last losses."""

    step: int = 0
    tokens: int = 0  # of all ranks
    elapsed: float = 0.0  # seconds in the loop, earlier processes included
    timed_tokens: int = 0  # tokens and seconds of steps, without the first of each process
    timed_seconds: float = 0.0
    waited_seconds: float = 0.0  # of timed_seconds: for data
    bad_in_row: int = 0
    bad_steps: list[int] = dataclasses.field(default_factory=list)
    rolled_back: list[int] = dataclasses.field(default_factory=list)  # bad steps that the run went back from
    data_offset: int = 0  # batches that were left out by going back
    look_due: bool = False  # at held-out text, after this step
    score: tuple[int, float] | None = None  # the last look: step and loss
    recent: collections.deque[float] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=50))

    def saved(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"recent": list(self.recent)}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> TrainState:
        score = saved.get("score")
        return cls(**saved | {"recent": collections.deque(saved["recent"], maxlen=50), "score": None if score is None else (score[0], score[1])})


class Trainer:
    """One run. `evaluate(forward) -> metrics` looks at held-out text; checkpointing: whether state is kept on disk."""

    def __init__(
        self,
        run: RunContext,
        data: Data,
        gradients: Gradients,
        optimizer: torch.optim.Optimizer,
        schedules: OptimizerSchedules,
        callbacks: dict[str, Callback],
        evaluate: Callable[[Callable[..., Any]], dict[str, float]] | None = None,
        checkpointing: bool = True,
        training_flops: float = 0.0,
    ) -> None:
        self.run, self.section, self.data, self.optimizer, self.schedules = run, run.section, data, optimizer, schedules
        self.callbacks, self.evaluate, self.checkpointing, self.training_flops = callbacks, evaluate, checkpointing, training_flops
        self.gradients, self.parallel = gradients, gradients.parallel
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.progress = TrainState()
        self.guard = LossSpikeGuard(self.section, run.out.log)
        self.average = WeightAverage(run.model, self.section.ema_decay) if self.section.ema_decay else None
        self.positions = self.section.batch_size * self.section.seq_len  # of the global batch; what gradients are divided by first
        folds = getattr(optimizer, "_step_supports_amp_scaling", False)  # fused steps multiply gradients by a factor on the way
        self.fold = (torch.ones((), device=run.device), torch.zeros((), device=run.device)) if folds and self.parallel.strategy != "fsdp" else None
        self.watch_batches = [c for c in callbacks.values() if overrides(c, "on_batch")]
        self.watch_gradients = [c for c in callbacks.values() if overrides(c, "on_gradients")]
        section, log = self.section, run.out.log
        self.checkpointer = Checkpointer(
            run.folder,
            self.parallel,
            keep=section.keep_checkpoints,
            keep_every=section.keep_every,
            keep_best=section.keep_best,
            asynchronous=section.async_checkpoints,
            log=log,
        )
        self.earlier = Checkpointer(run.folder / ROLL_BACK_FOLDER, self.parallel, keep=3, asynchronous=section.async_checkpoints, log=log)
        self.rolls_back = section.on_bad_step == "rollback"
        if self.rolls_back and not checkpointing:
            raise FeebError("on_bad_step: rollback needs checkpoints, which this run does not keep; use skip or stop")
        self._saved = -1
        self.ended = 0.0

    # --- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> TrainState:
        """Run to `max_steps` from the last checkpoint, or from the start. Raises Interrupted after saving on a stop."""
        self.resume()
        started = time.perf_counter() - self.progress.elapsed
        self.run.model.train()
        while True:
            for callback in self.callbacks.values():
                callback.on_start(self.run)
            try:
                self._steps(started)
                break
            except Rollback as reason:
                self.rollback(str(reason))
        self.save()
        self.earlier.wait()
        self.checkpointer.wait()
        if self.rolls_back and self.parallel.is_main:
            shutil.rmtree(self.run.folder / ROLL_BACK_FOLDER, ignore_errors=True)
        self.ended = time.perf_counter()
        return self.progress

    def _steps(self, started: float) -> None:
        run, section = self.run, self.section
        if self.progress.look_due:  # a look that a stop cut short
            self._saved = -1
            self._after_step(False)
        if self.rolls_back and not self._has_earlier():
            self.save_earlier()
        while self.progress.step < section.max_steps:
            if self.rolls_back and self.progress.step % section.rollback_every == 0:
                self.save_earlier()
            metrics, stop = self.step(self.progress.step)
            self.progress.step = run.step = self.progress.step + 1
            self.progress.elapsed = time.perf_counter() - started
            for callback in self.callbacks.values():
                callback.on_step_end(run.step, metrics | {"elapsed": self.progress.elapsed})
            looks = self.evaluate is not None and section.eval_every > 0 and run.step < section.max_steps
            self.progress.look_due = looks and run.step % section.eval_every == 0
            self._after_step(stop)

    def _after_step(self, stop: bool) -> None:
        """Look at held-out text, save and stop, as is due."""
        section, step = self.section, self.progress.step
        looked = self.progress.look_due
        if looked:
            stop = self.look() or stop
        if (section.checkpoint_every and step % section.checkpoint_every == 0) or (looked and section.keep_best):
            self.save()
        if stop:
            self.stop()

    def step(self, step: int) -> tuple[dict[str, Any], bool]:
        """One optimizer step; its metrics, and whether a rank was asked to stop. Bad steps follow `on_bad_step`."""
        began = time.perf_counter()
        parallel, section, progress = self.parallel, self.section, self.progress
        place = step + progress.data_offset
        batch = self.data.batch(place) if parallel.world == 1 else self.data.batch(place, parallel.rank, parallel.world)
        waited = time.perf_counter() - began
        timed = self.gradients.proven
        for callback in self.watch_batches:
            callback.on_batch(step, batch)
        seed = (section.seed * 0x9E3779B97F4A7C15 + step + parallel.rank * 0xD1B54A32D192ED03) % 2**63
        loss_sum, count, sums = self.gradients.add(batch, self.positions, seed)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        own = [loss_sum, count, torch.tensor(float(self.run.out.stop_requested)), *sums.values()]
        summed = parallel.sum(torch.stack([v.to(loss_sum) for v in own]))
        norm, total, counted, stop, *extra = torch.cat([parallel.grad_norm(gradients).reshape(1).to(loss_sum), summed]).tolist()  # the step's only wait
        scale = self.positions / counted if counted else 1.0  # gradients are of total / positions so far
        loss, norm = total / max(counted, 1), norm * scale
        self.schedules.apply(step)
        if bad := self.guard.judge(step + 1, loss, norm, progress.recent):
            progress.bad_in_row += 1
            progress.bad_steps.append(step + 1)
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.handle(bad, progress.bad_in_row, len(progress.rolled_back))
        else:
            if section.grad_clip and norm > section.grad_clip:
                scale *= section.grad_clip / norm
            self._update(gradients, scale, step)
            progress.bad_in_row = 0
            progress.recent.append(loss)
        tokens, seconds = batch.tokens.numel() * parallel.world, time.perf_counter() - began
        progress.tokens += tokens
        if timed:
            progress.timed_tokens += tokens
            progress.timed_seconds += seconds
            progress.waited_seconds += waited
        rates = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": norm, "tokens": progress.tokens, "seconds": seconds, "data_wait": waited}
        more = {k: v / max(counted, 1) for k, v in zip(sums, extra, strict=True) if v != total}
        return {"step": step + 1, "loss": loss} | rates | more, stop > 0

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

    # --- looking ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[None]:
        """The model with the weights that are scored and saved: averaged, or as the optimizer gives them for evaluation."""
        swap = [getattr(self.optimizer, name, None) for name in ("eval", "train")]
        if swap[0]:
            swap[0]()
        try:
            with self.average.applied() if self.average is not None else contextlib.nullcontext():
                yield
        finally:
            if swap[1]:
                swap[1]()

    def settle(self) -> None:
        """The model keeps its final weights from here on; training is over."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
        if self.average is not None:
            self.average.put()
        self.run.model.eval()

    def look(self) -> bool:
        """Held-out text through the final weights: told to callbacks. Returns whether a rank was asked to stop meanwhile;
        the look is then cut short, and due again."""
        assert self.evaluate is not None
        try:
            with self.final_weights():
                found = self.evaluate(self.gradients.wrapped)
        except LeftEarly:
            return True
        self.progress.look_due = False
        if "loss" in found:
            self.progress.score = (self.progress.step, found["loss"])
        for callback in self.callbacks.values():
            callback.on_eval(self.run.step, found)
        return self.parallel.any(self.run.out.stop_requested)

    # --- state ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, once."""
        if not self.checkpointing or self._saved == self.progress.step:
            return
        for callback in self.callbacks.values():
            callback.on_save(self.progress.step)
        step, score = self.progress.step, self.progress.score
        if self.rolls_back and step % self.section.rollback_every:
            self.earlier.wait()  # never on disk before the state that this one may have to go back to
        metric = score[1] if score and score[0] == step else None
        self.checkpointer.save(step, self.run.model, self.optimizer, self.state(), self.extras(), metric=metric)
        self._saved = self.progress.step

    def save_earlier(self) -> None:
        """A state to go back to, at fixed steps, so that a killed run goes back to the same ones."""
        for callback in self.callbacks.values():
            callback.on_save(self.progress.step)
        self.earlier.save(self.progress.step, self.run.model, self.optimizer, self.state(), self.extras())
        self.save()  # so that the newest checkpoint is never before the states to go back to

    def state(self) -> dict[str, Any]:
        return {
            "progress": self.progress.saved(),
            "seed": self.section.seed,  # with the step, all there is of the random state
            "compiled": self.gradients.compiled,
            "precision": self.run.precision,
            "micro_batch": self.gradients.size,
            "data": {"batch_size": self.section.batch_size, "seq_len": self.section.seq_len},
            "optimizer_part": self.section.optimizer.name,
            "environment": environment(self.run.device) | {"ranks": self.parallel.world, "strategy": self.parallel.strategy},
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
        }

    def extras(self) -> dict[str, dict[str, Tensor]]:
        return {} if self.average is None else {"ema": self.average.average}

    def _has_earlier(self) -> bool:
        found = [p for p in checkpoints(self.run.folder / ROLL_BACK_FOLDER) if int(p.name.rpartition("-")[2]) <= self.progress.step]
        return self.parallel.any(self.parallel.is_main and bool(found))

    def stop(self) -> None:
        self.save()
        self.earlier.wait()
        self.checkpointer.wait()
        raise Interrupted(f"stopped after step {self.progress.step} of {self.section.max_steps}; run the same command again to continue")

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, or from the run to branch from; decide about compiling, or take over
        the decision."""
        found = self.checkpointer.load_latest(self.run.model, self.optimizer) if self.checkpointing else None
        if found is not None:
            self._continue(*found)
        else:
            if self.section.branch_from:
                self._branch()
            elif self.average is not None:
                self.average.restart()
            steps = self.section.max_steps - self.progress.step
            wanted, notice = compilation.decide(self.section.compile, self.run.device, self.run.precision, self.training_flops, steps)
            if notice:
                self.run.out.log(notice)
            if wanted:
                self.gradients.compile()

    def _continue(self, state: dict[str, Any], extras: dict[str, dict[str, Tensor]]) -> None:
        run = self.run
        self._restore(state, extras)
        self._saved = self.progress.step
        if state["precision"] != run.precision:  # 'auto' is chosen once a run, not once a machine
            run.out.log(f"the run was begun in {state['precision']}; it continues so, where auto would mean {run.precision} here")
            run.precision = self.gradients.module.precision = state["precision"]
        if not self.section.micro_batch and state.get("micro_batch") and self.parallel.world == 1:
            self.gradients.size = state["micro_batch"]  # found by trial; the same again, for the same bits
        if state["compiled"] and compilation.has_compiler(run.device):
            self.gradients.compile()
        elif state["compiled"]:
            run.out.log("the run was compiled before and no compiler is here now: it continues uncompiled")
        now = environment(run.device) | {"ranks": self.parallel.world, "strategy": self.parallel.strategy}
        changed = [f"{k} {was} -> {now.get(k)}" for k, was in state["environment"].items() if now.get(k) != was]
        run.out.log(f"resumed after step {self.progress.step} of {self.section.max_steps}")
        if changed:
            run.out.log(f"other conditions than before ({', '.join(changed)}): the rest may differ from an uninterrupted run in the last bits")

    def _restore(self, state: dict[str, Any], extras: dict[str, dict[str, Tensor]]) -> None:
        self.progress = TrainState.restored(state["progress"])
        self.run.step = self.progress.step
        if self.average is not None:
            if "ema" in extras:
                self.average.load(extras["ema"])
            else:
                self.average.restart()
        for name, callback in self.callbacks.items():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])

    def _branch(self) -> None:
        """Take weights, optimizer state and place in the data from another run; options are those of this recipe."""
        source = Path(self.section.branch_from)
        path = checkpoint_of(source, self.section.branch_step)
        if path is None:
            raise FeebError(f"branch_from: {source} has no checkpoint" + (f" of step {self.section.branch_step}" if self.section.branch_step else ""))
        if checkpoint_digest(path) != self.section.branch_content:
            raise FeebError(f"branch_from: {path} is not the checkpoint that this run was planned with; run it again")
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        counters = getattr(self.optimizer, "counters", ())
        optimizer = self.optimizer if read_state(path).get("optimizer_part", self.section.optimizer.name) == self.section.optimizer.name else None
        try:
            state, extras = self.checkpointer.load(path, self.run.model, optimizer)
        except ArtifactError as error:
            raise FeebError(f"branch_from: {error}; a branch has the architecture of its trunk") from error
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update({k: v for k, v in own.items() if k not in counters})
        self._restore(state | {"callbacks": {}}, extras)
        offset = self._branch_offset(state.get("data", {}))
        fresh = {"elapsed": 0.0, "timed_tokens": 0, "timed_seconds": 0.0, "waited_seconds": 0.0, "data_offset": offset}
        self.progress = dataclasses.replace(self.progress, **fresh)  # type: ignore[arg-type]
        if optimizer is None:
            self.run.out.log(f"optimizer {self.section.optimizer.name} begins anew: the trunk's was {state['optimizer_part']}")
        if self.progress.step >= self.section.max_steps:
            raise FeebError(f"branch_from: {path} is at step {self.progress.step}, and max_steps is {self.section.max_steps}; raise it, or set branch_step")
        self.run.out.log(f"branched from {path} after step {self.progress.step}, on to {self.section.max_steps}")

    def _branch_offset(self, trunk: dict[str, int]) -> int:
        """Batches to leave out, so that the data go on where the trunk was, though a batch may be another size here."""
        step, offset, size = self.progress.step, self.progress.data_offset, self.section.batch_size
        length, was = self.section.seq_len, trunk.get("seq_len", self.section.seq_len)
        if was != length:
            self.run.out.log(f"seq_len {length} cuts the text otherwise than the trunk's {was}: some of it may come twice or never")
        windows = (step + offset) * trunk.get("batch_size", size) * was / length
        return math.ceil(windows / size) - step

    def rollback(self, reason: str) -> None:
        """Restore the newest of the earlier states, and leave out the batches from there to the bad step."""
        self.earlier.wait()
        before = self.progress
        bad = before.step + 1
        found = self.earlier.load_latest(self.run.model, self.optimizer, upto=before.step)
        if found is None:
            raise FeebError(f"{reason}; there is no earlier state to roll back to")
        state, extras = found
        self._restore(state, extras)
        self.progress = dataclasses.replace(
            self.progress,
            elapsed=before.elapsed,
            bad_steps=before.bad_steps,
            rolled_back=[*before.rolled_back, bad],
            data_offset=before.data_offset + bad - self.progress.step,
        )
        self._saved = -1
        self.run.out.log(f"{reason}; rolled back to step {self.progress.step}, the batches up to there are left out")
        for callback in self.callbacks.values():
            callback.on_close()


def overrides(callback: Callback, method: str) -> bool:
    return getattr(type(callback), method, None) is not getattr(Callback, method, None)
