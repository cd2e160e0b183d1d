"""The tensors of a training state by name, model and optimizer: whole tensors or this rank's shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from feebcore.errors import ArtifactError
from feebcore.train.dtensor import ShardSpec, as_sharded, is_sharded, local_shard, shard_spec
from feebcore.train.optimizer import Optimizer
from feebcore.train.tensor_files import TensorFiles


def check_names(named: Mapping[str, Tensor], saved: set[str]) -> None:
    if named.keys() != saved:
        raise ArtifactError(f"the weights are of another model: {sorted(named.keys() ^ saved)[:4]} differ")


def check_shape(name: str, own: tuple[int, ...], saved: tuple[int, ...]) -> None:
    if tuple(own) != tuple(saved):
        raise ArtifactError(f"the weights are of another model: {name} has shape {list(saved)}, not {list(own)}")


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State tensors under "parameter name|key", and what is no tensor (state values, counters of groups) as JSON
    values. Options of groups are the recipe's and the strategy's, and are not part of the state."""
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[parameter]}|{key}"
            if isinstance(value, Tensor):
                tensors[place] = value.detach()
            else:
                scalars[place] = value
    counters = optimizer.counters if isinstance(optimizer, Optimizer) else ()
    groups = [{k: g[k] for k in counters if k in g} for g in optimizer.param_groups]
    return tensors, {"scalars": scalars, "groups": groups}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """The inverse of `optimizer_state`, bit for bit: no tensor changes its dtype on the way."""
    parameters = dict(model.named_parameters())
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}  # these keep even scalars next to the weights
    optimizer.state.clear()
    for place, value in [*tensors.items(), *plain["scalars"].items()]:
        name, _, key = place.rpartition("|")
        if name not in parameters:
            raise ArtifactError(f"the optimizer's state is of another model: it has {name!r}")
        parameter = parameters[name]
        on_device = isinstance(value, Tensor) and (value.dim() > 0 or parameter in fused)
        optimizer.state[parameter][key] = value.to(parameter.device) if on_device else value
    if len(optimizer.param_groups) != len(plain["groups"]):
        raise ArtifactError(f"the optimizer's state has {len(plain['groups'])} groups of parameters, this optimizer {len(optimizer.param_groups)}")
    for group, saved in zip(optimizer.param_groups, plain["groups"], strict=True):
        group.update(saved)


# --- sharded -------------------------------------------------------------------------------------------------------


def checkpoint_shard(tensor: Tensor, parameter: Tensor | None = None) -> tuple[Tensor, ShardSpec | None, bool]:
    """What this rank writes of `tensor`: its shard, the shard's place (None: the tensor is whole, the same on all ranks), and
    whether the shard is a plain tensor.

    parameter: the one that the tensor belongs to; a plain tensor with the shape of that one's shard is a shard too.
    """
    if is_sharded(tensor):
        placements = tensor.placements  # type: ignore[attr-defined]
        if len(placements) == 1 and placements[0].is_shard():
            return local_shard(tensor), shard_spec(tensor), False
        return tensor.full_tensor(), None, False  # type: ignore[attr-defined]
    if parameter is not None and is_sharded(parameter) and tensor.dim() and tensor.shape == local_shard(parameter).shape:
        return tensor, shard_spec(parameter), True
    return tensor, None, False


def read_into(files: TensorFiles, name: str, target: Tensor) -> None:
    """Fill `target`, or this rank's shard of it. Raises ArtifactError when its shape is another."""
    check_shape(name, tuple(target.shape), files.shape(name))
    with torch.no_grad():
        local_shard(target).copy_(files.read(name, shard_spec(target) if is_sharded(target) else None))


def read_like(files: TensorFiles, name: str, parameter: Tensor | None) -> Tensor:
    """A tensor that belongs to `parameter`: sharded as that one is, where it has its shape."""
    if parameter is None or not is_sharded(parameter) or files.shape(name) != tuple(parameter.shape):
        return files.read(name)
    shard = files.read(name, shard_spec(parameter)).to(parameter.device)
    return shard if files.is_local(name) else as_sharded(shard, parameter)
