"""Feedforwards against plain formulas: dense, memories of many small values, structured matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from feebcore.model.build import choose
from feebcore.protocols import BlockShape
from feebcore.testing import candidate
from feebcore.testing.framework import iterate


def made(name: str, d_model: int = 32, seed: int = 0, **options: Any) -> Any:
    """The part, with every weight drawn: unit gain for matrices, off their neutral values for the rest."""
    torch.manual_seed(seed)
    module = choose("feedforwards", {"name": name, **options}).build(BlockShape(d_model, 4, d_model // 4, 12, 0, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim >= 2 else parameter + 0.2 * noise)
    return module


def broken(name: str, **options: Any) -> list[str]:
    return [str(r) for r in iterate(candidate("feedforwards", choose("feedforwards", {"name": name, **options}))) if not r.passed]


# --- dense ------------------------------------------------------------------------------------------------------


def test_geglu_and_affine_gelu_are_their_equations() -> None:
    x = torch.randn(2, 5, 32)
    geglu = made("geglu", hidden=64)
    gate, value = geglu.hidden.weight[:64], geglu.hidden.weight[64:]
    assert torch.allclose(geglu(x), (F.gelu(x @ gate.T, approximate="tanh") * (x @ value.T)) @ geglu.out.weight.T, atol=1e-5)
    affine = made("affine_gelu", hidden=64, bias=True)
    inner = affine.activation.scale * (x @ affine.hidden.weight.T + affine.hidden.bias) + affine.activation.shift
    assert torch.allclose(affine(x), F.gelu(inner, approximate="tanh") @ affine.out.weight.T + affine.out.bias, atol=1e-5)


def test_affine_gelu_starts_as_gelu() -> None:
    parts = [choose("feedforwards", name).build(BlockShape(32, 4, 8, 12, 0, 2)) for name in ("gelu", "affine_gelu")]
    parts[1].load_state_dict(parts[0].state_dict(), strict=False)
    x = torch.randn(2, 5, 32)
    assert torch.equal(parts[0](x), parts[1](x))


@pytest.mark.parametrize("name", ["gelu", "affine_gelu", "swiglu"])
def test_norm_before_out_makes_the_last_matrix_blind_to_the_scale_of_what_it_reads(name: str) -> None:
    module, x, seen = made(name, norm_before_out=True), torch.randn(2, 5, 32), []
    module.out.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    module(x)
    read = (seen[0] / module.norm.gain).square().mean(-1)
    assert torch.allclose(read, torch.ones_like(read), atol=1e-3)


def test_dense_options_keep_the_contract() -> None:
    assert not broken("swiglu", norm_before_out=True)
    assert not broken("affine_gelu", norm_before_out=True, bias=True)
