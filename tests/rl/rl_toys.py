"""Stand-ins for RL tests: a character tokenizer, a tiny transformer, one-line tasks, parts without plugins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feebcore.artifacts import StageOutput
from feebcore.config import NoOptions
from feebcore.model.build import build_model
from feebcore.parts import Part, resolve_part
from feebcore.protocols import Problem, Task, Tokenizer
from feebcore.rl.config import RlConfig
from feebcore.specs import OptimizerSpec, ScheduleSpec, TaskSpec
from feebcore.train.optimizer import Optimizer


class CharTokenizer(Tokenizer):
    """Ids 0 and 1 are BOS and EOS, then one id a character."""

    bos_id, eos_id = 0, 1

    def __init__(self, alphabet: str = "0123456789=+-*() :ab") -> None:
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 2

    def encode(self, text: str) -> list[int]:
        return [self.alphabet.index(c) + 2 for c in text]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(t)) for t in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i - 2] for i in ids if i >= 2)


class EmitTask(Task):
    """Any prompt; reward is the share of completion characters that are 'a'."""

    def __init__(self, max_completion_tokens: int = 3) -> None:
        self.max_completion_tokens = max_completion_tokens

    def problem(self, rng: np.random.Generator) -> Problem:
        digits = "".join(map(str, rng.integers(0, 10, 3)))
        return Problem(digits + "=", "aa", digits)

    def reward(self, problem: Problem, completion: str) -> float:
        return completion.count("a") / max(self.max_completion_tokens - 1, 1)


def tiny_model(vocab_size: int, seq_len: int = 32, seed: int = 0, d_model: int = 32, num_layers: int = 2, **options: Any) -> Any:
    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": num_layers, "d_model": d_model, "num_heads": 2, **options})
    return build_model(architecture, vocab_size, seq_len, seed).eval()


def adam(lr: float) -> Part:
    class Adam(Optimizer, torch.optim.Adam):
        pass

    def build(config: Any, context: Any) -> Optimizer:
        return Adam([p for g in context.groups for p in g.parameters], lr=lr)

    return Part("optimizers", OptimizerSpec("adam_for_tests", build=build, summary="Adam."), NoOptions())


def constant() -> Part:
    return Part("schedules", ScheduleSpec("constant_for_tests", build=lambda config, context: lambda step: 1.0, summary="1."), NoOptions())


def task_part(make: Any) -> Part:
    return Part("tasks", TaskSpec("task_for_tests", build=lambda config, context: make(), summary="A toy."), NoOptions())


def rl_config(lr: float = 3e-3, **options: Any) -> RlConfig:
    base = {"optimizer": adam(lr), "schedule": constant(), "task": task_part(EmitTask), "checkpoint_every": 0, "eval_prompts": 16, "max_steps": 30}
    return RlConfig.model_validate(base | options)


def output(folder: Path) -> StageOutput:
    folder.mkdir(parents=True, exist_ok=True)
    return StageOutput(folder)
