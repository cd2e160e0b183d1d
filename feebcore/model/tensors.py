"""The tensors of a model by name, and its residual blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from feebcore.model.parts import BlockPart, StackPart


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves (not copies), a shared one under its first name."""
    persistent = model.state_dict(keep_vars=True).keys()
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def replace_tensors(module: nn.Module, make: Callable[[str, Tensor], Tensor]) -> None:
    """Put `make(name, tensor)` in the place of every parameter and buffer, also of those that no state has; tied ones stay tied.
    name: the first one, relative to `module`."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by the identity of the old one, which therefore has to stay alive
    for prefix, owner in module.named_modules():
        for own in (owner._parameters, owner._buffers):
            for key, old in own.items():
                if old is None:
                    continue
                if id(old) not in made:
                    made[id(old)] = old, make(f"{prefix}.{key}" if prefix else key, old)
                own[key] = made[id(old)][1]  # type: ignore[assignment]


def blocks_of(model: nn.Module) -> list[BlockPart]:
    """The residual blocks of a transformer's stack, each once; of another model none."""
    stack = dict(model.named_children()).get("stack")
    return stack.all_blocks() if isinstance(stack, StackPart) else []
