"""Every recipe under experiments/ loads, and every variant of the notebook's families and comparisons trains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from feebcore.artifacts import StageOutput
from feebcore.protocols import Batch
from feebcore.recipe import load, load_study
from feebcore.registry import use_registry

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = sorted(EXPERIMENTS.glob("*.yaml"))
FAMILIES = [path for path in RECIPES if any(member.variant for member in load_study(path))]
SMALL = {"num_layers": 2, "d_model": 32, "num_heads": 2}
VOCAB, T, ROWS, STEPS = 61, 16, 4, 12


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_loads(path: Path) -> None:
    assert load_study(path)
    assert load(path).description


class OneBatch:
    """The same few windows at every step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        tokens = torch.randint(VOCAB, (ROWS, T + 1), generator=torch.Generator().manual_seed(0))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


MEMBERS = [(path.stem, member.variant, member) for path in FAMILIES for member in load_study(path) if member.seed == 0]


@pytest.mark.parametrize(("family", "variant", "recipe"), MEMBERS, ids=[f"{f}-{v}" for f, v, _ in MEMBERS])
def test_variant_trains_and_learns_a_batch(family, variant, recipe, tmp_path) -> None:
    from feebcore.train.config import TrainSection
    from feebcore.train.pretrain import train_model

    data = recipe.stages["pretrain"].section.model_dump(mode="json", include=set(TrainSection.model_fields))
    layers = min(SMALL["num_layers"], data["architecture"]["num_layers"])
    data["architecture"] |= SMALL | {"num_layers": layers}
    changes = {
        "seq_len": T,
        "batch_size": ROWS,
        "max_steps": STEPS,
        "callbacks": ["metrics"],
        "compile": "off",
        "threads": 1,
        "log_every": 1,
        "validation_every": 0,
    }
    section = TrainSection.model_validate(data | changes | {"schedule": "constant", "precision": "fp32", "prefetch": 0}, context={"registry": recipe.registry})
    out = StageOutput(tmp_path)
    with use_registry(recipe.registry):
        result = train_model(section, OneBatch(), None, None, tmp_path, out, vocab_size=VOCAB, checkpoint=False, save=False)
    out.close()
    first, last = (float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:: STEPS - 1])
    assert result.metrics["steps"] == STEPS
    assert math.isfinite(last)
    assert last < first
