"""Problems of a task: the split by hash, solved examples, and accuracy with its interval."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from feebcore.errors import DataError
from feebcore.evaluate.intervals import wilson
from feebcore.generate import decoding
from feebcore.generate.engine import Completion, encode_prompt, generate
from feebcore.protocols import LanguageModel, Problem, Task, Tokenizer

HELD_OUT_MODULUS = 10
"""A problem is held out when the SHA-256 of its key is 0 modulo this."""

_MAX_DRAWS = 200_000


def is_held_out(problem: Problem) -> bool:
    """Whether training never sees this problem. The task decides by its key what 'the same problem' is."""
    return int.from_bytes(hashlib.sha256(problem.key.encode()).digest(), "big") % HELD_OUT_MODULUS == 0


def _draws(task: Task, rng: np.random.Generator, held_out: bool) -> Iterator[Problem]:
    """Problems of one split, without end; DataError when the split seems to be empty."""
    misses = 0
    while misses < _MAX_DRAWS:
        problem = task.problem(rng)
        if is_held_out(problem) == held_out:
            misses = 0
            yield problem
        else:
            misses += 1
    raise DataError(f"no {'held-out' if held_out else 'training'} problem in {_MAX_DRAWS} draws of {type(task).__name__}: the task has too few problems")


def training_problems(task: Task, count: int, *seed: int) -> list[Problem]:
    """`count` problems of the training split, a pure function of `seed` (as: run seed, purpose, step)."""
    draws = _draws(task, np.random.default_rng(np.random.SeedSequence(seed)), held_out=False)
    return [next(draws) for _ in range(count)]


def held_out_problems(task: Task, count: int) -> list[Problem]:
    """The task's fixed held-out set: the first `count` held-out problems with distinct keys, the same for every seed and run.

    Two prompts of one key are one problem: its answers say the same thing twice. Fewer when the task has fewer
    (`too_few_problems` says so). Raises DataError when it has none.
    """
    problems: dict[str, Problem] = {}
    repeats = 0
    for problem in _draws(task, np.random.default_rng(np.random.SeedSequence((0x6865_6C64, 0))), held_out=True):
        repeats = repeats + 1 if problem.key in problems else 0
        problems.setdefault(problem.key, problem)
        if len(problems) >= count or repeats > 5_000:
            break
    return list(problems.values())


def too_few_problems(task: str, problems: Sequence[Problem], asked: int) -> str:
    """A line of warning where a task of this name has fewer held-out problems than were asked for; else ''."""
    if len(problems) >= asked:
        return ""
    return f"task {task} has only {len(problems)} distinct held-out problems, {asked} were asked for: accuracies and their intervals are over {len(problems)}"


def encode_example(tokenizer: Tokenizer, problem: Problem) -> tuple[list[int], list[int]]:
    """A solved problem as ids: (BOS + prompt, answer + EOS), encoded apart, as sampling sees them."""
    return encode_prompt(tokenizer, problem.prompt), [*tokenizer.encode(problem.answer), tokenizer.eos_id]


def completion_text(tokenizer: Tokenizer, completion: Completion) -> str:
    return tokenizer.decode(completion.tokens)


def score(task: Task, tokenizer: Tokenizer, problem: Problem, completion: Completion) -> float:
    """The task's reward of a completion; 0 for one that did not end by itself."""
    if completion.finish_reason != "stop":
        return 0.0
    return float(task.reward(problem, completion_text(tokenizer, completion)))


def evaluate_task(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    greedy: bool = False,
    logits_processors: Sequence[Callable[[Tensor], Tensor]] = (),
    seed: int = 0,
    batch_size: int = 512,
) -> dict[str, Any]:
    """Exact accuracy on `problems`: one completion each, greedy or sampled (T = 1 without logits_processors).

    Returns `{value, low, high, n}` (Wilson 95 %; n distinct problems: those of one key count as one, by their mean) and `samples`: rows of prompt, completion, answer, reward.
    A completion is right when its reward is 1.
    """
    prompts = [encode_prompt(tokenizer, i.prompt) for i in problems]
    sampler = decoding.greedy if greedy else decoding.sample
    completions = generate(
        model, prompts, task.max_completion_tokens, tokenizer.eos_id, () if greedy else logits_processors, sampler, seed, batch_size=batch_size
    )
    rewards = [score(task, tokenizer, i, c) for i, c in zip(problems, completions, strict=True)]
    samples = [
        {"prompt": i.prompt, "completion": completion_text(tokenizer, c), "answer": i.answer, "reward": r, "finish_reason": c.finish_reason}
        for i, c, r in zip(problems, completions, rewards, strict=True)
    ]
    by_key: dict[str, list[bool]] = {}
    for problem, reward in zip(problems, rewards, strict=True):
        by_key.setdefault(problem.key, []).append(reward >= 1.0)
    return {**wilson(sum(sum(right) / len(right) for right in by_key.values()), len(by_key))._asdict(), "samples": samples}
