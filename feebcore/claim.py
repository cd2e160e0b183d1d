"""What a claim says, as something that runs can be measured against. Pure; no torch.

    claims:
      C5-parallel:
        claim: parallel works surprisingly well
        expect: parallel = standard within 1%
      C6-twice:
        claim: attention of twice the size is slower early; the gap shrinks
        expect: attention-twice@50 - standard@50 > attention-twice - standard
      C1-trains:
        claim: one block's weights for all layers train
        expect: shared trains

An expectation is `VARIANTS trains`, `VARIANTS reaches 0.5` (nats of the training loss, in runs with stop_at_loss), or two sides with `<`, `>` or `=` between them. A side is terms joined by ` + ` and ` - `; a term is
a variant or a number, with a factor before it where wanted (`2 * standard`); `@50` takes the value at step 50 instead of the
last one. `=` needs `within`, a number in the metric's unit or a percentage of the right side. Spaces stand around every sign,
as names may hold dashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from feebcore.config import PartConfig

HELD_OUT = "bits_per_byte"
RELATIONS = ("<", ">", "=")

_TERM = re.compile(r"^(?P<name>[A-Za-z][\w.-]*)(?:@(?P<step>\d+))?$")
_NUMBER = re.compile(r"^\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$")


@dataclass(frozen=True)
class Term:
    """factor times the metric of a variant, at a step (None: the last); variant '': the factor itself."""

    factor: float
    variant: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Relation:
    """left RELATION right; within, in_percent: the margin of `=`."""

    left: tuple[Term, ...]
    sign: Literal["<", ">", "="]
    right: tuple[Term, ...]
    within: float = 0.0
    in_percent: bool = False


@dataclass(frozen=True)
class Trains:
    """Every run of these variants is finished and better than guessing."""

    variants: tuple[str, ...]


@dataclass(frozen=True)
class Reaches:
    """The training loss of every run of these variants comes down to `loss`, in nats."""

    variants: tuple[str, ...]
    loss: float


Expectation = Relation | Trains | Reaches


class Claim(PartConfig):
    """One row of a study's page."""

    claim: str = Field(min_length=1, description="the statement that is tested, in words")
    expect: str = Field(description="what holds if the claim is true: `a < b`, `a > b`, `a = b within 1%`, `a trains`, `a reaches 0.5`")
    metric: str = Field(
        HELD_OUT,
        min_length=1,
        description="bits_per_byte of the validation split, a metric of the run, a column of its training log, or FILE:PATH in its probes, such as "
        "repetition:greedy.repeated",
    )
    stage: str = Field("pretrain", description="stage whose artifact has the metric")

    @field_validator("expect")
    @classmethod
    def _parses(cls, value: str) -> str:
        parse(value)
        return value

    @property
    def expectation(self) -> Expectation:
        return parse(self.expect)


def parse(text: str) -> Expectation:
    """Raises ValueError, which says what to write."""
    words = text.split()
    if len(words) > 1 and words[-1] == "trains":
        return Trains(_runs(words[:-1], "trains", text))
    if "reaches" in words[1:]:
        cut = words.index("reaches", 1)
        loss = words[cut + 1 :]
        if len(loss) != 1 or not _NUMBER.match(loss[0]) or not float(loss[0]):
            raise ValueError(f"{text!r}: `reaches` is followed by one training loss above 0, in nats, as in `a reaches 0.5`")
        return Reaches(_runs(words[:cut], "reaches", text), float(loss[0]))
    signs = [i for i, word in enumerate(words) if word in RELATIONS]
    if len(signs) != 1:
        raise ValueError(f"{text!r}: write `a < b`, `a > b`, `a = b within 1%`, `a trains` or `a reaches 0.5`, with a space on each side of a sign")
    at = signs[0]
    left, right = words[:at], words[at + 1 :]
    within, in_percent = 0.0, False
    if "within" in right:
        cut = right.index("within")
        margin, right = right[cut + 1 :], right[:cut]
        if len(margin) != 1 or not _NUMBER.match(margin[0].rstrip("%")):
            raise ValueError(f"{text!r}: `within` is followed by one number, as 0.01 or 1%")
        within, in_percent = float(margin[0].rstrip("%")), margin[0].endswith("%")
    sign = words[at]
    if (sign == "=") != (within > 0):
        raise ValueError(f"{text!r}: `=` needs `within` and a margin above 0, and only `=` has one")
    return Relation(_side(left, text), sign, _side(right, text), within, in_percent)  # type: ignore[arg-type]


def _runs(words: list[str], verb: str, text: str) -> tuple[str, ...]:
    """The variants of `a, b and c`, which an expectation on whole runs names."""
    terms = [_variant(word.rstrip(",")) for word in words if word != "and"]
    if any(term.step is not None for term in terms):
        raise ValueError(f"{text!r}: `{verb}` refers to the end of a run; remove @step")
    return tuple(term.variant for term in terms)


def _side(words: list[str], text: str) -> tuple[Term, ...]:
    terms, factor, expecting = [], 1.0, True
    i = 0
    while i < len(words):
        word = words[i]
        if not expecting:
            if word not in ("+", "-"):
                raise ValueError(f"{text!r}: {word!r} follows a term; join terms by ` + ` or ` - `")
            factor, expecting = (1.0 if word == "+" else -1.0), True
        elif _NUMBER.match(word) and words[i + 1 : i + 2] == ["*"]:
            factor *= float(word)
            i += 1
        else:
            term = Term(float(word)) if _NUMBER.match(word) else _variant(word)
            terms.append(Term(factor * term.factor, term.variant, term.step))
            expecting = False
        i += 1
    if expecting:
        raise ValueError(f"{text!r}: a term is missing")
    return tuple(terms)


def _variant(word: str) -> Term:
    match = _TERM.match(word)
    if not match:
        raise ValueError(f"{word!r} is not a variant; write a name, or a name and a step such as standard@50")
    return Term(1.0, match["name"], int(match["step"]) if match["step"] else None)


def variants_of(expectation: Expectation) -> list[str]:
    """Every variant that the expectation names, in order, each once."""
    if isinstance(expectation, Trains | Reaches):
        return list(dict.fromkeys(expectation.variants))
    return list(dict.fromkeys(t.variant for t in (*expectation.left, *expectation.right) if t.variant))


def unknown_variants(claims: Mapping[str, Claim], variants: Iterable[str]) -> dict[str, str]:
    """Claim to the first variant it names that the study lacks."""
    known = set(variants)
    missing = {name: [v for v in variants_of(claim.expectation) if v not in known] for name, claim in claims.items()}
    return {name: unknown[0] for name, unknown in missing.items() if unknown}
