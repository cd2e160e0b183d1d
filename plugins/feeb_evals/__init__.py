"""Built-in evaluation parts: benchmarks, and what a sweep plans and fits (scaling_parts.py).

evaluate:
  benchmarks: [bits_per_byte, {name: python_parses, samples: 100}, {name: task_accuracy, task: countdown}]
  models: {python_parses: [pretrain, rl]}        # default: every model of the recipe
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

import feebcore as feeb
from feeb_evals.scaling_parts import feeb_laws, feeb_planners
from feebcore.config import Execution, PartConfig
from feebcore.parts import Part, PartKey, default_part

FUNCTION_NAMES = ("main", "get", "set", "read", "write", "parse", "format", "close", "add", "check", "is", "_make", "find", "run", "test", "to")


class BitsPerByteConfig(PartConfig):
    """max_documents: so many held-out documents, evenly spaced; null: the whole split. context, stride: tokens; null:
    the model's seq_len, and half of the context."""

    max_documents: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=1)
    stride: int | None = Field(None, ge=1)
    batch_tokens: Execution[int] = Field(1 << 12, ge=1)


class PythonParsesConfig(PartConfig):
    """samples: functions drawn, spread over `names`. prompt: what the model continues, after BOS. logits_processors: run in
    this order before each token is drawn."""

    samples: int = Field(192, ge=1)
    max_new_tokens: int = Field(96, ge=1)
    names: tuple[str, ...] = Field(FUNCTION_NAMES, min_length=1)
    prompt: str = "\n\ndef {name}"
    logits_processors: list[Annotated[Part, PartKey("logits_processors")]] = Field(
        default_factory=lambda: [default_part("temperature", temperature=0.8), default_part("top_p", p=0.95)]
    )
    batch_size: Execution[int] = Field(512, ge=1)


class TaskAccuracyConfig(PartConfig):
    """problems: held-out problems of `task`, each answered once sampled at temperature 1 and once greedily."""

    task: Annotated[Part, PartKey("tasks")] = default_part("sort")
    problems: int = Field(512, ge=1)
    batch_size: Execution[int] = Field(512, ge=1)


@feeb.hookimpl
def feeb_benchmarks() -> Iterable[feeb.BenchmarkSpec]:
    yield feeb.BenchmarkSpec(
        "bits_per_byte", BitsPerByteConfig, build="feeb_evals.held_out_text:build", needs=("tokens",), summary="Bits per UTF-8 byte of the held-out split."
    )
    yield feeb.BenchmarkSpec(
        "python_parses", PythonParsesConfig, build="feeb_evals.python_parses:build", summary="Share of sampled functions that parse as Python; none is run."
    )
    yield feeb.BenchmarkSpec(
        "task_accuracy", TaskAccuracyConfig, build="feeb_evals.task_accuracy:build", summary="Exact accuracy on held-out problems of a task."
    )


__all__ = ["BitsPerByteConfig", "PythonParsesConfig", "TaskAccuracyConfig", "feeb_benchmarks", "feeb_laws", "feeb_planners"]
