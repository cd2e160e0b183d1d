"""The source of a part as one hash: what of its plugin's code and data its factory and options reach.

    hash_of(spec)  ->  "9f2c41d0a6b3e815", or "" for a part of the engine

Begins at the factory and the options class and follows imports, read from the syntax tree and not executed, through modules of
the part's own distribution and of feeb's plugin packages. Within a module only what is reached is followed, so a package whose
`__init__` offers many parts does not tie them together; of a module that is reached, all bytes count. A package that is only
passed through counts where it does more than define names. Of a package's other files (json, yaml …) those count that a
reached module names, and those that no module of the package names. Next to a single file it is modules and data files of its folder.
Equal bytes give equal hashes, whether installed from a wheel, editable, committed or not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feebcore.registry import BUILTIN
from feebcore.specs import PartSpec

NOT_DATA = (".py", ".pyi", ".pyc", ".typed", ".md", ".rst", ".tmp", ".swp")
Stamp = tuple[Path, int, int]


@dataclass(frozen=True)
class Roots:
    """Where modules are looked up. packages: top-level name to its folder, or its file. folder: that of a single file."""

    packages: dict[str, Path]
    folder: Path | None = None

    def find(self, module: str) -> Path | None:
        """The file of a module by its dotted name; None for one that is not the plugin's."""
        top, *inner = module.split(".")
        place = self.packages.get(top, self.folder / top if self.folder else None)
        if place is None or (inner and place.suffix == ".py"):
            return None
        place = place.joinpath(*inner)
        options = [place] if place.suffix == ".py" else [place / "__init__.py", place.with_name(f"{place.name}.py")]
        return next((file for file in options if file.is_file()), None)


@dataclass
class Use:
    """What some statements refer to: names of their module, and (module, name) that they import; name '': all of it."""

    names: set[str] = field(default_factory=set)
    imports: set[tuple[str, str]] = field(default_factory=set)

    def add(self, other: Use) -> None:
        self.names |= other.names
        self.imports |= other.imports


@dataclass
class Module:
    """A parsed file. defines: each top-level name with what its definition refers to. effects: what runs on import besides
    definitions; acts: whether there is any. texts: every string in it, as a data file may be named by one."""

    defines: dict[str, Use] = field(default_factory=dict)
    effects: Use = field(default_factory=Use)
    acts: bool = False
    texts: set[str] = field(default_factory=set)


_known: dict[tuple[str, Any, Any], tuple[list[Stamp], str]] = {}


def hash_of(spec: PartSpec) -> str:
    """16 hexadecimal digits; '' where the part is the engine's own, or its source is not there to be read."""
    key = (spec.origin, spec.build, spec.config)
    stamps, known = _known.get(key, ([], ""))
    if not stamps or stamps != [_stamp(stamp[0]) for stamp in stamps]:
        files, read = _files(spec)
        content = [f"{name}\0{_digest(*_stamp(file))}" for name, file in files.items()]
        known = hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()[:16] if files else ""
        _known[key] = [_stamp(file) for file in {*files.values(), *read}], known
    return known


def files_of(spec: PartSpec) -> dict[str, Path]:
    """The files that make a part, by a name that is the same on every machine."""
    return _files(spec)[0]


def _files(spec: PartSpec) -> tuple[dict[str, Path], set[Path]]:
    """The files that make a part, and every file that was read to find them."""
    roots = _roots(spec)
    files, read = _reach(roots, _beginnings(spec))
    texts = set[str]().union(*(_parsed(module, *_stamp(file)).texts for module, file in files.items()))
    folders = {module.split(".")[0]: roots.packages.get(module.split(".")[0]) for module in files}
    data: dict[str, Path] = {}
    for top, folder in folders.items():
        if folder is not None and folder.is_dir():
            data |= {f"{top}/{file.relative_to(folder).as_posix()}": file for file in _package_data(folder, texts)}
    if roots.folder is not None:
        data |= {file.relative_to(roots.folder).as_posix(): file for file in _named_files(roots.folder, texts)}
    return files | data, read


def _roots(spec: PartSpec) -> Roots:
    """Of the part's distribution, and the plugin packages that come with feeb: parts may build on these."""
    packages = dict(_packages_of(BUILTIN))
    if spec.origin.endswith(".py"):
        file = Path(spec.origin).resolve()
        return Roots(packages | {file.stem: file}, file.parent)
    if spec.origin and spec.distribution != BUILTIN:
        packages |= _packages_of(spec.distribution)
    return Roots(packages)


@functools.cache
def _packages_of(distribution: str) -> dict[str, Path]:
    """The top-level packages of an installed distribution: those of its entry points, and those that it lists as its files."""
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return {}
    tops = {entry.value.partition(":")[0].split(".")[0] for entry in installed.entry_points if entry.group == "feeb"}
    if distribution == BUILTIN:
        tops = {top for top in tops if top != "feebcore"}
    else:
        tops |= {file.parts[0].removesuffix(".py") for file in installed.files or () if file.suffix == ".py" and file.parts[0] != ".."}
    found = {}
    for top in tops:
        module = importlib.util.find_spec(top) if top.isidentifier() else None
        if module is not None and module.origin:
            found[top] = Path(module.origin).parent if module.submodule_search_locations else Path(module.origin)
    return found


def _beginnings(spec: PartSpec) -> Iterator[tuple[str, str]]:
    if isinstance(spec.build, str):
        module, _, name = spec.build.partition(":")
        yield module, name.split(".")[0]
    else:
        build = spec.build
        while isinstance(build, functools.partial):
            build = build.func
        name = getattr(build, "__qualname__", "")
        yield getattr(build, "__module__", None) or type(build).__module__, name.split(".")[0] if name.split(".")[0].isidentifier() else ""
    yield spec.config.__module__, spec.config.__qualname__.split(".")[0]


def _reach(roots: Roots, beginnings: Iterable[tuple[str, str]]) -> tuple[dict[str, Path], set[Path]]:
    """Every module that counts, with its file, and every file that was read."""
    counted: dict[str, Path] = {}
    read: set[Path] = set()
    seen: set[tuple[str, str | None]] = set()
    todo: list[tuple[str, str | None]] = list(beginnings)  # name None: the module is only passed through
    while todo:
        step = todo.pop()
        if step in seen:
            continue
        seen.add(step)
        module, name = step
        if name and (inner := f"{module}.{name}") and roots.find(module) is not None and roots.find(inner) is not None:
            todo += [(inner, ""), (module, None)]  # `from package import module`
            continue
        if (file := roots.find(module)) is None:
            continue
        if parent := module.rpartition(".")[0]:
            todo.append((parent, None))
        read.add(file)
        parsed = _parsed(module, *_stamp(file))
        if name is not None or parsed.acts:
            counted[module] = file
        use = Use(set(parsed.effects.names), set(parsed.effects.imports))
        if name == "" or (name and name not in parsed.defines):
            use.names |= parsed.defines.keys()
        elif name:
            use.names.add(name)
        todo += use.imports
        todo += [(module, other) for other in use.names if other in parsed.defines and other != name]
        if name and name in parsed.defines:
            todo += parsed.defines[name].imports
            todo += [(module, other) for other in parsed.defines[name].names if other in parsed.defines]
    return counted, read


@functools.lru_cache(maxsize=4096)
def _parsed(name: str, file: Path, changed: int, size: int) -> Module:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return Module(acts=True)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    module = Module(texts={node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)})
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for statement in _statements(tree.body):
        use = _use(statement, package)
        for bound in (names := _bound(statement)):
            module.defines.setdefault(bound, Use()).add(use)
        unused = isinstance(statement, ast.Import) and not used & set(names)  # imported for what it does
        if unused or not (names or isinstance(statement, ast.ImportFrom) or _is_docstring(statement)):
            module.effects.add(use)
            module.acts = module.acts or not unused
    return module


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those inside `if`, `try` and `with` too; not what is for type checkers or for running as a script."""
    for statement in body:
        if isinstance(statement, ast.If):
            test = {node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)} | {
                node.attr for node in ast.walk(statement.test) if isinstance(node, ast.Attribute)
            }
            yield from _statements([*([] if test & {"TYPE_CHECKING", "__name__"} else statement.body), *statement.orelse])
        elif isinstance(statement, ast.Try):
            yield from _statements([*statement.body, *(s for h in statement.handlers for s in h.body), *statement.orelse, *statement.finalbody])
        elif not isinstance(statement, ast.Pass):
            yield statement


def _bound(statement: ast.stmt) -> list[str]:
    """The module-level names that a statement defines; none where it does anything else as well."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names if alias.name != "*"]
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]
    return [target.id for target in flat if isinstance(target, ast.Name)] if all(isinstance(target, ast.Name) for target in flat) else []


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _use(statement: ast.stmt, package: str) -> Use:
    use = Use()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            use.names.add(node.id)
        elif isinstance(node, ast.Import):
            use.imports |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            use.imports |= {(module, "" if alias.name == "*" else alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and _calls_import(node.func) and node.args and isinstance(node.args[0], ast.Constant):
            use.imports.add((str(node.args[0].value), ""))
    return use


def _calls_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    return name in ("import_module", "__import__")


def _package_data(folder: Path, texts: set[str]) -> list[Path]:
    """Data files of a package that a reached module names, or that none of its modules does."""
    return [file for file, is_named in _data_files(folder) if not is_named or any(text.endswith(file.name) for text in texts)]


@functools.cache
def _data_files(folder: Path) -> list[tuple[Path, bool]]:
    """The data files of a package, and whether any of its modules names each."""
    files = [f for f in sorted(folder.rglob("*")) if f.suffix not in NOT_DATA and not _hidden(f.relative_to(folder)) and f.is_file()]
    source = b"\n".join(module.read_bytes() for module in sorted(folder.rglob("*.py"))) if files else b""
    return [(file, file.name.encode() in source) for file in files]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _named_files(folder: Path, texts: set[str]) -> list[Path]:
    """Data files next to a single file, or one folder below, that its strings name."""
    names = {text for text in texts if text and len(text) < 100 and "\n" not in text and "\0" not in text and ".." not in text and not text.startswith("/")}
    places = [folder, *(folder / text for text in sorted(names) if text.strip("./") and (folder / text).is_dir())]
    found = {place / text for place in places for text in names if Path(text).suffix not in ("", *NOT_DATA)}
    return sorted(file for file in found if file.is_file())


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return file, 0, -1
    return file, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, changed: int, size: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
