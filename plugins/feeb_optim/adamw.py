"""AdamW (arXiv:1711.05101) and Adam (arXiv:1412.6980), one group a role.

torch's fused step: 2 ms for 4 M parameters on two cores, foreach 12 ms.
"""

from __future__ import annotations

import torch

from feeb_optim.configs import AdamConfig, AdamWConfig
from feeb_optim.role_groups import adamw_group, can_fuse
from feebcore.protocols import ParamGroup


def build(config: AdamWConfig, groups: list[ParamGroup]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([adamw_group(config, g) for g in groups], fused=can_fuse(groups))


def build_adam(config: AdamConfig, groups: list[ParamGroup]) -> torch.optim.Optimizer:
    return torch.optim.Adam([adamw_group(config, g) for g in groups], fused=can_fuse(groups))
