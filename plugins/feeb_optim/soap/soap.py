"""SOAP (arXiv:2409.11321, Algorithm 3): Adam in the eigenbases of Shampoo's preconditioners, for the role 'matrix'.

    L = lerp(L, G G^T, 1 - shampoo_beta);  R likewise with G^T G;  Q_L, Q_R: their eigenvectors
    m = lerp(m, G, 1 - beta1);  v = lerp(v, (Q_L^T G Q_R)^2, 1 - beta2)
    W -= lr Q_L [(Q_L^T m Q_R) / (sqrt(v) + eps)] Q_R^T, with Adam's bias corrections;  then W -= lr weight_decay W

The eigenvectors follow by one step of power iteration and QR every `precondition_every` steps, v's entries sorted with
them. As in the paper's code, the first step only finds the bases. Matrices of one shape are one batch throughout. Cost a
step: 6 (R^2 C + R C^2) multiply-adds a matrix, more in the steps with QR.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import torch
from torch import Tensor

from feeb_optim.matrix_optimizer import MatrixOptimizer, groups_of
from feeb_optim.soap import SoapConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import gather_full, local_shard, slice_like

SIDES = ("left", "right")


class Soap(MatrixOptimizer):
    counters = ("steps",)

    def __init__(self, config: SoapConfig, context: BuildContext) -> None:
        self.config = config
        super().__init__(groups_of(config, context.groups, shampoo_beta=config.shampoo_beta, steps=0), {})

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        group["steps"] += 1
        batches: dict[tuple[tuple[int, ...], bool], list[Any]] = collections.defaultdict(list)
        for p in parameters:
            batches[tuple(p.shape), "exp_avg" in self.state[p]].append(p)
        for batch in batches.values():
            self._step(group, batch)

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        """One step of matrices of one shape [R,C], or [..., R, C]; N of them in all."""
        rows, columns = parameters[0].shape[-2:]
        gradient_NRC = torch.stack([gather_full(local_shard(p.grad), p) for p in parameters]).reshape(-1, rows, columns)
        sides = [side for side, size in zip(SIDES, (rows, columns), strict=True) if size <= self.config.max_precondition_dim]
        if "exp_avg" not in self.state[parameters[0]]:
            self._begin(group, parameters, gradient_NRC, sides)
            return
        step, lr, (beta1, beta2) = group["steps"] - 1, group["lr"], group["betas"]
        bases = {side: self._read(parameters, f"basis_{side}") for side in sides}
        mean_NRC = self._elements(parameters, "exp_avg").lerp_(gradient_NRC, 1 - beta1)
        turned_NRC = turn(gradient_NRC, bases)
        square_NRC = self._elements(parameters, "exp_avg_sq").mul_(beta2).addcmul_(turned_NRC, turned_NRC, value=1 - beta2)
        direction_NRC = turn(mean_NRC, bases).div_(square_NRC.sqrt().add_(group["eps"]))
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        updates = turn(direction_NRC, {side: b.mT for side, b in bases.items()}).reshape(len(parameters), *parameters[0].shape).unbind()
        weights = [local_shard(p) for p in parameters]
        torch._foreach_add_(weights, [slice_like(u, p) for u, p in zip(updates, parameters, strict=True)], alpha=-lr * correction)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        refresh = step % self.config.precondition_every == 0
        for side in sides:
            gram_NSS = self._read(parameters, f"gram_{side}").lerp_(gram(gradient_NRC, side), 1 - group["shampoo_beta"])
            self._write(parameters, f"gram_{side}", gram_NSS)
            if refresh:
                basis_NSS, order_NS = follow(gram_NSS, bases[side])
                square_NRC = square_NRC.take_along_dim(order_NS[:, :, None] if side == "left" else order_NS[:, None, :], -2 if side == "left" else -1)
                self._write(parameters, f"basis_{side}", basis_NSS)
        self._write_elements(parameters, "exp_avg", mean_NRC)
        self._write_elements(parameters, "exp_avg_sq", square_NRC)

    def _begin(self, group: dict[str, Any], parameters: list[Any], gradient_NRC: Tensor, sides: list[str]) -> None:
        for p in parameters:
            self.state[p] |= {"exp_avg": torch.zeros_like(local_shard(p)), "exp_avg_sq": torch.zeros_like(local_shard(p))}
        for side in sides:
            gram_NSS = gram(gradient_NRC, side) * (1 - group["shampoo_beta"])
            self._write(parameters, f"gram_{side}", gram_NSS)
            self._write(parameters, f"basis_{side}", torch.linalg.eigh(gram_NSS).eigenvectors.flip(-1))

    # --- state: [N, ...] of the batch, kept by parameter --------------------------------------------------------------

    def _read(self, parameters: list[Any], key: str) -> Tensor:
        return torch.cat([self.state[p][key].flatten(0, -3) for p in parameters])

    def _write(self, parameters: list[Any], key: str, value_NSS: Tensor) -> None:
        """With a dimension more than the parameter has, as it is whole on every rank."""
        size = value_NSS.shape[-1]
        for p, part in zip(parameters, value_NSS.reshape(len(parameters), 1, *parameters[0].shape[:-2], size, size).unbind(), strict=True):
            self.state[p][key] = part.clone(memory_format=torch.contiguous_format)

    def _elements(self, parameters: list[Any], key: str) -> Tensor:
        return torch.stack([gather_full(local_shard(self.state[p][key]), p) for p in parameters]).reshape(-1, *parameters[0].shape[-2:])

    def _write_elements(self, parameters: list[Any], key: str, value_NRC: Tensor) -> None:
        parts = value_NRC.reshape(len(parameters), *parameters[0].shape).unbind()
        torch._foreach_copy_([local_shard(self.state[p][key]) for p in parameters], [slice_like(v, p) for v, p in zip(parts, parameters, strict=True)])


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
