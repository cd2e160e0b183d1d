"""Benchmark `python_parses`: syntactic validity of sampled Python functions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import feebcore as feeb

FUNCTION_NAMES = ("main", "get", "set", "read", "write", "parse", "format", "close", "add", "check", "is", "_make", "find", "run", "test", "to")


class PythonParsesConfig(feeb.PartConfig):
    """What is sampled, and how."""

    samples: int = Field(192, ge=1, description="number of sampled functions, spread over `names`")
    max_new_tokens: int = Field(96, ge=1, description="longest sample, tokens")
    names: tuple[str, ...] = Field(FUNCTION_NAMES, min_length=1, description="function names that fill {name} of the prompt")
    prompt: str = Field("\n\ndef {name}", description="text that the model continues, after BOS")
    logits_processors: list[Annotated[feeb.Part, feeb.PartKey("logits_processors")]] = Field(
        default_factory=lambda: [feeb.default_part("temperature", temperature=0.8), feeb.default_part("top_p", p=0.95)],
        description="applied in this order before each token is sampled",
    )
    batch_size: feeb.Execution[int] = Field(512, ge=1, description="samples decoded at once")


PART = feeb.BenchmarkSpec(
    "python_parses",
    PythonParsesConfig,
    build=f"{__name__}.python_parses:PythonParses",
    summary="Fraction of sampled functions that parse as Python; none is run.",
)
