"""A tokenizer folder: the part's own files and `part.json`, which says which part made them."""

from __future__ import annotations

from pathlib import Path

from feebcore.errors import ArtifactError
from feebcore.files import read_json, write_json
from feebcore.parts import Part
from feebcore.protocols import Tokenizer
from feebcore.registry import Registry, get_registry

PART_FILE = "part.json"


def save_part(folder: Path, part: Part) -> None:
    """Write `part.json`: name, options, and the file of a single-file plugin."""
    origin = part.spec.origin if part.spec.origin.endswith(".py") else ""
    write_json(Path(folder) / PART_FILE, {"name": part.name, "config": part.config.model_dump(mode="json"), "plugin_file": origin})


def load_tokenizer(folder: Path | str, registry: Registry | None = None) -> Tokenizer:
    """The tokenizer in a folder, of whatever part. Raises ArtifactError when it is none, UnknownPartError when the
    plugin that made it is not installed."""
    folder = Path(folder)
    if not (folder / PART_FILE).is_file():
        raise ArtifactError(f"{folder} is not a tokenizer folder (no {PART_FILE} in it)")
    saved = read_json(folder / PART_FILE)
    if registry is None:
        file = Path(saved["plugin_file"]) if saved.get("plugin_file") else None
        registry = get_registry((file,) if file and file.is_file() else ())
    spec = registry.resolve("tokenizers", saved["name"])
    config = spec.config.model_validate(saved["config"], context={"registry": registry})
    return Part("tokenizers", spec, config).build().load(folder)
