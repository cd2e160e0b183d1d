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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.matrix_optimizer import MatrixOptimizer, groups_of
from feeb_optim.soap import SoapConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import local_shard

SIDES = {"left": -2, "right": -1}
"""The dimension that each preconditioner turns."""


@dataclass(frozen=True)
class Map:
    """One map in the parameter [..., R, C], or all of it: `rows` of it. suffix: of its keys in the parameter's state."""

    parameter: Any
    rows: slice
    suffix: str

    @property
    def shape(self) -> tuple[int, ...]:
        *batch, _, columns = self.parameter.shape
        return (*batch, self.rows.stop - self.rows.start, columns)

    def of(self, whole: Tensor) -> Tensor:
        return whole[..., self.rows, :]

    def square(self, side: str) -> tuple[int, ...]:
        """[1, ..., S, S], the shape of a side's matrices: with a dimension more than the parameter has, as they are whole on every rank."""
        return (1, *self.shape[:-2], self.shape[SIDES[side]], self.shape[SIDES[side]])


class Soap(MatrixOptimizer):
    counters = ("steps",)
    kept_by_owner = ("gram", "basis")

    def __init__(self, config: SoapConfig, context: BuildContext) -> None:
        self.config = config
        super().__init__(groups_of(config, context.groups, shampoo_beta=config.shampoo_beta, steps=0), context, config.split_fused)

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        group["steps"] += 1
        fresh = [p for p in parameters if "exp_avg" not in self.state[p]]
        begun = [p for p in parameters if "exp_avg" in self.state[p]]
        if fresh:
            self._begin(group, fresh)
        if begun:
            self._step(group, begun)

    def _begin(self, group: dict[str, Any], parameters: list[Any]) -> None:
        """The first step of these parameters: their bases."""
        for p in parameters:
            squares = {(f"{kind}_{side}{one.suffix}"): one.square(side) for one in self.maps_of(p) for side in self.sides(one) for kind in ("gram", "basis")}
            self.state[p] |= {key: local_shard(p).new_zeros(shape) for key, shape in squares.items()}

        def compute(several: list[Any], whole: list[list[Tensor]]) -> list[list[Tensor]]:
            for maps in self.batches(several):
                gradient_NRC = stacked(maps, several, [gradient for (gradient,) in whole])
                for side in self.sides(maps[0]):
                    gram_NSS = gram(gradient_NRC, side) * (1 - group["shampoo_beta"])
                    self._write(maps, f"gram_{side}", gram_NSS)
                    self._write(maps, f"basis_{side}", torch.linalg.eigh(gram_NSS).eigenvectors.flip(-1))
            return [[] for _ in several]

        for key in ("exp_avg", "exp_avg_sq"):
            state_of(self, parameters, key)
        collections.deque(self.by_owners(group).compute({p: [g] for p, g in zip(parameters, gradients_of(parameters), strict=True)}, 0, compute), 0)

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        step, lr, (beta1, beta2) = group["steps"] - 1, group["lr"], group["betas"]
        refresh = step % self.config.precondition_every == 0

        def compute(several: list[Any], whole: list[list[Tensor]]) -> list[list[Tensor]]:
            found = {p: [torch.empty_like(square) for _ in range(2)] for p, (*_, square) in zip(several, whole, strict=True)}
            for maps in self.batches(several):
                gradient_NRC, mean_NRC, square_NRC = (stacked(maps, several, tensors) for tensors in zip(*whole, strict=True))
                sides = self.sides(maps[0])
                bases = {side: self._read(maps, f"basis_{side}") for side in sides}
                turned_NRC = turn(gradient_NRC, bases)
                square_NRC.mul_(beta2).addcmul_(turned_NRC, turned_NRC, value=1 - beta2)
                direction_NRC = turn(mean_NRC, bases).div_(square_NRC.sqrt().add_(group["eps"]))
                update_NRC = turn(direction_NRC, {side: b.mT for side, b in bases.items()})
                for side in sides:
                    gram_NSS = self._read(maps, f"gram_{side}").lerp_(gram(gradient_NRC, side), 1 - group["shampoo_beta"])
                    self._write(maps, f"gram_{side}", gram_NSS)
                    if refresh:
                        basis_NSS, order_NS = follow(gram_NSS, bases[side])
                        square_NRC = square_NRC.take_along_dim(order_NS[:, :, None] if side == "left" else order_NS[:, None, :], SIDES[side])
                        self._write(maps, f"basis_{side}", basis_NSS)
                for one, *values in zip(maps, *(x_NRC.reshape(len(maps), *maps[0].shape) for x_NRC in (update_NRC, square_NRC)), strict=True):
                    for target, value in zip(found[one.parameter], values, strict=True):
                        one.of(target).copy_(value)
            return list(found.values())

        tensors = gradients_of(parameters), state_of(self, parameters, "exp_avg"), state_of(self, parameters, "exp_avg_sq")
        torch._foreach_lerp_(tensors[1], tensors[0], 1 - beta1)
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        inputs = {p: list(several) for p, *several in zip(parameters, *tensors, strict=True)}
        for p, (update, square) in self.by_owners(group).compute(inputs, 2, compute):
            local_shard(p).add_(update, alpha=-lr * correction)
            inputs[p][2].copy_(square)
        if group["weight_decay"]:
            torch._foreach_mul_(shards_of(parameters), 1 - lr * group["weight_decay"])

    def cost(self, parameter: Any) -> int:
        """Both sides are multiplied."""
        return sum(parameter.numel() // parameter.shape[-2] * rows * (rows + parameter.shape[-1]) for rows in self.rows_of(parameter))

    # --- maps ---------------------------------------------------------------------------------------------------------

    def maps_of(self, parameter: Any) -> list[Map]:
        blocks = self.rows_of(parameter)
        starts = itertools.accumulate(blocks[:-1], initial=0)
        return [Map(parameter, slice(start, start + n), f"_{i}" if len(blocks) > 1 else "") for i, (start, n) in enumerate(zip(starts, blocks, strict=True))]

    def batches(self, parameters: list[Any]) -> Iterator[list[Map]]:
        """The maps of all parameters, those of one shape together: N matrices [R,C]."""
        alike: dict[tuple[int, ...], list[Map]] = collections.defaultdict(list)
        for p in parameters:
            for one in self.maps_of(p):
                alike[one.shape].append(one)
        yield from alike.values()

    def sides(self, one: Map) -> list[str]:
        """Those that are preconditioned."""
        return [side for side, dim in SIDES.items() if one.shape[dim] <= self.config.max_precondition_dim]

    # --- state: [N, ...] of the batch, kept by parameter --------------------------------------------------------------

    def _read(self, maps: list[Map], key: str) -> Tensor:
        return torch.cat([self.state[one.parameter][key + one.suffix].flatten(0, -3) for one in maps])

    def _write(self, maps: list[Map], key: str, value_NSS: Tensor) -> None:
        for one, part in zip(maps, value_NSS.split(len(value_NSS) // len(maps)), strict=True):
            kept = self.state[one.parameter][key + one.suffix]
            kept.copy_(part.view(kept.shape))


def stacked(maps: list[Map], parameters: Sequence[Any], tensors: Sequence[Tensor]) -> Tensor:
    """[N,R,C]: of tensors that go element by element with the parameters."""
    whole = dict(zip(parameters, tensors, strict=True))
    return torch.stack([one.of(whole[one.parameter]) for one in maps]).reshape(-1, *maps[0].shape[-2:])


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
