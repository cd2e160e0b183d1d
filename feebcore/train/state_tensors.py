"""The tensors of a training state by name: of the model, of the optimizer; whole, or this rank's part of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from feebcore.errors import ArtifactError
from feebcore.train.parallel import is_sharded
from feebcore.train.tensor_files import Region, TensorFiles


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, each storage once (tied weights under their first name)."""
    yield from model.named_parameters()
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield name, buffer


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of the model."""
    return {name: t.detach() for name, t in named_tensors(model)}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors, or tensors sharded as the model is, into the model in place. Raises ArtifactError when names or
    shapes differ."""
    named = dict(named_tensors(model))
    check_names(named, set(tensors))
    with torch.no_grad():
        for name, target in named.items():
            check_shape(name, target.shape, tensors[name].shape)
            target.copy_(tensors[name])


def check_names(named: Mapping[str, Tensor], saved: set[str]) -> None:
    if named.keys() != saved:
        raise ArtifactError(f"the weights are of another model: {sorted(named.keys() ^ saved)[:4]} differ")


def check_shape(name: str, own: tuple[int, ...], saved: tuple[int, ...]) -> None:
    if tuple(own) != tuple(saved):
        raise ArtifactError(f"the weights are of another model: {name} has shape {list(saved)}, not {list(own)}")


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State tensors under "parameter name|key", and what is no tensor (state values, group options) as JSON values."""
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
    groups = [{k: v for k, v in g.items() if k != "params" and _is_plain(v)} for g in optimizer.param_groups]
    return tensors, {"scalars": scalars, "groups": groups}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """The inverse of `optimizer_state`, bit for bit: no tensor changes its dtype on the way."""
    parameters = dict(model.named_parameters())
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}  # these keep even scalars beside the weights
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
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()})


# --- sharded -------------------------------------------------------------------------------------------------------


def region_of(tensor: Any) -> Region:
    """Where this rank's part of a sharded tensor lies; along the sharded dimension ranks hold ceil(n / world) rows each, the last fewer."""
    local = tensor.to_local()
    offset = [0] * tensor.dim()
    for dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            rows = tensor.shape[placement.dim]
            each = -(-rows // tensor.device_mesh.size(dim))
            offset[placement.dim] = min(rows, tensor.device_mesh.get_local_rank(dim) * each)
    return Region(tuple(tensor.shape), tuple(offset), tuple(local.shape))


def own_part(tensor: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Region | None, bool]:
    """This rank's part of `tensor`, its place (None: whole, the same on all ranks), and whether the part is a plain tensor.

    beside: the parameter that it belongs to; a plain tensor of the shape of that one's slice is a slice too.
    """
    if is_sharded(tensor):
        placements = tensor.placements  # type: ignore[attr-defined]
        if len(placements) == 1 and placements[0].is_shard():
            return tensor.to_local(), region_of(tensor), False  # type: ignore[attr-defined]
        return tensor.full_tensor(), None, False  # type: ignore[attr-defined]
    if beside is not None and is_sharded(beside) and tensor.dim() and tensor.shape == beside.to_local().shape:  # type: ignore[attr-defined]
        return tensor, region_of(beside), True
    return tensor, None, False


def read_into(files: TensorFiles, name: str, target: Tensor) -> None:
    """Fill `target`, or this rank's part of it. Raises ArtifactError when its shape is another."""
    check_shape(name, tuple(target.shape), files.shape(name))
    with torch.no_grad():
        if is_sharded(target):
            target.to_local().copy_(files.read(name, region_of(target)))  # type: ignore[attr-defined]
        else:
            target.copy_(files.read(name))


def read_beside(files: TensorFiles, name: str, parameter: Tensor | None) -> Tensor:
    """A tensor that belongs to `parameter`: sharded as that one is, where it has its shape."""
    if parameter is None or not is_sharded(parameter) or files.shape(name) != tuple(parameter.shape):
        return files.read(name)
    own = files.read(name, region_of(parameter)).to(parameter.device)
    if files.is_local(name):
        return own
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def _is_plain(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return True
    return False
