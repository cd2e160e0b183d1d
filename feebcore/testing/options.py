"""That every option does something: changed from its default, it changes what the part computes, what it costs or what it keeps.

What by design does not change the checked function is listed in `inert` of the config class (feebcore/config.py).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import Tensor

from feebcore.model.context import ForwardContext
from feebcore.model.transformer import Transformer
from feebcore.parts import Part, resolve_part
from feebcore.rl.tasks import training_problems
from feebcore.testing.data import small_store
from feebcore.testing.framework import Candidate, check, require, skip
from feebcore.testing.models import KINDS, LENGTH, ROWS, SIZES, VOCAB, enliven, small_model, some_tokens
from feebcore.testing.training import displacement, factors, toy_groups
from feebcore.train.lr_scaling import TrainShape
from feebcore.train.probing import find_places


def _of_model(subject: Candidate) -> list[Any]:
    """Shapes, counts, first weights; hidden states and losses in training and evaluation, packed and with a cache."""
    first, model, tokens = small_model(subject, vivid=False), small_model(subject), some_tokens()
    seen: list[Any] = [model.count(), [(name, tuple(p.shape)) for name, p in model.named_parameters()], *first.parameters()]
    doc_ids = torch.repeat_interleave(torch.arange(2), torch.tensor([5, LENGTH - 5])).expand(ROWS, -1)
    for training in (True, False):
        torch.manual_seed(0)
        model.train(training)
        output = model(tokens, want_layers=True)
        seen += [output.hidden, model.lm_head(output.hidden), *(output.losses[key] for key in sorted(output.losses)), model(tokens, doc_ids=doc_ids).hidden]
    cache = model.new_cache(ROWS, LENGTH)
    return [*seen, model(tokens[:, :5], cache=cache).hidden, model(tokens[:, 5:6], cache=cache).hidden]


def _of_optimizer(subject: Candidate) -> list[Any]:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in subject.part.build(groups=toy_groups()).param_groups]
    return [str(groups), *(after for steps in (1, 12) for _, after in displacement(subject, lambda group: None, steps).values())]


def _of_schedule(subject: Candidate) -> list[Any]:
    return [[subject.part.build(total_steps=total)(step) for step in range(0, total + 1, max(1, total // 100))] for total in (100, 5000)]


def _of_lr_scaling(subject: Candidate) -> list[Any]:
    shapes = itertools.product((64, 3000), (2, 48), (256, 2**21), (100, 10**5), (10**6,), (10**5,), (1e7,))
    return [factors(subject.part.build()(TrainShape(*shape))) for shape in shapes]


def _of_task(subject: Candidate) -> list[Any]:
    task = subject.part.build()
    return [task.max_completion_tokens, training_problems(task, 30, 6)]


def _of_data_order(subject: Candidate) -> list[Any]:
    import numpy as np

    with small_store() as store:
        order = subject.part.build(num_sequences=64, seed=3, batch_size=4, total_steps=100, store=store)
        return [order(np.arange(300)).tolist()]


BEHAVIOR: dict[str, Callable[[Candidate], list[Any]]] = {
    **dict.fromkeys(KINDS, _of_model),
    "optimizers": _of_optimizer,
    "schedules": _of_schedule,
    "lr_scalings": _of_lr_scaling,
    "tasks": _of_task,
    "data_orders": _of_data_order,
}


def other_values(field: Any, value: Any) -> Iterator[Any]:
    """Some values that an option may have besides the one that it has, its default first."""
    if not field.is_required() and not isinstance(value, Part) and (default := field.get_default(call_default_factory=True)) != value:
        yield default
    if isinstance(value, bool):
        yield not value
    elif get_origin(field.annotation) is Literal:
        yield from (other for other in get_args(field.annotation) if other != value)
    elif isinstance(value, int):
        yield from dict.fromkeys((value * 2, value + 1, value // 2, 1, 2, 3, 0))
    elif isinstance(value, float):
        yield from dict.fromkeys((value * 2, value / 2, value + 0.25, 0.9, 0.1, 0.0, 1.0))
    elif value is None:
        yield from (1, 2, 0.5)


def same(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else not isinstance(a, Tensor) and a == b for a, b in pairs)


@check(*BEHAVIOR, meaning="An option is read by nothing, so a recipe that sets it is not what it says; use it, remove it, or list it in `inert`.")
@torch.no_grad()
def options_have_an_effect(subject: Candidate) -> None:
    config = subject.part.config
    keys = [key for key in type(config).model_fields if key not in config.inert and key not in SIZES and key != "num_layers"]
    plain = _Behaviors(subject)
    dead = [key for key in keys if plain.has_effect(key) is False]
    for key in keys:  # an option that counts only where another has another value
        for other in plain.switched(key) if dead else ():
            base = _Behaviors(other)
            dead = [name for name in dead if not base.has_effect(name)]
    require(not dead, f"changing {', '.join(dead)} changes nothing")


class _Behaviors:
    """What a part does with its options, and with each changed."""

    def __init__(self, subject: Candidate) -> None:
        self.subject = subject

    @functools.cached_property
    def plain(self) -> list[Any] | None:
        return self.of(self.subject)

    def of(self, subject: Candidate) -> list[Any] | None:
        """None where the options do not fit each other or the sizes of the check."""
        try:
            return BEHAVIOR[subject.kind](subject)
        except (ValueError, AssertionError, RuntimeError, KeyError, TypeError, IndexError):
            return None

    def changed(self, key: str) -> Iterator[Candidate]:
        """The part with other values of an option, those that are valid."""
        config = self.subject.part.config
        for value in other_values(type(config).model_fields[key], getattr(config, key)):
            try:
                other = type(config).model_validate({**config.model_dump(mode="json"), key: value}, context={"registry": self.subject.registry})
            except ValidationError:
                continue
            if getattr(other, key) != getattr(config, key):
                yield dataclasses.replace(self.subject, part=dataclasses.replace(self.subject.part, config=other))

    def switched(self, key: str) -> Iterator[Candidate]:
        """The part with each other choice of an option that is one of a few, or with one other value of any other option."""
        config = self.subject.part.config
        field, value = type(config).model_fields[key], getattr(config, key)
        few = isinstance(value, bool) or get_origin(field.annotation) is Literal
        return itertools.islice(self.changed(key), None if few else 1)

    def has_effect(self, key: str) -> bool | None:
        """Whether some other value of an option changes anything; None where none could be tried."""
        tried = None
        for other in self.changed(key) if self.plain is not None else ():
            if (result := self.of(other)) is not None:
                if not same(self.plain, result):  # type: ignore[arg-type]
                    return True
                tried = False
        return tried


@check("attentions", meaning="Dropout of attention weights, `attention_dropout` of the model, is not applied; use context.attend, or list it in `inert`.")
@torch.no_grad()
def attention_dropout_is_applied(subject: Candidate) -> None:
    if "attention_dropout" in subject.part.config.inert:
        skip("it says that it has no attention weights to drop")
    options = {"name": "transformer", **SIZES, "num_layers": 1, "attention": subject.part}
    plain, dropped = (_vivid({**options, "attention_dropout": rate}, subject) for rate in (0.0, 0.5))
    tokens = some_tokens()
    require(not torch.equal(plain.train()(tokens).hidden, dropped.train()(tokens).hidden), "attention_dropout 0.5 changes nothing in training")
    require(torch.equal(plain.eval()(tokens).hidden, dropped.eval()(tokens).hidden), "attention_dropout 0.5 changes the evaluation")


@check("attentions", meaning="The window that a stack sets for a pass, `context.window`, is not kept; use context.attend, or list `context.window` in `inert`.")
@torch.no_grad()
def context_window_is_kept(subject: Candidate) -> None:
    if "context.window" in subject.part.config.inert:
        skip("it says that it keeps no window")
    model = _vivid({"name": "transformer", **SIZES, "num_layers": 1, "attention": subject.part, "position": "none"}, subject)
    assert isinstance(model, Transformer)
    (part,) = (model.stack.get_submodule(name) for name in find_places(model).attention)
    x_BTC = torch.randn(ROWS, LENGTH, SIZES["d_model"], generator=torch.Generator().manual_seed(8))
    changed = x_BTC.clone()
    changed[:, 2] += 1.0
    before, after = (part(x, ForwardContext(model.position, window=3)) for x in (x_BTC, changed))
    reach = (after - before).abs().amax((0, 2))
    beyond = [t for t in range(5, LENGTH) if reach[t] > 1e-6]
    require(not beyond, f"with a window of 3 tokens, token 2 changes the output at {beyond[:5]}")
    require(reach[3] > 1e-6, "with a window of 3 tokens, token 2 does not change the output at 3")


def _vivid(options: dict[str, Any], subject: Candidate) -> Any:
    from feebcore.model.build import build_model

    model = build_model(resolve_part("architectures", options, subject.registry), VOCAB, LENGTH, seed=1)
    enliven(model)
    torch.manual_seed(0)
    return model
