"""Optimizers with a rule of their own for the role 'matrix', and AdamW (arXiv:1711.05101) for the other roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.owners import OwnersOptimizer
from feeb_optim.role_groups import adamw_group, can_fuse
from feeb_optim.roles import AdamWConfig
from feebcore.protocols import BuildContext, ParamGroup
from feebcore.train.dtensor import local_shard


def groups_of(config: AdamWConfig, groups: list[ParamGroup], **options: Any) -> list[dict[str, Any]]:
    """Torch groups; `options` are for those of role 'matrix'."""
    fused = can_fuse(groups)
    return [adamw_group(config, g, by_matrix=g.role == "matrix", fused=fused, **(options if g.role == "matrix" else {})) for g in groups]


def row_blocks_of(context: BuildContext, split: bool) -> dict[Tensor, tuple[int, ...]]:
    """Of the matrices that hold several maps of one input: the rows of each. split: False for none at all."""
    named = [(name, p, group.row_blocks) for group in context.groups for name, p in zip(group.names, group.parameters, strict=True)]
    return {p: blocks[name] for name, p, blocks in named if split and name in blocks}


class MatrixOptimizer(OwnersOptimizer):
    """Groups with by_matrix hold matrices [..., R, C] (leading dimensions are a batch) for `matrix_step`.

    split_fused: whether maps in one matrix are matrices of their own. Of several ranks the owner of a matrix computes its step.
    """

    def __init__(self, groups: list[dict[str, Any]], context: BuildContext, split_fused: bool) -> None:
        self.row_blocks = row_blocks_of(context, split_fused)
        super().__init__(groups, context.world)

    def cost(self, parameter: Any) -> int:
        """Of a matrix in a step, about proportional to its multiply-adds."""
        return sum(parameter.numel() // parameter.shape[-2] * rows * min(rows, parameter.shape[-1]) for rows in self.rows_of(parameter))

    def rows_of(self, parameter: Any) -> tuple[int, ...]:
        """Of each map in the matrix."""
        return self.row_blocks.get(parameter, (parameter.shape[-2],))

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self.matrix_step if group["by_matrix"] else self._adamw)(group, parameters)

    def _adamw(self, group: dict[str, Any], parameters: list[Any]) -> None:
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=local_shard(p).device if local_shard(p).is_cuda else None)
        adamw(
            shards_of(parameters),
            gradients_of(parameters),
            state_of(self, parameters, "exp_avg"),
            state_of(self, parameters, "exp_avg_sq"),
            [],
            [self.state[p]["step"] for p in parameters],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
