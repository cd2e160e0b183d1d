"""Which files a path, a folder or a glob pattern means.

What exists under its literal name is no pattern. Every folder is read once and every file comes once, however many links
lead to them; what is left out is counted by reason and name.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from feebcore.data.text_files import COMPANION, is_companion, kind_of
from feebcore.errors import DataError
from feebcore.protocols import Skipped

UNKNOWN_SUFFIX = "suffix not read"
NO_FILE = "neither file nor folder"
BROKEN_LINK = "link that leads nowhere"
FOLDER_TWICE = "link to a folder that is read already"
FILE_TWICE = "link to a file that is read already"


def list_files(paths: Sequence[str], skipped: Skipped) -> list[tuple[str, Path]]:
    """(key, file) of all entries, each file once, sorted by key; keys that two files share get a number.

    key: the file's name, its path below the folder, or below the part of the pattern that is plain. Of a folder only files of a
    known suffix are taken.
    """
    seen: dict[Path, str] = {}
    for path in paths:
        for key, file in _files_of(path, skipped):
            seen.setdefault(file, key)
    first: dict[object, Path] = {}
    for file in sorted(seen, key=lambda f: (os.path.realpath(f) != str(f), seen[f], str(f))):
        status = file.stat()
        identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(file)
        if first.setdefault(identity, file) is not file:
            skipped.add(FILE_TWICE, seen[file])
    counts: Counter[str] = Counter()
    numbered = []
    for file, key in sorted(((f, seen[f]) for f in first.values()), key=lambda item: (item[1], str(item[0]))):
        counts[key] += 1
        numbered.append((key if counts[key] == 1 else f"{key}#{counts[key]}", file))
    return sorted(numbered)


def is_pattern(part: str) -> bool:
    return glob.has_magic(re.sub(r"\[[*?[]\]", "", part))


def _files_of(path: str, skipped: Skipped) -> Iterator[tuple[str, Path]]:
    place = Path(path)
    if os.path.isfile(place):  # False where pathlib raises: for a name that is too long
        yield _shown(place, place.parent), place
        return
    whole = os.path.isdir(place)
    root, parts = (place, ["**", "*"]) if whole else _split(place)
    for file in _walk(root, parts, whole, skipped) if parts else ():
        key = _shown(file, root)
        if not file.is_file():
            skipped.add(NO_FILE if file.exists() else BROKEN_LINK, key)
        elif is_companion(file):
            skipped.add(COMPANION, key)
        elif whole and not kind_of(file.name):
            skipped.add(UNKNOWN_SUFFIX, key)
        else:
            yield key, file


def _shown(path: Path, root: Path) -> str:
    """The path below `root` as text; bytes of a name that are not UTF-8 as escapes."""
    return os.fsencode(path.relative_to(root)).decode(errors="backslashreplace")


def _split(path: Path) -> tuple[Path, list[str]]:
    """The folder up to the first part that is a pattern and no existing name, and the parts from there on ([]: no pattern)."""
    root, parts = Path(path.anchor), list(path.parts[1:] if path.anchor else path.parts)
    while parts and (not is_pattern(parts[0]) or os.path.exists(root / parts[0])):
        root /= parts[0] if os.path.exists(root / parts[0]) else _literal(parts[0])
        parts = parts[1:]
    return root, parts


def _literal(part: str) -> str:
    return re.sub(r"\[([*?[])\]", r"\1", part)


def _walk(root: Path, pattern: Sequence[str], hidden: bool, skipped: Skipped) -> Iterator[Path]:
    """What is no folder and matches the parts of the pattern, as glob has them. hidden: also names that begin with a dot. Links to
    folders are followed last, so that a file has its own path rather than one through a link."""
    parts = [part for i, part in enumerate(pattern) if part != "**" or i + 1 == len(pattern) or pattern[i + 1] != "**"]
    parts += ["*"] if parts[-1] == "**" else []
    begun: dict[tuple[str, int], Path] = {}
    links: list[tuple[Path, list[str]]] = []

    def visit(folder: Path, parts: list[str]) -> Iterator[Path]:
        place = (os.path.realpath(folder), len(parts))
        if (before := begun.setdefault(place, folder)) is not folder:
            if before != folder and parts[0] == "**":
                skipped.add(FOLDER_TWICE, _shown(folder, root))
            return
        part, rest = parts[0], parts[1:]
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(folder) else []
        except OSError as error:
            raise DataError(f"{folder} cannot be read ({error.strerror}); change its permissions or name the files one by one") from None
        if part == "**":
            yield from visit(folder, rest)
        for entry in entries:
            path = Path(entry.path)
            if part != "**" and is_pattern(part):
                matches = fnmatch.fnmatchcase(entry.name, part) and (hidden or part.startswith(".") or not entry.name.startswith("."))
            else:
                matches = entry.name == _literal(part) if part != "**" else hidden or not entry.name.startswith(".")
            if not matches:
                continue
            if path.is_dir():
                below = parts if part == "**" else rest
                if below and entry.is_symlink():
                    links.append((path, below))
                elif below:
                    yield from visit(path, below)
            elif part != "**" and not rest:
                yield path

    yield from visit(root, parts)
    while links:
        yield from visit(*links.pop(0))


def describe_skipped(skipped: Skipped, most: int = 3) -> str:
    """'5 left out (suffix not read: a.png, b.png, c.png, …), 1 left out (not UTF-8: d.txt)'."""
    return ", ".join(
        f"{n} left out ({why}{': ' if skipped.names.get(why) else ''}{', '.join(skipped.names.get(why, [])[:most])}{', …' if n > most else ''})"
        for why, n in skipped.items()
        if n
    )
