"""Built-in processors and samplers: what happens between a model's logits and the next token.

A recipe lists processors in the order in which they run: `logits_processors: [{name: temperature, temperature: 0.8}, top_p]`.
`truncates = False` on a processor's options says that it keeps every token possible, so that RL can train on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

import feebcore as feeb


class TemperatureConfig(feeb.PartConfig):
    """temperature: logits are divided by it; below 1 sharpens."""

    truncates: ClassVar[bool] = False
    temperature: float = Field(1.0, gt=0)


class TopKConfig(feeb.PartConfig):
    """k: how many of the likeliest tokens stay."""

    k: int = Field(50, ge=1)


class TopPConfig(feeb.PartConfig):
    """p: the likeliest tokens stay until their probabilities reach p, the one that crosses it included."""

    p: float = Field(0.95, gt=0, le=1)


class MinPConfig(feeb.PartConfig):
    """min_p: tokens at least this share of the likeliest token's probability stay."""

    min_p: float = Field(0.05, ge=0, le=1)


@feeb.hookimpl
def feeb_logits_processors() -> Iterable[feeb.LogitsProcessorSpec]:
    yield feeb.LogitsProcessorSpec("temperature", TemperatureConfig, build="feeb_sampling.logits_processors:temperature", summary="Divides the logits.")
    yield feeb.LogitsProcessorSpec(
        "top_k", TopKConfig, build="feeb_sampling.logits_processors:top_k", summary="Keeps the k likeliest tokens.", reference="arXiv:1805.04833"
    )
    yield feeb.LogitsProcessorSpec(
        "top_p", TopPConfig, build="feeb_sampling.logits_processors:top_p", summary="Keeps the nucleus of probability p.", reference="arXiv:1904.09751"
    )
    yield feeb.LogitsProcessorSpec(
        "min_p", MinPConfig, build="feeb_sampling.logits_processors:min_p", summary="Drops tokens far below the likeliest.", reference="arXiv:2407.01082"
    )


@feeb.hookimpl
def feeb_samplers() -> Iterable[feeb.SamplerSpec]:
    yield feeb.SamplerSpec("greedy", build="feeb_sampling.samplers:greedy", summary="Takes the likeliest token.")
    yield feeb.SamplerSpec("sampling", build="feeb_sampling.samplers:sampling", summary="Draws from the processed distribution, a random stream a row.")
