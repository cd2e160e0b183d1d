"""Sweeps that end in a second: the real planner, ledger and law, with losses of a law that is known in place of training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_sweep import SECTION, recipe

from feebcore.artifacts import StageOutput, Workspace
from feebcore.files import write_json
from feebcore.run.build import run_all
from feebcore.scaling.sweep import Sweep
from feebcore.scaling.use import section_of
from feebcore.study.ledger import this_owner

BUDGET = 1e15

ADAPTIVE: dict[str, Any] = {
    "train": SECTION["train"] | {"seq_len": 64, "batch_size": 8},
    "planner": {"name": "adaptive", "budget": BUDGET, "max_epochs": 1e12, "min_steps": 50},
    "law": "posterior",
    "target": 3 * BUDGET,
}


def made(root: Path, diverges: tuple[str, ...] = (), best_factor: float = 1.6, off: Mapping[str, float] | None = None, **changes: Any) -> Path:
    """The folder of a sweep with law.json. diverges: starts of names of runs without a loss; off: factors of the loss of the first run
    whose name starts so."""
    left = dict(off or {})
    made_recipe = recipe(root, **changes)
    built = run_all(made_recipe, Workspace(root / "data"), ["shard"])
    folder = root / "data" / "sweep" / "tiny-0123456789ab"
    folder.mkdir(parents=True)
    write_json(folder / "recipe.json", json.loads(json.dumps(made_recipe.resolved())))
    write_json(folder / "environment.json", {"feeb": "0.1.0", "commit": "0123456789abcdef"})
    out = StageOutput(folder)
    with Sweep(section_of(made_recipe), made_recipe, {"tokens": built["shard"], "tokenizer": built["tokenizer"]}, out) as sweep:
        while True:
            known = {record.name: record for record in sweep.ledger.records()}
            if not (fresh := [spec for spec in sweep.propose(known) if spec.name not in known]):
                break
            sweep.ledger.plan(fresh, {spec.name: spec.name for spec in fresh})
            while record := sweep.ledger.lease(this_owner()):
                if record.name.startswith(diverges):
                    sweep.ledger.diverged(record.name, "loss is NaN at step 20", this_owner())
                else:
                    result = _result(sweep, record.name, record.overrides, record.flops, best_factor)
                    if start := next((start for start in left if record.name.startswith(start)), None):
                        result["loss"] *= left.pop(start)
                    sweep.ledger.done(record.name, result, this_owner())
        ended = sweep.ledger.records()
        sweep.write_cells(ended)
        sweep.report(ended)
    out.close()
    return folder


def _result(sweep: Sweep, name: str, overrides: Mapping[str, Any], flops: float, best_factor: float) -> dict[str, Any]:
    cost = sweep.situation.measure(overrides)
    counts, tokens = cost.counts, flops / cost.flops_per_token
    factor = overrides.get("optimizer.lr", sweep.section.train.optimizer.config.lr) / sweep.section.train.optimizer.config.lr
    rate = math.exp(0.006 * math.log(factor / best_factor) ** 2)
    loss = (1.7 + 25 * counts.non_embedding**-0.36 + 45 * tokens**-0.34) * rate * math.exp(random.Random(f"{name}{overrides.get('seed')}").gauss(0, 0.001))
    parameters = {"total": counts.total, "non_embedding": counts.non_embedding, "matmul": counts.matmul}
    numbers = {"steps": overrides["max_steps"], "tokens": tokens, "flops": flops, "final_loss": loss, "parameters": parameters, "seconds": 1.0}
    return numbers | {"loss": loss, "bits_per_byte": loss / 3, "epochs": 0.1}
