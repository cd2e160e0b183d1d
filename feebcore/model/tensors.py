"""The tensors of a model by name, and its residual blocks."""

from __future__ import annotations

from torch import Tensor, nn


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves (not copies), a shared one under its first name."""
    persistent = model.state_dict(keep_vars=True).keys()
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a transformer: the members of the lists that `model.stack` itself holds, each once."""
    stack = dict(model.named_children()).get("stack", nn.Module())
    lists = [module for module in stack.children() if isinstance(module, nn.ModuleList)]
    return list(dict.fromkeys(block for blocks in lists for block in blocks))
