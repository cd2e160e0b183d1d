"""Where a compiled training step spends its time, kernel by kernel, and how fast its matrix products are.

    python benchmarks/step_profile.py [12M|4M|1M] [--threads 0] [--eager]

At the shapes of train_speed.py, with its Llama-like model; fp32 or bf16 as `precision: auto` says.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from train_speed import SHAPES, swiglu_width

from feebcore.model.build import build_model
from feebcore.model.precision import execution, resolve_precision
from feebcore.parts import resolve_part
from feebcore.train.compilation import compiled
from feebcore.train.step import LossModule

STEPS = 3
WARM_UP = 8  # until the memory that steps free is as much as a step needs


def rate(event: Any) -> str:
    """GFLOP/s of a matrix product."""
    shapes, flops = event.input_shapes, 0
    if event.key == "aten::mm":
        flops = 2 * shapes[0][0] * shapes[0][1] * shapes[1][1]
    elif event.key == "aten::addmm":
        flops = 2 * shapes[1][0] * shapes[1][1] * shapes[2][1]
    elif event.key == "aten::bmm":
        flops = 2 * shapes[0][0] * shapes[0][1] * shapes[0][2] * shapes[1][2]
    return f"{flops * event.count / event.self_cpu_time_total / 1e3:.0f}" if flops else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES, nargs="?", default="1M")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    layers, width, heads, window, batch, vocab = SHAPES[args.shape]
    sizes = {"num_layers": layers, "d_model": width, "num_heads": heads, "lm_head": "tied"}
    model = build_model(
        resolve_part("architectures", {"name": "transformer", **sizes, "feedforward": {"name": "swiglu", "intermediate_size": swiglu_width(width)}}),
        vocab,
        window,
    )
    cpu = torch.device("cpu")
    module = LossModule(model, resolve_part("objectives", "next_token").build(), resolve_precision("auto", cpu), cpu)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(vocab, (batch, window))
    with execution(args.threads or len(os.sched_getaffinity(0)), True, torch.device("cpu")):
        forward = module if args.eager else compiled(module)

        def step() -> None:
            forward(tokens, tokens, None, None, None)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(WARM_UP):
            step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            for _ in range(STEPS):
                step()
    events = sorted(found.key_averages(group_by_input_shape=True), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    products = sum(e.self_cpu_time_total for e in events if rate(e))
    print(f"{total / STEPS / 1e3:.0f} ms a step, {products / total:.0%} of it in matrix products\n")
    print("| ms | share | calls | kernel | shapes | GFLOP/s |\n|---|---|---|---|---|---|")
    for e in events[:20]:
        shapes = " ".join("x".join(map(str, s)) for s in e.input_shapes[:3] if s)
        print(f"| {e.self_cpu_time_total / STEPS / 1e3:.1f} | {e.self_cpu_time_total / total:.1%} | {e.count // STEPS} | {e.key[:60]} | {shapes} | {rate(e)} |")


if __name__ == "__main__":
    main()
