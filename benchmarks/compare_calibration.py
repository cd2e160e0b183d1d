"""Whether `feeb compare` is calibrated on real training: a recipe against itself, again and again, under other seeds.

    python benchmarks/compare_calibration.py [--comparisons 30] [--seeds 5] [--steps 60] [--workspace DIR]

Every comparison trains a byte model of some thousand parameters on the source of pydantic, --seeds times a side,
all under seeds of their own, through the same code as the command. Prints how many were called different compared with what
chance allows at the 5 % level, and how often the sentence 'no difference larger than X' or 'cannot tell' was given. Runs
are artifacts: interrupted, it continues; with more comparisons it adds to those that are there.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path
from typing import Any

from scipy import stats

from feebcore.artifacts import Workspace
from feebcore.compare.plan import Settings
from feebcore.compare.run import compare
from feebcore.files import read_json
from feebcore.recipe import load

RECIPE = """
name: calibration
stages: [download, tokenizer, shard, pretrain]
download: {{sources: [{{name: package, package: pydantic, files: ["_internal/*.py"]}}], split_modulus: 8}}
tokenizer: {{tokenizer: byte}}
pretrain:
  architecture: {{name: transformer, num_layers: 1, d_model: 32, num_heads: 2}}
  optimizer: {{name: adamw, lr: 0.01}}
  schedule: {{name: cosine, warmup_steps: 5}}
  seq_len: 64
  batch_size: 8
  max_steps: {steps}
  validation_stride: 64
  validation_every: 0
  checkpoint_every: 0
  precision: fp32
  threads: 1
  compile: "off"
"""


def one(path: Path, workspace: Workspace, number: int, seeds: int) -> dict[str, Any]:
    """The `number`-th comparison of the recipe with itself: its variant as the result has it."""
    member = load(path, [f"pretrain.seed={2 * seeds * number}"])
    settings = Settings(seeds=seeds, tune_lr="off", curve=(), name=f"calibration-{number}")
    artifact = compare([member, member], settings, workspace)
    return read_json(artifact.file("result.json"))["variants"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workspace", type=Path, help="where runs are kept; default: a folder that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.workspace or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        path = root / "calibration.yaml"
        path.write_text(RECIPE.format(steps=options.steps))
        kinds: collections.Counter[str] = collections.Counter()
        p_values, began = [], time.monotonic()
        for number in range(options.comparisons):
            variant = one(path, Workspace(root / "data"), number, options.seeds)
            kinds[variant["kind"]] += 1
            p_values.append(variant["p"])
            print(
                f"{number + 1:3d}: {variant['difference']:+.4f} ({variant['low']:+.4f} to {variant['high']:+.4f}), p {variant['p']:.3f}, {variant['kind']}",
                flush=True,
            )
    false = kinds["better"] + kinds["worse"]
    allowed = int(stats.binom.ppf(0.99, options.comparisons, 0.05))
    print(f"\n{options.comparisons} comparisons of a recipe with itself, {2 * options.seeds} runs each, in {time.monotonic() - began:.0f} s")
    print(f"called different: {false}; expected {0.05 * options.comparisons:.1f}, at most {allowed} in 99 of 100 such benchmarks")
    print(f"verdicts: {dict(kinds)}")
    if len(p_values) > 1:
        print(f"p values are uniform: Kolmogorov-Smirnov p {stats.kstest(p_values, 'uniform').pvalue:.3f}")


if __name__ == "__main__":
    main()
