"""Gradient descent with momentum as torch has it: m = momentum m + g; w -= lr m, or lr (g + momentum m) with nesterov.

The penalty weight_decay w is added to g first (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html).
"""

from __future__ import annotations

import torch

from feeb_optim.role_groups import can_fuse, role_group
from feeb_optim.sgd import SgdConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import is_sharded
from feebcore.train.optimizer import Optimizer


class SGD(Optimizer, torch.optim.SGD):
    def __init__(self, config: SgdConfig, context: BuildContext) -> None:
        options = {"momentum": config.momentum, "nesterov": config.nesterov}
        sharded = any(is_sharded(p) for g in context.groups for p in g.parameters)  # torch's fused step does not take these
        fast = {"foreach": True} if sharded or not can_fuse(context.groups) else {"fused": True}
        super().__init__([role_group(config, g, **options) for g in context.groups], **fast)
