"""What RL tasks promise."""

from __future__ import annotations

import numpy as np

from feebcore.rl.tasks import held_out_problems, is_held_out, training_problems
from feebcore.testing.framework import Candidate, check, require


@check("tasks", meaning="The task's own answer is not fully rewarded, so a perfect model looks wrong.")
def answers_are_right(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 50, 0):
        require(task.reward(problem, problem.answer) == 1.0, f"answer {problem.answer!r} to {problem.prompt!r} earns {task.reward(problem, problem.answer)}")


@check("tasks", meaning="A wrong, empty or hostile completion is rewarded, so RL learns to cheat.")
def rewards_are_bounded(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 20, 1):
        for completion in ("", " ", "x" * 500, "1/0", "__import__('os')", "9" * 400, "(" * 300, problem.prompt, "\x00", "²³"):
            reward = task.reward(problem, completion)
            require(0.0 <= reward <= 1.0, f"completion {completion[:30]!r} earns {reward}")
            require(reward < 1.0 or completion.strip() == problem.answer.strip(), f"completion {completion[:30]!r} to {problem.prompt!r} earns full reward")


@check("tasks", meaning="Held-out problems are trained on, so accuracy measures memory.")
def splits_are_disjoint(subject: Candidate) -> None:
    task = subject.part.build()
    training = {i.key for i in training_problems(task, 300, 2)}
    held_out = held_out_problems(task, 30)
    require(held_out and not training & {i.key for i in held_out}, "a problem is in both splits")
    require(all(is_held_out(i) for i in held_out), "a held-out problem is not held out by its key")


@check("tasks", meaning="Problems are not a function of the random stream, so runs differ.")
def problems_follow_the_seed(subject: Candidate) -> None:
    task = subject.part.build()
    draw = lambda seed: [task.problem(rng).prompt for rng in [np.random.default_rng(seed)] for _ in range(20)]  # noqa: E731
    require(draw(4) == draw(4), "one seed gives two sequences of problems")
    require(draw(4) != draw(5), "two seeds give one sequence of problems")
