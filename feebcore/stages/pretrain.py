"""Stage pretrain: Trains a language model from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Execution
from feebcore.errors import ArtifactError, did_you_mean
from feebcore.files import read_json
from feebcore.parts import Part, parts_in
from feebcore.specs import Need, StageSpec
from feebcore.train.config import TrainSection, checkpoint_of

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore
    from feebcore.recipe import Recipe

HASH_UP_TO = 2 << 30
"""Bytes of token shards that are verified before training; more would take longer than a second or two."""


class PretrainConfig(TrainSection):
    """Options of stage pretrain: those of a training run, and where its tokens are read."""

    tokens_url: Execution[str] = Field(
        "", description="address of a copy of the tokens.zarr folder to read instead, as s3://bucket/tokens.zarr; it must hold the same tokens"
    )

    @field_validator("tokens_url")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if value and "://" not in value:
            raise ValueError(f"{value!r} is no address; write one as s3://bucket/tokens.zarr, or leave the key out to read the artifact's own")
        if "@" in value:
            raise ValueError("a recipe is stored with every run, so a URL in it may not hold a user name or password; use the environment instead")
        return value


PART = StageSpec(
    "pretrain",
    PretrainConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("tokens"), Need("tokenizer")),
    makes=("model",),
    process="worker",
    summary="Trains a language model from scratch.",
)


def check(section: PretrainConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    problems = check_training(section)
    tokenizer = recipe.provider(section, "tokenizer")
    part = getattr(tokenizer.section, "tokenizer", None) if tokenizer else None
    size = getattr(getattr(part, "config", None), "vocab_size", None)
    vocab_size = getattr(section.architecture.config, "vocab_size", None)
    if tokenizer and size and vocab_size and vocab_size != size:
        problems.append(f"architecture.vocab_size: {vocab_size}, but stage {tokenizer.key} makes a vocabulary of {size}; leave it out or make them equal")
    if isinstance(part, Part):  # parts may have a say about what tokens are
        for chosen in parts_in(section.architecture):
            told = getattr(chosen.config, "check_tokenizer", None)
            problems += [f"architecture: {chosen.name} {text}" for text in (told(part.name) if told else [])]
    return problems + _check_sources(section, recipe)


def _check_sources(section: PretrainConfig, recipe: Recipe) -> list[str]:
    """Sources that the order names, against those that stage download reads."""
    from feebcore.stages.download import DownloadConfig, source_labels

    named = getattr(section.data_order.config, "source_names", None)
    download = recipe.stages.get("download")
    if named is None or download is None or not isinstance(download.section, DownloadConfig) or (labels := source_labels(download.section)) is None:
        return []
    held_out = set(download.section.held_out_sources)
    problems = [f"data_order: no source {name!r} in stage download; {did_you_mean(name, labels)}" for name in named() if name not in labels]
    return problems + [
        f"data_order: source {name!r} is in download.held_out_sources, so nothing of it can be trained on" for name in named() if name in held_out
    ]


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
    if section.branch_from and not section.branch_content:
        wanted = f" of step {section.branch_step}" if section.branch_step else ""
        problems.append(f"branch_from: {section.branch_from} has no checkpoint{wanted}; keep_every in that run's recipe says which stay")
    elif section.branch_from and (path := checkpoint_of(Path(section.branch_from), section.branch_step)):
        at = int(path.name.rpartition("-")[2])
        if at >= section.max_steps:
            problems.append(f"max_steps: {section.max_steps} is not beyond step {at}, from which this branches (branch_from)")
    if section.keep_best and not section.eval_every:
        problems.append("keep_best: it needs looks at held-out text; set eval_every")
    ranks = section.parallel.ranks
    if ranks > 1 and section.batch_size % ranks:
        problems.append(f"batch_size: {section.batch_size} windows do not divide over {ranks} ranks")
    elif ranks > 1 and section.micro_batch and section.batch_size // ranks % section.micro_batch:
        problems.append(f"micro_batch: {section.micro_batch} does not divide the {section.batch_size // ranks} windows of a rank")
    if section.weight_decay_schedule and getattr(section.optimizer.config, "weight_decay", None) == 0:
        problems.append("weight_decay_schedule: the optimizer's weight_decay is 0, so there is nothing to schedule")
    for key in ("schedule", "optimizer", "data_order"):
        part_check = getattr(getattr(section, key).config, "check_run", None)  # parts may have a say about the run's length
        if part_check is not None:
            problems += [f"{key}.{text}" for text in part_check(section.max_steps)]
    return problems


def run(section: PretrainConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Trains, writes model/ and metrics.jsonl; continues from checkpoints/ when there are some."""
    from feebcore.data.loader import make_batches
    from feebcore.train.pretrain import train_model

    tokens = inputs["tokens"]
    if not section.tokens_url:
        verify_tokens(tokens)
    train, val = (open_tokens(tokens, split, section.tokens_url) for split in ("train", "val"))
    data = make_batches(train, section.packing, section.data_order, section.batch_size, section.seq_len, section.seed, section.max_steps)
    out.content("model/*")
    tokenizer = inputs["tokenizer"].file("tokenizer")
    trained = train_model(section, data, val if val.num_documents else None, tokenizer, out.path, out, vocab_size=train.vocab_size)
    steps = round(trained.metrics["tokens"] / (section.batch_size * section.seq_len))  # of this size of batch; a branch's trunk may have had another
    return trained.metrics | {"data": data.statistics(steps)}


def open_tokens(tokens: Artifact, split: str, address: str = "") -> TokenStore:
    """A split of the artifact's tokens, or of their copy at `address`. Raises ArtifactError where the tokens are not the artifact's."""
    from feebcore.data.store import TokenStore

    if not address:
        return TokenStore.open(tokens.file("tokens.zarr"), split)
    store = TokenStore.open(address, split, ledger=tokens.path / "ledger.jsonl")
    if store.tokens_sha256 != read_json(tokens.file("tokens.json"))[split]["tokens_sha256"]:
        raise ArtifactError(f"pretrain.tokens_url: {address} holds other tokens than {tokens.path}; copy its tokens.zarr there")
    return store


def verify_tokens(tokens: Artifact) -> None:
    """Raises ArtifactError when a token shard was truncated or altered."""
    tokens.check_sizes()
    files = {name: entry["size"] for name, entry in tokens.manifest["files"].items() if name.startswith("tokens.zarr/")}
    if sum(files.values()) <= HASH_UP_TO:
        for name in files:
            tokens.check_hash(name)
