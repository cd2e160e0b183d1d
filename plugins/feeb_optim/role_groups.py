"""Torch parameter groups, one for each group of parameters that the trainer made, with its role's learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from feeb_optim.roles import AdamWConfig, RoleConfig
from feebcore.protocols import ParamGroup


def role_group(config: RoleConfig, group: ParamGroup, **options: Any) -> dict[str, Any]:
    """Everything that a schedule may set is in the group: lr, weight_decay and, where the optimizer has them, momentum or betas."""
    return {"params": group.parameters, "role": group.role, "lr": config.lr_of(group.role), "weight_decay": config.decay_of(group.role)} | options


def adamw_group(config: AdamWConfig, group: ParamGroup, **options: Any) -> dict[str, Any]:
    return role_group(config, group, betas=config.betas, eps=config.eps, **options)


def can_fuse(groups: list[ParamGroup]) -> bool:
    """Whether torch's fused steps support these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g.parameters)
