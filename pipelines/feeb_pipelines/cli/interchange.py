"""`feeb import` and `feeb export`: convert models from and to the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption

Option = Annotated[
    list[str] | None,
    Parameter(name="--option", help="Set an option of the importer or exporter: --option seq_len=512. May be repeated.", negative=(), show_default=False),
]


def import_(
    source: Annotated[Path, Parameter(help="Folder with config.json and safetensors files, or a .gguf file.")],
    name: Annotated[str, Parameter(help="Its name in the workspace.")],
    /,
    *,
    importer: Annotated[str | None, Parameter(help="Importer (see `feeb parts importers`). Default: detected from SOURCE.")] = None,
    option: Option = None,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Import a model of another library. Recipes use it instead of pretraining with `inputs: {pretrain: NAME}`.

    Examples:
        feeb import ~/models/SmolLM2-135M smol
        feeb import smollm2.Q4_1.gguf smol --option seq_len=2048
    """
    import shutil
    import sys
    import tempfile
    import warnings

    from feeb_pipelines.cli.tables import print_json
    from feebcore.artifacts import Workspace, check_name, read_artifact
    from feebcore.errors import FeebError
    from feebcore.files import expand_user

    source, place = expand_user(source), Workspace(workspace)
    if not source.exists():
        raise FeebError(f"{source} does not exist")
    check_name(name)
    part = _part("importers", importer or _format_of(source), option)
    place.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.root, prefix=".import-") as temporary:  # same disk as the workspace: it has to fit there anyway
        model = Path(temporary) / "model"
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", UserWarning)
            part.build()(source, model)
        if has_tokenizer := (model / "tokenizer").is_dir():  # as stage tokenizer has it, so that a recipe can tokenize with it
            shutil.copytree(model / "tokenizer", Path(temporary) / "tokenizer")
        note = f"imported from {source.absolute()} by {part.name}"
        artifact = place.import_folder(Path(temporary), "pretrain", name, note, ("tokenizer",) if has_tokenizer else ())
    if json:
        print_json({"path": str(artifact.path), "fingerprint": artifact.fingerprint, "name": artifact.name})
    else:
        print(artifact.path)
    for remark in remarks:
        if issubclass(remark.category, UserWarning):
            print(f"feeb: {remark.message}", file=sys.stderr)
    if others := sorted({a.name for folder in place.folders(artifact.stage, artifact.fingerprint) if (a := read_artifact(folder))} - {name}):
        print(f"feeb: this model is in the workspace already, as {', '.join(others)}; {name} is another name for the same files", file=sys.stderr)
    if not has_tokenizer:
        print(f"feeb: {source} has no tokenizer: the model can be evaluated and trained on token ids, but cannot generate text", file=sys.stderr)


def export(
    model: Annotated[str, Parameter(help="Model: run name such as quickstart, STAGE/NAME, or path of an artifact or model folder.")],
    target: Annotated[Path, Parameter(help="Output folder.")],
    /,
    *,
    exporter: Annotated[str, Parameter(help="Exporter (see `feeb parts exporters`).")] = "huggingface",
    option: Option = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Export a model to the format of another library.

    Examples:
        feeb export quickstart exported/quickstart
        feeb export rl/quickstart exported/half --option dtype=bf16
    """
    from feebcore.api import open_run
    from feebcore.files import expand_user

    part = _part("exporters", exporter, option)
    folder = Path(model) if (Path(model) / "model.json").exists() else open_run(model, workspace).path / "model"
    part.build()(folder, expand_user(target))
    print(target)


def _format_of(source: Path) -> str:
    """The importer for a file or folder: by its first bytes, else by its suffix."""
    if source.is_dir():
        return "huggingface"
    with open(source, "rb") as stream:
        return "gguf" if stream.read(4) == b"GGUF" else source.suffix.removeprefix(".").lower() or "huggingface"


def _part(kind: str, name: str, options: list[str] | None) -> Any:
    """The part of this name with `key=value` options. Raises FeebError for invalid options."""
    from pydantic import ValidationError

    from feebcore.errors import FeebError
    from feebcore.parts import resolve_part
    from feebcore.recipe_yaml import parse_scalar

    pairs = [text.partition("=") for text in options or ()]
    for key, equals, _ in pairs:
        if not equals:
            raise FeebError(f"--option {key}: write --option key=value")
    try:
        return resolve_part(kind, {"name": name, **{key: parse_scalar(value) for key, _, value in pairs}})
    except ValidationError as error:
        raise FeebError("; ".join(e["msg"] for e in error.errors())) from None


COMMANDS = (import_, export)
