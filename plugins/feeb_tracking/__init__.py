"""Built-in callbacks: the training log, progress, samples, wandb, and probes that look inside the model. Names and options; factories load what they need."""

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


class ProbeConfig(PartConfig):
    every: int = Field(100, ge=1, description="steps between looks; the first and the last state are always looked at")
    windows: int = Field(4, ge=1, description="windows of the first batch that are looked at, the same every time")


class RepetitionConfig(ProbeConfig):
    every: int = Field(200, ge=1, description="steps between looks; the first and the last state are always looked at")
    prompt_tokens: int = Field(8, ge=1, description="tokens of each window that are given")
    max_new_tokens: int = Field(64, ge=8, description="tokens that the model adds, as far as the context reaches")
    flag_above: float = Field(0.5, gt=0, lt=1, description="share of repeated 4-grams, beyond that of the training text, that is told in the log")


class FirstBatchConfig(PartConfig):
    windows: int = Field(2, ge=1, description="windows that are written out")


class GradientsConfig(PartConfig):
    every: int = Field(100, ge=1, description="steps between looks; the last step is always looked at")
    updates: bool = Field(True, description="also how far the step moves the weights, for which it copies them")


class ThroughputConfig(PartConfig):
    every: int = Field(50, ge=1, description="steps a row; the last step always ends one")


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
    yield feeb.CallbackSpec(
        "residual_stream",
        ProbeConfig,
        build="feeb_tracking.residual_stream:build",
        since="1.1",
        summary="Size of the residual stream before, between and after each block, and what attention and feedforward add.",
        reference="arXiv:2002.04745",
    )
    yield feeb.CallbackSpec(
        "logits",
        ProbeConfig,
        build="feeb_tracking.logits:build",
        since="1.1",
        summary="Quantiles, entropy and certainty of the logits.",
        reference="arXiv:2309.14322",
    )
    yield feeb.CallbackSpec(
        "repetition",
        RepetitionConfig,
        build="feeb_tracking.repetition:build",
        since="1.1",
        summary="How much greedy and sampled text repeats itself, told in the log when it goes round in circles.",
        reference="arXiv:1904.09751",
    )
    yield feeb.CallbackSpec(
        "first_batch",
        FirstBatchConfig,
        build="feeb_tracking.first_batch:build",
        since="1.1",
        summary="The first batch as text, inputs beside targets.",
        reference="https://karpathy.github.io/2019/04/25/recipe/",
    )
    yield feeb.CallbackSpec(
        "gradients",
        GradientsConfig,
        build="feeb_tracking.gradients:build",
        since="1.1",
        summary="Norms of gradients, weights and updates by layer.",
        reference="arXiv:2309.14322",
    )
    yield feeb.CallbackSpec(
        "expert_load",
        ProbeConfig,
        build="feeb_tracking.expert_load:build",
        since="1.1",
        summary="How evenly routers spread tokens over experts, layer by layer.",
        reference="arXiv:2101.03961",
    )
    yield feeb.CallbackSpec(
        "throughput",
        ThroughputConfig,
        build="feeb_tracking.throughput:build",
        since="1.1",
        summary="MFU against a measured matmul peak, tokens a second, data wait, memory.",
        reference="arXiv:2204.02311",
    )
