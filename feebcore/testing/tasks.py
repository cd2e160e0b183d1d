"""What RL tasks promise."""

from __future__ import annotations

import numpy as np

from feebcore.rl.tasks import held_out_problems, is_held_out, training_problems
from feebcore.testing.framework import Candidate, check, require


@check("tasks", quick=True, meaning="The task's own answer is not fully rewarded, so a perfect model looks wrong.")
def answers_are_right(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 50, 0):
        require(task.reward(problem, problem.answer) == 1.0, f"answer {problem.answer!r} to {problem.prompt!r} earns {task.reward(problem, problem.answer)}")


@check("tasks", quick=True, meaning="A wrong, empty or hostile completion is rewarded, so RL learns to cheat.")
def rewards_are_bounded(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 20, 1):
        for completion in ("", " ", "x" * 500, "1/0", "__import__('os')", "9" * 400, "(" * 300, problem.prompt, "\x00", "²³"):
            reward = task.reward(problem, completion)
            require(0.0 <= reward <= 1.0, f"completion {completion[:30]!r} earns {reward}")
            require(reward < 1.0 or completion.strip() == problem.answer.strip(), f"completion {completion[:30]!r} to {problem.prompt!r} earns full reward")


@check("tasks", quick=True, meaning="Held-out problems are trained on, so accuracy measures memory.")
def splits_are_disjoint(subject: Candidate) -> None:
    task = subject.part.build()
    training = {i.key for i in training_problems(task, 300, 2)}
    held_out = held_out_problems(task, 30)
    require(held_out and not training & {i.key for i in held_out}, "a problem is in both splits")
    require(all(is_held_out(i) for i in held_out), "a held-out problem is not held out by its key")


@check("tasks", quick=True, meaning="Problems are not a function of the random stream, so runs differ.")
def problems_follow_the_seed(subject: Candidate) -> None:
    task = subject.part.build()
    draw = lambda seed: [task.problem(rng).prompt for rng in [np.random.default_rng(seed)] for _ in range(20)]  # noqa: E731
    require(draw(4) == draw(4), "one seed gives two sequences of problems")
    require(draw(4) != draw(5), "two seeds give one sequence of problems")


@check(
    "tasks",
    quick=True,
    meaning="A completion that lists answers is right without knowing which, so RL learns to list; compare the whole completion, not `answer in completion`.",
)
def listing_answers_is_not_rewarded(subject: Candidate) -> None:
    task = subject.part.build()
    problems = training_problems(task, 40, 3)
    answers = list(dict.fromkeys(p.answer for p in problems))
    solved = lambda text: sum(task.reward(p, text) >= 1.0 for p in problems)  # noqa: E731
    best = max(solved(answer) for answer in answers)
    for join in (" ", ",", "\n", ""):
        for order in (answers, answers[::-1]):
            count = solved(join.join(order))
            require(count <= best, f"one text that lists {len(answers)} answers solves {count} of {len(problems)} problems, the best single answer {best}")


@check(
    "tasks",
    quick=True,
    meaning="A right answer with other text around it earns full reward, so a model need not answer and stop. A task that reads the answer out of "
    "longer text on purpose names this check in `breaks`.",
)
def nothing_but_the_answer_is_right(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 20, 4):
        answer = problem.answer
        others = {
            "the prompt and answer, repeated": (problem.prompt + answer) * 3,
            "the answer, twice": f"{answer} {answer}",
            "the answer, then other text": f"{answer} xyz",
            "the answer, then the prompt": f"{answer} {problem.prompt}",
            "other text, then the answer": f"xyz {answer}",
            "the answer between other texts": f"xyz {answer} xyz",
        }
        for what, completion in others.items():
            require(task.reward(problem, completion) < 1.0, f"{what} ({completion[:40]!r}) earns full reward")


@check(
    "tasks",
    quick=True,
    meaning="A right completion is cut off before it ends, so it earns nothing; max_completion_tokens counts the end token too. "
    "With a tokenizer of characters or bytes an answer has the most tokens.",
)
def answers_fit_their_limit(subject: Candidate) -> None:
    task = subject.part.build()
    for problem in training_problems(task, 100, 5):
        needed = len(problem.answer.encode()) + 1
        require(
            needed <= task.max_completion_tokens,
            f"answer {problem.answer!r} and the end token are {needed} tokens in bytes, max_completion_tokens is {task.max_completion_tokens}",
        )
