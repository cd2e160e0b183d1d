"""Sources in fixed proportions, which may change in phases of the run (mid-training, annealing).

Samples are assigned to sources in cycles of CYCLE slots: in each, a source has a whole number of slots, evenly spread, so
proportions hold to 1 / CYCLE and any stretch of samples is within a few samples of its due. How many samples a source
has had before sample i is therefore arithmetic, and its own sequences follow in an order of their own, epoch by epoch: all
is stateless, no sequence of a source comes a second time before every other has come once, phases included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.permutation import FeistelPermutation
from feebcore.errors import DataError, did_you_mean
from feebcore.protocols import BuildContext, DataOrder

if TYPE_CHECKING:
    from feeb_data.data_orders.mixture import MixtureConfig

CYCLE = 10_000


class SlotSchedule:
    """One phase. source [CYCLE]: whose slot it is; rank [CYCLE]: how many slots of that source come before it in the cycle;
    quota [S]: slots of each source in a cycle."""

    def __init__(self, weights: Sequence[float]) -> None:
        exact = np.array(weights) / sum(weights) * CYCLE
        self.quota = np.floor(exact + 1e-9).astype(np.int64)
        self.quota[np.argsort(self.quota - exact, kind="stable")[: CYCLE - int(self.quota.sum())]] += 1  # largest remainders
        places = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quota if q])
        source = np.repeat(np.arange(len(self.quota)), self.quota)
        order = np.lexsort((source, places))
        self.source = source[order]
        self._counts = np.zeros((CYCLE + 1, len(self.quota)), dtype=np.int64)  # of each source before each slot
        np.add.at(self._counts, (np.arange(CYCLE) + 1, self.source), 1)
        self._counts = np.cumsum(self._counts, axis=0)
        self.rank = self._counts[np.arange(CYCLE), self.source]

    def counts_before(self, samples: int) -> np.ndarray:
        """Samples of each source among the first `samples` of the phase, int64 [S]."""
        cycles, rest = divmod(samples, CYCLE)
        return cycles * self.quota + self._counts[rest]


class MixtureOrder(DataOrder):
    """sources: the sequences of each. phases: (first sample, weight by source), the first from 0."""

    def __init__(self, sources: Mapping[str, range], phases: Sequence[tuple[int, Mapping[str, float]]], seed: int) -> None:
        self.sources = dict(sources)
        self._permutations = [FeistelPermutation(len(r), _seed_of(name, seed)) for name, r in self.sources.items()]
        self._first_sequence = np.array([r.start for r in self.sources.values()], dtype=np.int64)
        self._begins = np.array([begin for begin, _ in phases], dtype=np.int64)
        self._schedules = [SlotSchedule([weights.get(name, 0.0) for name in self.sources]) for _, weights in phases]
        lengths = np.diff(self._begins)
        counts = [schedule.counts_before(int(n)) for schedule, n in zip(self._schedules[:-1], lengths, strict=True)]
        self._before = np.cumsum([np.zeros(len(self.sources), dtype=np.int64), *counts], axis=0)  # [phase, source]

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        samples = np.asarray(samples, dtype=np.int64)
        source, number = self.assign(samples)
        sequences = np.empty_like(samples)
        for s, permutation in enumerate(self._permutations):
            rows = np.flatnonzero(source == s)
            epochs, positions = np.divmod(number[rows], permutation.n)
            sequences[rows] = self._first_sequence[s] + permutation(positions, epochs)
        return sequences

    def assign(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each sample: its source, and how many samples of that source come before it in the run."""
        phase = self._begins.searchsorted(samples, side="right") - 1
        source, number = np.empty_like(samples), np.empty_like(samples)
        for p, schedule in enumerate(self._schedules):
            rows = np.flatnonzero(phase == p)
            cycles, slots = np.divmod(samples[rows] - self._begins[p], CYCLE)
            source[rows] = schedule.source[slots]
            number[rows] = self._before[p, source[rows]] + cycles * schedule.quota[source[rows]] + schedule.rank[slots]
        return source, number

    def epochs(self, num_samples: int) -> dict[str, float]:
        phase = int(self._begins.searchsorted(num_samples, side="right")) - 1
        seen = self._before[phase] + self._schedules[phase].counts_before(num_samples - int(self._begins[phase]))
        return {name: float(n / len(r)) for (name, r), n in zip(self.sources.items(), seen, strict=True)}


def _seed_of(source: str, seed: int) -> int:
    """A source's order stays as it is when others are added."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:8], "little") >> 1


def build_mixture(config: MixtureConfig, context: BuildContext) -> MixtureOrder:
    """Without sources (a check by itself) each named source has all sequences. Raises DataError for a source that the text does
    not have, and where phases are out of order."""
    sources = context.sources or dict.fromkeys(config.proportions, range(context.num_sequences))
    for place, weights in [("proportions", config.proportions), *((f"phases.{i}.proportions", p.proportions) for i, p in enumerate(config.phases))]:
        for name, weight in weights.items():
            if weight and name not in sources:
                known = context.store.sources if context.store is not None else sources
                raise DataError(f"data_order.{place}: the text has no source {name!r}; {did_you_mean(name, known)}")
    phases: list[tuple[int, Mapping[str, float]]] = [(0, config.proportions)]
    batch_size = context.batch_size or 1
    for i, phase in enumerate(config.phases):
        if phase.begin_step is None and not context.total_steps:
            raise DataError(f"data_order.phases.{i}.begin: the length of the run is not known here; use begin_step")
        step = phase.begin_step if phase.begin_step is not None else round((phase.begin or 0.0) * context.total_steps)
        if step * batch_size <= phases[-1][0]:
            raise DataError(f"data_order.phases.{i}: it begins at step {step}, not after the phase before it; phases are listed in the order of the run")
        phases.append((step * batch_size, phase.proportions))
    return MixtureOrder(sources, phases, context.seed)
