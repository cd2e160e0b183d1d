"""The cold first step of a compiled run, and its steps after that: the whole graph, a block at a time, with and without tried vectors.

    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 python benchmarks/compile_time.py [1M|4M|12M …] [--rounds 12] [--seconds 1.5]

Each candidate is a process with an empty cache; inductor's precompiled header stays warm in its folder of /tmp. Processor seconds
count the compiler's processes, which needs one compile thread. Steps are in rounds that alternate between the candidates, in processor
seconds, and printed is the median over rounds of the ratio to the first. Shapes and model are those of step_profile.py.
`probed-whole` is how the whole graph was compiled before inductor was spared trying instruction sets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from train_speed import SHAPES, swiglu_width

CANDIDATES = ("probed-whole", "whole", "blocks")


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def serve(name: str, shape: str) -> None:
    import torch

    from feebcore.model.build import build_model
    from feebcore.model.precision import execution, resolve_precision
    from feebcore.parts import resolve_part
    from feebcore.protocols import Batch
    from feebcore.train import compilation
    from feebcore.train.parallel import Strategy
    from feebcore.train.step import GradientAccumulator, LossModule

    layers, width, heads, window, batch, vocab = SHAPES[shape]
    sizes = {"num_layers": layers, "d_model": width, "num_heads": heads, "lm_head": "tied"}
    parts = {"feedforward": {"name": "swiglu", "intermediate_size": swiglu_width(width)}}
    model = build_model(resolve_part("architectures", {"name": "transformer", **sizes, **parts}), vocab, window)
    cpu = torch.device("cpu")
    module = LossModule(model, resolve_part("objectives", "next_token").build(), resolve_precision("auto", cpu), cpu)
    gradients = GradientAccumulator(module, Strategy(), 0, print)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(vocab, (batch, window))

    def step() -> None:
        gradients.add(Batch(tokens, tokens), batch * window, 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with execution(1, True, cpu):
        if name.startswith("probed"):
            compilation.trust_vector_instructions = lambda: None
        gradients.compile("blocks" if name == "blocks" else "whole")
        began, worked = time.perf_counter(), processor_seconds()
        step()
        print(json.dumps([time.perf_counter() - began, processor_seconds() - worked]), flush=True)
        for line in sys.stdin:
            number, worked = 0, time.process_time()
            while number < 2 or time.process_time() - worked < float(line):
                step()
                number += 1
            print(json.dumps((time.process_time() - worked) / number), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", choices=SHAPES, default=["1M"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.candidate:
        serve(args.candidate, args.shapes[0])
        return
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            processes, first = [], []
            for name in CANDIDATES:
                command = [sys.executable, __file__, shape, "--candidate", name]
                own = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{name}"}
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
                assert process.stdout
                first.append(json.loads(process.stdout.readline()))
                processes.append(process)
            times: list[list[float]] = [[] for _ in CANDIDATES]
            for _ in range(args.rounds):
                for process, taken in zip(processes, times, strict=True):
                    assert process.stdin
                    assert process.stdout
                    process.stdin.write(f"{args.seconds}\n")
                    process.stdin.flush()
                    taken.append(json.loads(process.stdout.readline()))
            for process in processes:
                process.communicate()
        print(f"\n{shape}\n| compiled | first step, s | processor s | of the first | ms per step | speed of the first |\n|---|---|---|---|---|---|")
        for name, (wall, worked), taken in zip(CANDIDATES, first, times, strict=True):
            speed = statistics.median(a / b for a, b in zip(times[0], taken, strict=True))
            print(f"| {name} | {wall:.0f} | {worked:.0f} | {worked / first[0][1]:.2f} | {statistics.median(taken) * 1e3:.0f} | {speed:.3f} |", flush=True)


if __name__ == "__main__":
    main()
