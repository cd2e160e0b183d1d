"""Which role each parameter has, for optimizers that treat roles differently."""

from __future__ import annotations

from torch import nn

from feebcore.model.counting import ModelPart
from feebcore.protocols import ParamGroup

ROLES = ("matrix", "embedding", "lm_head", "vector")


def param_groups(model: nn.Module, frozen: bool = False) -> list[ParamGroup]:
    """The trainable parameters by role, in the order of ROLES, empty roles left out; each parameter once. frozen: the
    others too.

    embedding: tables of nn.Embedding, positions and tied heads included. head: the rest of `model.lm_head` with two or
    more dimensions. vector: whatever has fewer than two. matrix: everything else.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = {id(p) for p in model.lm_head.parameters()}  # type: ignore[union-attr]
    blocks = {
        f"{prefix}.{key}" if prefix else key: rows
        for prefix, module in model.named_modules()
        if isinstance(module, ModelPart)
        for key, rows in module.row_blocks.items()
    }
    groups = {role: ParamGroup(role, [], []) for role in ROLES}
    for name, parameter in model.named_parameters():
        if not (frozen or parameter.requires_grad):
            continue
        if id(parameter) in tables:
            role = "embedding"
        elif parameter.ndim < 2:
            role = "vector"
        else:
            role = "lm_head" if id(parameter) in head else "matrix"
        groups[role].names.append(name)
        groups[role].parameters.append(parameter)
        if name in blocks:
            groups[role].row_blocks[name] = blocks[name]
    return [g for g in groups.values() if g.parameters]
