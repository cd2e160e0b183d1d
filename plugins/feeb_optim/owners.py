"""Matrices shared out over ranks: one rank, its owner, computes what all need of a matrix (as ZeRO does, arXiv:1910.02054).

Owners are chosen by cost, alike on every rank, and stay. Matrices are taken in rounds of limited size: owners get the shards of theirs,
compute, and send every rank the part that it holds, its shard or, where every rank has the whole matrix, all of it. A matrix is computed
as in one process, so which rank does it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from feebcore.train.dtensor import ShardSpec, is_sharded, local_shard, shard_spec
from feebcore.train.optimizer import Optimizer

ROUND_ELEMENTS = 2**27
"""Elements of a round for each rank: half a GiB in fp32."""

Compute = Callable[[list[Any], list[list[Tensor]]], list[list[Tensor]]]


class OwnersOptimizer(Optimizer):
    """An optimizer of which ranks share out the work, where steps are of whole parameters."""

    kept_by_owner: tuple[str, ...] = ()
    """How keys begin of state that only a parameter's owner keeps up to date: tensors that every rank has whole."""

    def __init__(self, groups: list[dict[str, Any]], world: int) -> None:
        self.world = world
        self._owners: dict[Any, Owners] = {}  # by the first parameter of a group
        super().__init__(groups, {})

    def cost(self, parameter: Any) -> int:
        """Of the parameter's step, in any unit."""
        return int(parameter.numel())

    def by_owners(self, group: dict[str, Any]) -> Owners:
        """Who takes the step of each parameter of the group, and how all get the result."""
        first = group["params"][0]
        if first not in self._owners:
            self._owners[first] = Owners(group["params"], [self.cost(p) for p in group["params"]], self.world)
        return self._owners[first]

    def share_state(self) -> None:
        for group in self.param_groups:
            kept = [(p, self.state[p][key]) for p in group["params"] for key in sorted(self.state.get(p, ())) if key.startswith(self.kept_by_owner)]
            if kept:
                self.by_owners(group).share(kept)


class Owners:
    """Of the matrices `parameters`. costs: of computing each, in any unit. world: ranks that hold them whole; of sharded ones the mesh says it."""

    def __init__(self, parameters: Sequence[Any], costs: Sequence[int], world: int = 1) -> None:
        first = parameters[0]
        self.sharded = is_sharded(first)
        self.world = first.device_mesh.size() if self.sharded else world
        self.group = first.device_mesh.get_group() if self.sharded else None
        self.rank = dist.get_rank(self.group) if self.world > 1 else 0
        self.owner = dict(zip(parameters, assign(costs, self.world), strict=True))
        self.order = {parameters[i]: place for place, i in enumerate(sorted(range(len(costs)), key=lambda i: -costs[i]))}

    def compute(self, inputs: Mapping[Any, list[Tensor]], number: int, compute: Compute) -> Iterator[tuple[Any, list[Tensor]]]:
        """Each parameter with this rank's shards of what `compute(parameters, whole inputs)` gives for it: `number` tensors.

        inputs: this rank's shards of the tensors that it needs, by parameter. All have the parameter's shape and one dtype. Every rank must
        call this alike, and use what it yields before it goes on.
        """
        if self.world == 1:
            yield from zip(inputs, compute(list(inputs), list(inputs.values())), strict=True)
            return
        elements = [p.numel() * (number + len(several) * self.sharded) for p, several in inputs.items()]
        for turn in rounds(sorted(zip(inputs, elements, strict=True), key=lambda one: self.order[one[0]]), ROUND_ELEMENTS * self.world):
            owned = [[p for p in turn if self.owner[p] == rank] for rank in range(self.world)]
            mine = owned[self.rank]
            whole = self._gather(owned, inputs) if self.sharded else [inputs[p] for p in mine]
            yield from self._spread(owned, number, compute(mine, whole) if mine else [])

    def share(self, state: Iterable[tuple[Any, Tensor]]) -> None:
        """Give every rank what the owner of a parameter has in a tensor that all have; in place."""
        if self.world > 1:
            for parameter, tensor in state:
                dist.broadcast(tensor, group=self.group, group_src=self.owner[parameter])

    def _gather(self, owned: list[list[Any]], inputs: Mapping[Any, list[Tensor]]) -> list[list[Tensor]]:
        """The inputs of each matrix that this rank owns, whole."""
        wanted = [[self._part(p, rank) for p in owned[self.rank] for _ in inputs[p]] for rank in range(self.world)]
        received = self._exchange([[t for p in several for t in inputs[p]] for several in owned], wanted)
        whole = [[t.new_empty(p.shape) for t in inputs[p]] for p in owned[self.rank]]
        flat = [t for several in whole for t in several]
        for parts, pieces in zip(wanted, received, strict=True):
            for target, part, piece in zip(flat, parts, pieces, strict=True):
                target[part.slices()] = piece
        return whole

    def _spread(self, owned: list[list[Any]], number: int, results: list[list[Tensor]]) -> Iterator[tuple[Any, list[Tensor]]]:
        """What each owner has computed, as this rank holds it."""
        mine = list(zip(owned[self.rank], results, strict=True))
        outgoing = [[t[self._part(p, rank).slices()] for p, several in mine for t in several] for rank in range(self.world)]
        received = self._exchange(outgoing, [[self._part(p, self.rank) for p in several for _ in range(number)] for several in owned])
        for several, pieces in zip(owned, received, strict=True):
            for i, p in enumerate(several):
                yield p, pieces[i * number : (i + 1) * number]

    def _part(self, parameter: Any, rank: int) -> ShardSpec:
        """What a rank has of the parameter."""
        return shard_spec(parameter, rank) if self.sharded else ShardSpec.full(tuple(parameter.shape))

    def _exchange(self, outgoing: Sequence[Sequence[Tensor]], parts: Sequence[Sequence[ShardSpec]]) -> list[list[Tensor]]:
        """Send outgoing[rank] to each rank; returns what each sent to this one, the tensors of parts[rank]."""
        empty = local_shard(next(iter(self.owner))).new_empty(0)
        content = torch.cat([empty, *(t.reshape(-1) for several in outgoing for t in several)])
        sizes = [[part.numel() for part in several] for several in parts]
        result = empty.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(result, content, [sum(s) for s in sizes], [sum(t.numel() for t in several) for several in outgoing], group=self.group)
        pieces = iter(result.split([size for several in sizes for size in several]))
        return [[next(pieces).view(part.shape) for part in several] for several in parts]


def assign(costs: Sequence[int], world: int) -> list[int]:
    """The owner of each matrix: the most expensive first, each to the rank that has the least to do so far."""
    owners, loads = [0] * len(costs), [0] * world
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def rounds(sizes: Iterable[tuple[Any, int]], limit: int) -> Iterator[list[Any]]:
    """What has a size, in order and in turns; the sizes of a turn add up to the limit at most, or it is one alone."""
    turn: list[Any] = []
    total = 0
    for one, size in sizes:
        if turn and total + size > limit:
            yield turn
            turn, total = [], 0
        turn.append(one)
        total += size
    if turn:
        yield turn
