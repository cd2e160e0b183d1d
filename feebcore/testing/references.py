"""Known parts written out in NumPy and float64, for those that bear their names; other names are other parts.

Each is called with the part and compares on random numbers. Options that change the formula beyond what is written here
(a logit softcap, a norm inside) leave a part to the other checks, and so does another layout of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from feebcore.model.context import ForwardContext
from feebcore.model.position import Position
from feebcore.parts import Part
from feebcore.protocols import BuildContext
from feebcore.testing.framework import require, skip

B, T, H, D = 2, 9, 4, 8
SHAPE = BuildContext(d_model=H * D, num_heads=H, head_dim=D, seq_len=T + 3, num_layers=2, position=Position())
TOLERANCE = 2e-5
OTHER_WEIGHTS = "the reference has other weights than the part with these options"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(module: nn.Module, *names: str) -> list[np.ndarray] | None:
    """Weights of these linear maps, made vivid; None if the module has others, or biases."""
    maps = [getattr(module, name, None) for name in names]
    if not all(isinstance(m, nn.Linear) and m.bias is None for m in maps):
        return None
    for i, m in enumerate(maps):
        m.weight.copy_(numbers(*m.weight.shape, seed=i + 1) / math.sqrt(m.weight.shape[1]))  # type: ignore[union-attr]
    if {id(p) for p in module.parameters()} != {id(m.weight) for m in maps}:  # type: ignore[union-attr]
        return None
    return [m.weight.numpy().astype(np.float64) for m in maps]  # type: ignore[union-attr]


def same(result: Tensor, expected: np.ndarray, formula: str) -> None:
    difference = float(np.abs(result.double().numpy() - expected).max())
    require(difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())), f"max abs difference {difference:.2g} from {formula}")


def plain(config: Any, *names: str) -> bool:
    """Whether none of these options is set."""
    return not any(getattr(config, name, None) for name in names)


def attention(part: Part) -> None:
    if not plain(part.config, "qk_norm", "logit_softcap"):  # qk_norm builds norms, which this context does not make
        skip("the reference computes neither qk_norm nor logit_softcap")
    module = part.build(SHAPE)
    known = weights(module, "qkv", "out")
    if known is None:
        skip(OTHER_WEIGHTS)
    w_qkv, w_out = known
    groups = (len(w_qkv) // D - H) // 2
    x = numbers(B, T, H * D)
    rows = (x.numpy().astype(np.float64) @ w_qkv.T).reshape(B, T, -1, D)
    q, k, v = (z.transpose(0, 2, 1, 3) for z in np.split(rows, [H, H + groups], axis=2))
    k, v = (np.repeat(z, H // groups, axis=1) for z in (k, v))
    scores = np.where(np.tril(np.ones((T, T), dtype=bool)), q @ k.swapaxes(-1, -2) / math.sqrt(D), -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ v
    expected = mixed.transpose(0, 2, 1, 3).reshape(B, T, H * D) @ w_out.T
    same(module(x, ForwardContext(Position())), expected, "W_out softmax(q k^T / sqrt(head_dim)) v, causal, without positions")


def rope(part: Part) -> None:
    position = part.build(SHAPE)
    x = numbers(B, T, H, D)
    positions = torch.arange(3, T + 3).expand(B, -1)
    rotated = part.config.num_rotated(D)  # type: ignore[attr-defined]
    frequencies = part.config.base ** (-np.arange(0, rotated, 2) / rotated)  # type: ignore[attr-defined]
    angles = positions.numpy()[:, :, None, None] * frequencies
    y = x.numpy().astype(np.float64)
    head, rest = y[..., :rotated], y[..., rotated:]
    interleaved = part.config.interleaved  # type: ignore[attr-defined]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else (head[..., : rotated // 2], head[..., rotated // 2 :])
    z = (a + 1j * b) * np.exp(1j * angles)
    made = np.stack([z.real, z.imag], -1).reshape(head.shape) if interleaved else np.concatenate([z.real, z.imag], -1)
    how = "x_2i with x_2i+1" if interleaved else "x_i with x_(i+D/2)"
    same(position.rotate(x, position.prepare(T, positions)), np.concatenate([made, rest], -1), f"pairs {how} rotated by position * base^(-2i/D)")


def rmsnorm(part: Part) -> None:
    x = 2 + 3 * numbers(7, 24)
    y = x.numpy().astype(np.float64)
    same(part.build(d_model=24)(x), y / np.sqrt((y**2).mean(-1, keepdims=True) + part.config.eps), "x / sqrt(mean(x^2) + eps)")  # type: ignore[attr-defined]


def layernorm(part: Part) -> None:
    x = 2 + 3 * numbers(7, 24)
    y = x.numpy().astype(np.float64)
    y = y - y.mean(-1, keepdims=True)
    same(part.build(d_model=24)(x), y / np.sqrt((y**2).mean(-1, keepdims=True) + part.config.eps), "(x - mean) / sqrt(var + eps)")  # type: ignore[attr-defined]


def feedforward(activation: Callable[[np.ndarray], np.ndarray], gated: bool, formula: str) -> Callable[[Part], None]:
    def compare(part: Part) -> None:
        module = part.build(SHAPE)
        known = weights(module, "hidden", "out")
        if known is None or not plain(part.config, "norm_before_out"):
            skip(OTHER_WEIGHTS)
        x = numbers(B, T, H * D)
        h = x.numpy().astype(np.float64) @ known[0].T
        gate, value = np.split(h, 2, axis=-1) if gated else (h, None)
        middle = activation(gate) if value is None else activation(gate) * value
        same(module(x, ForwardContext(Position())), middle @ known[1].T, formula)

    return compare


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


REFERENCES: dict[tuple[str, str], Callable[[Part], None]] = {
    ("attentions", "mha"): attention,
    ("attentions", "gqa"): attention,
    ("attentions", "mqa"): attention,
    ("positions", "rope"): rope,
    ("norms", "rmsnorm"): rmsnorm,
    ("norms", "layernorm"): layernorm,
    ("feedforwards", "relu"): feedforward(lambda x: np.maximum(x, 0), False, "W2 max(W1 x, 0)"),
    ("feedforwards", "relu_squared"): feedforward(lambda x: np.maximum(x, 0) ** 2, False, "W2 max(W1 x, 0)^2"),
    ("feedforwards", "gelu"): feedforward(gelu, False, "W2 gelu(W1 x), the tanh form"),
    ("feedforwards", "swiglu"): feedforward(lambda x: x * sigmoid(x), True, "W2 (silu(W1 x) * W3 x)"),
    ("feedforwards", "geglu"): feedforward(gelu, True, "W2 (gelu(W1 x) * W3 x), the tanh form"),
}
