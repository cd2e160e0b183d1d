"""SOAP (arXiv:2409.11321, Algorithm 3): Adam in the eigenbases of Shampoo's preconditioners, for the role 'matrix'.

    L = lerp(L, G G^T, 1 - shampoo_beta);  R likewise with G^T G;  Q_L, Q_R: their eigenvectors
    m = lerp(m, G, 1 - beta1);  v = lerp(v, (Q_L^T G Q_R)^2, 1 - beta2)
    W -= lr Q_L [(Q_L^T m Q_R) / (sqrt(v) + eps)] Q_R^T, with Adam's bias corrections;  then W -= lr weight_decay W

The eigenvectors follow by one step of power iteration and QR every `precondition_every` steps, v's entries sorted with
them. Maps that share a matrix (q, k and v) are matrices of their own. As in the paper's code, the first step only finds the bases. Matrices of one shape are one batch throughout. Cost a
step: 6 (R^2 C + R C^2) multiply-adds a matrix, more in the steps with QR.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feeb_optim.matrix_optimizer import MatrixOptimizer, groups_of, row_blocks_of
from feeb_optim.soap import SoapConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import ShardSpec, gather_full, is_sharded, local_shard, shard_spec

SIDES = ("left", "right")


class Map:
    """One map in the parameter [..., R, C], or all of it: the rows from `start` on. suffix: of its keys in the parameter's state."""

    def __init__(self, parameter: Any, start: int, rows: int, suffix: str) -> None:
        *batch, _, columns = parameter.shape
        self.parameter, self.suffix, self.shape = parameter, suffix, (*batch, rows, columns)
        self.place = ShardSpec(tuple(parameter.shape), (*[0] * len(batch), start, 0), self.shape)

    def of(self, whole: Tensor) -> Tensor:
        return whole[self.place.slices()]

    def here(self, shard: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a shard of the parameter has of this map, with the same part of a value of the map; nothing, where it has none of it."""
        own = shard_spec(self.parameter) if is_sharded(self.parameter) else ShardSpec.full(tuple(self.parameter.shape))
        overlap = own.overlap(self.place)
        return [] if overlap is None else [(shard[overlap[0]], value[overlap[1]])]


class Soap(MatrixOptimizer):
    counters = ("steps",)

    def __init__(self, config: SoapConfig, context: BuildContext) -> None:
        self.config = config
        self.row_blocks = row_blocks_of(context, config.split_fused)
        super().__init__(groups_of(config, context.groups, shampoo_beta=config.shampoo_beta, steps=0), {})

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        group["steps"] += 1
        batches: dict[tuple[tuple[int, ...], bool], list[Map]] = collections.defaultdict(list)
        for p in parameters:
            for one in self.maps_of(p):
                batches[one.shape, "exp_avg" not in self.state[p]].append(one)
        for (_, fresh), batch in batches.items():
            self._step(group, batch, fresh)

    def maps_of(self, parameter: Any) -> list[Map]:
        blocks = self.row_blocks.get(parameter, (parameter.shape[-2],))
        starts = itertools.accumulate(blocks[:-1], initial=0)
        return [Map(parameter, start, rows, f"_{i}" if len(blocks) > 1 else "") for i, (start, rows) in enumerate(zip(starts, blocks, strict=True))]

    def _step(self, group: dict[str, Any], maps: list[Map], fresh: bool) -> None:
        """One step of maps of one shape [R,C], or [..., R, C]; N matrices in all. fresh: their first."""
        rows, columns = maps[0].shape[-2:]
        gradient_NRC = self._elements(maps, lambda p: p.grad)
        sides = [side for side, size in zip(SIDES, (rows, columns), strict=True) if size <= self.config.max_precondition_dim]
        if fresh:
            self._begin(group, maps, gradient_NRC, sides)
            return
        step, lr, (beta1, beta2) = group["steps"] - 1, group["lr"], group["betas"]
        bases = {side: self._read(maps, f"basis_{side}") for side in sides}
        mean_NRC = self._elements(maps, lambda p: self.state[p]["exp_avg"]).lerp_(gradient_NRC, 1 - beta1)
        turned_NRC = turn(gradient_NRC, bases)
        square_NRC = self._elements(maps, lambda p: self.state[p]["exp_avg_sq"]).mul_(beta2).addcmul_(turned_NRC, turned_NRC, value=1 - beta2)
        direction_NRC = turn(mean_NRC, bases).div_(square_NRC.sqrt().add_(group["eps"]))
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        updates_NRC = turn(direction_NRC, {side: b.mT for side, b in bases.items()})
        for weight, update in self._here(maps, local_shard, updates_NRC):
            weight.add_(update, alpha=-lr * correction)
            if group["weight_decay"]:
                weight.mul_(1 - lr * group["weight_decay"])
        refresh = step % self.config.precondition_every == 0
        for side in sides:
            gram_NSS = self._read(maps, f"gram_{side}").lerp_(gram(gradient_NRC, side), 1 - group["shampoo_beta"])
            self._write(maps, f"gram_{side}", gram_NSS)
            if refresh:
                basis_NSS, order_NS = follow(gram_NSS, bases[side])
                square_NRC = square_NRC.take_along_dim(order_NS[:, :, None] if side == "left" else order_NS[:, None, :], -2 if side == "left" else -1)
                self._write(maps, f"basis_{side}", basis_NSS)
        for key, value_NRC in (("exp_avg", mean_NRC), ("exp_avg_sq", square_NRC)):
            for kept, value in self._here(maps, self._kept(key), value_NRC):
                kept.copy_(value)

    def _begin(self, group: dict[str, Any], maps: list[Map], gradient_NRC: Tensor, sides: list[str]) -> None:
        for one in maps:
            state = self.state[one.parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                state.setdefault(key, torch.zeros_like(local_shard(one.parameter)))
        for side in sides:
            gram_NSS = gram(gradient_NRC, side) * (1 - group["shampoo_beta"])
            self._write(maps, f"gram_{side}", gram_NSS)
            self._write(maps, f"basis_{side}", torch.linalg.eigh(gram_NSS).eigenvectors.flip(-1))

    # --- state: [N, ...] of the batch, kept by parameter --------------------------------------------------------------

    def _read(self, maps: list[Map], key: str) -> Tensor:
        return torch.cat([self.state[one.parameter][key + one.suffix].flatten(0, -3) for one in maps])

    def _write(self, maps: list[Map], key: str, value_NSS: Tensor) -> None:
        """With a dimension more than the parameter has, as it is whole on every rank."""
        size = value_NSS.shape[-1]
        for one, part in zip(maps, value_NSS.reshape(len(maps), 1, *maps[0].shape[:-2], size, size).unbind(), strict=True):
            self.state[one.parameter][key + one.suffix] = part.clone(memory_format=torch.contiguous_format)

    def _elements(self, maps: list[Map], tensor_of: Callable[[Any], Any]) -> Tensor:
        """[N,R,C]: of what goes element by element with the parameters."""
        whole = {one.parameter: gather_full(local_shard(tensor_of(one.parameter)), one.parameter) for one in maps}
        return torch.stack([one.of(whole[one.parameter]) for one in maps]).reshape(-1, *maps[0].shape[-2:])

    def _kept(self, key: str) -> Callable[[Any], Tensor]:
        return lambda parameter: local_shard(self.state[parameter][key])

    def _here(self, maps: list[Map], shard_of: Callable[[Any], Tensor], value_NRC: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What this rank has of each map, in the shards that `shard_of` gives, with the values for it."""
        values = value_NRC.reshape(len(maps), *maps[0].shape).unbind()
        return [pair for one, value in zip(maps, values, strict=True) for pair in one.here(shard_of(one.parameter), value)]


def gram(x_NRC: Tensor, side: str) -> Tensor:
    return x_NRC @ x_NRC.mT if side == "left" else x_NRC.mT @ x_NRC


def turn(x_NRC: Tensor, bases: dict[str, Tensor]) -> Tensor:
    """Q_L^T X Q_R; a side without a basis stays."""
    x_NRC = bases["left"].mT @ x_NRC if "left" in bases else x_NRC
    return x_NRC @ bases["right"] if "right" in bases else x_NRC.clone()


def follow(gram_NSS: Tensor, basis_NSS: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration from a basis towards the eigenvectors of gram, largest eigenvalue first; and the order [N,S] of the
    old columns in it."""
    product_NSS = gram_NSS @ basis_NSS
    order_NS = (basis_NSS * product_NSS).sum(-2).argsort(descending=True, stable=True)
    return torch.linalg.qr(product_NSS.take_along_dim(order_NS[:, None, :], -1)).Q, order_NS
