"""Deliberately broken packings and orders: each is caught by a named check of the contract, which says what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import feebcore as feeb
from feeb_data.packings.bestfit import BestfitConfig
from feeb_data.packings.bestfit.bestfit import bestfit
from feeb_data.packings.concat import ConcatConfig
from feeb_data.packings.concat.concat import ConcatPacking
from feebcore.parts import Part
from feebcore.protocols import BuildContext, DataOrder, PackedSequences, Packing
from feebcore.testing import check_part

PACKING_CHECKS = ("targets_follow_inputs", "packing_is_stateless", "packing_isolates_documents", "packing_statistics_are_right")


def failed_checks(kind: str, mutant: Part, *names: str) -> set[str]:
    """Of these checks, those that found something; a check that breaks down on the mutant has found nothing."""
    return {r.check for r in check_part(kind, mutant, only=names) if not r.passed and "it raised" not in r.message}


def packing_mutant(change: Callable[[PackedSequences, Any], Any], base: str = "concat", **statistics: float) -> Part:
    """concat or bestfit, its sequences spoilt by `change(packed, packing)`, its statistics by `statistics`."""

    class Mutant(Packing):
        def __init__(self, packing: Any) -> None:
            self.packing, self.num_sequences, self.asked = packing, packing.num_sequences, 0

        @property
        def statistics(self) -> dict[str, Any]:
            return self.packing.statistics | statistics

        def sequences(self, indices: np.ndarray) -> PackedSequences:
            self.asked += 1
            packed = self.packing.sequences(indices)
            return change(packed, self) or packed

    def build(config: Any, context: BuildContext) -> Mutant:
        return Mutant((ConcatPacking if base == "concat" else bestfit)(config, context))

    config = ConcatConfig if base == "concat" else BestfitConfig
    return Part("packings", feeb.PackingSpec("mutant", config, build=build, summary="A broken part."), config())


def shift_by_one(packed: PackedSequences, _: Any) -> PackedSequences:
    return PackedSequences(np.concatenate([packed.tokens[:, :-2], packed.tokens[:, -1:], packed.tokens[:, -2:-1]], axis=1), packed.mask)


def count_all(packed: PackedSequences, _: Any) -> None:
    packed.mask = np.ones_like(packed.mask)


def same_twice(packed: PackedSequences, _: Any) -> None:
    packed.tokens[1:2] = packed.tokens[:1]


def depends_on_calls(packed: PackedSequences, packing: Any) -> None:
    packed.tokens = np.roll(packed.tokens, packing.asked, axis=0) if len(packed.tokens) < 20 else packed.tokens


def depends_on_neighbors(packed: PackedSequences, _: Any) -> None:
    if packed.doc_ids is None:
        packed.mask = None if len(packed.tokens) % 2 else np.ones_like(packed.tokens[:, 1:], dtype=bool)


def one_document(packed: PackedSequences, _: Any) -> None:
    if packed.doc_ids is not None:
        packed.doc_ids = np.zeros_like(packed.doc_ids)


def positions_run_on(packed: PackedSequences, _: Any) -> None:
    if packed.positions is not None:
        packed.positions = np.broadcast_to(np.arange(packed.positions.shape[1]), packed.positions.shape)


def targets_across(packed: PackedSequences, _: Any) -> None:
    if packed.mask is not None:
        packed.mask = np.ones_like(packed.mask)


def nothing(packed: PackedSequences, _: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("mutant", "caught_by"),
    [
        (packing_mutant(shift_by_one), "targets_follow_inputs"),
        (packing_mutant(count_all, "bestfit"), "targets_follow_inputs"),
        (packing_mutant(same_twice), "targets_follow_inputs"),
        (packing_mutant(depends_on_calls), "packing_is_stateless"),
        (packing_mutant(depends_on_neighbors), "packing_is_stateless"),
        (packing_mutant(one_document), "packing_isolates_documents"),
        (packing_mutant(positions_run_on), "packing_isolates_documents"),
        (packing_mutant(targets_across), "packing_isolates_documents"),
        (packing_mutant(nothing, dropped_share=0.2), "packing_statistics_are_right"),
        (packing_mutant(nothing, cut_documents_share=0.0), "packing_statistics_are_right"),
        (packing_mutant(nothing, "bestfit", padding_share=0.0), "packing_statistics_are_right"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_packing_is_caught(mutant: Part, caught_by: str) -> None:
    assert failed_checks("packings", mutant, caught_by) == {caught_by}


@pytest.mark.parametrize("base", ["concat", "bestfit"])
def test_what_is_not_broken_is_not_caught(base: str) -> None:
    assert failed_checks("packings", packing_mutant(nothing, base), *PACKING_CHECKS) == set()


class Order(DataOrder):
    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return self.function(samples)


def order_mutant(build: Callable[..., Any]) -> Part:
    spec = feeb.DataOrderSpec("mutant", build=lambda config, context: Order(build(config, context)), summary="A broken part.")
    return Part("data_orders", spec, spec.config())


class Counting:
    """Goes on from where it was asked last."""

    def __init__(self, num_sequences: int) -> None:
        self.num_sequences, self.place = num_sequences, 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        self.place += len(samples)
        return np.arange(self.place - len(samples), self.place) % self.num_sequences


def drawn(config: Any, context: BuildContext) -> Callable[[np.ndarray], np.ndarray]:
    """With replacement."""
    return lambda samples: np.random.default_rng(context.seed).integers(0, context.num_sequences, 10_000)[samples]


def only_an_epoch(config: Any, context: BuildContext) -> Callable[[np.ndarray], np.ndarray]:
    return lambda samples: samples


def by_place_in_the_call(config: Any, context: BuildContext) -> Callable[[np.ndarray], np.ndarray]:
    return lambda samples: (samples + np.arange(len(samples)) // 512) % context.num_sequences


@pytest.mark.parametrize(
    ("mutant", "caught_by"),
    [
        (order_mutant(lambda config, context: Counting(context.num_sequences)), "order_is_stateless"),
        (order_mutant(lambda config, context: Counting(context.num_sequences)), "order_works_in_the_loader"),
        (order_mutant(drawn), "each_sequence_once"),
        (order_mutant(only_an_epoch), "order_works_in_the_loader"),
        (order_mutant(by_place_in_the_call), "order_works_in_the_loader"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_order_is_caught(mutant: Part, caught_by: str) -> None:
    assert failed_checks("data_orders", mutant, caught_by) == {caught_by}


def test_a_filter_that_keeps_dropping_is_caught() -> None:
    spec = feeb.FilterSpec("mutant", build=lambda config, context: lambda frame: frame.slice(1), summary="A broken part.")
    assert failed_checks("filters", Part("filters", spec, spec.config()), "filter_keeps_the_schema") == {"filter_keeps_the_schema"}
