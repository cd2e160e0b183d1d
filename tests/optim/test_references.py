"""Trajectories of 25 steps compared with independent implementations: torch, pytorch-optimizer, schedulefree, or NumPy from the paper."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch
from pytorch_optimizer.optimizer.grokfast import gradfilter_ema
from torch import nn

from feeb_optim.muon.muon import COEFFICIENTS
from feebcore.model.build import build_model
from feebcore.model.groups import param_groups
from feebcore.parts import resolve_part
from feebcore.protocols import ParamGroup

STEPS = 25
SHAPES = {"matrix": [(24, 8), (8, 24), (12, 12), (24, 8)], "embedding": [(30, 8)], "lm_head": [(17, 8)], "vector": [(8,), (24,), (1,)]}


def make():
    generator = torch.Generator().manual_seed(0)
    return [
        ParamGroup(role, [f"{role}{i}" for i in range(len(shapes))], [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes])
        for role, shapes in SHAPES.items()
    ]


def weights_of(groups):
    return [p for g in groups for p in g.parameters]


def set_gradients(groups, step):
    """Sizes differ by role and step, as in life."""
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(weights_of(groups)):
        p.grad = torch.randn(p.shape, generator=generator) * (0.1 + i) / (1 + step)


def torch_groups(groups, rates=None, decays=None):
    rates, decays = rates or {}, decays or {}
    return [
        {"params": g.parameters} | ({"lr": rates[g.role]} if g.role in rates else {}) | ({"weight_decay": decays[g.role]} if decays else {}) for g in groups
    ]


def assert_same_path(part, make_reference, tolerance=2e-6, rates=lambda step: 1.0, roles=tuple(SHAPES), prepare=lambda groups: None):
    """Step by step, with the rate multiplied by rates(step) in both."""
    groups, twins = ([g for g in make() if g.role in roles] for _ in range(2))
    ours, theirs = resolve_part("optimizers", part).build(groups=groups), make_reference(twins)
    start = [p.detach().clone() for p in weights_of(groups)]
    base = [[g["lr"] for g in o.param_groups] for o in (ours, theirs)]
    for step in range(STEPS):
        for optimizer, several, lrs in ((ours, groups, base[0]), (theirs, twins, base[1])):
            set_gradients(several, step)
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * rates(step)
            if optimizer is theirs:
                prepare(several)
            optimizer.step()
    for a, b, s in zip(weights_of(groups), weights_of(twins), start, strict=True):
        moved = (b - s).norm()
        assert moved > 0.001, "the reference hardly moves: the test would see nothing"
        assert (a - b).norm() < tolerance * moved * STEPS**0.5 + 1e-6 * b.norm(), f"{tuple(a.shape)}: {(a - b).norm() / moved:.2e} of the way apart"
    return ours, theirs, groups, twins


def test_adam_is_torchs_with_rates_by_role():
    rates = {"matrix": 0.01, "embedding": 0.05, "lm_head": 0.01, "vector": 0.02}
    part = {"name": "adam", "lr": 0.01, "embedding_lr": 0.05, "vector_lr": 0.02, "weight_decay": 0.3, "weight_decay_roles": ["matrix"], "betas": [0.8, 0.97]}
    decays = {"matrix": 0.3, "embedding": 0.0, "lm_head": 0.0, "vector": 0.0}
    assert_same_path(part, lambda groups: torch.optim.Adam(torch_groups(groups, rates, decays), betas=(0.8, 0.97), foreach=False, fused=False))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_recurrence_written_out(nesterov):
    groups = make()
    optimizer = resolve_part("optimizers", {"name": "sgd", "lr": 0.1, "lm_head_lr": 0.03, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.05}).build(
        groups=groups
    )
    rate = {"lm_head": 0.03}
    expected = [p.detach().double().numpy().copy() for p in weights_of(groups)]
    roles = [g.role for g in groups for _ in g.parameters]
    momenta = [np.zeros_like(w) for w in expected]
    for step in range(STEPS):
        set_gradients(groups, step)
        for i, (w, p, role) in enumerate(zip(expected, weights_of(groups), roles, strict=True)):
            g = p.grad.double().numpy() + (0.05 * w if role != "vector" else 0.0)
            momenta[i] = 0.8 * momenta[i] + g
            expected[i] = w - rate.get(role, 0.1) * (g + 0.8 * momenta[i] if nesterov else momenta[i])
        optimizer.step()
    for p, w in zip(weights_of(groups), expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-4, atol=1e-5)


def test_lion_is_that_of_pytorch_optimizer():
    part = {"name": "lion", "lr": 0.01, "betas": [0.9, 0.98], "weight_decay": 0.3, "weight_decay_roles": ["matrix", "embedding", "lm_head", "vector"]}
    assert_same_path(part, lambda groups: pytorch_optimizer.Lion(torch_groups(groups), lr=0.01, betas=(0.9, 0.98), weight_decay=0.3, weight_decouple=True))


@pytest.mark.parametrize("warmup", [0, 15])
def test_ademamix_is_that_of_pytorch_optimizer(warmup):
    part = {"name": "ademamix", "lr": 0.01, "betas": [0.9, 0.95], "slow_beta": 0.999, "alpha": 4.0, "warmup_steps": warmup, "weight_decay": 0.2}
    part |= {"weight_decay_roles": ["matrix", "embedding", "lm_head", "vector"]}
    options = {"betas": (0.9, 0.95, 0.999), "alpha": 4.0, "t_alpha_beta3": warmup or None, "weight_decay": 0.2, "weight_decouple": True}
    # theirs goes past the end of the warmup by a formula that ours does not follow there
    assert_same_path(part, lambda groups: pytorch_optimizer.AdEMAMix(torch_groups(groups), lr=0.01, foreach=False, **options))


def test_schedule_free_is_that_of_its_authors_while_the_rate_rises_and_stays():
    part = {"name": "schedule_free", "lr": 0.02, "betas": [0.9, 0.97], "weight_decay": 0.1, "weight_decay_roles": ["matrix", "embedding", "lm_head", "vector"]}

    def reference(groups):
        optimizer = schedulefree.AdamWScheduleFree(torch_groups(groups), lr=0.02, betas=(0.9, 0.97), weight_decay=0.1, foreach=False)
        optimizer.train()
        return optimizer

    ours, theirs, groups, twins = assert_same_path(part, reference, rates=lambda step: min(1.0, (step + 1) / 8))
    before = [p.detach().clone() for p in weights_of(groups)]
    ours.use_eval_weights()
    theirs.eval()
    for a, b in zip(weights_of(groups), weights_of(twins), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not any(a.equal(b) for a, b in zip(weights_of(groups), before, strict=True)), "the average differs from the weights in training"
    with pytest.raises(RuntimeError, match="call use_train_weights"):
        ours.step()
    ours.use_train_weights()
    assert all(a.equal(b) for a, b in zip(weights_of(groups), before, strict=True))


@pytest.mark.parametrize(("every", "longest"), [(1, 100), (5, 100), (3, 10), (3, 20)])
def test_soap_is_that_of_pytorch_optimizer(every, longest):
    part = {"name": "soap", "lr": 0.02, "betas": [0.9, 0.95], "shampoo_beta": 0.9, "weight_decay": 0.1, "weight_decay_roles": ["matrix"]}
    part |= {"precondition_every": every, "max_precondition_dim": longest}
    options = {"betas": (0.9, 0.95), "shampoo_beta": 0.9, "weight_decay": 0.1, "precondition_frequency": every, "max_precondition_dim": longest}
    assert_same_path(part, lambda groups: pytorch_optimizer.SOAP(torch_groups(groups), lr=0.02, **options), tolerance=1e-4, roles=("matrix",))


def test_grokfast_is_adamw_on_filtered_gradients():
    part = {"name": "grokfast", "alpha": 0.9, "lamb": 1.5, "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}}
    kept = {}

    def filter_gradients(groups):
        model = nn.ParameterList(weights_of(groups))
        kept["grads"] = gradfilter_ema(model, kept.get("grads"), alpha=0.9, lamb=1.5)

    assert_same_path(
        part, lambda groups: torch.optim.AdamW(weights_of(groups), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, foreach=False), prepare=filter_gradients
    )


def adafactor_in_numpy(w, grads, lr, decay):
    """Algorithms 4 and 5 of the paper with its weight decay decoupled, float64."""
    matrix = w.ndim > 1
    rows, columns, square = np.zeros(w.shape[0]), np.zeros(w.shape[-1]), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        beta = 1 - t**-0.8
        size = max(1e-3, np.sqrt((w**2).mean())) * min(lr, 1 / np.sqrt(t))
        if matrix:
            rows = beta * rows + (1 - beta) * (g**2).mean(1)
            columns = beta * columns + (1 - beta) * (g**2).mean(0)
            square = np.outer(rows, columns) / rows.mean()
        else:
            square = beta * square + (1 - beta) * g**2
        update = g / np.sqrt(square)
        update /= max(1.0, np.sqrt((update**2).mean()))
        w = w * (1 - lr * decay) - size * update
    return w


@pytest.mark.parametrize("lr", [0.02, 0.4])  # 0.4 is above 1 / sqrt(t) from step 7 on
def test_adafactor_follows_the_papers_equations(lr):
    groups = make()
    start = [p.detach().double().numpy().copy() for p in weights_of(groups)]
    optimizer = resolve_part("optimizers", {"name": "adafactor", "lr": lr, "weight_decay": 0.1, "weight_decay_roles": ["matrix", "vector"]}).build(
        groups=groups
    )
    seen = []
    for step in range(STEPS):
        set_gradients(groups, step)
        seen.append([p.grad.double().numpy().copy() for p in weights_of(groups)])
        optimizer.step()
    roles = [g.role for g in groups for _ in g.parameters]
    for i, (p, w, role) in enumerate(zip(weights_of(groups), start, roles, strict=True)):
        expected = adafactor_in_numpy(w, [g[i] for g in seen], lr, 0.1 if role in ("matrix", "vector") else 0.0)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=2e-4, atol=2e-5)


def normuon_in_numpy(w, grads, lr, momentum, beta2, decay):
    """Algorithm 1 of arXiv:2510.05491 in float64, the update brought back to the norm it had before the rows were evened."""
    a, b, c = COEFFICIENTS
    m, v = np.zeros_like(w), np.zeros((w.shape[0], 1))
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        x = momentum * m + (1 - momentum) * g
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (np.linalg.norm(x) * 1.02)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if tall else x
        v = beta2 * v + (1 - beta2) * (x**2).mean(1, keepdims=True)
        evened = x / np.sqrt(v)
        evened *= np.linalg.norm(x) / np.linalg.norm(evened)
        w = w * (1 - lr * decay) - lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * evened
    return w


def test_normuon_follows_the_papers_equations(monkeypatch):
    monkeypatch.setattr("feeb_optim.muon.muon.has_fast_bf16", lambda device: False)
    groups = make()
    start = [p.detach().double().numpy().copy() for p in groups[0].parameters]
    optimizer = resolve_part("optimizers", {"name": "normuon", "lr": 0.03, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.1}).build(groups=groups)
    seen = []
    for step in range(STEPS):
        set_gradients(groups, step)
        seen.append([p.grad.double().numpy().copy() for p in groups[0].parameters])
        optimizer.step()
    for i, (p, w) in enumerate(zip(groups[0].parameters, start, strict=True)):
        expected = normuon_in_numpy(w, [g[i] for g in seen], 0.03, 0.9, 0.8, 0.1)
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=3e-4)


@pytest.mark.parametrize("name", ["muon", "normuon", "soap"])
def test_a_stack_of_matrices_is_trained_as_its_matrices_alone(name):
    """[experts, R, C] as one parameter; the gradient of one expert has rank one."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 6, 10, generator=generator)
    stack = nn.Parameter(start.clone())
    alone = [nn.Parameter(x.clone()) for x in start.unbind()]
    optimizers = [resolve_part("optimizers", name).build(groups=[ParamGroup("matrix", [str(i) for i in range(len(ps))], ps)]) for ps in ([stack], alone)]
    for _ in range(12):
        gradient = torch.randn(start.shape, generator=generator)
        gradient[1] = torch.outer(gradient[1, :, 0], gradient[1, 0])
        stack.grad = gradient.clone()
        for p, g in zip(alone, gradient.unbind(), strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["muon", "normuon", "soap"])
def test_maps_in_a_fused_matrix_are_trained_as_matrices_alone(name, stacked):
    """q, k and v of different sizes, and gate and up of stacked experts; with split_fused: false the matrix is one."""
    generator = torch.Generator().manual_seed(0)
    blocks = (12, 4, 4)
    start = torch.randn(*((2,) if stacked else ()), 20, 10, generator=generator)
    alone = [nn.Parameter(x.clone()) for x in start.split(blocks, -2)]
    fused, whole, plain = (nn.Parameter(start.clone()) for _ in range(3))
    group = lambda p: [ParamGroup("matrix", ["w"], [p], {"w": blocks})]  # noqa: E731
    optimizers = [
        resolve_part("optimizers", name).build(groups=[ParamGroup("matrix", ["q", "k", "v"], alone)]),
        resolve_part("optimizers", name).build(groups=group(fused)),
        resolve_part("optimizers", {"name": name, "split_fused": False}).build(groups=group(whole)),
        resolve_part("optimizers", name).build(groups=[ParamGroup("matrix", ["w"], [plain])]),
    ]
    for _ in range(12):
        gradient = torch.randn(start.shape, generator=generator)
        gradient[..., 12:, :] *= 0.01
        for p in (fused, whole, plain):
            p.grad = gradient.clone()
        for p, g in zip(alone, gradient.split(blocks, -2), strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in alone], -2), atol=1e-5, rtol=1e-4)
    assert torch.equal(whole, plain)
    assert not torch.allclose(fused, whole, atol=1e-3)


@pytest.mark.parametrize("attention", ["mha", "gqa", "mla", "cross_layer", "differential", "no_value", "gated_delta", "ngpt"])
def test_fused_matrices_of_a_model_are_known_to_its_optimizer(attention):
    options = {"name": attention, "kv_share_layers": 1} if attention == "cross_layer" else attention
    architecture = {
        "name": "transformer",
        "num_layers": 1,
        "d_model": 32,
        "num_heads": 4,
        "attention": options,
        "feedforward": {"name": "moe", "num_shared": 1},
    }
    model = build_model(resolve_part("architectures", architecture), 50, 16)
    (group,) = (g for g in param_groups(model) if g.role == "matrix")
    named = dict(zip(group.names, group.parameters, strict=True))
    assert {name.split(".")[3] for name in group.row_blocks} == {"attention", "feedforward"}
    assert all(sum(rows) == named[name].shape[-2] for name, rows in group.row_blocks.items())
    assert group.row_blocks["stack.blocks.0.feedforward.experts.up"][0] * 2 == named["stack.blocks.0.feedforward.experts.up"].shape[-2]


def test_muons_momentum_can_be_scheduled_and_its_counter_survives_a_branch():
    groups, twins = make(), make()
    ours = resolve_part("optimizers", {"name": "muon", "momentum": 0.95}).build(groups=groups)
    other = resolve_part("optimizers", {"name": "muon", "momentum": 0.5}).build(groups=twins)
    for group in ours.param_groups:
        if "momentum" in group:
            group["momentum"] = 0.5
    for step in range(3):
        for several, optimizer in ((groups, ours), (twins, other)):
            set_gradients(several, step)
            optimizer.step()
    assert all(a.equal(b) for a, b in zip(weights_of(groups), weights_of(twins), strict=True))
    assert ours.counters == ("steps",)
    assert copy.deepcopy(ours.state_dict())["param_groups"][0]["steps"] == 3
