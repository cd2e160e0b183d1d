"""One answer per held-out problem, sampled at temperature 1 and greedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feebcore.evaluate.benchmark import Benchmark, EvaluatedModel
from feebcore.protocols import BuildContext
from feebcore.rl.tasks import evaluate_task, held_out_problems, too_few_problems

if TYPE_CHECKING:
    from feeb_evals.benchmarks.task_accuracy import TaskAccuracyConfig

MAX_SAMPLES = 24


class TaskAccuracy(Benchmark):
    better = "higher"
    percent = True

    def __init__(self, config: TaskAccuracyConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self.title = f"Held-out {config.task.name.replace('_', ' ')} problems solved"

    def run(self, target: EvaluatedModel) -> dict[str, Any]:
        config = self._config
        task = config.task.build()
        problems = held_out_problems(task, config.problems)
        if warning := too_few_problems(config.task.name, problems, config.problems):
            target.log(warning)
        results = {}
        for i, name in enumerate(("sampled", "greedy")):
            target.progress(i, 2)
            results[name] = evaluate_task(
                target.model, target.tokenizer, task, problems, greedy=name == "greedy", seed=target.seed, batch_size=config.batch_size
            )
        samples = results["sampled"].pop("samples")[:MAX_SAMPLES]
        greedy_samples = results["greedy"].pop("samples")
        for row, other in zip(samples, greedy_samples, strict=False):
            row["greedy_completion"], row["greedy_reward"] = other["completion"], other["reward"]
        target.progress(2, 2)
        return {**results, "samples": samples}
