"""The Python API: open a run, read its metrics, load its model, generate. For notebooks and scripts.

    import feebcore as feeb

    feeb.runs()                                   # every artifact of the workspace, a polars frame
    run = feeb.open_run("quickstart", stage="pretrain")
    run.metrics["val_bits_per_byte"]
    run.log().filter(split="validation")                 # the training log, a polars frame
    print(run.generate("def main(", max_new_tokens=64, temperature=0.8))
    model, tokenizer = feeb.open_model("exported/model")

Importing this loads no torch and no polars; they come with the first call that needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from feebcore.artifacts import MANIFEST, Artifact, Workspace, read_artifact
from feebcore.errors import ArtifactError, did_you_mean
from feebcore.files import read_json, read_jsonl
from feebcore.registry import Registry, get_registry

if TYPE_CHECKING:
    import polars as pl

    from feebcore.protocols import LanguageModel, Tokenizer


class OpenedModel(NamedTuple):
    """A model in eval mode and its tokenizer."""

    model: LanguageModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Run:
    """A stage's folder: finished, or still being filled (then it has a log but no metrics).

    Example::

        run = feeb.open_run("data/rl/quickstart-3f2a91c0d4e5")
        run.metrics["accuracy_after"]["value"]
    """

    path: Path
    artifact: Artifact | None = None

    @property
    def stage(self) -> str:
        return self.artifact.stage if self.artifact else self.path.parent.name

    @property
    def name(self) -> str:
        return self.artifact.name if self.artifact else self.path.name.rpartition("-")[0]

    @property
    def fingerprint(self) -> str:
        return self.artifact.fingerprint if self.artifact else self.path.name.rpartition("-")[2]

    @property
    def status(self) -> str:
        """'finished' or 'unfinished'."""
        return "finished" if self.artifact else "unfinished"

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage reports at its end; empty while it is unfinished."""
        return dict(self.artifact.metrics) if self.artifact else {}

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Everything recorded about a finished run: inputs, plugins, environment, times, files. Empty before."""
        return self.artifact.manifest if self.artifact else {}

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe that this run was made with."""
        path = self.path / "recipe.json"
        return read_json(path) if path.exists() else {}

    @property
    def section(self) -> dict[str, Any]:
        """The resolved options of this run's stage."""
        return dict(self.manifest.get("section") or self.recipe.get(self.stage, {}))

    def log(self) -> pl.DataFrame:
        """metrics.jsonl as a frame, one row a line, a column for every key; empty when the stage keeps no such log.

        Example::

            run.log().filter(split="validation").select("step", "loss")
        """
        import polars as pl

        rows = read_jsonl(self.path / "metrics.jsonl")
        return pl.from_dicts(rows, infer_schema_length=None, strict=False) if rows else pl.DataFrame()

    def model(self, device: str = "cpu") -> LanguageModel:
        """The run's model, in eval mode; the same object on every call. ArtifactError for a stage that makes none."""
        return self._opened(device).model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run's model, or, of stage tokenizer, the one it trained."""
        if (self.path / "model").is_dir():
            return _load_tokenizer(self.path / "model" / "tokenizer", self._registry)
        return _load_tokenizer(self.path / "tokenizer", self._registry)

    @overload
    def generate(self, prompts: str, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[str], max_new_tokens: int = ..., **options: Any) -> list[str]: ...
    def generate(self, prompts: str | Sequence[str], max_new_tokens: int = 64, **options: Any) -> str | list[str]:
        """Continue one text or several; returns what was added. Options as of `feebcore.api.generate`.

        Example::

            run.generate(["def read(", "class "], max_new_tokens=32, top_p=0.9, seed=1)
        """
        return generate(self._opened("cpu"), prompts, max_new_tokens, **options)

    @property
    def _registry(self) -> Registry:
        return registry_of(self.path)

    def _opened(self, device: str) -> OpenedModel:
        if not (self.path / "model").is_dir():
            raise ArtifactError(f"{self.path} has no model; " + (f"stage {self.stage} makes none" if self.artifact else "a run has one when it is finished"))
        return _load(self.path / "model", device)

    def __repr__(self) -> str:
        return f"Run({self.stage}, {self.name}, {self.fingerprint}, {self.status}, {str(self.path)!r})"


def open_run(path_or_name: str | Path, workspace: str | Path | None = None, stage: str | None = None) -> Run:
    """A run by its folder, its name, its fingerprint (or the beginning of one), or `stage/name`.

    A name means the newest finished run of that name; of several stages, the last that makes a model: one on which no other
    model of the name is built. workspace: default FEEB_WORKSPACE or ./data. Raises ArtifactError.

    Example::

        feeb.open_run("quickstart", stage="sweep").metrics["law"]
    """
    folder = Path(path_or_name)
    if folder.is_dir() and (folder / MANIFEST).exists() | (folder / "recipe.json").exists():
        return Run(folder.absolute(), read_artifact(folder.absolute()))
    place, text = Workspace(workspace), str(path_or_name)
    if stage is None and "/" in text:
        stage, _, text = text.partition("/")
    candidates = [Run(path, artifact) for path, artifact in place.all(damaged=lambda folder, error: None, stage=stage)]
    named = [r for r in candidates if r.name == text or r.path.name == text or (len(text) >= 4 and r.fingerprint.startswith(text))]
    if not named:
        near = {r.name for r in candidates} | {r.path.name for r in candidates}
        raise ArtifactError(f"no run {path_or_name!r} in {place.root}; {did_you_mean(text, near)}")
    models = [r for r in named if r.artifact is not None and "model" in r.artifact.makes]
    built_on = {(entry["stage"], entry["fingerprint"]) for r in models for entry in r.manifest["inputs"].values()}
    last = [r for r in models if (r.stage, r.fingerprint) not in built_on]
    return max(last or named, key=lambda r: (r.artifact is not None, r.manifest.get("finished", 0.0)))


def runs(workspace: str | Path | None = None) -> pl.DataFrame:
    """Every run of a workspace: stage, name, fingerprint, path, status, created, metrics (JSON text).

    Folders with a damaged manifest are left out; `feeb runs` names them.

    Example::

        feeb.runs().filter(stage="pretrain", status="finished")
    """
    import json

    import polars as pl

    rows = []
    for path, artifact in Workspace(workspace).all(damaged=lambda folder, error: None):
        run = Run(path, artifact)
        created = run.manifest.get("created") or datetime.fromtimestamp(path.stat().st_ctime, UTC).isoformat(timespec="seconds")
        rows.append((run.stage, run.name, run.fingerprint, str(path), run.status, created, json.dumps(run.metrics)))
    columns = ("stage", "name", "fingerprint", "path", "status", "created", "metrics")
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def open_model(folder: str | Path, device: str = "cpu") -> OpenedModel:
    """The model and tokenizer of a model folder, or of a run's folder.

    Example::

        model, tokenizer = feeb.open_model("data/pretrain/quickstart-3f2a91c0d4e5")
    """
    folder = Path(folder)
    return _load((folder / "model" if (folder / "model" / "model.json").exists() else folder).absolute(), device)


def generate(
    opened: OpenedModel,
    prompts: str | Sequence[str],
    max_new_tokens: int = 64,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    logits_processors: Sequence[Any] = (),
    seed: int = 0,
) -> str | list[str]:
    """Continue one text or several with a model; returns what was added, without the end token.

    temperature 0: greedy decoding. logits_processors: names or `{name: …}` of kind logits_processors, run before
    temperature, top_k, top_p and min_p, which run in this order. Raises DataError where a prompt fills the context.
    """
    from feebcore.generate.decoding import greedy
    from feebcore.generate.engine import encode_prompt
    from feebcore.generate.engine import generate as run_engine
    from feebcore.parts import resolve_part

    if temperature < 0:
        raise ValueError(f"temperature {temperature} must be at least 0")
    named = {
        "temperature": ("temperature", None if temperature in (0, 1) else temperature),
        "top_k": ("k", top_k),
        "top_p": ("p", top_p),
        "min_p": ("min_p", min_p),
    }
    processors = [*logits_processors, *({"name": n, key: v} for n, (key, v) in named.items() if v is not None)]
    inputs = [prompts] if isinstance(prompts, str) else list(prompts)
    completions = run_engine(
        opened.model,
        [encode_prompt(opened.tokenizer, text) for text in inputs],
        max_new_tokens,
        opened.tokenizer.eos_id,
        [resolve_part("logits_processors", value).build() for value in processors],
        greedy if temperature == 0 else None,
        seed,
    )
    texts = [opened.tokenizer.decode([t for t in c.tokens if t != opened.tokenizer.eos_id]) for c in completions]
    return texts[0] if isinstance(prompts, str) else texts


def registry_of(folder: Path) -> Registry:
    """The registry with the plugin files that the run in `folder` (or the folder around it) was made with."""
    for place in (folder, folder.parent):
        if (place / "recipe.json").exists():
            files = [Path(p) for p in read_json(place / "recipe.json").get("plugins", [])]
            return get_registry(tuple(f for f in files if f.is_file()))
    return get_registry()


def _load(folder: Path, device: str) -> OpenedModel:
    """A model that was opened before is kept until its files are written anew."""
    states = [(str(path), (state := path.stat()).st_ino, state.st_size, state.st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()]
    return _cached_model(folder, device, tuple(states))


@functools.lru_cache(maxsize=4)
def _cached_model(folder: Path, device: str, states: tuple[tuple[str, int, int, int], ...]) -> OpenedModel:
    from feebcore.model.io import load_model

    registry = registry_of(folder)
    return OpenedModel(load_model(folder, device, registry=registry), _load_tokenizer(folder / "tokenizer", registry))


def _load_tokenizer(folder: Path, registry: Registry) -> Tokenizer:
    from feebcore.data.tokenizers import load_tokenizer

    return load_tokenizer(folder, registry)
