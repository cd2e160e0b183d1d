"""The Python API: open a run, read its metrics, load its model, generate. For notebooks and scripts.

    import feebcore as feeb

    feeb.runs()                                   # every artifact of the workspace, a polars frame
    run = feeb.open_run("quickstart", stage="pretrain")
    run.metrics["val_bits_per_byte"]
    run.log()                                     # the training log, a polars frame
    run.log("validation")                         # the rows of its validations
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

from feebcore.artifacts import MANIFEST, Artifact, Workspace, is_building, read_artifact
from feebcore.errors import ArtifactError, did_you_mean
from feebcore.files import last_rows, read_json, read_jsonl
from feebcore.registry import Registry, get_registry

if TYPE_CHECKING:
    import polars as pl

    from feebcore.protocols import LanguageModel, Tokenizer


SEED_OF_A_TURN = 0x9E3779B9
"""Added to the seed each time that the context slides, so that no random numbers come twice."""


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
    def reference(self) -> str:
        """`stage/name-fingerprint`: its folder in the workspace, and what every command takes for it."""
        return f"{self.stage}/{self.path.name}"

    @property
    def status(self) -> str:
        """'finished', 'running' (a process is filling the folder) or 'unfinished'."""
        return "finished" if self.artifact else "running" if is_building(self.path) else "unfinished"

    @property
    def created(self) -> str:
        """When it was begun, as ISO 8601 in UTC."""
        return self.manifest.get("created") or datetime.fromtimestamp(self.path.stat().st_ctime, UTC).isoformat(timespec="seconds")

    @property
    def progress(self) -> Mapping[str, Any]:
        """How far an unfinished run is: `done` of `total` in `unit`, and `name` where a stage has several parts. Empty when it has not said."""
        rows = [] if self.artifact else [row for row in last_rows(self.path / "events.jsonl") if row.get("kind") == "progress"]
        return rows[-1] if rows else {}

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders of the artifacts that it was made from, by name."""
        if self.artifact:
            return {name: self.path.parents[1] / entry["path"] for name, entry in self.manifest["inputs"].items()}
        return {name: Path(path) for name, path in self._request.get("inputs", {}).items()}

    @property
    def changes(self) -> dict[str, Any]:
        """What its recipe sets beyond the recipe that it extends, by dotted key, --set included."""
        return dict(self._request.get("changes", {}))

    @property
    def recipe_file(self) -> str:
        """The file that was run; '' where it is not known."""
        return str(self._request.get("recipe", ""))

    @functools.cached_property
    def _request(self) -> dict[str, Any]:
        path = self.path / "request.json"
        return read_json(path) if path.exists() else {}

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

    def log(self, split: str | None = "train") -> pl.DataFrame:
        """The rows of metrics.jsonl as a frame, a column for every key; empty when the stage keeps no such log.

        split: 'train' for the steps of training, 'validation' for the validations between them, None for both in the order written.

        Example::

            run.log("validation").select("step", "loss")
        """
        import polars as pl

        rows = [row for row in read_jsonl(self.path / "metrics.jsonl") if split in (None, row.get("split", "train"))]
        return pl.from_dicts(rows, infer_schema_length=None, strict=False) if rows else pl.DataFrame()

    def model(self, device: str = "cpu") -> LanguageModel:
        """The run's model, in eval mode; the same object on every call. ArtifactError for a stage that makes none."""
        return self.opened(device).model

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
        return generate(self.opened(), prompts, max_new_tokens, **options)

    @property
    def _registry(self) -> Registry:
        return registry_of(self.path)

    def opened(self, device: str = "cpu") -> OpenedModel:
        """The run's model in eval mode, and its tokenizer. ArtifactError for a run without a model."""
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
    named = runs_like(str(path_or_name), workspace, stage)
    if not named:
        place = Workspace(workspace)
        raise ArtifactError(f"no run {str(path_or_name)!r} in {place.root}; {_near(str(path_or_name), place)}")
    models = [r for r in named if r.artifact is not None and "model" in r.artifact.makes]
    built_on = {(entry["stage"], entry["fingerprint"]) for r in models for entry in r.manifest["inputs"].values()}
    last = [r for r in models if (r.stage, r.fingerprint) not in built_on]
    return max(last or named, key=lambda r: (r.artifact is not None, r.manifest.get("finished", 0.0)))


def runs_like(text: str, workspace: str | Path | None = None, stage: str | None = None) -> list[Run]:
    """Every run that `text` may mean: its name, its fingerprint or the beginning of one, or either after `stage/`."""
    if stage is None and "/" in text:
        stage, _, text = text.partition("/")
    found = [Run(path, artifact) for path, artifact in Workspace(workspace).all(damaged=lambda folder, error: None, stage=stage)]
    return [r for r in found if text in (r.name, r.path.name) or (len(text) >= 4 and r.fingerprint.startswith(text))]


def _near(text: str, workspace: Workspace) -> str:
    """The runs that `text` may have meant; a stage that was written stays in what is suggested."""
    every = [Run(path, artifact) for path, artifact in workspace.all(damaged=lambda folder, error: None)]
    staged = {f"{run.stage}/{run.name}" for run in every}
    if not every:
        return "it has no runs yet"
    return did_you_mean(text, staged if "/" in text else {run.name for run in every})


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
        rows.append((run.stage, run.name, run.fingerprint, str(path), run.status, run.created, json.dumps(run.metrics)))
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
    temperature, top_k, top_p and min_p, which run in this order. Where the model's context is full, its last half is the context of
    what follows. Raises DataError where a prompt alone fills it.
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
    built = [resolve_part("logits_processors", value).build() for value in processors]
    model, tokenizer = opened
    contexts, added = [encode_prompt(tokenizer, text) for text in inputs], [list[int]() for _ in inputs]
    rows, turn = list(range(len(inputs))), 0
    while rows:
        missing = max_new_tokens - min(len(added[i]) for i in rows)
        sampler = greedy if temperature == 0 else None
        done = run_engine(model, [contexts[i] for i in rows], missing, tokenizer.eos_id, built, sampler, seed + turn * SEED_OF_A_TURN, rows=rows)
        for i, completion in zip(rows, done, strict=True):
            added[i] = (added[i] + completion.tokens)[:max_new_tokens]
            contexts[i] = (contexts[i] + completion.tokens)[-max(1, model.seq_len // 2) :]
        full = [i for i, completion in zip(rows, done, strict=True) if completion.finish_reason == "length"]
        rows, turn = [i for i in full if len(added[i]) < max_new_tokens], turn + 1
    texts = [tokenizer.decode([t for t in tokens if t != tokenizer.eos_id]) for tokens in added]
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
