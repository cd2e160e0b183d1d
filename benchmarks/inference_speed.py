"""Processor seconds of scoring and decoding, this checkout next to another one: what stages evaluate and rl spend their time on.

    python benchmarks/inference_speed.py [--before FOLDER] [--rounds 5] [--only NAME …]

At the quickstart's model (3 layers of 224, 4,096 ids, sequences of 128) with a head that is not zero: bits per byte of
documents of all lengths, sampled functions as `python_parses` samples them, held-out answers as `task_accuracy` decodes
them, and rollouts of RL, eight to a prompt. --before: another checkout of this project; rounds alternate between the two, and
printed are medians of processor seconds and of their ratios. A digest of the results says whether they are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("bits_per_byte", "functions", "answers", "answers_greedy", "rollouts")
VOCABULARY, WINDOW, DOCUMENTS = 4096, 128, 24


def jobs(precision: str) -> dict[str, Any]:
    """By name a function that does it once and returns numbers that must not change."""
    import numpy as np
    import torch

    from feebcore.evaluate.scorer import score_documents
    from feebcore.generate import decoding
    from feebcore.generate.engine import generate
    from feebcore.model.build import build_model
    from feebcore.model.precision import autocast
    from feebcore.parts import resolve_part

    parts = {"attention": {"name": "mha", "qk_norm": True}, "feedforward": "relu_squared", "norm": {"name": "rmsnorm", "learnable": False}}
    sizes = {"num_layers": 3, "d_model": 224, "num_heads": 4}
    model = build_model(resolve_part("architectures", {"name": "transformer", **sizes, **parts}), VOCABULARY, WINDOW).eval()
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(6, 1.2, DOCUMENTS).astype(np.int64), 4000) + 3

    class Store:
        num_documents, doc_bytes = DOCUMENTS, lengths * 3
        doc_offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = random.integers(0, VOCABULARY, int(lengths.sum()))

        def read(self, start: int, stop: int) -> Any:
            return self.tokens[start:stop]

    processors = [resolve_part("logits_processors", p).build() for p in ({"name": "temperature", "temperature": 0.8}, {"name": "top_p", "p": 0.95})]
    prompt = lambda number, length: [0, *np.random.default_rng(number).integers(1, VOCABULARY, length).tolist()]  # noqa: E731
    named = [prompt(i % 16, 4) for i in range(192)]
    asked = [prompt(i, 12 + i % 3) for i in range(512)]
    grouped = [prompt(i // 8, 12 + i // 8 % 3) for i in range(256)]

    def decoded(prompts: Any, tokens: int, **options: Any) -> Any:
        completions = generate(model, prompts, tokens, VOCABULARY + 1, **options)  # no end token: every row runs to its end
        return [c.tokens for c in completions]

    def rollouts() -> Any:
        with autocast(precision, torch.device("cpu")):
            return decoded(grouped, 16)

    return {
        "bits_per_byte": lambda: score_documents(model, Store(), dtype=precision).nats.round(2).tolist(),
        "functions": lambda: decoded(named, 96, logits_processors=processors),
        "answers": lambda: decoded(asked, 16),
        "answers_greedy": lambda: decoded(asked, 16, sampler=decoding.greedy),
        "rollouts": rollouts,
    }


def serve(precision: str) -> None:
    import torch

    from feebcore.model.precision import resolve_precision

    torch.set_num_threads(1)
    known = jobs(resolve_precision(precision, torch.device("cpu")))
    for line in sys.stdin:
        began = time.process_time()
        result = known[line.strip()]()
        print(json.dumps([time.process_time() - began, hashlib.sha256(json.dumps(result).encode()).hexdigest()[:12]]), flush=True)


class Checkout:
    def __init__(self, folder: Path, precision: str) -> None:
        paths = os.pathsep.join(str(folder / part) for part in ("", "plugins", "pipelines"))
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--precision", precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})

    def turn(self, name: str) -> tuple[float, str]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        seconds, digest = json.loads(self.process.stdout.readline())
        return seconds, digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=JOBS, default=JOBS)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.precision)
        return
    now = Checkout(ROOT, args.precision)
    before = Checkout(args.before.resolve(), args.precision) if args.before else None
    print("| job | before, s | now, s | now / before | same result |\n|---|---|---|---|---|")
    for name in args.only:
        pairs = [(before.turn(name) if before else (0.0, ""), now.turn(name)) for _ in range(args.rounds + 1)][1:]
        old, new = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        if not before:
            print(f"| {name} | | {new:.2f} | | |", flush=True)
            continue
        ratio = statistics.median(b[0] / a[0] for a, b in pairs)
        print(f"| {name} | {old:.2f} | {new:.2f} | {ratio:.2f} | {'yes' if pairs[0][0][1] == pairs[0][1][1] else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
