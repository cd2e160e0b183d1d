"""Norms without statistics of the vector: dynamic tanh, and the batch norm that is here to fail."""

from __future__ import annotations

import pytest
import torch

from feebcore.model.build import choose
from feebcore.testing import candidate
from feebcore.testing.framework import iterate


def test_dynamic_tanh_is_the_papers_equation_channel_by_channel() -> None:
    norm = choose("norms", {"name": "dynamic_tanh", "alpha": 0.8}).build(5)
    x = 3 * torch.randn(2, 4, 5)
    assert torch.allclose(norm(x), torch.tanh(0.8 * x))
    with torch.no_grad():
        norm.gain.copy_(torch.arange(5.0))
        norm.shift.fill_(-1.0)
    wanted = torch.stack([c * torch.tanh(0.8 * x[..., c]) - 1 for c in range(5)], -1)
    assert torch.allclose(norm(x), wanted, atol=1e-6)


def test_batchnorm_is_torchs_in_training_and_evaluation() -> None:
    own, theirs = choose("norms", "batchnorm").build(6), torch.nn.BatchNorm1d(6)
    for _ in range(4):
        x = 2 * torch.randn(3, 50, 6) + 1
        assert torch.allclose(own(x), theirs(x.mT).mT, atol=1e-5)
    assert torch.allclose(own.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(own.running_var, theirs.running_var, rtol=0.02)  # torch keeps the unbiased variance
    theirs.running_var.copy_(own.running_var)
    assert torch.allclose(own.eval()(x), theirs.eval()(x.mT).mT, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("dynamic_tanh", {"learnable": False, "alpha": 1.0}), ("batchnorm", {"learnable": False, "momentum": 0.5})])
def test_norms_keep_or_break_the_contract_with_other_options(name: str, options: dict[str, object]) -> None:
    broken = [str(r) for r in iterate(candidate("norms", choose("norms", {"name": name, **options}))) if not r.passed]
    assert not broken, "\n".join(broken)
