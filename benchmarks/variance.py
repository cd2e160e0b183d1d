"""Which number of a run tells two recipes apart with the fewest seeds.

    python benchmarks/variance.py [--seeds 8] [--workspace DIR]

Trains both sides of five findings of the notebook at quick scale (a few seconds a run on one thread) and takes several numbers from the
same runs: the loss of the last weights, the mean of the last evaluations, the loss of averaged weights, each on a part of the validation
text or on all of it, and the training loss. Prints of each the standard deviation of the paired difference and the seeds that find .02
bits per byte with 80 % power. Sides are paired by their seed: data in the same order, and initial weights drawn by name, so equal
where names and shapes are; `other weights` pairs the data alone.

Numbers are kept in DIR/runs.jsonl: interrupted, it continues; with more seeds it adds to those that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from feebcore.artifacts import Artifact, StageOutput, Workspace
from feebcore.compare.statistics import seeds_needed
from feebcore.data.loader import make_batches
from feebcore.data.token_artifacts import open_tokens
from feebcore.evaluate.scorer import score_documents
from feebcore.files import read_jsonl
from feebcore.model.build import build_model
from feebcore.recipe import Recipe, load_study, quick_overrides
from feebcore.study.executors import current_execution
from feebcore.study.run import build_stages
from feebcore.train.callbacks import Callback
from feebcore.train.pretrain import train_model
from feebcore.train.pretrain_config import PretrainConfig

EFFECT = 0.02
FINDINGS = (  # study, baseline, variant, whether also with other initial weights
    ("b", "long-shallow-fast", "long-deep-fast", True),
    ("c", "standard", "parallel", False),
    ("c", "standard", "attention-through-feedforward", False),
    ("c", "standard", "attention-half", True),
    ("c", "standard", "attention-none", True),
)
OTHER_WEIGHTS = 1000
"""Added to the seed of the initial weights."""

PART = 16_384  # validation tokens


class Tail(Callback):
    """Weights after each step of the last half, and the training loss of each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.weights, self.losses = steps, {}, []  # type: ignore[var-annotated]

    def due(self, step: int) -> bool:
        return step > self.steps // 2

    def on_step_end(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.losses.append(metrics["loss"])
        if self.due(step):
            self.weights[step] = nn.utils.parameters_to_vector(self.run.model.parameters()).detach().clone()


def measure(recipe: Recipe, seed: int, weights_seed: int, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, float]:
    """All numbers of one run, bits per byte unless they say nats."""
    section = recipe.stages["pretrain"].section
    assert isinstance(section, PretrainConfig)
    section = section.model_copy(update={"seed": seed, "callbacks": [], "validation_every": 0, "log_every": section.max_steps})
    train, validation = (open_tokens(inputs["shard"], split, "") for split in ("train", "validation"))
    steps = section.max_steps
    data = make_batches(train, section.packing, section.data_order, section.batch_size, section.seq_len, seed, steps)
    model = build_model(section.architecture, train.vocab_size, section.seq_len, weights_seed)
    out, tail = StageOutput(folder), Tail(steps)
    section = section.model_copy(update={"callbacks": [_Made(tail)]})
    began = time.perf_counter()
    train_model(section, data, None, None, folder, out, vocab_size=train.vocab_size, model=model, checkpoint=False, save=False, final_score=False)
    out.close()
    trained = time.perf_counter()

    def score(weights: torch.Tensor, stride: int = section.seq_len, tokens: int | None = PART) -> float:
        with torch.no_grad():
            nn.utils.vector_to_parameters(weights, model.parameters())
        return score_documents(model, validation, section.seq_len, stride, max_tokens=tokens).total().bits_per_byte

    last = [tail.weights[steps - round(share * steps)] for share in (0, 0.05, 0.1, 0.15)]
    evaluations = [score(weights) for weights in last]
    numbers = {"last": evaluations[0], "mean of 2 evaluations": float(np.mean(evaluations[:2])), "mean of 4 evaluations": float(np.mean(evaluations))}
    whole = time.perf_counter()
    numbers["last, all text, stride T/2"] = score(last[0], section.seq_len // 2, None)
    seconds = {"training": trained - began, "scoring all": time.perf_counter() - whole}
    part = time.perf_counter()
    for share in (0.05, 0.1, 0.2, 0.4):
        numbers[f"average of last {share:.0%}"] = score(_mean(tail, steps, share))
        seconds.setdefault("scoring a part", time.perf_counter() - part)
    numbers["EMA 0.9"] = score(_ema(tail, 0.9))
    for share in (0.1, 0.25):
        numbers[f"training nats, last {share:.0%}"] = float(np.mean(tail.losses[-round(share * steps) :]))
    return numbers | {f"seconds {name}": value for name, value in seconds.items()}


class _Made:
    """A callback that is there already, in the place of a part that makes one."""

    name = "tail"

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def build(self) -> Callback:
        return self.callback


def _mean(tail: Tail, steps: int, share: float) -> torch.Tensor:
    return torch.stack([weights for step, weights in tail.weights.items() if step > steps - round(share * steps)]).mean(0)


def _ema(tail: Tail, decay: float) -> torch.Tensor:
    average, *rest = tail.weights.values()
    for weights in rest:
        average = decay * average + (1 - decay) * weights
    return average


def runs(options: argparse.Namespace, root: Path) -> Iterator[dict[str, Any]]:
    """Rows with study, variant, seed, weights_seed and numbers; those that are kept first."""
    path = root / "runs.jsonl"
    kept = read_jsonl(path)
    yield from kept
    done = {(row["study"], row["variant"], row["seed"], row["weights_seed"]) for row in kept}
    studies = {}
    for study in dict.fromkeys(finding[0] for finding in FINDINGS):
        recipe = f"experiments/notebook-{study}.yaml"
        studies[study] = {r.variant: r for r in reversed(load_study(recipe, quick_overrides(recipe)))}
    first = studies["c"]["standard"]
    inputs = build_stages(first.name, first, ["download", "tokenizer", "shard"], Workspace(root / "data"), {}, current_execution(), lambda row: None)
    for seed in range(options.seeds):
        for study, baseline, variant, also_other in FINDINGS:
            for name, weights_seed in [(baseline, seed), (variant, seed)] + [(variant, seed + OTHER_WEIGHTS)] * also_other:
                key = (study, name, seed, weights_seed)
                if key in done:
                    continue
                done.add(key)
                with tempfile.TemporaryDirectory() as folder:
                    numbers = measure(studies[study][name], seed, weights_seed, inputs, Path(folder))
                row = dict(zip(("study", "variant", "seed", "weights_seed"), key, strict=True)) | {"numbers": numbers}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{study} {name} seed {seed}: {numbers['last']:.4f}, {numbers['seconds training']:.1f} s", flush=True)
                yield row


def table(rows: list[dict[str, Any]]) -> str:
    together: dict[tuple[str, bool], list[float]] = {}
    by_place = {(row["study"], row["variant"], row["seed"], row["weights_seed"]): row["numbers"] for row in rows}
    lines = []
    for study, baseline, variant, also_other in FINDINGS:
        for other in (0, OTHER_WEIGHTS) if also_other else (0,):
            seeds = sorted(seed for s, v, seed, w in by_place if (s, v, w) == (study, variant, seed + other) and (study, baseline, seed, seed) in by_place)
            if len(seeds) < 3:
                continue
            lines += ["", f"{study}: {variant} - {baseline}{', other weights' if other else ''}, {len(seeds)} seeds", ""]
            lines += ["| number | difference | sd | seeds for .02 |", "|---|---|---|---|"]
            differences = {}
            for number in by_place[study, baseline, seeds[0], seeds[0]]:
                if not number.startswith("seconds"):
                    differences[number] = np.array([by_place[study, variant, s, s + other][number] - by_place[study, baseline, s, s][number] for s in seeds])
            for number, values in differences.items():
                lines.append(_row(number, values.mean(), values.std(ddof=1)))
                together.setdefault((number, bool(other)), []).append(values.var(ddof=1))
            for number in [n for n in differences if n.startswith("training")]:
                correlation = np.corrcoef(differences["last"], differences[number])[0, 1]
                left = differences["last"].std(ddof=1) * math.sqrt(1 - correlation**2)
                lines.append(_row(f"last given {number}: correlation {correlation:+.2f}", math.nan, left))
    lines += ["", "root mean square over findings", "", "| number | findings | sd | seeds for .02 |", "|---|---|---|---|"]
    for (number, other), variances in together.items():
        sd = math.sqrt(np.mean(variances))
        lines.append(f"| {number}{', other weights' if other else ''} | {len(variances)} | {sd:.4f} | {seeds_needed(EFFECT, sd) or 'over 10,000'} |")
    seconds = {key: np.median([row["numbers"][key] for row in rows]) for key in rows[0]["numbers"] if key.startswith("seconds")}
    return "\n".join([*lines, "", ", ".join(f"{key.removeprefix('seconds ')} {value:.2f} s" for key, value in seconds.items()) + " (medians)"])


def _row(number: str, mean: float, sd: float) -> str:
    return f"| {number} | {mean:+.4f} | {sd:.4f} | {seeds_needed(EFFECT, float(sd)) or 'over 10,000'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workspace", type=Path, help="where numbers are kept; default: a folder that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.workspace or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        print(table(list(runs(options, root))))


if __name__ == "__main__":
    main()
