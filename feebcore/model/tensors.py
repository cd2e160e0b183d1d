"""The tensors of a model by name, and its residual blocks."""

from __future__ import annotations

from torch import Tensor, nn

from feebcore.model.parts import BlockPart, StackPart


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves (not copies), a shared one under its first name."""
    persistent = model.state_dict(keep_vars=True).keys()
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def blocks_of(model: nn.Module) -> list[BlockPart]:
    """The residual blocks of a transformer's stack, each once; of another model none."""
    stack = dict(model.named_children()).get("stack")
    return stack.all_blocks() if isinstance(stack, StackPart) else []
