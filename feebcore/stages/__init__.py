"""The built-in stages, offered through the same hook as a stranger's. One file a stage; run.py runs them."""

from __future__ import annotations

from collections.abc import Iterable

from feebcore.hookspecs import hookimpl
from feebcore.specs import Need, StageSpec
from feebcore.stages.download import DownloadConfig
from feebcore.stages.evaluate import EvaluateConfig
from feebcore.stages.pretrain import PretrainConfig
from feebcore.stages.report import ReportConfig
from feebcore.stages.rl import RlConfig
from feebcore.stages.sft import SftConfig
from feebcore.stages.shard import ShardConfig
from feebcore.stages.sweep import SweepConfig
from feebcore.stages.tokenizer import TokenizerConfig


@hookimpl
def feeb_stages() -> Iterable[StageSpec]:
    yield StageSpec(
        "download",
        DownloadConfig,
        build="feebcore.stages.download:run",
        check="feebcore.stages.download:check",
        needs=(),
        process="inline",
        summary="Fetches documents from sources, filters them and splits them by hash.",
    )
    yield StageSpec(
        "tokenizer",
        TokenizerConfig,
        build="feebcore.stages.tokenizer:run",
        check="feebcore.stages.tokenizer:check",
        needs=(Need("documents", ("download",)),),
        process="inline",
        summary="Trains a tokenizer on the training documents.",
    )
    yield StageSpec(
        "shard",
        ShardConfig,
        build="feebcore.stages.shard:run",
        check="feebcore.stages.shard:check",
        needs=(Need("documents", ("download",)), Need("tokenizer", ("tokenizer",))),
        process="inline",
        summary="Writes the documents as token shards in zarr.",
    )
    yield StageSpec(
        "pretrain",
        PretrainConfig,
        build="feebcore.stages.pretrain:run",
        check="feebcore.stages.pretrain:check",
        needs=(Need("tokens", ("shard",)), Need("tokenizer", ("tokenizer",))),
        process="worker",
        summary="Trains a language model from scratch.",
    )
    yield StageSpec(
        "sweep",
        SweepConfig,
        build="feebcore.stages.sweep:run",
        check="feebcore.stages.sweep:check",
        needs=(Need("tokens", ("shard",)), Need("tokenizer", ("tokenizer",))),
        process="worker",
        summary="Runs many small trainings, fits a scaling law and predicts a held-out cell.",
    )
    yield StageSpec(
        "sft",
        SftConfig,
        build="feebcore.stages.sft:run",
        check="feebcore.stages.sft:check",
        needs=(Need("model", ("pretrain",)),),
        process="worker",
        summary="Fine-tunes a model on solved examples of a task.",
    )
    yield StageSpec(
        "rl",
        RlConfig,
        build="feebcore.stages.rl:run",
        check="feebcore.stages.rl:check",
        needs=(Need("model", ("sft", "pretrain")),),
        process="worker",
        summary="Improves a model on a verifiable task by PPO or GRPO.",
    )
    yield StageSpec(
        "evaluate",
        EvaluateConfig,
        build="feebcore.stages.evaluate:run",
        check="feebcore.stages.evaluate:check",
        needs=(Need("pretrain", ("pretrain",)), Need("sft", ("sft",), optional=True), Need("rl", ("rl",), optional=True), Need("tokens", ("shard",))),
        process="worker",
        summary="Runs benchmarks on every model of the recipe.",
    )
    yield StageSpec(
        "report",
        ReportConfig,
        build="feebcore.stages.report:run",
        check="feebcore.stages.report:check",
        needs=tuple(Need(s, (s,), optional=True) for s in ("download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate")),
        process="inline",
        summary="Writes one self-contained HTML page with every figure and number.",
    )
