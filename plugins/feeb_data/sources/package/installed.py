"""Folders and versions of installed packages, found without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from feebcore.errors import DataError


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it. Raises DataError when there is none."""
    try:
        spec = importlib.util.find_spec(name) if "." not in name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"no package {name!r} is installed here; `pip install` it, or name a top-level package that is a folder")
    return Path(next(iter(spec.submodule_search_locations)))


def installed_version(name: str) -> str:
    """Version of the distribution that provides a package, or Python's. Raises ValueError when it is not installed."""
    import platform
    import sys

    try:
        package_folder(name)
    except DataError as error:
        raise ValueError(str(error)) from None
    if name in sys.stdlib_module_names:
        return f"python-{platform.python_version()}"
    distributions = importlib.metadata.packages_distributions().get(name, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"
