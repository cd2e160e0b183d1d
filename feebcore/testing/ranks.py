"""One of the processes of the check two_rank_parity: `python -m feebcore.testing.ranks FOLDER RANK RANKS`.

Reads a job a line from its standard input and answers each with a line {"problem": ""}; ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from feebcore.registry import get_registry, use_registry
from feebcore.testing.framework import candidate, one_thread
from feebcore.testing.models import loss_of, small_model, some_tokens


def gradients(job: dict[str, Any], rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Of this rank's rows, by name."""
    from feebcore.parts import resolve_part

    registry = get_registry(tuple(map(Path, job["files"])))
    with use_registry(registry):
        subject = candidate(job["kind"], resolve_part(job["kind"], job["part"], registry), registry)
        model, tokens = small_model(subject), some_tokens(2 * ranks)
    loss_of(model, tokens[rank::ranks]).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def main(folder: Path, rank: int, ranks: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for line in sys.stdin:
        summed: dict[str, torch.Tensor] = {}
        problem = ""
        try:
            with one_thread(), contextlib.redirect_stdout(sys.stderr):
                summed = gradients(json.loads(line), rank, ranks)
        except Exception as error:  # a part under test may raise anything; it is reported, and the next part has its turn
            problem = f"{type(error).__name__}: {error}"
        problems: list[str] = [""] * ranks
        dist.all_gather_object(problems, problem)
        problem = next(filter(None, problems), "")
        if not problem:
            for gradient in summed.values():
                dist.all_reduce(gradient)
                gradient.div_(ranks)
            if rank == 0:
                save_file({name: g.contiguous() for name, g in summed.items()}, folder / "gradients.safetensors")
        print(json.dumps({"problem": problem}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
