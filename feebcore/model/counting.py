"""Parameters and FLOPs of a model, by walking its modules: no forward pass, so a model on the meta device will do.

Every nn.Linear costs 2 FLOPs per weight and token. A module that multiplies matrices in another way, keeps a cache or draws its
own initial weights derives from ModelPart and overrides the method that says so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from feebcore.protocols import Counts, LanguageModel, Objective


class ModelPart(nn.Module):
    """nn.Module with hooks for FLOP and cache accounting, weight initialization and a per-step update. Every method has a default.

    The base classes of the kinds (feebcore/model/parts.py) derive from it; so may any module inside a part.
    """

    row_blocks: Mapping[str, tuple[int, ...]] = {}
    """Parameters [..., R, C] that hold several maps of one input on top of each other (q, k and v; gate and up), by name within the part:
    the rows of each map. Optimizers of matrices treat each map as a matrix of its own."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes (fp32) that the module itself, its children left out, caches per token of a row."""
        return 0

    @property
    def cache_bytes_fixed(self) -> int:
        """Bytes (fp32) that the module itself caches per row, however long the row is (the state of a recurrence)."""
        return 0

    def extra_flops(self, length: int) -> tuple[float, float]:
        """(full, causal) forward FLOPs of one sequence of `length` tokens, without those of nn.Linear and of child modules; causal
        leaves out what masks discard."""
        return 0.0, 0.0

    def flops(self, length: int) -> tuple[float, float]:
        """(full, causal) forward FLOPs of one sequence. Override it where children do not each run once per forward pass."""
        return walk_flops(self, length, self.extra_flops(length))

    def cache_bytes(self) -> tuple[int, int]:
        """(per token, fixed) bytes in the cache, fp32, children included. Override it where children do not each run once."""
        return add_caches([(self.cache_bytes_per_token, self.cache_bytes_fixed), *map(count_cache, self.children())])

    def init_weights(self, std: float, residual_std: float) -> None:
        """Fills the module's own parameters in place. The default leaves them to the initialization, which draws nn.Linear and
        nn.Embedding only. std: standard deviation of weights; residual_std: of weights whose result is added to the stream."""

    def after_optimizer_step(self) -> None:
        """Called once after every optimizer step, for state that is updated by a rule instead of a gradient."""


def _run_after_step(part: ModelPart, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    part.after_optimizer_step()


def hook_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Have the parts of `model` that have an `after_optimizer_step` called after every step of `optimizer`."""
    for module in model.modules():
        if isinstance(module, ModelPart) and type(module).after_optimizer_step is not ModelPart.after_optimizer_step:
            optimizer.register_step_post_hook(functools.partial(_run_after_step, module))


def draws_own_weights(module: nn.Module) -> bool:
    """Whether an initialization leaves this module's weights to its `init_weights`."""
    return isinstance(module, ModelPart) and type(module).init_weights is not ModelPart.init_weights


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


def training_flops(model: LanguageModel, objective: Objective, seq_len: int) -> float:
    """Training FLOPs per token: three forward passes of what is trained and one of what is not."""
    trained, frozen = objective.extra_flops(model, seq_len)
    return 3.0 * model.count().flops_per_token + (3.0 * trained + frozen) / seq_len


def count_flops(module: nn.Module, length: int) -> tuple[float, float]:
    """(full, causal) forward FLOPs of `module` on one sequence of `length` tokens."""
    return module.flops(length) if isinstance(module, ModelPart) else walk_flops(module, length)


def walk_flops(module: nn.Module, length: int, own: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """`own`, the module's weights if it is an nn.Linear, and its children, each once."""
    full, causal = own
    if isinstance(module, nn.Linear):
        full, causal = full + 2.0 * length * module.weight.numel(), causal + 2.0 * length * module.weight.numel()
    for child in module.children():
        child_full, child_causal = count_flops(child, length)
        full, causal = full + child_full, causal + child_causal
    return full, causal


def count_cache(module: nn.Module) -> tuple[int, int]:
    """(per token, fixed): bytes that `module` keeps in the cache for each token of a row, and for the row as such, in fp32."""
    return module.cache_bytes() if isinstance(module, ModelPart) else add_caches(map(count_cache, module.children()))


def add_caches(each: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The sums over several results of `count_cache`."""
    per_token, fixed = zip((0, 0), *each, strict=True)
    return sum(per_token), sum(fixed)
