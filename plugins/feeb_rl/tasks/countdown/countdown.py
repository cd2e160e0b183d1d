"""Countdown-mini: `3 7 8=52` is answered by a formula such as `(7-3)*8+...` that uses every number once.

The verifier reads the formula's syntax tree: integers, + - * and brackets, nothing else; nothing is ever evaluated
as code, and what it reads is short.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from feebcore.protocols import BuildContext, Problem, Task

if TYPE_CHECKING:
    from feeb_rl.tasks.countdown import CountdownConfig

MAX_CHARACTERS = 48
_ALLOWED = re.compile(r"[0-9+\-*()]+", re.ASCII)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class Countdown(Task):
    """Numbers 1 to 9 and a target that they reach. The key sorts the numbers: their order makes no new problem."""

    def __init__(self, config: CountdownConfig, context: BuildContext | None = None) -> None:
        self.numbers, self.target = config.numbers, config.target
        # numbers, operators, brackets of all but one operation at two tokens, and the end token
        self.max_completion_tokens = config.numbers + (config.numbers - 1) + 2 * max(config.numbers - 2, 0) + 1

    def problem(self, rng: np.random.Generator) -> Problem:
        while True:
            numbers = rng.integers(1, 10, self.numbers).tolist()
            formula, value = _formula(rng, [numbers[i] for i in rng.permutation(self.numbers)])
            if 0 <= value < self.target:
                listed = " ".join(map(str, numbers))
                return Problem(f"{listed}={value}:", formula, f"countdown:{','.join(map(str, sorted(numbers)))}:{value}", (tuple(numbers), value))

    def reward(self, problem: Problem, completion: str) -> float:
        numbers, target = problem.data
        result = evaluate(completion)
        return float(result is not None and result == (target, Counter(numbers)))


def evaluate(text: str) -> tuple[int, Counter[int]] | None:
    """Value and numbers used of a formula of integers, + - * and brackets; None for anything else."""
    if len(text) > MAX_CHARACTERS or not _ALLOWED.fullmatch(text) or "**" in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "3(4)" parses as a call
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    used: Counter[int] = Counter()

    def value_of(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used[node.value] += 1
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value_of(node.left), value_of(node.right)
            return None if left is None or right is None else _OPERATORS[type(node.op)](left, right)
        return None

    value = value_of(tree.body)
    return None if value is None else (value, used)


def _formula(rng: np.random.Generator, numbers: list[int]) -> tuple[str, int]:
    """A random formula over the numbers in this order, brackets only where they matter, and its value."""
    text, value, _ = _tree(rng, numbers)
    return text, value


def _tree(rng: np.random.Generator, numbers: list[int]) -> tuple[str, int, int]:
    """Text, value and binding strength (0 sum, 1 product, 2 number)."""
    if len(numbers) == 1:
        return str(numbers[0]), numbers[0], 2
    cut = int(rng.integers(1, len(numbers)))
    left, left_value, left_binds = _tree(rng, numbers[:cut])
    right, right_value, right_binds = _tree(rng, numbers[cut:])
    sign = "+-*"[int(rng.integers(0, 3))]
    binds = 1 if sign == "*" else 0
    left = f"({left})" if left_binds < binds else left
    right = f"({right})" if right_binds < binds or (sign == "-" and right_binds == 0) else right
    value = {"+": left_value + right_value, "-": left_value - right_value, "*": left_value * right_value}[sign]
    return f"{left}{sign}{right}", value, binds
