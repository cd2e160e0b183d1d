"""The errors that users meet. Each says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

NO_VALIDATION_TEXT = "set download.split: tail, add documents, lower download.split_modulus, or leave this out of the recipe"
"""What to do where a small corpus has left the held-out split empty."""


class FeebError(Exception):
    """Base of every error caused by input, environment or a plugin; shown without a traceback."""


class UsageError(FeebError):
    """An argument of a command is wrong; `feeb` ends with status 2."""


class RecipeError(FeebError):
    """A recipe cannot be used; the message names file, line and key."""


class UnknownPartError(FeebError):
    """No plugin offers a part of this name on this kind."""


class PartClashError(FeebError):
    """Two distributions claim one bare name on one kind."""


class PluginError(FeebError):
    """A plugin failed to import or broke the plugin rules."""


class DataError(FeebError):
    """A corpus, document, tokenizer or token store is unusable."""


class ArtifactError(FeebError):
    """An artifact is missing, altered, truncated or in use."""


class StageFailed(FeebError):
    """A stage's process ended without finishing; the message names its log. log: the path, where the message quotes nothing of it."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class Diverged(FeebError):
    """A training run met a loss or gradient that is not finite; a study records the run as diverged."""


class Interrupted(FeebError):
    """A stage was asked to stop (SIGINT, SIGTERM) and has saved what it had."""


def plural(number: int, noun: str) -> str:
    """'1 document', '12,000 documents', '2 batches'."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest known names, or all of them when none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    return f"known: {', '.join(names)}" if names else "none are known here"
