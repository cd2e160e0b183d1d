"""Checkpoints: `checkpoints/step-XXXXXXXX/{model.safetensors, optimizer.safetensors, state.json}`, no pickle.

A checkpoint is written to a temporary folder, synced and renamed, so a folder of that name is whole. state.json holds
the SHA-256 of the tensor files and of itself; one that is damaged is passed over for the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from feebcore.errors import ArtifactError
from feebcore.files import digest_of, explain, sync_folder

FOLDER = "checkpoints"
FORMAT = 1


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step` under `folder`/checkpoints and remove all but the newest `keep`.

    Raises ArtifactError when the disk is full or read-only; earlier checkpoints are untouched then.
    """
    root = Path(folder) / FOLDER
    final, temporary = root / name_of(step), root / f".{name_of(step)}.tmp"
    tensors, plain = optimizer_state(model, optimizer)
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {
            "model.safetensors": _write(temporary / "model.safetensors", save(model_tensors(model))),
            "optimizer.safetensors": _write(temporary / "optimizer.safetensors", save(tensors)),
        }
        whole = {"format": FORMAT, "step": step, "files": files, "optimizer": plain, **state}
        whole = json.loads(json.dumps(whole))
        _write(temporary / "state.json", (json.dumps(whole | {"digest": digest_of(whole)}, indent=1) + "\n").encode())
        sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        sync_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise explain(error, final) from error
    for old in checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, log: Callable[[str], None]) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint in place and return its state; None when there is none.

    Damaged ones are named through `log` and removed, as are the remains of one that a kill cut short.
    """
    for remains in (Path(folder) / FOLDER).glob(".step-*.tmp"):
        shutil.rmtree(remains, ignore_errors=True)
    for path in checkpoints(folder):
        try:
            state, files = read_checkpoint(path)
        except ArtifactError as error:
            log(f"checkpoint {path.name} cannot be used ({error}); trying the one before it")
            shutil.rmtree(path, ignore_errors=True)
            continue
        restore_model(model, load(files["model.safetensors"]))
        restore_optimizer(model, optimizer, load(files["optimizer.safetensors"]), state["optimizer"])
        return state
    return None


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """state.json and the bytes of the tensor files, all verified. Raises ArtifactError saying what is wrong."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        said = state.pop("digest")
        if digest_of(state) != said:
            raise ArtifactError("state.json was altered")
        if state["format"] > FORMAT:
            raise ArtifactError("it was written by a newer feeb")
        files = {}
        for name, entry in state["files"].items():
            content = (path / name).read_bytes()
            if len(content) != entry["size"]:
                raise ArtifactError(f"{name} has {len(content)} bytes, not {entry['size']}")
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ArtifactError(f"{name} was altered: its SHA-256 is wrong")
            files[name] = content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{type(error).__name__}: {error}") from error
    return state, files


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders under `folder`, newest first."""
    return sorted((p for p in (Path(folder) / FOLDER).glob("step-*") if p.is_dir()), reverse=True)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each storage once (tied weights under their first name)."""
    return {name: t.detach().contiguous() for name, t in _named(model)}


def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy into the model in place. Raises ArtifactError when names differ."""
    named = dict(_named(model))
    if named.keys() != tensors.keys():
        raise ArtifactError(f"the weights are of another model: {sorted(named.keys() ^ tensors.keys())[:4]} differ")
    with torch.no_grad():
        for name, target in named.items():
            if target.shape != tensors[name].shape:
                raise ArtifactError(f"the weights are of another model: {name} has shape {list(tensors[name].shape)}, not {list(target.shape)}")
            target.copy_(tensors[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State tensors under "parameter name|key", and what is no tensor (state values, group options) as JSON values."""
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[parameter]}|{key}"
            if isinstance(value, Tensor):
                tensors[place] = value.detach().contiguous()
            else:
                scalars[place] = value
    groups = [{k: v for k, v in g.items() if k != "params" and _is_plain(v)} for g in optimizer.param_groups]
    return tensors, {"scalars": scalars, "groups": groups}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`, bit for bit: no tensor changes its dtype on the way."""
    parameters = dict(model.named_parameters())
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}  # these keep even scalars beside the weights
    optimizer.state.clear()
    for place, value in [*tensors.items(), *plain["scalars"].items()]:
        name, _, key = place.rpartition("|")
        parameter = parameters[name]
        on_device = isinstance(value, Tensor) and (value.dim() > 0 or parameter in fused)
        optimizer.state[parameter][key] = value.to(parameter.device) if on_device else value
    for group, saved in zip(optimizer.param_groups, plain["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()})


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield name, buffer


def _is_plain(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return True
    return False


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
