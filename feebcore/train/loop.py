"""The training loop: batch, objective, backward, clip, optimizer. Everything optional is a callback.

A step is a function of (weights, optimizer state, step): data and rates are stateless in the step and the random
generator is seeded anew from (seed, step), so a run that is killed and resumed from a checkpoint continues bit for bit,
and nothing that looks at the run can change it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from feebcore.errors import Diverged, Interrupted
from feebcore.protocols import Batch, Objective
from feebcore.train import checkpoint, compiling
from feebcore.train.callbacks import Callback, TrainRun
from feebcore.train.precision import autocast, environment


class Data(Protocol):
    """`batch(step)`, counted from 0, gives the whole batch of an optimizer step; the same step, the same batch."""

    def batch(self, step: int) -> Batch: ...


@dataclasses.dataclass
class Progress:
    """What a checkpoint keeps of the loop itself. step: optimizer steps done. recent: the last losses."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0  # seconds in the loop, earlier processes included
    timed_tokens: int = 0  # tokens and seconds of steps, without the first of each process
    timed_seconds: float = 0.0
    bad_in_row: int = 0
    bad_steps: list[int] = dataclasses.field(default_factory=list)
    recent: collections.deque[float] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=50))


class Trainer:
    """One run. `evaluate(forward) -> metrics` looks at held-out text; checkpointing: whether state is kept on disk."""

    def __init__(
        self,
        run: TrainRun,
        data: Data,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        callbacks: dict[str, Callback],
        evaluate: Callable[[Callable[..., Any]], dict[str, float]] | None = None,
        checkpointing: bool = True,
        training_flops: float = 0.0,
    ) -> None:
        self.run, self.section, self.data, self.optimizer, self.schedule = run, run.section, data, optimizer, schedule
        self.callbacks, self.evaluate, self.checkpointing, self.training_flops = callbacks, evaluate, checkpointing, training_flops
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.progress = Progress()
        self.compiled = False
        self._proven = False  # the compiled forward and backward have run once
        self._saved = -1
        self.ended = 0.0

        def forward(tokens: Tensor, targets: Tensor, mask: Tensor | None, doc_ids: Tensor | None, positions: Tensor | None) -> tuple[Tensor, Tensor, dict]:
            with autocast(run.precision, run.device):
                output = objective(run.model, Batch(tokens, targets, mask, doc_ids, positions))  # type: ignore[arg-type]
            return output.loss_sum, output.count, output.metrics

        self.eager = self.forward = forward

    def train(self) -> Progress:
        """Run to `max_steps` from the last checkpoint, or from the start. Raises Interrupted after saving on a stop."""
        run, progress = self.run, self.resume()
        started = time.perf_counter() - progress.elapsed
        run.model.train()
        for callback in self.callbacks.values():
            callback.on_start(run)
        for step in range(progress.step, self.section.max_steps):
            metrics = self.step(step)
            progress.step = run.step = step + 1
            progress.elapsed = time.perf_counter() - started
            for callback in self.callbacks.values():
                callback.on_step_end(run.step, metrics | {"elapsed": progress.elapsed})
            if self.evaluate and self.section.eval_every and run.step % self.section.eval_every == 0 and run.step < self.section.max_steps:
                found = self.evaluate(self.eager)
                for callback in self.callbacks.values():
                    callback.on_eval(run.step, found)
            if self.section.checkpoint_every and run.step % self.section.checkpoint_every == 0:
                self.save()
            if run.out.stop_requested:
                self.stop()
        self.save()
        self.ended = time.perf_counter()
        return progress

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; its metrics. A step whose loss or gradient is not finite follows `on_bad_step`."""
        began = time.perf_counter()
        batch = self.data.batch(step)
        waited = time.perf_counter() - began
        first = not self._proven
        loss_sum, count, expected, sums = self.accumulate(batch, step)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        values = [loss_sum, count, norm, *sums.values()]
        loss_sum, count, norm, *extra = torch.stack([v.to(loss_sum) for v in values]).tolist()  # the step's only wait for the device
        scale = expected / count if count else 0.0  # gradients are of loss_sum / expected so far
        loss, norm = loss_sum / max(count, 1), norm * scale
        multiplier = self.schedule(step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * multiplier
        if math.isfinite(loss) and math.isfinite(norm):
            if self.section.grad_clip and norm > self.section.grad_clip:
                scale *= self.section.grad_clip / norm
            if scale != 1.0:
                torch._foreach_mul_(gradients, scale)
            self.optimizer.step()
            self.progress.bad_in_row = 0
            self.progress.recent.append(loss)
        else:
            self.bad_step(step, loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        self.progress.tokens += batch.tokens.numel()
        if not first:
            self.progress.timed_tokens += batch.tokens.numel()
            self.progress.timed_seconds += seconds
        rates = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": norm, "tokens": self.progress.tokens, "seconds": seconds, "data_wait": waited}
        more = {k: v / max(count, 1) for k, v in zip(sums, extra, strict=True) if v != loss_sum}
        return {"step": step + 1, "loss": loss} | rates | more

    def accumulate(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, int, dict[str, Tensor]]:
        """Backward through the batch in micro-batches. Returns loss_sum, count, the divisor already applied, and sums."""
        expected = max(1, int(batch.mask.sum()) if batch.mask is not None else batch.targets.numel())
        try:
            result = self._accumulate(batch, step, expected)
        except Exception as error:
            if not self.compiled or self._proven:
                raise
            self.run.out.log(f"compiling failed ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}); training runs uncompiled")
            self.compiled, self.forward = False, self.eager
            self.optimizer.zero_grad(set_to_none=True)
            result = self._accumulate(batch, step, expected)
        self._proven = True
        return (*result[:2], expected, result[2])

    def _accumulate(self, batch: Batch, step: int, expected: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        torch.manual_seed((self.section.seed * 0x9E3779B97F4A7C15 + step) % 2**63)
        loss_sums, counts, sums = [], [], collections.defaultdict(list)
        for part in micro_batches(batch, self.section.micro_batch or len(batch.tokens), self.run.device):
            loss_sum, count, metrics = self.forward(part.tokens, part.targets, part.mask, part.doc_ids, part.positions)
            (loss_sum / expected).backward()
            loss_sums.append(loss_sum.detach())
            counts.append(torch.as_tensor(count, device=loss_sum.device))
            for key, value in metrics.items():
                sums[key].append(value.detach())
        return sum_of(loss_sums), sum_of(counts), {k: sum_of(v) for k, v in sums.items()}

    def bad_step(self, step: int, loss: float, norm: float) -> None:
        """Record a step that is skipped; raise when the policy says stop, or too many came in a row."""
        self.progress.bad_in_row += 1
        self.progress.bad_steps.append(step + 1)
        what = f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}"
        if self.section.on_bad_step == "stop":
            raise Diverged(f"{what}; lower the optimizer's rate or grad_clip, lengthen the schedule's warmup, or set on_bad_step: skip")
        if self.progress.bad_in_row >= self.section.max_bad_steps:
            raise Diverged(f"{what}: {self.progress.bad_in_row} bad steps in a row (max_bad_steps); lower the optimizer's rate or lengthen the warmup")
        self.run.out.log(f"{what}; the step is skipped")

    def save(self) -> None:
        """Write a checkpoint of this moment, once."""
        if not self.checkpointing or self._saved == self.progress.step:
            return
        for callback in self.callbacks.values():
            callback.on_save(self.progress.step)
        state = {
            "progress": dataclasses.asdict(self.progress) | {"recent": list(self.progress.recent)},
            "seed": self.section.seed,  # with the step, all there is of the random state
            "compiled": self.compiled,
            "precision": self.run.precision,
            "environment": environment(self.run.device),
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
        }
        checkpoint.save_checkpoint(self.run.folder, self.progress.step, self.run.model, self.optimizer, state, self.section.keep_checkpoints)
        self._saved = self.progress.step

    def stop(self) -> None:
        self.save()
        raise Interrupted(f"stopped after step {self.progress.step} of {self.section.max_steps}; run the same command again to continue")

    def resume(self) -> Progress:
        """Continue from the newest whole checkpoint, if there is one; decide about compiling, or take over the decision."""
        state = checkpoint.load_latest(self.run.folder, self.run.model, self.optimizer, self.run.out.log) if self.checkpointing else None
        if state is None:
            steps = self.section.max_steps
            self.compiled, notice = compiling.decide(self.section.compile, self.run.device, self.run.precision, self.training_flops, steps)
        else:
            saved = state["progress"]
            self.progress = Progress(**saved | {"recent": collections.deque(saved["recent"], maxlen=50)})
            self.run.step = self._saved = self.progress.step
            if state["precision"] != self.run.precision:  # 'auto' is chosen once a run, not once a machine
                self.run.out.log(f"the run was begun in {state['precision']}; it continues so, where auto would mean {self.run.precision} here")
                self.run.precision = state["precision"]
            for name, callback in self.callbacks.items():
                if name in state["callbacks"]:
                    callback.load_state_dict(state["callbacks"][name])
            self.compiled = state["compiled"] and compiling.has_compiler(self.run.device)
            notice = "the run was compiled before and no compiler is here now: it continues uncompiled" if state["compiled"] > self.compiled else ""
            now = environment(self.run.device)
            changed = [f"{k} {was} -> {now.get(k)}" for k, was in state["environment"].items() if now.get(k) != was]
            self.run.out.log(f"resumed after step {self.progress.step} of {self.section.max_steps}")
            if changed:
                self.run.out.log(f"other conditions than before ({', '.join(changed)}): the rest may differ from an uninterrupted run in the last bits")
        if notice:
            self.run.out.log(notice)
        if self.compiled:
            self.forward = compiling.compiled(self.eager)
        return self.progress


def micro_batches(batch: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """The batch in slices of `size` windows, on the device."""
    for i in range(0, len(batch.tokens), size):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
        cut = {k: None if v is None else v[i : i + size].to(device, non_blocking=True) for k, v in fields.items()}
        yield Batch(**cut)  # type: ignore[arg-type]


def sum_of(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum()
