"""Parameters and FLOPs of a model, by walking its modules: no forward pass, so a model on the meta device will do.

Every nn.Linear costs 2 FLOPs a weight and token. A module that multiplies matrices otherwise says so with
`extra_flops(T) -> (full, causal)`, FLOPs for one sequence of T tokens, where causal leaves out what masks throw away;
one that caches says `cache_bytes_per_token` (fp32), and `cache_bytes_fixed` for what a row keeps however long it is. A module
whose children do not each run once a forward pass overrides the walk with `flops(T) -> (full, causal)` and, where they cache,
`cache_bytes() -> (a token, fixed)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from feebcore.protocols import Counts


def count_model(model: nn.Module, seq_len: int) -> Counts:
    """Counts of `model` at `seq_len` tokens a sequence. Its head is `model.lm_head`."""
    named = dict(model.named_parameters())
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = [p for p in model.lm_head.parameters() if p.ndim >= 2]  # type: ignore[union-attr]
    in_head = {id(p) for p in head}
    matrices = [p for p in named.values() if p.ndim >= 2 and id(p) not in tables and id(p) not in in_head]
    full, causal = count_flops(model, seq_len)
    per_token, fixed = count_cache(model)
    return Counts(
        total=sum(p.numel() for p in named.values()),
        non_embedding=sum(p.numel() for p in named.values() if id(p) not in tables),
        matmul=sum(p.numel() for p in matrices) + sum(p.numel() for p in head),
        flops_per_token=full / seq_len,
        flops_per_token_causal=causal / seq_len,
        cache_bytes_per_token=per_token,
        cache_bytes_fixed=fixed,
    )


def training_flops(model: nn.Module, objective: Any, seq_len: int) -> float:
    """Training FLOPs a token: three forwards of what learns and one of what does not. An objective that runs more than the model
    and its head once says what, with `extra_flops(model, length) -> (trained, frozen)`: forward FLOPs of a sequence."""
    extra = getattr(objective, "extra_flops", None)
    trained, frozen = extra(model, seq_len) if callable(extra) else (0.0, 0.0)
    return 3.0 * model.count().flops_per_token + (3.0 * trained + frozen) / seq_len  # type: ignore[operator]


def count_streams(model: nn.Module) -> int:
    """How many layers `want_layers` gives: what `model.stack` says (`num_streams`), else what a pass over one token shows."""
    known = getattr(getattr(model, "stack", None), "num_streams", None)
    if known is not None:
        return int(known)
    was_training = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        layers = model.eval()(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device), want_layers=True).layers
    model.train(was_training)
    return len(layers)


def count_flops(module: nn.Module, length: int) -> tuple[float, float]:
    """(full, causal) forward FLOPs of `module` on one sequence of `length` tokens."""
    if callable(whole := getattr(module, "flops", None)):
        return whole(length)
    extra = getattr(module, "extra_flops", None)
    full, causal = extra(length) if callable(extra) else (0.0, 0.0)
    if isinstance(module, nn.Linear):
        full, causal = full + 2.0 * length * module.weight.numel(), causal + 2.0 * length * module.weight.numel()
    for child in module.children():
        child_full, child_causal = count_flops(child, length)
        full, causal = full + child_full, causal + child_causal
    return full, causal


def count_cache(module: nn.Module) -> tuple[int, int]:
    """(a token, fixed): bytes that `module` keeps in the cache for each token of a row, and for the row as such, in fp32."""
    if callable(whole := getattr(module, "cache_bytes", None)):
        return whole()
    return add_caches([(getattr(module, "cache_bytes_per_token", 0), getattr(module, "cache_bytes_fixed", 0)), *map(count_cache, module.children())])


def add_caches(each: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The sums over several results of `count_cache`."""
    per_token, fixed = zip((0, 0), *each, strict=True)
    return sum(per_token), sum(fixed)
