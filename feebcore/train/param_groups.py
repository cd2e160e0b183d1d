"""Overrides for some of the parameters, by name and role: another learning rate or weight decay, or frozen.

    param_groups:
      - {match: "blocks\\.0\\.", lr_scale: 0.5}
      - {role: embedding, weight_decay: 0}
      - {match: "^position", freeze: true}

All rules that match a parameter apply, in order: lr_scale multiplies, the last weight_decay holds, one freeze is enough.
Loads no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from feebcore.config import PartConfig
from feebcore.errors import FeebError
from feebcore.protocols import ParamGroup


class ParamGroupOverride(PartConfig):
    """match and role: which parameters; both must fit."""

    match: str = Field("", description="regular expression, searched in the parameter's name; empty: all")
    role: Literal["matrix", "embedding", "lm_head", "vector"] | None = Field(None, description="only parameters of this role")
    lr_scale: float = Field(1.0, ge=0, description="factor on their learning rate")
    weight_decay: float | None = Field(None, ge=0, description="their weight decay, in place of the optimizer's")
    freeze: bool = Field(False, description="exclude them from training")

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a valid regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _does_something(self) -> ParamGroupOverride:
        if self.lr_scale == 1.0 and self.weight_decay is None and not self.freeze:
            raise ValueError("the rule changes nothing; give lr_scale, weight_decay or freeze")
        return self

    def fits(self, name: str, role: str) -> bool:
        return (self.role is None or self.role == role) and re.search(self.match, name) is not None


@dataclass(frozen=True)
class Change:
    """What the rules make of a parameter. weight_decay None: the optimizer's."""

    lr_scale: float = 1.0
    weight_decay: float | None = None
    freeze: bool = False


def apply_rules(rules: Sequence[ParamGroupOverride], groups: Sequence[ParamGroup]) -> list[tuple[ParamGroup, Change]]:
    """The groups, each split into those whose parameters change alike; frozen ones too. Order is kept.

    Raises FeebError naming the rule that fits no parameter, with names that are near.
    """
    matched = [False] * len(rules)
    result: list[tuple[ParamGroup, Change]] = []
    for group in groups:
        split: dict[Change, ParamGroup] = {}
        for name, parameter in zip(group.names, group.parameters, strict=True):
            fitting = [i for i, rule in enumerate(rules) if rule.fits(name, group.role)]
            for i in fitting:
                matched[i] = True
            part = split.setdefault(_change([rules[i] for i in fitting]), ParamGroup(group.role, [], [], group.row_blocks))
            part.names.append(name)
            part.parameters.append(parameter)
        result += [(part, change) for change, part in split.items()]
    for i, rule in enumerate(rules):
        if not matched[i]:
            raise FeebError(_unmatched(i, rule, groups))
    return result


def _change(rules: list[ParamGroupOverride]) -> Change:
    scale = 1.0
    for rule in rules:
        scale *= rule.lr_scale
    decays = [rule.weight_decay for rule in rules if rule.weight_decay is not None]
    return Change(scale, decays[-1] if decays else None, any(rule.freeze for rule in rules))


def _unmatched(number: int, rule: ParamGroupOverride, groups: Sequence[ParamGroup]) -> str:
    names = [name for group in groups for name in group.names if rule.role in (None, group.role)]
    pattern = f"match {rule.match!r}" + (f" and role {rule.role!r}" if rule.role else "") if rule.match else f"role {rule.role!r}"
    if not names:
        return f"param_groups.{number}: no parameter fits {pattern}; the model has roles {', '.join(dict.fromkeys(g.role for g in groups))}"
    plain = re.sub(r"\\(.)|[\^$*+?()\[\]{}|]", r"\1", rule.match)
    near = sorted(names, key=lambda name: -_likeness(plain, name))[:4]
    return f"param_groups.{number}: no parameter fits {pattern}; near ones are {', '.join(near)}"


def _likeness(text: str, name: str) -> float:
    """Share of `text` found in the name, in order."""
    blocks = difflib.SequenceMatcher(None, text, name, autojunk=False).get_matching_blocks()
    return sum(b.size for b in blocks) / max(1, len(text)) - len(name) / 1e4
