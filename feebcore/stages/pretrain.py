"""Stage pretrain: Trains a language model from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.train.config import TrainSection

if TYPE_CHECKING:
    from feebcore.recipe import Recipe

HASH_UP_TO = 2 << 30
"""Bytes of token shards that are verified before training; more would take longer than a second or two."""


class PretrainConfig(TrainSection):
    """Options of stage pretrain: those of a training run."""


def check(section: PretrainConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = check_training(section)
    tokenizer = recipe.stages.get("tokenizer")
    part = getattr(tokenizer.section, "tokenizer", None) if tokenizer else None
    size = getattr(getattr(part, "config", None), "vocab_size", None)
    wanted = getattr(section.architecture.config, "vocab_size", None)
    if size and wanted and wanted != size:
        problems.append(f"architecture.vocab_size: {wanted}, but stage tokenizer makes a vocabulary of {size}; leave it out or make them equal")
    return problems


def check_training(section: TrainSection) -> list[str]:
    """What is wrong with a training section by itself; also for stages that hold one under another key."""
    problems = []
    limit = getattr(section.architecture.config, "seq_len", None)
    if limit and section.seq_len > limit:
        problems.append(f"seq_len: {section.seq_len} is more than the architecture's {limit}")
    names = [part.name for part in section.callbacks]
    problems += [f"callbacks: {name!r} is listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    if section.init_from and not Path(section.init_from).exists():
        problems.append(f"init_from: no folder {section.init_from}")
    for key in ("schedule", "optimizer"):
        part_check = getattr(getattr(section, key).config, "check_run", None)  # parts may have a say about the run's length
        if part_check is not None:
            problems += [f"{key}.{text}" for text in part_check(section.max_steps)]
    return problems


def run(section: PretrainConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Trains, writes model/ and metrics.jsonl; continues from checkpoints/ when there are some."""
    from feebcore.data.loader import make_batches
    from feebcore.data.store import TokenStore
    from feebcore.train.pretrain import train_model

    tokens = inputs["tokens"]
    verify_tokens(tokens)
    train, val = (TokenStore.open(tokens.file("tokens.zarr"), split) for split in ("train", "val"))
    data = make_batches(train, section.packing, section.order, section.batch_size, section.seq_len, section.seed)
    out.content("model/*")
    tokenizer = inputs["tokenizer"].file("tokenizer")
    return train_model(section, data, val if val.num_documents else None, tokenizer, out.path, out, vocab_size=train.vocab_size).metrics


def verify_tokens(tokens: Artifact) -> None:
    """Raises ArtifactError when a token shard was truncated or altered."""
    tokens.check_sizes()
    files = {name: entry["size"] for name, entry in tokens.manifest["files"].items() if name.startswith("tokens.zarr/")}
    if sum(files.values()) <= HASH_UP_TO:
        for name in files:
            tokens.check_hash(name)
