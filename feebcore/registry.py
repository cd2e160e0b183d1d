"""Finds plugins and resolves a part by name. Discovery, lookup, errors: nothing else.

Plugins come from the entry point group `feeb` and from single files that a recipe names. Parts have a bare
name (`lion`) and a full one (`distribution/lion`). Environment: FEEB_PLUGINS_BLOCK and FEEB_PLUGINS_ALLOW are
comma-separated distribution or entry point names (built-in ones too); FEEB_PLUGINS_STRICT=1 makes a plugin
that fails fatal to everyone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pluggy

from feebcore import hookspecs
from feebcore.errors import PartClashError, PluginError, UnknownPartError, did_you_mean
from feebcore.specs import API_VERSION, PartSpec

BUILTIN = "feeb"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.\-]*")


@dataclass(frozen=True)
class PluginInfo:
    """One plugin and how loading it went. problem: '' when it is in use."""

    distribution: str
    version: str
    origin: str  # entry point value or file
    problem: str = ""
    num_parts: int = 0


class Registry:
    """All parts of all plugins; `resolve` turns a name from a recipe into a spec."""

    def __init__(self, files: tuple[Path, ...] = (), strict: bool | None = None, entry_points: bool = True) -> None:
        self.plugins: list[PluginInfo] = []
        self._parts: dict[str, dict[str, list[PartSpec]]] = {kind: {} for kind in hookspecs.KINDS}
        self._strict = os.environ.get("FEEB_PLUGINS_STRICT") == "1" if strict is None else strict
        if entry_points:
            for entry in sorted(importlib.metadata.entry_points(group="feeb"), key=_built_in_first):
                self._add_entry_point(entry)
        for file in files:
            self._add_file(Path(file))

    def resolve(self, kind: str, name: str) -> PartSpec:
        """The spec that `name`, bare or full, means on `kind`. Raises UnknownPartError or PartClashError."""
        offered = self._parts[kind]
        distribution, _, bare = name.rpartition("/")
        matches = [s for s in offered.get(bare, []) if distribution in ("", s.distribution)]
        if not matches:
            raise UnknownPartError(f"{self.not_loaded()}no part {name!r} of kind {kind!r}; {did_you_mean(name, offered)}")
        strangers = [s for s in matches if s.distribution != BUILTIN]
        if len(matches) > 1 and len(strangers) == 1 and _introduced_later(matches, strangers[0]):
            return strangers[0]
        if len(matches) > 1:
            where = " and ".join(f"{s.full_name} ({s.origin})" for s in matches)
            raise PartClashError(f"{kind}: {name!r} is claimed by {where}; write the full name in the recipe, as {matches[0].full_name!r}")
        return matches[0]

    def not_loaded(self) -> str:
        """'plugin feeb-idea is not loaded (why); ' for every plugin with a problem, as the beginning of a message about a missing part."""
        return "".join(dict.fromkeys(f"plugin {p.distribution} is not loaded ({p.problem}); " for p in self.plugins if p.problem))

    def shared(self, kind: str, name: str) -> bool:
        """Whether several plugins claim the bare name, so that only a full one is sure to mean the same part again."""
        return len(self._parts[kind].get(name, [])) > 1

    def parts(self, kind: str | None = None) -> list[tuple[str, PartSpec]]:
        """All (kind, spec), by kind in the order of hookspecs.py and then by name."""
        kinds = [kind] if kind else list(self._parts)
        return [(s, spec) for s in kinds for name in sorted(self._parts[s]) for spec in self._parts[s][name]]

    def _add_entry_point(self, entry: importlib.metadata.EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else entry.name
        info = PluginInfo(distribution, entry.dist.version if entry.dist else "", f"{entry.name} = {entry.value}")
        if why := _refused(distribution, entry.name):
            self.plugins.append(dataclasses.replace(info, problem=why))
            return
        try:
            module = entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's import may raise anything, SystemExit too; it is reported, not fatal
            self._failed(info, f"{type(error).__name__}: {error}", error)
            return
        self._add(info, module)

    def _add_file(self, file: Path) -> None:
        """A file that somebody named must work: whatever is wrong with it is an error, not a note."""
        info = PluginInfo(file.stem, "", str(file))
        if not file.is_file() or file.suffix != ".py":
            what = f"{file} is not a .py file" if file.exists() else f"no file {file}"
            raise PluginError(f"plugins: {what}; paths in a recipe are relative to the recipe")
        try:
            module = _import_file(file)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too
            self._failed(info, f"{type(error).__name__}: {error}", error)
            raise PluginError(f"plugin file {file} failed: {type(error).__name__}: {error}") from error
        known = len(self.plugins)
        self._add(info, module)
        if problem := next((p.problem for p in self.plugins[known:] if p.problem), ""):
            raise PluginError(f"plugin file {file}: {problem}")

    def _add(self, info: PluginInfo, module: ModuleType) -> None:
        """Collect one plugin's specs in a manager of its own, so that no plugin can break another's."""
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        parts: list[tuple[str, PartSpec]] = []
        try:
            for name in vars(module):
                if name.startswith("feeb_") and hasattr(getattr(module, name), "feeb_impl") and name not in vars(hookspecs):
                    raise PluginError(f"there is no hook {name!r}; {did_you_mean(name, ('feeb_' + s for s in hookspecs.KINDS))}")
            manager.register(module)
            manager.check_pending()
            for kind, spec_class in hookspecs.KINDS.items():
                for specs in getattr(manager.hook, f"feeb_{kind}")():
                    parts += [(kind, _checked(spec, spec_class, kind, info)) for spec in specs]
        except Exception as error:
            self._failed(info, f"{type(error).__name__}: {error}" if not isinstance(error, PluginError) else str(error), error)
            return
        if not parts:
            self._failed(info, "it has no hook function (decorate them with @feebcore.hookimpl)", None)
            return
        for kind, spec in parts:
            same = self._parts[kind].setdefault(spec.name, [])
            if any(s.distribution == spec.distribution for s in same):
                self._failed(info, f"it offers {kind} part {spec.name!r} twice", None)
                continue
            same.append(spec)
        self.plugins.append(dataclasses.replace(info, num_parts=len(parts)))

    def _failed(self, info: PluginInfo, why: str, error: BaseException | None) -> None:
        self.plugins.append(dataclasses.replace(info, problem=why))
        if self._strict:
            raise PluginError(f"plugin {info.distribution} ({info.origin}): {why}") from error


def _built_in_first(entry: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    name = entry.dist.name if entry.dist else ""
    return (name != BUILTIN, name, entry.name)


def _refused(distribution: str, entry: str) -> str:
    listed = {v: {n.strip() for n in os.environ.get(v, "").split(",") if n.strip()} for v in ("FEEB_PLUGINS_BLOCK", "FEEB_PLUGINS_ALLOW")}
    if listed["FEEB_PLUGINS_BLOCK"] & {distribution, entry}:
        return "blocked by FEEB_PLUGINS_BLOCK"
    allowed = listed["FEEB_PLUGINS_ALLOW"]
    if allowed and distribution != BUILTIN and not allowed & {distribution, entry}:
        return "not in FEEB_PLUGINS_ALLOW"
    return ""


def _checked(spec: PartSpec, spec_class: type[PartSpec], kind: str, info: PluginInfo) -> PartSpec:
    if not isinstance(spec, spec_class):
        raise PluginError(f"feeb_{kind} must yield {spec_class.__name__}, not {type(spec).__name__}")
    if not _NAME.fullmatch(spec.name):
        raise PluginError(f"{kind}: {spec.name!r} is not a valid name; use lower-case letters, digits, '_', '-' and '.'")
    if not spec.build:
        raise PluginError(f"{kind}: part {spec.name!r} has no build")
    if spec.api.split(".")[0] != API_VERSION.split(".")[0]:
        raise PluginError(f"part {spec.name!r} is written for plugin interface {spec.api}; this feeb has {API_VERSION}")
    return dataclasses.replace(spec, distribution=info.distribution, origin=info.origin)


def _introduced_later(specs: list[PartSpec], stranger: PartSpec) -> bool:
    """A built-in part that is younger than the stranger's interface yields, so old recipes keep their meaning."""
    version = lambda text: tuple(int(n) for n in text.split("."))  # noqa: E731
    return all(s is stranger or version(s.since) > version(stranger.api) for s in specs)


def _import_file(file: Path) -> ModuleType:
    """Import a plugin file under a name of its own, so that "file:function" paths in its specs resolve."""
    path = file.resolve()
    known = sys.modules.get(path.stem)
    content = source_hash(path)
    if known is not None and getattr(known, "__feeb_file__", None) == str(path):
        if known.__dict__["__feeb_source__"] == content:
            return known
        del sys.modules[path.stem]  # edited since, as next to a notebook: fingerprints have the new source, so what runs must be it
        known = None
    elsewhere = importlib.util.find_spec(path.stem) if known is None else None
    if known is not None or (elsewhere is not None and elsewhere.origin != str(path)):
        raise PluginError(f"a module {path.stem!r} exists already; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    module.__feeb_file__ = str(path)  # type: ignore[attr-defined]
    module.__feeb_source__ = content  # type: ignore[attr-defined]
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


@functools.lru_cache(maxsize=8)
def _cached(files: tuple[tuple[Path, int], ...], environment: tuple[str | None, ...]) -> Registry:
    return Registry(tuple(file for file, _ in files))


_in_use: list[Registry] = []


@contextlib.contextmanager
def use_registry(registry: Registry) -> Iterator[None]:
    """Make `registry` what `get_registry()` gives while the block runs: a recipe's own, plugin files included."""
    _in_use.append(registry)
    try:
        yield
    finally:
        _in_use.pop()


def get_registry(files: tuple[Path, ...] = ()) -> Registry:
    """The process-wide registry, with these plugin files next to the installed plugins."""
    if not files and _in_use:
        return _in_use[-1]
    stamped = tuple((f, f.stat().st_mtime_ns if f.exists() else 0) for f in map(Path, files))
    return _cached(stamped, tuple(os.environ.get(f"FEEB_PLUGINS_{v}") for v in ("BLOCK", "ALLOW", "STRICT")))


def collect(package: str, spec_class: type[PartSpec], modules: bool = False) -> Callable[[], Iterable[PartSpec]]:
    """A hook implementation that offers the parts in the folders of a package, for a plugin with a folder a part or family:

        feeb_optimizers = feeb.collect(__name__, feeb.OptimizerSpec)

    Each folder's `__init__.py` names its spec `PART`, or several `PARTS`; those of `spec_class` are offered, by folder name.
    Only these files are imported, so keep torch out of them. modules: files next to the folders may hold a part as well.
    Raises PluginError for a folder (or file) that names neither.
    """

    @hookspecs.hookimpl
    def offer() -> Iterator[PartSpec]:
        for entry in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda m: m.name):
            if not (entry.ispkg or modules):
                continue
            module = importlib.import_module(f"{package}.{entry.name}")
            parts = vars(module).get("PARTS") or (vars(module)["PART"],) if {"PART", "PARTS"} & vars(module).keys() else None
            if parts is None:
                raise PluginError(f"{module.__file__}: a {'folder' if entry.ispkg else 'file'} of parts names its spec PART, or several PARTS")
            yield from (spec for spec in parts if isinstance(spec, spec_class))

    return offer


def source_hash(folder_or_file: Path) -> str:
    """SHA-256 over the names and contents of a plugin's .py files."""
    root = Path(folder_or_file)
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root) if root.is_dir() else file.name}\0".encode())
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()
