"""Norms without statistics of the vector: dynamic tanh, and the batch norm that is here to fail."""

from __future__ import annotations

import torch

from feebcore.parts import resolve_part
from feebcore.testing import candidate
from feebcore.testing.framework import iterate


def test_dynamic_tanh_is_the_papers_equation_channel_by_channel() -> None:
    norm = resolve_part("norms", {"name": "dynamic_tanh", "alpha": 0.8}).build(d_model=5)
    x = 3 * torch.randn(2, 4, 5)
    assert torch.allclose(norm(x), torch.tanh(0.8 * x))
    with torch.no_grad():
        norm.gain.copy_(torch.arange(5.0))
        norm.shift.fill_(-1.0)
    wanted = torch.stack([c * torch.tanh(0.8 * x[..., c]) - 1 for c in range(5)], -1)
    assert torch.allclose(norm(x), wanted, atol=1e-6)


def test_batchnorm_is_torchs_in_training_and_evaluation() -> None:
    own, theirs = resolve_part("norms", "batchnorm").build(d_model=6), torch.nn.BatchNorm1d(6)
    for _ in range(4):
        x = 2 * torch.randn(3, 50, 6) + 1
        assert torch.allclose(own(x), theirs(x.mT).mT, atol=1e-5)
    assert torch.allclose(own.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(own.running_var, theirs.running_var, rtol=0.02)  # torch keeps the unbiased variance
    theirs.running_var.copy_(own.running_var)
    assert torch.allclose(own.eval()(x), theirs.eval()(x.mT).mT, atol=1e-5)


def test_dynamic_tanh_without_gain_keeps_the_contract() -> None:
    subject = candidate("norms", resolve_part("norms", {"name": "dynamic_tanh", "learnable": False, "alpha": 1.0}))
    checks = ("causality", "initial_loss", "gradient_everywhere", "overfits_one_batch", "counts_are_measured", "bf16_is_close")
    assert all(r.passed for r in iterate(subject, checks))


def test_batchnorm_leaks_in_training_and_not_in_evaluation() -> None:
    """What the control is for: the later half of a row, and the other rows, are seen in training."""
    norm, x = resolve_part("norms", "batchnorm").build(d_model=6), torch.randn(3, 8, 6)
    later, others = x.clone(), x.clone()
    later[:, 4:] += 1
    others[1:] += 1
    assert (norm(later) - norm(x))[:, :4].abs().max() > 0.1
    assert (norm(others) - norm(x))[:1].abs().max() > 0.1
    norm.eval()
    assert torch.equal(norm(later)[:, :4], norm(x)[:, :4])
    assert torch.equal(norm(others)[:1], norm(x)[:1])
