"""The RL loop: prompts, completions, rewards, advantages, a few optimizer steps; then again.

A step is a function of (weights, optimizer state, controller_state, step): prompts, sampling and minibatches draw from numbers
hashed from (seed, step), so a run that is killed and resumed from a checkpoint ends with the same bits. The policy
stays in eval mode: dropout would make sampled and trained probabilities differ. Nothing is re-tokenized.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from feebcore.artifacts import StageOutput
from feebcore.errors import FeebError, Interrupted
from feebcore.files import explain, read_jsonl, write_atomic
from feebcore.generate.engine import Completion, encode_prompt, generate
from feebcore.model.counting import hook_optimizer
from feebcore.model.groups import param_groups
from feebcore.model.precision import autocast, environment, resolve_precision
from feebcore.protocols import ParamGroup, Problem, Task, Tokenizer
from feebcore.rl import losses
from feebcore.rl.advantages import zero_variance
from feebcore.rl.rollouts import Algorithm, Experience, Rollout, collate, make_rollout, predict
from feebcore.rl.tasks import completion_text, evaluate_task, held_out_problems, score, too_few_problems, training_problems
from feebcore.train import checkpoint

if TYPE_CHECKING:
    from feebcore.rl.config import RlConfig

Score = Callable[[Problem, Completion], float | None]
_PROMPTS, _SAMPLING, _MINIBATCHES, _EVALUATION = range(4)  # purposes of random streams


class ActorCritic(nn.Module):
    """The policy and, where the algorithm has a critic, a linear value head on its last hidden state, zero at the start."""

    def __init__(self, policy: nn.Module, uses_values: bool) -> None:
        super().__init__()
        self.policy = policy
        self.value_head: nn.Linear | None = None
        if uses_values:
            device = next(policy.parameters()).device
            with torch.no_grad():
                width = policy(torch.zeros(1, 1, dtype=torch.int64, device=device)).hidden.shape[-1]
            self.value_head = nn.Linear(width, 1).to(device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)


class JointOptimizer:
    """Several optimizers of disjoint parameters behind the parts of torch's interface that the loop and checkpoints use."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.param_groups = [g for o in optimizers for g in o.param_groups]
        self.state = _JointState(optimizers)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


class _JointState(MutableMapping[Any, Any]):
    """Parameter to optimizer state, whichever optimizer owns the parameter."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._states = [o.state for o in optimizers]
        self._owner = {p: o.state for o in optimizers for g in o.param_groups for p in g["params"]}

    def __getitem__(self, parameter: Any) -> Any:
        return self._owner[parameter][parameter]

    def __setitem__(self, parameter: Any, value: Any) -> None:
        self._owner[parameter][parameter] = value

    def __delitem__(self, parameter: Any) -> None:
        del self._owner[parameter][parameter]

    def __iter__(self) -> Iterator[Any]:
        return (p for state in self._states for p in state)

    def __len__(self) -> int:
        return sum(map(len, self._states))

    def clear(self) -> None:
        for state in self._states:
            state.clear()


class RlTrainer:
    """One run in `folder`. score: reward of a completion, None when it cannot be scored; default the task's, 0 without an end token."""

    def __init__(
        self,
        section: RlConfig,
        model: nn.Module,
        tokenizer: Tokenizer,
        task: Task,
        folder: Path,
        out: StageOutput,
        device: torch.device | str = "cpu",
        score: Score | None = None,
    ) -> None:
        self.section, self.tokenizer, self.task, self.folder, self.out = section, tokenizer, task, Path(folder), out
        self.device = torch.device(device)
        self.precision = resolve_precision(section.precision, self.device)
        self.logits_processors = [p.build() for p in section.logits_processors]
        self.algorithm: Algorithm = section.algorithm.build()
        self.policy = model.to(self.device).eval()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.actor = ActorCritic(self.policy, self.algorithm.uses_values)
        self.optimizer = self._optimizer()
        self.base_rates = [g["lr"] for g in self.optimizer.param_groups]
        self.schedule = section.schedule.build(total_steps=section.max_steps)
        self.controller_state = self.algorithm.initial_controller_state()
        self.score: Score = score or self._task_score
        self.step = 0
        self._saved = -1
        self.rollouts = 0
        self.elapsed = 0.0
        self.before: dict[str, Any] = {}
        self.first_reward: float | None = None
        self.last: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """From the last checkpoint, or the start, to `max_steps`; the metrics of the stage. Raises Interrupted after saving on a stop."""
        self.resume()
        if warning := too_few_problems(self.section.task.name, self.held_out, self.section.eval_prompts):
            self.out.log(warning)
        if not self.before:
            self.before = self.evaluate()
            self.log(self._evaluation_row(self.before))
        while self.step < self.section.max_steps:
            if self.out.stop_requested:
                self.stop()
            self.advance()
            every = self.section.checkpoint_every
            if every and self.step % every == 0 and self.step < self.section.max_steps:
                self.save()
        self.save()
        after = self.evaluate()
        self.log(self._evaluation_row(after))
        keys = ("kl", "entropy", "length", "mismatch_kl", "clip_fraction", "zero_variance")
        return {
            **{f"{name}_before": self.before[name] for name in self.before},
            **{f"{name}_after": after[name] for name in after},
            "reward_first": self.first_reward,
            "reward_last": self.last.get("reward"),
            **{k: self.last.get(k) for k in keys},
            "steps": self.step,
            "rollouts": self.rollouts,
            "seconds": round(self.elapsed, 3),
            "precision": self.precision,
        }

    def advance(self) -> dict[str, Any]:
        """One step: collect rollouts and learn from them; its row of the log."""
        began = time.perf_counter()
        torch.manual_seed(((self.section.seed << 32) + self.step) % 2**63)
        rollouts, problems, completions = self.collect()
        collected = time.perf_counter()
        metrics = self.learn(rollouts)
        self.algorithm.adapt(self.controller_state, metrics)
        self.step += 1
        self.rollouts += len(rollouts)
        seconds = time.perf_counter() - began
        self.elapsed += seconds
        row: dict[str, Any] = (
            {"step": self.step, "split": "train"} | metrics | {"rollouts": self.rollouts, "seconds": seconds, "seconds_generate": collected - began}
        )
        self.first_reward = row["reward"] if self.first_reward is None else self.first_reward
        self.last = row
        if self.step % self.section.log_every == 0 or self.step == self.section.max_steps:
            self.log(row)
            self._log_samples(rollouts, problems, completions)
        shown = {k: row[k] for k in ("reward", "kl", "entropy") if row.get(k) is not None}
        self.out.progress(self.step, self.section.max_steps, unit="steps", name="rl", **shown)
        if self.section.validation_every and self.step % self.section.validation_every == 0 and self.step < self.section.max_steps:
            self.log(self._evaluation_row(self.evaluate()))
        return row

    def collect(self) -> tuple[list[Rollout], list[Problem], list[Completion]]:
        """`prompts_per_step` training prompts, `group_size` completions each, scored."""
        section = self.section
        drawn = training_problems(self.task, section.prompts_per_step, section.seed, _PROMPTS, self.step)
        problems = [problem for problem in drawn for _ in range(section.group_size)]
        groups = [g for g in range(len(drawn)) for _ in range(section.group_size)]
        encoded = [encode_prompt(self.tokenizer, problem.prompt) for problem in drawn]
        prompts = [encoded[g] for g in groups]
        with autocast(self.precision, self.device):
            completions = generate(
                self.policy,  # type: ignore[arg-type]
                prompts,
                self.task.max_completion_tokens,
                self.tokenizer.eos_id,
                self.logits_processors,
                seed=_stream(section.seed, _SAMPLING, self.step),
            )
        rewards = [self.score(problem, completion) for problem, completion in zip(problems, completions, strict=True)]
        rollouts = [make_rollout(p, c, r, g, self.step) for p, c, r, g in zip(prompts, completions, rewards, groups, strict=True)]
        return rollouts, problems, completions

    def learn(self, rollouts: list[Rollout]) -> dict[str, Any]:
        """Advantages, then `epochs` x `minibatches` optimizer steps. Metrics are over all real tokens of the step."""
        section, algorithm = self.section, self.algorithm
        experience = collate(rollouts, self.task.max_completion_tokens, self.device)
        needs_kl = algorithm.uses_reference or (self.step + 1) % section.log_every == 0 or self.step + 1 == section.max_steps
        self._run_frozen_models(experience, needs_kl)
        extra = algorithm.prepare(experience, self.controller_state)
        sums: dict[str, float] = {}
        norms: list[float] = []
        mismatch = None
        skipped = 0
        multiplier = self.schedule(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * multiplier
        for epoch in range(algorithm.epochs):
            order = np.random.default_rng([section.seed, _MINIBATCHES, self.step, epoch]).permutation(len(rollouts))
            for rows in np.array_split(order, algorithm.minibatches):
                step_sums, norm, gap = self._optimize(experience.rows(torch.from_numpy(np.sort(rows)).to(self.device)))
                mismatch = gap if mismatch is None else mismatch  # before the step's first update: the same weights sampled
                sums = {k: sums.get(k, 0.0) + v for k, v in step_sums.items()}
                norms.append(norm)
                skipped += not math.isfinite(norm)
        num_tokens = int(experience.lengths.sum()) * algorithm.epochs
        rewards = experience.rewards[~experience.rewards.isnan()]
        return {
            "reward": float(rewards.mean()) if len(rewards) else None,
            "kl": self._kl(experience) if needs_kl else None,
            "length": float(experience.lengths.float().mean()),
            "truncated": float(experience.truncated.float().mean()),
            "zero_variance": float(zero_variance(experience.rewards, experience.groups).float().mean()),
            **{k: v / max(num_tokens, 1) for k, v in sums.items()},
            "grad_norm": float(np.mean(norms)),
            "mismatch_kl": mismatch,
            "skipped": skipped,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{k: v for k, v in self.controller_state.items() if v},
            **extra,
        }

    @functools.cached_property
    def held_out(self) -> list[Problem]:
        return held_out_problems(self.task, self.section.eval_prompts)

    def evaluate(self) -> dict[str, Any]:
        """Held-out accuracy, sampled as in training and greedy, each `{value, low, high, n}`."""
        accuracies = {}
        for name, greedy in (("accuracy", False), ("accuracy_greedy", True)):
            with autocast(self.precision, self.device):
                result = evaluate_task(self.policy, self.tokenizer, self.task, self.held_out, greedy, self.logits_processors, _EVALUATION)  # type: ignore[arg-type]
            accuracies[name] = {k: v for k, v in result.items() if k != "samples"}
        return accuracies

    def save(self) -> None:
        """Write a checkpoint of this moment, once: replacing one would leave an instant with none."""
        if self._saved == self.step:
            return
        state = {
            "controller_state": self.controller_state,
            "rollouts": self.rollouts,
            "elapsed": self.elapsed,
            "before": self.before,
            "first_reward": self.first_reward,
            "last": self.last,
            "seed": self.section.seed,  # with the step, all there is of the random state and of the prompts' order
            "precision": self.precision,
            "environment": environment(self.device),
        }
        checkpoint.save_checkpoint(self.folder, self.step, self.actor, self.optimizer, state, self.section.keep_checkpoints)  # type: ignore[arg-type]
        self._saved = self.step

    def stop(self) -> None:
        self.save()
        raise Interrupted(f"stopped after step {self.step} of {self.section.max_steps}; run the same command again to continue")

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; logs are cut back to it."""
        state = checkpoint.load_latest(self.folder, self.actor, self.optimizer, self.out.log)  # type: ignore[arg-type]
        if state is not None:
            self.step, self.controller_state, self.rollouts, self.elapsed = state["step"], state["controller_state"], state["rollouts"], state["elapsed"]
            self._saved = self.step
            self.before, self.first_reward, self.last = state["before"], state["first_reward"], state["last"]
            self.precision = state["precision"]  # 'auto' is chosen once a run, not once a machine
            now = environment(self.device)
            changed = [f"{k} {was} -> {now.get(k)}" for k, was in state["environment"].items() if now.get(k) != was]
            self.out.log(f"resumed after step {self.step} of {self.section.max_steps}")
            if changed:
                self.out.log(f"environment changed since the checkpoint ({', '.join(changed)}): results may not be bitwise identical to an uninterrupted run")
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            path = self.folder / name
            last = (self.section.max_steps, "validation")  # the final evaluation is always made anew
            rows = [r for r in read_jsonl(path) if self.before and r["step"] <= self.step and (r["step"], r.get("split")) != last]
            write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))

    def log(self, row: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}])

    def _evaluation_row(self, accuracies: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "step": self.step,
            "split": "validation",
            "accuracy": accuracies["accuracy"]["value"],
            "accuracy_greedy": accuracies["accuracy_greedy"]["value"],
        }

    def _log_samples(self, rollouts: list[Rollout], problems: list[Problem], completions: list[Completion]) -> None:
        chosen = range(0, len(rollouts), max(1, len(rollouts) // max(self.section.log_rollouts, 1)))[: self.section.log_rollouts]
        rows = [
            {
                "step": self.step,
                "prompt": problems[i].prompt,
                "completion": completion_text(self.tokenizer, completions[i]),
                "answer": problems[i].answer,
                "reward": rollouts[i].reward,
                "finish_reason": rollouts[i].finish_reason,
                "tokens": list(rollouts[i].completion),
                "policy_version": rollouts[i].policy_version,
            }
            for i in chosen
        ]
        self._append("rollouts.jsonl", rows)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        try:
            with open(self.folder / name, "a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        except OSError as error:
            raise explain(error, self.folder / name) from error

    def _task_score(self, problem: Problem, completion: Completion) -> float:
        return score(self.task, self.tokenizer, problem, completion)

    def _optimizer(self) -> JointOptimizer:
        """The policy's optimizer part; the value head's parameters in it ('shared') or in an AdamW of their own ('sequential')."""
        groups = param_groups(self.policy)
        optimizers = []
        if self.actor.value_head is not None:
            if self.section.value_optimizer == "shared":
                named = dict(self.actor.value_head.named_parameters(prefix="value_head"))
                groups = [*groups, ParamGroup("vector", list(named), list(named.values()))]
            else:
                rate = self.section.value_learning_rate
                optimizers = [torch.optim.AdamW(self.actor.value_head.parameters(), lr=rate, weight_decay=0.0, eps=1e-5)]
        chosen = self.section.optimizer.build(groups=groups)
        if chosen.has_eval_weights:
            raise FeebError(
                f"optimizer: {self.section.optimizer.name} scores other weights than it trains, but RL trains the policy that it samples from; take another"
            )
        hook_optimizer(self.policy, chosen)
        return JointOptimizer([chosen, *optimizers])

    def _micro_batches(self, experience: Experience) -> Iterator[Experience]:
        size = self.section.micro_batch or len(experience)
        for start in range(0, len(experience), size):
            yield experience.rows(torch.arange(start, min(start + size, len(experience)), device=self.device))

    @torch.no_grad()
    def _run_frozen_models(self, experience: Experience, needs_kl: bool) -> None:
        """Fill in the predictions of the frozen models: reference log-probabilities, and values before any update."""
        head = self.actor.value_head
        references, values = [], []
        for part in self._micro_batches(experience):
            with autocast(self.precision, self.device):
                if needs_kl:
                    references.append(predict(self.reference, part, self.logits_processors).log_probs)  # type: ignore[arg-type]
                if head is not None:
                    predicted = predict(self.policy, part, self.logits_processors, head).values  # type: ignore[arg-type]
                    assert predicted is not None
                    values.append(predicted)
        experience.reference_log_probs = torch.cat(references) if references else None
        experience.values = torch.cat(values) if values else None

    def _optimize(self, experience: Experience) -> tuple[dict[str, float], float, float]:
        """One optimizer step on these rollouts: metric sums, gradient norm, and the KL between sampler and trainer."""
        totals = losses.totals_of(experience.lengths, experience.max_completion_tokens)
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        gap = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in self._micro_batches(experience):
            with autocast(self.precision, self.device):
                prediction = predict(self.policy, part, self.logits_processors, self.actor.value_head)  # type: ignore[arg-type]
            terms = self.algorithm.loss(prediction, part, totals, self.controller_state)
            terms.loss.backward()
            sums = {k: v + sums[k] if k in sums else v for k, v in terms.sums.items()}
            gap += losses.kl_estimate(part.log_probs.double(), prediction.log_probs.detach().double(), part.mask, "k3", clamp=False).sum()
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.section.grad_clip or math.inf))
        if self.actor.value_head is not None:
            nn.utils.clip_grad_norm_(self.actor.value_head.parameters(), self.section.grad_clip or math.inf)
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.out.log(f"step {self.step + 1}: gradient norm {norm:g}; the update is skipped")
        return {k: float(v) for k, v in sums.items()}, norm, float(gap) / max(totals.tokens, 1)

    def _kl(self, experience: Experience) -> float | None:
        """KL(policy || reference) in nats a completion, at the policy that sampled; never clamped."""
        if experience.reference_log_probs is None:
            return None
        per_token = losses.kl_estimate(experience.log_probs.double(), experience.reference_log_probs.double(), experience.mask, "k3", clamp=False)
        return float(per_token.sum() / max(len(experience), 1))


def _stream(*numbers: int) -> int:
    """A 64-bit seed from (seed, purpose, step)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
