"""Model folders: `model.safetensors` (fp32), `model.json` (what to build), `tokenizer/` (a copy). No pickle.

A tied weight is stored once, under the first of its names.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from feebcore.artifacts import MANIFEST, read_artifact
from feebcore.errors import ArtifactError
from feebcore.files import explain, read_json, sync_folder, write_atomic, write_json
from feebcore.model.build import build_model
from feebcore.model.tensors import named_tensors
from feebcore.parts import Part, resolve_part

if TYPE_CHECKING:
    from feebcore.registry import Registry

WEIGHTS, DESCRIPTION, TOKENIZER = "model.safetensors", "model.json", "tokenizer"


def save_model(folder: Path, model: Any, architecture: Part, tokenizer_folder: Path | None = None) -> None:
    """Write a model folder, replacing an older one: a reader sees the old folder, the new one, or for an instant none."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_atomic(temporary / WEIGHTS, save(weights_of(model)))
        if tokenizer_folder is not None:
            shutil.copytree(tokenizer_folder, temporary / TOKENIZER)
        description = {"architecture": architecture.dump(), "vocab_size": model.vocab_size, "seq_len": model.seq_len}
        write_json(temporary / DESCRIPTION, description | {"counts": dataclasses.asdict(model.count())})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, registry: Registry | None = None) -> Any:
    """The model of a folder, in eval mode; dtype: None keeps fp32; on device meta without weights. Raises ArtifactError when the folder is damaged.

    In a finished artifact the weights' hash is compared with the manifest's first.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is not a model folder: it has no {name}")
    if (folder.parent / MANIFEST).exists() and (artifact := read_artifact(folder.parent)) is not None:
        artifact.check_hash(f"{folder.name}/{WEIGHTS}")
    description = read_json(folder / DESCRIPTION)
    try:
        architecture = resolve_part("architectures", description["architecture"], registry)
        vocab_size, seq_len = int(description["vocab_size"]), int(description["seq_len"])
    except (KeyError, TypeError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"no {error}"
        raise ArtifactError(f"{folder / DESCRIPTION} does not describe a model that can be built here: {why}") from None
    if torch.device(device).type == "meta":
        return build_model(architecture, vocab_size, seq_len, device="meta").eval()
    model = build_model(architecture, vocab_size, seq_len)
    load_weights(model, folder / WEIGHTS)
    return model.to(device=device, dtype=dtype).eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name on the CPU, floating ones in fp32, shared ones once."""
    plain = {name: tensor.detach().cpu() for name, tensor in named_tensors(model).items()}
    return {name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in plain.items()}


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy the weights of a safetensors file into `model`. Raises ArtifactError unless names and shapes are the model's."""
    try:
        stored = load(Path(file).read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{file} is truncated or damaged ({error}); build it again") from None
    set_weights(model, stored, str(file))


@torch.no_grad()
def set_weights(model: nn.Module, stored: dict[str, Tensor], origin: str) -> None:
    """Copy tensors named as in `weights_of(model)`; shared parameters stay shared. origin: for the error."""
    wanted = named_tensors(model)
    missing, unknown = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or unknown:
        parts = [
            f"{label} {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" for label, names in (("without", missing), ("with unknown", unknown)) if names
        ]
        raise ArtifactError(f"{origin} is {' and '.join(parts)}: it belongs to another architecture")
    for name, tensor in wanted.items():
        if tensor.shape != stored[name].shape:
            raise ArtifactError(f"{origin}: {name} has shape {tuple(stored[name].shape)}, the model wants {tuple(tensor.shape)}")
        tensor.copy_(stored[name])
