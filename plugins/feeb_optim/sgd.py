"""Gradient descent with momentum as torch has it: m = momentum m + g; w -= lr m, or lr (g + momentum m) with nesterov.

The penalty weight_decay w is added to g first (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html).
"""

from __future__ import annotations

import torch

from feeb_optim.configs import SgdConfig
from feeb_optim.role_groups import can_fuse, role_group
from feebcore.protocols import ParamGroup
from feebcore.train.parallel import is_sharded


def build(config: SgdConfig, groups: list[ParamGroup]) -> torch.optim.Optimizer:
    options = {"momentum": config.momentum, "nesterov": config.nesterov}
    sharded = any(is_sharded(p) for g in groups for p in g.parameters)  # torch's fused step does not take these
    fast = {"foreach": True} if sharded or not can_fuse(groups) else {"fused": True}
    return torch.optim.SGD([role_group(config, g, **options) for g in groups], **fast)
