"""Optimizers against independent references: torch's own AdamW, and the equations of Muon in NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from feeb_optim.muon.muon import COEFFICIENTS, orthogonalize, orthogonalize_all
from feebcore.parts import resolve_part
from feebcore.protocols import ParamGroup
from feebcore.train.state_tensors import optimizer_state, restore_optimizer


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.ParameterDict(
        {
            "up": nn.Parameter(torch.randn(24, 8)),
            "down": nn.Parameter(torch.randn(8, 24)),
            "table": nn.Parameter(torch.randn(30, 8)),
            "lm_head": nn.Parameter(torch.randn(30, 8)),
            "gain": nn.Parameter(torch.randn(8)),
        }
    )
    roles = {"matrix": ["up", "down"], "embedding": ["table"], "lm_head": ["lm_head"], "vector": ["gain"]}
    return model, [ParamGroup(role, names, [model[n] for n in names]) for role, names in roles.items()]


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.values():
        p.grad = torch.randn(p.shape, generator=generator)


def test_adamw_equals_torch_with_rates_and_decay_by_role():
    model, groups = make()
    twin = copy.deepcopy(model)
    part = resolve_part(
        "optimizers", {"name": "adamw", "lr": 0.01, "embedding_lr": 0.05, "vector_lr": 0.02, "weight_decay": 0.2, "weight_decay_roles": ["matrix"]}
    )
    ours = part.build(groups=groups)
    settings = [(["up", "down"], 0.01, 0.2), (["table"], 0.05, 0.0), (["lm_head"], 0.01, 0.0), (["gain"], 0.02, 0.0)]
    theirs = torch.optim.AdamW(
        [{"params": [twin[n] for n in names], "lr": lr, "weight_decay": decay} for names, lr, decay in settings], betas=(0.9, 0.95), eps=1e-8, foreach=False
    )
    for step in range(5):
        for m, optimizer in ((model, ours), (twin, theirs)):
            gradients(m, step)
            optimizer.step()
    for name in model:
        torch.testing.assert_close(model[name], twin[name], atol=1e-6, rtol=1e-5)


def muon_in_numpy(w, grads, lr, momentum, steps=5):
    """The algorithm as the post writes it, one matrix, float64."""
    a, b, c = COEFFICIENTS
    m = np.zeros_like(w)
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        x = momentum * m + (1 - momentum) * g
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (np.linalg.norm(x) * 1.02)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        w = w - lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * (x.T if tall else x)
    return w


def test_muon_follows_the_papers_equations(monkeypatch):
    monkeypatch.setattr("feeb_optim.muon.muon.has_fast_bf16", lambda device: False)
    model, groups = make()
    start = {n: p.detach().double().numpy().copy() for n, p in model.items()}
    optimizer = resolve_part("optimizers", {"name": "muon", "lr": 0.05}).build(groups=groups)
    seen = []
    for step in range(4):
        gradients(model, step)
        seen.append({n: p.grad.double().numpy().copy() for n, p in model.items()})
        optimizer.step()
    for name in ("up", "down"):
        expected = muon_in_numpy(start[name], [g[name] for g in seen], 0.05, 0.95)
        np.testing.assert_allclose(model[name].detach().numpy(), expected, atol=1e-4)


def test_muon_leaves_the_other_roles_to_adamw():
    model, groups = make()
    twin = copy.deepcopy(model)
    ours = resolve_part("optimizers", {"name": "muon", "embedding_lr": 0.03, "lm_head_lr": 0.01, "vector_lr": 0.02}).build(groups=groups)
    names = {"table": 0.03, "lm_head": 0.01, "gain": 0.02}
    theirs = torch.optim.AdamW([{"params": [twin[n]], "lr": lr} for n, lr in names.items()], betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, foreach=False)
    for step in range(3):
        for m, optimizer in ((model, ours), (twin, theirs)):
            gradients(m, step)
            optimizer.step()
    for name in names:
        torch.testing.assert_close(model[name], twin[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_keeps_the_directions_and_evens_the_singular_values(dtype):
    generator = torch.Generator().manual_seed(0)
    x_NRC = torch.randn(3, 16, 40, generator=generator)
    result = orthogonalize(x_NRC.to(dtype)).float()
    for given, made in zip(x_NRC.double().numpy(), result.double().numpy(), strict=True):
        u, _, vt = np.linalg.svd(given, full_matrices=False)
        inside = u.T @ made @ vt.T  # diagonal when the singular vectors are kept
        assert np.abs(inside - np.diag(np.diag(inside))).max() < (0.1 if dtype is torch.bfloat16 else 1e-4)
        assert np.diag(inside).min() > 0.6
        assert np.diag(inside).max() < 1.3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_survives_as_plain_tensors(name):
    model, groups = make()
    optimizer = resolve_part("optimizers", {"name": name}).build(groups=groups)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    tensors, plain = optimizer_state(model, optimizer)
    weights = {n: p.detach().clone() for n, p in model.items()}
    again, its_groups = make(seed=1)
    with torch.no_grad():
        for n, p in again.items():
            p.copy_(weights[n])
    fresh = resolve_part("optimizers", {"name": name}).build(groups=its_groups)
    restore_optimizer(again, fresh, {k: v.clone() for k, v in tensors.items()}, plain)
    for step in range(3, 6):
        for m, o in ((model, optimizer), (again, fresh)):
            gradients(m, step)
            o.step()
    assert all(model[n].equal(again[n]) for n in model)


def test_a_step_skips_parameters_without_a_gradient():
    model, groups = make()
    before = {n: p.detach().clone() for n, p in model.items()}
    optimizer = resolve_part("optimizers", "muon").build(groups=groups)
    gradients(model, 0)
    model["up"].grad = model["gain"].grad = None
    optimizer.step()
    assert model["up"].equal(before["up"])
    assert model["gain"].equal(before["gain"])
    assert not model["down"].equal(before["down"])


@pytest.mark.parametrize("shape", [(16, 40), (16, 24)])
@pytest.mark.parametrize("kind", ["random", "of rank 3", "with singular values down to 1e-6"])
def test_newton_schulz_keeps_fp32s_precision_whatever_the_spectrum(shape, kind):
    generator = torch.Generator().manual_seed(0)
    x_NRC = torch.randn(2, *shape, generator=generator)
    if kind == "of rank 3":
        x_NRC = torch.randn(2, shape[0], 3, generator=generator) @ torch.randn(2, 3, shape[1], generator=generator)
    elif kind != "random":
        x_NRC = torch.logspace(0, -6, shape[0])[:, None] * x_NRC
    a, b, c = COEFFICIENTS
    for given, made in zip(x_NRC.double().numpy(), orthogonalize(x_NRC).numpy(), strict=True):
        x = given / (np.linalg.norm(given) * 1.02)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        np.testing.assert_allclose(made, x, atol=5e-5)


def test_newton_schulz_runs_in_the_precision_that_is_asked_for() -> None:
    x_RC = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(x_RC.double()[None])[0]
    error = {p: (orthogonalize_all([x_RC], 5, p)[0] - exact).abs().max().item() for p in ("bf16", "fp32")}
    assert error["fp32"] < 1e-5
    assert 1e-4 < error["bf16"] < 0.05
