"""What can be wrong with the options of a training run, before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from feebcore.config import DataOrderConfig
from feebcore.errors import did_you_mean
from feebcore.parts import parts_in
from feebcore.train.config import TrainSection, checkpoint_of

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


def check_training(section: TrainSection) -> list[str]:
    """What is wrong with a training section by itself; also for stages that hold one under another key."""
    problems = []
    limit = dict(section.architecture.config).get("seq_len")
    if limit and section.seq_len > limit:
        problems.append(f"seq_len: {section.seq_len} is more than the architecture's {limit}")
    names = [part.name for part in section.callbacks]
    problems += [f"callbacks: {name!r} is listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    if section.init_from and not Path(section.init_from).exists():
        problems.append(f"init_from: no folder {section.init_from}")
    if section.branch_from and not section.branch_content:
        step = f" of step {section.branch_step}" if section.branch_step else ""
        problems.append(f"branch_from: {section.branch_from} has no checkpoint{step}; keep_every in that run's recipe says which stay")
    elif section.branch_from and (path := checkpoint_of(Path(section.branch_from), section.branch_step)):
        at = int(path.name.rpartition("-")[2])
        if at >= section.max_steps:
            problems.append(f"max_steps: {section.max_steps} is not beyond step {at}, from which this branches (branch_from)")
    if section.keep_best and not section.validation_every:
        problems.append("keep_best: it needs validation; set validation_every")
    ranks = section.parallel.ranks
    if ranks > 1 and section.batch_size % ranks:
        problems.append(f"batch_size: {section.batch_size} sequences do not divide over {ranks} ranks")
    elif ranks > 1 and section.micro_batch and section.batch_size // ranks % section.micro_batch:
        problems.append(f"micro_batch: {section.micro_batch} does not divide the {section.batch_size // ranks} sequences of a rank")
    if section.weight_decay_schedule and dict(section.optimizer.config).get("weight_decay") == 0:
        problems.append("weight_decay_schedule: the optimizer's weight_decay is 0, so there is nothing to schedule")
    for key in ("schedule", "optimizer", "data_order"):
        problems += [f"{key}.{text}" for text in getattr(section, key).config.check_run(section.max_steps)]
    return problems


def check_sources(section: TrainSection, recipe: Recipe) -> list[str]:
    """Sources that the data order names, against those that stage download reads."""
    assert isinstance(section.data_order.config, DataOrderConfig)
    named = section.data_order.config.source_names()
    if not named or (download := recipe.stages.get("download")) is None:
        return []
    names = {part.build().name for part in parts_in(download.section) if part.kind == "sources"}
    if not names or "" in names:  # known from the documents only
        return []
    validation = dict(download.section).get("validation_sources", ())
    problems = [f"data_order: no source {name!r} in stage download; {did_you_mean(name, names)}" for name in named if name not in names]
    return problems + [
        f"data_order: source {name!r} is in download.validation_sources, so nothing of it can be trained on" for name in named if name in validation
    ]
