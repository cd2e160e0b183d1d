"""Tokens per second of a training step: feeb's Trainer compared with a bare PyTorch loop around other people's models.

    python benchmarks/train_speed.py [--quick] [--shapes 12M 4M 1M] [--rounds 5] [--seconds 4] [--threads 0] [--cpu-time]
                                     [--precision auto] [--json FILE]

Peers: transformers' GPT-2 and Llama (`pip install "feeb[bench]"`), litgpt's GPT (`pip install --no-deps litgpt lightning
lightning-utilities pytorch-lightning torchmetrics psutil`: it asks for an older huggingface-hub than feeb's other packages,
so it is in no extra); one that is missing is left out and named. Each eager and compiled, with fused AdamW and clipping;
the faster form counts. Ours: a GPT-2-like transformer and a Llama-like one (RMSNorm, rotary positions, SwiGLU), both through `Trainer.step`, deterministic, with clipping. Same
layers, heads, width, window, batch and vocabulary, tied embeddings, parameters within 3 % of each other.

Each candidate is a process of its own that compiles and then waits for its turn; rounds alternate between them. Printed are
medians over rounds, the share of the matmul peak (2048^3 in the candidates' precision, measured in the same rounds) that the declared training FLOPs
make, and the ratio to the best peer. A first round warms up and is not counted. On a machine that others use too,
`--threads 1 --cpu-time` still gives ratios. --quick: two rounds of a second, smallest shape.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES = {  # layers, width, heads, window, batch, vocabulary
    "12M": (6, 384, 6, 256, 16, 4096),
    "4M": (4, 256, 4, 256, 16, 4096),
    "1M": (4, 128, 4, 128, 32, 2048),
}
TARGETS = {"12M": 1.3, "4M": 1.4, "1M": 1.8}
OURS = ("feeb-gpt2", "feeb-llama")
PEERS = tuple(f"{name}{form}" for name in ("gpt2", "llama", "litgpt") for form in ("-eager", "-compiled"))


# --- one candidate ------------------------------------------------------------------------------------------------


def swiglu_width(width: int) -> int:
    """Hidden width at which three matrices hold what a feedforward of 4 x width holds in two."""
    return round(8 * width / 3)


def peer_model(name: str, shape: tuple[int, ...]) -> Any:
    """The peer's module, and how it gives logits."""
    layers, width, heads, window, _, vocab = shape
    if name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        gpt2 = GPT2Config(vocab_size=vocab, n_positions=window, n_embd=width, n_layer=layers, n_head=heads, use_cache=False, **dropout)
        return GPT2LMHeadModel(gpt2), lambda module, tokens: module(input_ids=tokens).logits
    if name == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": width, "intermediate_size": swiglu_width(width), "num_hidden_layers": layers, "num_attention_heads": heads}
        llama = LlamaConfig(vocab_size=vocab, max_position_embeddings=window, use_cache=False, tie_word_embeddings=True, **sizes)
        return LlamaForCausalLM(llama), lambda module, tokens: module(input_ids=tokens).logits
    from litgpt.config import Config
    from litgpt.model import GPT

    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "intermediate_size": swiglu_width(width)}
    parts = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0, "parallel_residual": False, "bias": False}
    module = GPT(Config(block_size=window, vocab_size=vocab, padded_vocab_size=vocab, **sizes, **parts))
    module.lm_head.weight = module.transformer.wte.weight
    return module, lambda module, tokens: module(tokens)


def peer_step(name: str, shape: tuple[int, ...], precision: str) -> tuple[Any, int]:
    """A step of the bare loop, and the number of parameters."""
    import torch
    from torch.nn import functional as F

    from feebcore.model.precision import autocast

    name, _, form = name.partition("-")
    module, logits_of = peer_model(name, shape)
    module.train()
    called = torch.compile(module, dynamic=False) if form == "compiled" else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    window, batch, vocab = shape[3:]
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        tokens = torch.randint(vocab, (batch, window + 1), generator=generator)
        with autocast(precision, torch.device("cpu")):
            logits = logits_of(called, tokens[:, :-1].contiguous())
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, sum(p.numel() for p in module.parameters())


def our_step(name: str, shape: tuple[int, ...], precision: str, threads: int) -> tuple[Any, int]:
    """`Trainer.step` as stage pretrain calls it, and the number of parameters."""
    import tempfile

    import torch

    from feebcore.artifacts import StageOutput
    from feebcore.protocols import Batch
    from feebcore.train import loop
    from feebcore.train.config import TrainSection
    from feebcore.train.pretrain import train_model

    layers, width, heads, window, batch, vocab = shape
    parts: dict[str, Any] = {"attention": {"name": "mha", "bias": True}, "feedforward": {"name": "gelu", "bias": True}, "norm": "layernorm"}
    if name == "feeb-llama":
        parts = {"feedforward": {"name": "swiglu", "intermediate_size": swiglu_width(width)}}
    parts |= {"position": "learned" if name == "feeb-gpt2" else "rope", "lm_head": "tied"}
    section = TrainSection.model_validate(
        {
            "architecture": {"name": "transformer", "num_layers": layers, "d_model": width, "num_heads": heads, **parts},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": "constant",
            "seq_len": window,
            "batch_size": batch,
            "max_steps": 10**6,
            "compile": "on",
            "precision": precision,
            "threads": threads,
            "callbacks": [],
            "validation_every": 0,
        }
    )

    class Random:
        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            tokens = torch.randint(vocab, (batch, window + 1), generator=torch.Generator().manual_seed(step))
            return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    class Finished(Exception):
        pass

    found: dict[str, int] = {}

    def train(trainer: loop.Trainer) -> None:
        """In place of the whole run: the same step, whenever a turn comes."""
        trainer.run.model.train()
        found["number"] = 0

        def step() -> float:
            trainer.step(found["number"])
            trainer.report()
            found["number"] += 1
            return trainer.state.recent[-1]

        serve(step, sum(p.numel() for p in trainer.run.model.parameters()))
        raise Finished

    loop.Trainer.train = train  # type: ignore[method-assign, assignment]
    folder = Path(tempfile.mkdtemp())
    try:
        train_model(section, Random(), None, None, folder, StageOutput(folder), vocab_size=vocab, checkpoint=False, save=False)
    except Finished:
        sys.exit()
    raise AssertionError("the trainer did not train")


def peak_step(precision: str) -> tuple[Any, int]:
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)

    def multiply() -> float:
        torch.mm(a, b)
        return 0.0

    return multiply, 0


def serve(step: Any, parameters: int) -> None:
    """Compile, say so, then take a turn of so many seconds for each line that comes in."""
    began = time.perf_counter()
    step()
    print(json.dumps({"first_seconds": time.perf_counter() - began, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        seconds, done, began, worked = float(line), 0, time.perf_counter(), time.process_time()
        while done < 2 or time.perf_counter() - began < seconds:
            step()
            done += 1
        print(json.dumps({"wall": (time.perf_counter() - began) / done, "cpu": (time.process_time() - worked) / done}), flush=True)


def candidate(name: str, shape: tuple[int, ...], precision: str, threads: int) -> None:
    import torch

    from feebcore.model.precision import resolve_precision

    torch.manual_seed(0)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    precision = resolve_precision(precision, torch.device("cpu"))
    if name == "peak":
        serve(*peak_step(precision))
    elif name in OURS:
        our_step(name, shape, precision, threads)
    else:
        serve(*peer_step(name, shape, precision))


# --- all of them --------------------------------------------------------------------------------------------------


class Process:
    """A candidate in a process of its own, compiled when this returns."""

    def __init__(self, name: str, shape: str, args: argparse.Namespace) -> None:
        self.name, self.clock = name, "cpu" if args.cpu_time else "wall"
        command = [sys.executable, __file__, "--candidate", name, "--shapes", shape, "--threads", str(args.threads), "--precision", args.precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.times: list[float] = []
        self.ready = self._line()

    def turn(self, seconds: float) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self._line()[self.clock]

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout
        line = ""
        while not line.startswith("{"):
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"{self.name} ended: {(self.process.communicate()[1] or '').strip().splitlines()[-1:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate(timeout=60)


def flops_per_token(shape: tuple[int, ...]) -> float:
    """Of training, by the declared count of the GPT-2-like model: forward, full T x T, times 3."""
    layers, width, _, window, _, vocab = shape
    return 3 * (2 * (12 * layers * width**2 + vocab * width) + 4 * layers * window * width)


def compare(shape_name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = SHAPES[shape_name]
    processes = []
    for name in ("peak", *OURS, *PEERS):
        try:
            processes.append(Process(name, shape_name, args))
        except RuntimeError as error:
            print(f"left out: {error}", flush=True)
    for number in range(args.rounds + 1):
        for process in processes:
            seconds = process.turn(args.seconds if process.name != "peak" else args.seconds / 4)
            if number:
                process.times.append(seconds)
    for process in processes:
        process.close()
    peak = 2 * 2048**3 / statistics.median(processes[0].times)
    best = min(statistics.median(p.times) for p in processes if p.name in PEERS)
    print(f"\n{shape_name}: {shape[0]} x {shape[1]}, T {shape[3]}, batch {shape[4]}, V {shape[5]}; matmul peak {peak / 1e9:.0f} GFLOP/s")
    print("| candidate | parameters | first step, s | tokens/s | lowest to highest | share of peak | ratio to best peer |\n|---|---|---|---|---|---|---|")
    rows = []
    for process in processes[1:]:
        median, tokens = statistics.median(process.times), shape[3] * shape[4]
        row = {
            "shape": shape_name,
            "candidate": process.name,
            "parameters": process.ready["parameters"],
            "first_seconds": round(process.ready["first_seconds"], 1),
            "tokens_per_second": round(tokens / median),
            "range": [round(tokens / max(process.times)), round(tokens / min(process.times))],
            "share_of_peak": round(tokens / median * flops_per_token(shape) / peak, 3),
            "ratio": round(best / median, 3),
        }
        rows.append(row)
        print(
            f"| {process.name} | {row['parameters'] / 1e6:.2f} M | {row['first_seconds']} | {row['tokens_per_second']:,} "
            f"| {row['range'][0]:,} to {row['range'][1]:,} | {row['share_of_peak']:.0%} | {row['ratio']:.2f} |"
        )
    top = max(row["ratio"] for row in rows if row["candidate"] in OURS)
    print(f"best of ours: {top:.2f} x the best peer (target {TARGETS[shape_name]})", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="time what the processor did, not what passed; with --threads 1 on a busy machine")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.candidate:
        candidate(args.candidate, SHAPES[args.shapes[0]], args.precision, args.threads)
        return
    if args.quick:
        args.shapes, args.rounds, args.seconds = ["1M"], 2, 1.0
    rows = [row for name in args.shapes for row in compare(name, args)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
