"""Immutable, fingerprinted stage outputs: `<workspace>/<stage>/<name>-<fingerprint>/`.

A folder is created at once and filled; its last act is `manifest.json`, and that is the commit: a folder without
one is unfinished and can be continued. Paths never change. Identity is what changes the result: the stage and its
revision, identity keys that differ from their defaults, the parts chosen with their revisions, the inputs by content
digest, and the source of plugins that have no fixed version.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feebcore.errors import ArtifactError, UsageError
from feebcore.files import digest_of, expand_user, explain, is_locked, locked, read_json, read_jsonl, sha256_file, write_json
from feebcore.registry import get_registry
from feebcore.specs import StageSpec

SCHEMA = 2
"""Of manifests; 2 has `name` and `makes`."""
MANIFEST = "manifest.json"
NOT_CONTENT = ("events.jsonl", "log.txt", "metrics.jsonl", "recipe.json", "environment.json", "request.json", "result.json", "checkpoints/*", "rank-*.log")
"""Files that never enter the content digest: they say how and when, not what."""

KIND_FILES: dict[str, tuple[str, ...]] = {
    "documents": ("documents.parquet",),
    "tokenizer": ("tokenizer",),
    "tokens": ("tokens.zarr", "tokens.json"),
    "model": ("model/model.json",),
}
"""What an artifact of a kind has, whichever stage makes it: stages that need the kind read these."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage output. digest: of its content, what later stages take as identity."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def makes(self) -> tuple[str, ...]:
        """The kinds of thing inside: documents, tokenizer, tokens, model …"""
        return tuple(self.manifest["makes"])

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]

    def file(self, name: str) -> Path:
        """A file or folder inside; ArtifactError when it is not there."""
        path = self.path / name
        if not path.exists():
            raise ArtifactError(f"{self.path} has no {name}; was it removed? `feeb artifacts verify` checks")
        return path

    def check_sizes(self) -> None:
        """Raises ArtifactError when a file is gone or has another size than when it was committed."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            try:
                size = path.stat().st_size
            except OSError:
                raise ArtifactError(f"{path} is missing; remove {self.path} and run the recipe again to rebuild it") from None
            if size != entry["size"]:
                raise ArtifactError(f"{path} has {size} bytes, the manifest says {entry['size']}; remove {self.path} and run the recipe again to rebuild it")

    def check_hash(self, name: str) -> None:
        """Raises ArtifactError when the file's SHA-256 is not the manifest's."""
        entry = self.manifest["files"].get(name)
        if entry and sha256_file(self.path / name) != entry["sha256"]:
            raise ArtifactError(
                f"{self.path / name} was altered (its SHA-256 is not the manifest's); remove {self.path} and run the recipe again to rebuild it"
            )

    def verify(self) -> list[str]:
        """Names of files whose size or hash is wrong; empty when all is well."""
        bad = []
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
                bad.append(name)
        return bad


class StageOutput:
    """What a stage function writes to: its folder, its log and its progress.

    on_progress: called with every event, in the process that runs the stage. Events are also appended to
    `events.jsonl`, which a parent process tails.
    """

    def __init__(self, path: Path, on_progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path = Path(path)
        self.stop_requested = False
        self.content_patterns: tuple[str, ...] = ()
        self.runs: dict[str, Artifact] = {}
        self._on_progress = on_progress
        self._events = open(self.path / "events.jsonl", "a", encoding="utf-8", buffering=1)
        if _ends_torn(self.path / "events.jsonl"):  # a kill cut the last line: the next one must not be lost with it
            self._events.write("\n")
        self._last: dict[str, float] = {}

    def log(self, text: str) -> None:
        """One line for the reader of the run."""
        self.event("log", text=text)

    def progress(self, done: float, total: float, unit: str = "", name: str = "", **fields: Any) -> None:
        """How far the stage is; at most about four events a second a name are kept, the last always.

        unit: what is counted, as 'documents'. fields: numbers to show, as loss=3.2.
        """
        now = time.monotonic()
        if done < total and now - self._last.get(name, 0.0) < 0.25:
            return
        self._last[name] = now
        self.event("progress", done=done, total=total, unit=unit, name=name, **fields)

    def content(self, *patterns: str) -> None:
        """Name the files (glob patterns) that are the result; without it, all files but logs and checkpoints."""
        self.content_patterns = patterns

    def rests_on(self, runs: Mapping[str, Artifact]) -> None:
        """Name artifacts other than the stage's inputs that the result is based on, by name: they are inputs in the manifest, so gc keeps
        them. For stages that run inline."""
        self.runs = dict(runs)

    def event(self, kind: str, **fields: Any) -> None:
        import json

        row = {"time": time.time(), "kind": kind, **fields}
        try:
            self._events.write(json.dumps(row) + "\n")
        except OSError as error:
            raise explain(error, self.path / "events.jsonl") from error
        if self._on_progress:
            self._on_progress(row)

    def close(self) -> None:
        self._events.close()


class Workspace:
    """A folder of artifacts, one subfolder a stage. Reading never writes. Raises UsageError where something else has its place."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = expand_user(root or os.environ.get("FEEB_WORKSPACE") or "data").absolute()
        nearest = next(p for p in (self.root, *self.root.parents) if os.path.lexists(p))
        if not nearest.is_dir():
            what = "a file" if nearest.exists() or not nearest.is_symlink() else "a link that leads nowhere"
            raise UsageError(f"the workspace {self.root} cannot be a folder: {nearest} is {what}; choose another with --workspace DIR or FEEB_WORKSPACE")

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The finished artifact with this fingerprint, whatever its name; sizes checked."""
        for folder in self.folders(stage, fingerprint):
            artifact = read_artifact(folder)
            if artifact is not None:
                artifact.check_sizes()
                return artifact
        return None

    def folders(self, stage: str, fingerprint: str) -> list[Path]:
        """Folders of this fingerprint, finished or not."""
        return sorted(p for p in (self.root / stage).glob(f"*-{fingerprint}") if p.is_dir())

    def all(self, damaged: Callable[[Path, ArtifactError], None] | None = None, stage: str | None = None) -> Iterator[tuple[Path, Artifact | None]]:
        """Every artifact folder with its artifact, None while unfinished; in order of stage and name. stage: of this one only.

        damaged: called with each folder whose manifest cannot be read, which is then left out; without it, it raises.
        """
        if not self.root.is_dir():
            return
        for parent in sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")) and stage in (None, p.name)):
            for folder in sorted(p for p in parent.iterdir() if p.is_dir() and "-" in p.name and not p.name.startswith(".")):
                if not (folder / MANIFEST).exists() and not (folder / "request.json").exists():
                    continue
                try:
                    artifact = read_artifact(folder)
                except ArtifactError as error:
                    if damaged is None:
                        raise
                    damaged(folder, error)
                    continue
                yield folder, artifact

    @contextmanager
    def building(self, stage: str, name: str, fingerprint: str, waiting: Callable[[str], None] | None = None) -> Iterator[Path | Artifact]:
        """Under the lock of this fingerprint: the finished artifact if there is one by now, else the folder to fill."""
        with locked(self.root / stage / f".{fingerprint}.lock", waiting):
            done = self.find(stage, fingerprint)
            if done is not None:
                yield done
                return
            existing = self.folders(stage, fingerprint)
            folder = existing[0] if existing else self.root / stage / f"{name}-{fingerprint}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise explain(error, folder) from error
            yield folder

    def import_folder(self, source: Path, stage: str, name: str, note: str = "", also_makes: Iterable[str] = ()) -> Artifact:
        """Copy a folder made elsewhere into the workspace as a finished artifact of `stage`; recipes name it under `inputs:`. The same content
        under another name becomes an artifact of its own whose files are hard links.

        name: letters, digits, '-', '_' and '.'. note: where it comes from, kept in the manifest. also_makes: kinds inside beyond
        those that the stage makes. Raises ArtifactError for a folder without the files of these kinds, UnknownPartError for an
        unknown stage.
        """
        source = Path(source)
        if not source.is_dir() or not any(source.iterdir()):
            raise ArtifactError(f"{source} is not a folder with files in it")
        check_name(name)
        spec = get_registry().resolve("stages", stage)
        assert isinstance(spec, StageSpec)
        stage, makes = spec.name, (*spec.makes, *also_makes)
        check_kinds(source, makes, f"{source}: an artifact of stage {stage}")
        files = _hashed(source)
        digest = _content_digest(files, ())
        fingerprint = digest_of({"imported": digest, "stage": stage})[:12]
        with self.building(stage, name, fingerprint) as folder:
            copy: Callable[[str, str], Any] = shutil.copy2
            if isinstance(folder, Artifact):
                same = [artifact for path in self.folders(stage, fingerprint) if (artifact := read_artifact(path)) is not None and artifact.name == name]
                if same:
                    return same[0]
                source, folder, copy = folder.path, self.root / stage / f"{name}-{fingerprint}", _link  # another name for the same files
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "events.jsonl"), copy_function=copy)
            out = StageOutput(folder)
            out.close()
            return commit(
                out,
                stage=stage,
                name=name,
                fingerprint=fingerprint,
                identity={"imported": digest, "note": note},
                metrics={},
                section={},
                inputs={},
                plugins=[],
                environment={},
                started=time.time(),
                makes=makes,
            )

    def damaged(self) -> dict[Path, str]:
        """Folders whose manifest this feeb cannot read, each with why and what to do."""
        problems: dict[Path, str] = {}
        for _ in self.all(damaged=lambda folder, error: problems.update({folder: str(error)})):
            pass
        return problems

    def unreferenced(self, keep_days: float = 0.0) -> list[Path]:
        """Unfinished folders older than `keep_days` that nobody is building: what `gc` may remove.

        Finished artifacts are never listed, nor folders whose manifest cannot be read, nor anything a finished artifact names as its input.
        """
        unfinished = []
        for folder, artifact in self.all(damaged=lambda folder, error: None):
            if artifact is not None or time.time() - folder.stat().st_mtime < keep_days * 86400:
                continue
            with _unused(folder) as unused:
                if unused:
                    unfinished.append(folder)
        return unfinished

    def gc(self, superseded: bool = False, keep_days: float = 0.0, dry_run: bool = False) -> list[Path]:
        """Remove unfinished folders; with `superseded`, also finished artifacts that a newer one of the same stage
        and name replaced and that no artifact which stays refers to. What a folder with an unreadable manifest was made of stays.
        Returns what went (or would go)."""
        unfinished = self.unreferenced(keep_days)
        doomed = unfinished + (self._superseded(unfinished) if superseded else [])
        if dry_run:
            return doomed
        for trash in self.root.glob("*/.trash-*"):  # of a gc that was killed
            shutil.rmtree(trash, ignore_errors=True)
        gone = []
        for folder in doomed:
            with _unused(folder) as unused:  # somebody may have taken it up since it was listed
                if not unused or (folder in unfinished and (folder / MANIFEST).exists()):
                    continue
                trash = folder.with_name(f".trash-{folder.name}")
                folder.rename(trash)
                trash.unlink() if trash.is_symlink() else shutil.rmtree(trash)  # a link goes, what it points to is not ours
                gone.append(folder)
        return gone

    def _superseded(self, doomed: list[Path]) -> list[Path]:
        """Finished artifacts that may go, when the unfinished folders `doomed` go too; the inputs of other unfinished and of unreadable ones stay."""
        unreadable: list[Path] = []
        everything = list(self.all(damaged=lambda folder, error: unreadable.append(folder)))
        finished = [(folder, a) for folder, a in everything if a is not None]
        newest: dict[tuple[str, str], float] = {}
        for _, a in finished:
            key = (a.stage, a.name)
            newest[key] = max(newest.get(key, 0.0), a.manifest["finished"])
        stay = {str(folder) for folder, a in finished if a.manifest["finished"] == newest[(a.stage, a.name)]}
        for folder in [*unreadable, *(folder for folder, a in everything if a is None and folder not in doomed)]:
            with suppress(ArtifactError, FileNotFoundError):
                inputs = read_json(folder / "request.json").get("inputs", {})
                stay |= {str(self.root.joinpath(*Path(path).parts[-2:])) for path in inputs.values()}  # the workspace may have been moved since
        while True:  # whatever a staying artifact refers to stays, transitively
            referred = {str(self.root / i["path"]) for folder, a in finished if str(folder) in stay for i in a.manifest["inputs"].values()}
            if referred <= stay:
                return [folder for folder, _ in finished if str(folder) not in stay]
            stay |= referred


def check_name(name: str) -> None:
    """Raises ArtifactError for a name that would not be one folder of its stage."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ArtifactError(f"{name!r} cannot name an artifact; use up to 100 letters, digits, '-', '_' and '.', beginning with a letter or digit")


def check_kinds(folder: Path, makes: Iterable[str], what: str) -> None:
    """Raises ArtifactError where a file is missing that every artifact of these kinds has. what: begins the message."""
    for kind in makes:
        for name in KIND_FILES.get(kind, ()):
            if not (folder / name).exists():
                raise ArtifactError(f"{what} makes {kind}, so it must have {name}; it has {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}")


def is_building(folder: Path) -> bool:
    """Whether a process holds the lock of this artifact's folder."""
    return is_locked(_lock_of(folder))


def _lock_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name.rpartition('-')[2]}.lock"


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether nobody is building in `folder`; it stays so while the block runs."""
    lock = _lock_of(folder)
    if not lock.exists():
        yield True
        return
    with open(lock, encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _ends_torn(path: Path) -> bool:
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read() not in (b"", b"\n")


def read_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder, None while it has no manifest. Raises ArtifactError when the manifest is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = read_json(path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove {folder} and run the recipe again to rebuild it") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise ArtifactError(f"{path} is damaged (it is not a manifest); remove {folder} and run the recipe again to rebuild it")
    if manifest["schema"] > SCHEMA:
        raise ArtifactError(f"{path} was written by a newer feeb (schema {manifest['schema']}); update feeb to read it")
    if manifest["schema"] < SCHEMA:
        raise ArtifactError(f"{path} has schema {manifest['schema']} and this feeb reads {SCHEMA}; remove {folder} and run the recipe again to rebuild it")
    if not manifest.keys() >= {"stage", "name", "makes", "fingerprint", "digest", "files", "inputs", "metrics"}:
        raise ArtifactError(f"{path} is damaged (keys are missing); remove {folder} and run the recipe again to rebuild it")
    return Artifact(folder, manifest)


def commit(
    out: StageOutput,
    *,
    stage: str,
    name: str,
    fingerprint: str,
    identity: Mapping[str, Any],
    metrics: Mapping[str, Any],
    section: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    plugins: Iterable[Mapping[str, Any]],
    environment: Mapping[str, Any],
    started: float,
    makes: Iterable[str] = (),
    unchecked: Iterable[str] = (),
) -> Artifact:
    """Hash what the stage made and write the manifest: from here on the artifact is finished and immutable.

    unchecked: parts that it was made with and that are not known to keep their contract.
    """
    files = _hashed(out.path)
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "name": name,
        "makes": list(makes),
        "fingerprint": fingerprint,
        "digest": _content_digest(files, out.content_patterns),
        "created": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "started": started,
        "finished": time.time(),
        "seconds": round(busy_seconds(out.path, started), 3),
        "metrics": dict(metrics),
        "section": dict(section),
        "identity": dict(identity),
        "inputs": {
            name: {"stage": a.stage, "fingerprint": a.fingerprint, "digest": a.digest, "path": os.path.relpath(a.path, out.path.parents[1])}
            for name, a in {**inputs, **out.runs}.items()
        },
        "plugins": list(plugins),
        "unchecked": list(unchecked),
        "environment": dict(environment),
        "files": files,
    }
    write_json(out.path / MANIFEST, manifest)
    return Artifact(out.path, manifest)


def busy_seconds(folder: Path, started: float) -> float:
    """Seconds that processes spent on a stage, earlier interrupted attempts included ('begin' to last event)."""
    total, begin, last = 0.0, None, None
    for row in read_jsonl(folder / "events.jsonl"):
        if row["kind"] == "begin":
            total += (last - begin) if begin is not None and last is not None else 0.0
            begin = row["time"]
        last = row["time"]
    return total + (time.time() - (begin if begin is not None else started))


def _link(source: str, target: str) -> str:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _hashed(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (
            not path.is_file()
            or name in (MANIFEST, "events.jsonl", "log.txt")
            or fnmatch.fnmatch(name, "rank-*.log")
            or ".tmp" in {Path(part).suffix for part in path.relative_to(folder).parts}
        ):
            continue
        files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def _content_digest(files: Mapping[str, Mapping[str, Any]], patterns: tuple[str, ...]) -> str:
    def counts(name: str) -> bool:
        if patterns:
            return any(fnmatch.fnmatch(name, p) for p in patterns)
        return not any(fnmatch.fnmatch(name, p) for p in NOT_CONTENT)

    return digest_of({name: entry["sha256"] for name, entry in files.items() if counts(name)})
