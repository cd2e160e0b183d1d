"""Sort: `72914=` is answered by `12479`. Digits are single tokens, so the prompt has one token a digit and '='."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feebcore.protocols import BuildContext, Problem, Task

if TYPE_CHECKING:
    from feeb_rl.tasks.sort import SortConfig


class Sort(Task):
    """Digits 0 to 9 drawn with repetition; one answer each; exact reward."""

    def __init__(self, config: SortConfig, context: BuildContext | None = None) -> None:
        self.digits = config.digits
        self.max_completion_tokens = config.digits + 1

    def problem(self, rng: np.random.Generator) -> Problem:
        digits = "".join(map(str, rng.integers(0, 10, self.digits)))
        return Problem(f"{digits}=", "".join(sorted(digits)), f"sort:{digits}")

    def reward(self, problem: Problem, completion: str) -> float:
        return float(completion == problem.answer)
