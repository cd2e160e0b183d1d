"""What a benchmark is given and what it returns. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from feebcore.protocols import LanguageModel, ProgressFn, Tokenizer


@dataclass(frozen=True)
class EvaluatedModel:
    """A model under test. name: the stage that made it. store: TokenStore of the validation split; None where the recipe
    has no tokens, which a benchmark that reads them says in its spec: `needs=("tokens",)`.

    precision: 'fp32' or 'bf16', what `score_store` takes as dtype. seed: of everything drawn. progress: call it with
    (done, total) at least every few seconds; it raises when the run is asked to stop. log: for a line of warning.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    store: Any
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 0
    progress: ProgressFn = lambda done, total: None
    log: Callable[[str], None] = lambda text: None


class Benchmark:
    """A measurement of a model. title: a few words for tables and figures; empty: the part's name. better: 'higher' or 'lower'.
    percent: values are fractions, shown as percentages."""

    title: str = ""
    better: str = "higher"
    percent: bool = False

    def run(self, target: EvaluatedModel) -> dict[str, Any]:
        """`{metric: {value, low, high, n}, …}` (`dump` of feebcore/evaluate/intervals.py makes one), the headline metric first; plain
        other numbers and texts are details. The key `samples`, a list of `{prompt, text, …}`, goes to samples.json."""
        raise NotImplementedError


def headline(result: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The first metric of a result that has a value, and its name."""
    return next(iter(intervals(result).items()), None)


def intervals(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of a result that are `{value, …}`, in order."""
    return {name: entry for name, entry in result.items() if isinstance(entry, dict) and "value" in entry}


def summarize(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """`{benchmark: {target: value}}`: headline metrics under the benchmark's name, others as `benchmark_metric`."""
    flat: dict[str, dict[str, float]] = {}
    for name, models in results.items():
        for target, result in models.items():
            for i, (metric, entry) in enumerate(intervals(result).items()):
                flat.setdefault(name if i == 0 else f"{name}_{metric}", {})[target] = entry["value"]
    return flat
