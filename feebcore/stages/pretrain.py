"""Stage pretrain: Trains a language model from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import identity_of
from feebcore.files import digest_of, read_json
from feebcore.model.config import ModelPartConfig
from feebcore.parts import parts_in
from feebcore.specs import Need, StageSpec
from feebcore.train.checks import check_sources, check_training
from feebcore.train.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore
    from feebcore.recipe import Recipe
    from feebcore.train.resume import OriginalRun

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
    for part in parts_in(tokenizer.section) if tokenizer else ():
        if part.kind != "tokenizers":
            continue
        size, vocab_size = (dict(config).get("vocab_size") for config in (part.config, section.architecture.config))
        if size and vocab_size and vocab_size != size:
            problems.append(f"architecture.vocab_size: {vocab_size}, but tokenizer {part.name} has a vocabulary of {size}; leave it out or make them equal")
        for chosen in parts_in(section.architecture):
            if isinstance(chosen.config, ModelPartConfig):
                problems += [f"architecture: {chosen.name} {problem}" for problem in chosen.config.check_tokenizer(part.name)]
    return problems + check_sources(section, recipe)


def run(section: PretrainConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Trains, writes model/ and metrics.jsonl; continues from checkpoints/ when there are some, or begins at one of its original run's."""
    from feebcore.data.loader import make_batches
    from feebcore.data.token_artifacts import open_tokens, verify_tokens
    from feebcore.train.pretrain import train_model

    tokens = inputs["tokens"]
    if not section.tokens_url:
        verify_tokens(tokens)
    train, val = (open_tokens(tokens, split, section.tokens_url) for split in ("train", "validation"))
    data = make_batches(train, section.packing, section.data_order, section.batch_size, section.seq_len, section.seed, section.max_steps)
    out.content("model/*")
    tokenizer = inputs["tokenizer"].file("tokenizer")
    validation = val if val.num_documents else None
    trained = train_model(
        section,
        data,
        validation,
        tokenizer,
        out.path,
        out,
        vocab_size=train.vocab_size,
        score_documents=section.score_documents,
        score_tokens=section.score_tokens,
        original=_original(section, train, out) if section.original_steps else None,
    )
    steps = round(trained.metrics["tokens"] / (section.batch_size * section.seq_len))  # of this size of batch; a branch's original run may have had another
    return trained.metrics | {"data": data.statistics(steps)}


def _original(section: PretrainConfig, train: TokenStore, out: StageOutput) -> OriginalRun | None:
    """The run that differs from this one in nothing but its `original_steps` steps, by its fingerprint; None where the workspace has none."""
    from feebcore.data.loader import make_batches
    from feebcore.train.resume import OriginalRun

    identity = read_json(out.path / "request.json")["identity"]
    longer = identity | {"section": identity_of(section.model_copy(update={"max_steps": section.original_steps}))}
    folders = sorted(out.path.parent.glob(f"*-{digest_of(longer)[:12]}"))
    if not folders:
        out.log(f"no run of {section.original_steps} steps is there that is otherwise the same (original_steps), so this one is trained from the start")
        return None
    lengths = (section.max_steps, section.original_steps)
    data, other = (make_batches(train, section.packing, section.data_order, section.batch_size, section.seq_len, section.seed, steps) for steps in lengths)
    return OriginalRun(folders[0], section.original_steps, data.same_steps(other, section.max_steps))
