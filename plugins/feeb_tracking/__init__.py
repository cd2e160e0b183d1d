"""Built-in callbacks: the training log, progress, samples, wandb. Names and options; factories load what they need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class MetricsConfig(PartConfig):
    every: int = Field(0, ge=0, description="steps a row; 0: the run's log_every")


class SamplesConfig(PartConfig):
    every: int = Field(200, ge=1, description="steps between samples; the end is always sampled")
    prompts: list[str] = Field(["def ", "import ", '"""'], description="an empty text starts from nothing but BOS")
    max_new_tokens: int = Field(48, ge=1)
    temperature: float = Field(0.8, gt=0)


class WandbConfig(MetricsConfig):
    project: str = "feeb"
    entity: str | None = None
    mode: Literal["offline", "online"] = Field("offline", description="online uses the key of `wandb login` or WANDB_API_KEY; feeb never stores it")


@feeb.hookimpl
def feeb_callbacks() -> Iterable[feeb.CallbackSpec]:
    yield feeb.CallbackSpec("metrics", MetricsConfig, build="feeb_tracking.metrics:build", summary="The training log, metrics.jsonl.")
    yield feeb.CallbackSpec("progress", build="feeb_tracking.progress:build", summary="A progress line with loss and rate.")
    yield feeb.CallbackSpec("samples", SamplesConfig, build="feeb_tracking.samples:build", summary="Text the model writes as it learns, samples.jsonl.")
    yield feeb.CallbackSpec(
        "wandb",
        WandbConfig,
        build="feeb_tracking.wandb_run:build",
        summary="The same rows in Weights & Biases, offline by default.",
        reference="https://wandb.ai",
    )
