"""The notebook's latent attention with experts at its full size: does it train on a CPU, at what cost?

    python benchmarks/b1.py [--steps 8] [--batch 1] [--rate 1e-3] [--threads 2]

12 layers of 512, 8 heads, vocabulary 32,000, windows of 1024; query latent 8, key/value latent 16, 512 content and 128 rotated
dimensions over the heads, so 64 and 16 each; 2 shared and 8 routed experts of 352 hidden units, the top 2 of them. Tokens are the
32,000 commonest words and characters of the standard library's source; fp32, AdamW at one rate, new windows at every step.
Prints parameters and cost, and for each step the loss, seconds and the process's largest memory so far.
"""

from __future__ import annotations

import argparse
import collections
import re
import resource
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor

from feebcore.model.build import build_model
from feebcore.model.groups import param_groups
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.train.optimizer_schedules import build_optimizer

VOCAB, LENGTH = 32_000, 1024
ARCHITECTURE = {
    "name": "transformer",
    "num_layers": 12,
    "d_model": 512,
    "num_heads": 8,
    "attention": {"name": "mla", "q_lora_rank": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 64, "qk_rope_head_dim": 16},
    "feedforward": {"name": "moe", "num_experts": 8, "top_k": 2, "num_shared": 2},
}


def tokens() -> Tensor:
    """[N] int64: words and characters by how common they are; rarer ones are the last id."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    pieces = re.findall(r"\w+|\W", "\n".join(f.read_text(errors="replace") for f in files))
    ids = {piece: i for i, (piece, _) in enumerate(collections.Counter(pieces).most_common(VOCAB - 1))}
    return torch.tensor([ids.get(piece, VOCAB - 1) for piece in pieces])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build_model(resolve_part("architectures", ARCHITECTURE), VOCAB, LENGTH, seed=0)
    counts = model.count()
    print(
        f"{counts.total / 1e6:.1f} M parameters, {counts.matmul / 1e6:.1f} M of them in products, {counts.cache_bytes_per_token} cache bytes a token, "
        f"{3e-9 * counts.flops_per_token:.2f} GFLOP a trained token"
    )
    text, random = tokens(), torch.Generator().manual_seed(0)
    objective = resolve_part("objectives", "next_token").build()
    optimizer = build_optimizer(resolve_part("optimizers", {"name": "adamw", "lr": arguments.rate}), param_groups(model))
    for step in range(arguments.steps):
        began = time.perf_counter()
        starts = torch.randint(len(text) - LENGTH - 1, (arguments.batch,), generator=random)
        rows = torch.stack([text[s : s + LENGTH + 1] for s in starts.tolist()])
        found = objective(model, Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))
        (found.loss_sum / found.count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        loss = float(found.metrics["nll"] / found.count)
        print(f"step {step}: loss {loss:.3f}, gradient norm {float(norm):.2f}, {time.perf_counter() - began:.1f} s, {memory:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
