"""Learning-rate scalings: each rule against figures of its source, what it sets in an optimizer, and what a run says of it."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from feebcore.errors import RecipeError
from feebcore.model.build import build_model
from feebcore.parts import resolve_part
from feebcore.protocols import ParamGroup
from feebcore.recipe import load
from feebcore.registry import get_registry
from feebcore.train import pretrain
from feebcore.train.config import TrainSection
from feebcore.train.lr_scaling import LRScale, TrainShape
from feebcore.train.optimizer_schedules import build_optimizer
from feebcore.train.pretrain import lr_scale, scale_notes, train_shape

EXAMPLES = {
    "horizon": {"reference_tokens": 1_000_000, "reference_batch_tokens": 4096},
    "porian": {"reference_parameters": 10**6},
    "deepseek": {"reference_flops": 1e12},
    "steplaw": {"reference_parameters": 10**6, "reference_tokens": 10**7},
}
ROLES = ("matrix", "embedding", "lm_head", "vector")


def scale_of(shape, **part):
    return resolve_part("lr_scalings", part).build()(TrainShape(*shape))


def test_inverse_width_halves_matrix_rates_at_double_width_and_keeps_the_embeddings():
    rule = resolve_part("lr_scalings", {"name": "inverse_width", "reference_width": 128}).build()
    scale = rule(TrainShape(d_model=256, num_layers=4, batch_tokens=4096, steps=100))
    assert (scale.of("matrix"), scale.of("lm_head"), scale.of("embedding"), scale.of("vector")) == (0.5, 0.5, 1.0, 1.0)
    assert rule(TrainShape(0, 0, 1, 1)).of("matrix") == 1.0


def test_mup_scales_matrices_by_width_depth_and_batch_and_keeps_what_weights_lose_a_step():
    rule = {"name": "mup_lr", "reference_width": 128, "reference_layers": 4, "reference_batch_tokens": 1024}
    scale = scale_of((512, 16, 4096, 10), **rule)
    assert scale.roles == pytest.approx({"matrix": 0.25 * 0.5 * 2, "lm_head": 0.25 * 2, "embedding": 2, "vector": 2})
    assert scale.weight_decay == pytest.approx({"matrix": 8, "lm_head": 4})
    assert scale_of((512, 16, 4096, 10), **rule, width_exponent=0, depth_exponent=0, keep_decay=False).roles == dict.fromkeys(scale.roles, 2.0)
    assert scale_of((512, 16, 4096, 10), name="mup_lr", reference_width=128).of("matrix") == 0.25


def test_mup_keeps_the_size_of_an_adam_update_of_the_output():
    """Adam moves each entry by about the rate; with inputs of size 1, outputs of `width` terms then move alike at any width."""
    moved = []
    for width in (64, 256, 1024):
        torch.manual_seed(0)
        x = torch.randn(width)
        gradient = torch.outer(torch.randn(width), x)  # correlated with the input, as gradients are
        rate = 0.01 * scale_of((width, 0, 1, 1), name="mup_lr", reference_width=64).of("matrix")
        moved.append(float((rate * gradient.sign() @ x).abs().mean()))
    assert max(moved) / min(moved) < 1.3


def test_nanochat_rule_is_its_laws():
    rule = {"name": "nanochat", "reference_width": 768, "reference_batch_tokens": 1000, "reference_steps": 100}
    scale = scale_of((1536, 24, 4000, 50), **rule)  # twice the width, 4 times the batch, twice the tokens
    assert scale.roles == pytest.approx({"matrix": 2, "embedding": 2**0.5, "lm_head": 2**0.5, "vector": 2})
    assert scale.weight_decay == pytest.approx({"matrix": 1.0})
    longer = scale_of((768, 12, 1000, 400), **rule)
    assert [longer.decay_of(role) for role in ("matrix", "embedding", "lm_head", "vector")] == pytest.approx([0.25, 1, 1, 1])
    assert scale_of((768, 12, 1000, 400), name="nanochat").weight_decay == {}


# --- rules with a published rate ---------------------------------------------------------------------------------------------


def rate(lr: float, shape: TrainShape, **part: object) -> tuple[float, float | None]:
    """The learning rate of an optimizer whose own is `lr`, and the batch size that goes with it."""
    scale = resolve_part("lr_scalings", part).build()(shape)
    assert len({scale.of(role) for role in ROLES}) == 1
    assert (scale.weight_decay, scale.beta2_power, scale.eps) == ({}, 1.0, 1.0)
    return lr * scale.of("matrix"), scale.batch_tokens


def test_porian_has_its_published_rates_and_batches():
    """0.0047 and 160 sequences of 2048 at 108 M parameters; at 1/8 of them twice the rate and a quarter of the batch."""
    published = {"name": "porian", "reference_parameters": 108_000_000}
    assert rate(0.0047, TrainShape(0, 0, 1, 1, 100_000_000, 8_000_000), **published) == pytest.approx((0.0047, 327_680))
    assert rate(0.0047, TrainShape(0, 0, 1, 1, 13_000_000, 500_000), **published) == pytest.approx((0.0094, 81_920))
    assert rate(0.0047, TrainShape(0, 0, 1, 1, 1_000_000_000, 0), **published) == pytest.approx((0.0022382, 1_444_900), rel=1e-3)
    assert rate(0.01, TrainShape(0, 0, 1, 1, 8_000_000, 0), name="porian", reference_parameters=1_000_000)[0] == pytest.approx(0.005)


def test_deepseek_gives_its_own_models_the_rates_and_batches_that_they_had():
    """7B: 30 layers of 4096, 4.2e-4 and 2304 sequences of 4096; 67B: 95 layers of 8192, 3.2e-4 and 4608; both 2 T tokens (their Table 2)."""
    for layers, width, lr, batch in ((30, 4096, 4.2e-4, 2304 * 4096), (95, 8192, 3.2e-4, 4608 * 4096)):
        flops = 72 * layers * width**2 + 12 * layers * width * 4096
        shape = TrainShape(width, layers, batch, round(2e12 / batch), block_flops=flops)
        assert rate(0.3118, shape, name="deepseek", reference_flops=1) == pytest.approx((lr, batch), rel=0.1)
    shape = TrainShape(0, 0, 1000, 10**9, block_flops=1e8)
    assert rate(0.3118, shape, name="deepseek", reference_flops=1) == pytest.approx((0.3118 * 10**-2.5, 0.292 * 10 ** (20 * 0.3271)))
    assert rate(0.01, shape, name="deepseek", reference_flops=1e12)[0] == pytest.approx(0.001)


def test_steplaw_has_its_published_rates_and_batches():
    """By hand for a billion parameters and 100 billion tokens: 1.79 * 10^(-6.417 + 3.377) and 0.58 * 10^6.281."""
    published = {"name": "steplaw", "reference_parameters": 1, "reference_tokens": 1}
    shape = TrainShape(0, 0, 10**6, 10**5, 10**9, 10**8)  # the head does not count
    assert rate(1.79, shape, **published) == pytest.approx((0.0016325, 1_107_700), rel=1e-4)
    tuned = {"name": "steplaw", "reference_parameters": 10**8, "reference_tokens": 10**10}
    assert rate(0.01, shape, **tuned)[0] == pytest.approx(0.01 * 10 ** (-0.713 + 0.307))


@pytest.mark.parametrize("head", ["linear", "tied"])
def test_sizes_of_a_model_are_counted_as_the_sources_count_them(head):
    architecture = {"name": "transformer", "num_layers": 3, "d_model": 32, "num_heads": 2, "feedforward": "gelu", "lm_head": head}
    section = TrainSection.model_validate({"architecture": architecture, "seq_len": 64, "batch_size": 4, "max_steps": 10})
    shape = train_shape(section, build_model(section.architecture, 100, 64, 0, "meta"))
    flops = 72 * 3 * 32**2 + 12 * 3 * 32 * 64
    assert shape == TrainShape(32, 3, 256, 10, block_parameters=12 * 3 * 32**2, head_parameters=100 * 32, block_flops=flops)
    assert shape.tokens == 2560


@pytest.mark.parametrize("name", ["porian", "deepseek", "steplaw", "horizon"])
def test_sizes_that_are_not_known_change_nothing(name):
    example = resolve_part("lr_scalings", {"name": name, **EXAMPLES[name]}).build()
    assert example(TrainShape(0, 0, 0, 0)) == LRScale(dict.fromkeys(ROLES, 1.0))


# --- horizon -----------------------------------------------------------------------------------------------------------------


def test_horizon_lowers_rates_with_the_tokens_and_raises_them_with_the_batch():
    """16 times the tokens in batches 4 times as large: sqrt(4) 16^-0.3 = 0.8706; eps sqrt(16 / 4)."""
    rule = {"name": "horizon", "reference_tokens": 1_000_000, "reference_batch_tokens": 1000}
    scale = scale_of((64, 2, 4000, 4000), **rule)
    assert scale.roles == pytest.approx(dict.fromkeys(ROLES, 0.870551))
    assert (scale.beta2_power, scale.eps) == (4.0, 2.0)
    assert scale.weight_decay == {}
    assert scale_of((64, 2, 1000, 16_000), **rule).of("matrix") == pytest.approx(0.435275)
    assert scale_of((64, 2, 1000, 16_000), **rule, token_exponent=0.5).of("matrix") == pytest.approx(0.25)
    only_tokens = scale_of((64, 2, 4000, 4000), name="horizon", reference_tokens=1_000_000)
    assert (only_tokens.of("vector"), only_tokens.beta2_power, only_tokens.eps) == pytest.approx((0.435275, 1.0, 4.0))


@pytest.mark.parametrize("beta2", [0.95, 0.99, 0.999])
def test_beta2_forgets_half_after_the_same_tokens_at_any_batch_size(beta2):
    tokens = set()
    for batch in (1024, 2048, 4096, 8192):
        now = scale_of((64, 2, batch, 100), name="horizon", reference_tokens=10**6, reference_batch_tokens=4096).scaled_beta2(beta2)
        tokens.add(round(batch * math.log(0.5) / math.log(now), 3))
    assert tokens == {round(4096 * math.log(0.5) / math.log(beta2), 3)}


def test_beta2_stays_within_bounds_but_is_never_moved_into_them():
    assert LRScale(beta2_power=64.0).scaled_beta2(0.95) == 0.9
    assert LRScale(beta2_power=1e-6).scaled_beta2(0.95) == 0.9999
    assert [LRScale().scaled_beta2(beta2) for beta2 in (0.0, 0.5, 0.95, 0.99999)] == [0.0, 0.5, 0.95, 0.99999]
    assert LRScale(beta2_power=4.0).scaled_beta2(0.8) == 0.8
    assert LRScale(beta2_power=0.5).scaled_beta2(0.8) == pytest.approx(0.8**0.5)


# --- what is set -------------------------------------------------------------------------------------------------------------


def groups() -> list[ParamGroup]:
    torch.manual_seed(0)
    shapes = {"matrix": (8, 6), "embedding": (10, 6), "lm_head": (10, 6), "vector": (6,)}
    return [ParamGroup(role, [role], [nn.Parameter(torch.randn(shape))]) for role, shape in shapes.items()]


SCALE = LRScale(dict.fromkeys(ROLES, 0.5), beta2_power=2.0, eps=3.0)
ADAM_LIKE = ("adamw", "adam", "ademamix", "soap", "muon", "normuon", "grokfast", "schedule_free")
OTHERS = ("sgd", "lion", "adafactor")


def weights_after(optimizer, made, steps=4):
    torch.manual_seed(1)
    for _ in range(steps):
        for group in made:
            for p in group.parameters:
                p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach() for group in made for p in group.parameters]


@pytest.mark.parametrize("name", ADAM_LIKE)
def test_beta2_and_eps_of_an_optimizer_are_as_if_the_recipe_had_said_so(name):
    """Bit for bit the weights of an optimizer that was given the scaled options."""
    inner = {"lr": 0.01, "weight_decay": 0.1}
    plain, scaled = ({**inner, "betas": [0.9, 0.96], "eps": 0.01}, {**inner, "lr": 0.005, "betas": [0.9, 0.96**2], "eps": 0.03})
    if name in ("muon", "normuon"):
        plain, scaled = ({**o, "embedding_lr": None, "lm_head_lr": None, "vector_lr": None} for o in (plain, scaled))
    made, again, untouched = groups(), groups(), groups()

    def part(options):
        return resolve_part("optimizers", {"name": name, "optimizer": {"name": "adamw", **options}} if name == "grokfast" else {"name": name, **options})

    ours = weights_after(build_optimizer(part(plain), made, scale=SCALE), made)
    theirs = weights_after(build_optimizer(part(scaled), again), again)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    rates_only = weights_after(build_optimizer(part(plain), untouched, scale=LRScale(SCALE.roles)), untouched)
    assert not all(torch.equal(a, b) for a, b in zip(ours, rates_only, strict=True))


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_without_an_average_of_squares_gets_rates_only_and_the_run_says_so(name):
    made, again = groups(), groups()
    part = resolve_part("optimizers", name)
    optimizer = build_optimizer(part, made, scale=SCALE)
    ours, theirs = weights_after(optimizer, made), weights_after(build_optimizer(part, again, scale=LRScale(SCALE.roles)), again)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    section = TrainSection.model_validate({"optimizer": name, "lr_scaling": {"name": "horizon", "reference_tokens": 1000}})
    assert scale_notes(section, SCALE, optimizer) == [
        "lr_scaling horizon: learning rates x 0.5",
        f"lr_scaling horizon: optimizer {name} has no beta2 and eps of an average of squared gradients, so only learning rates are scaled",
    ]


def test_every_optimizer_is_known_to_have_or_not_to_have_an_average_of_squares():
    assert {spec.name for kind, spec in get_registry().parts() if kind == "optimizers"} == {*ADAM_LIKE, *OTHERS}


def test_a_run_says_what_its_rule_sets_and_with_which_batches_it_goes():
    options = {"architecture": {"name": "transformer", "num_layers": 1, "d_model": 16, "num_heads": 1}, "seq_len": 16, "batch_size": 8, "max_steps": 100}

    def notes(rule, **changes):
        section = TrainSection.model_validate(options | {"lr_scaling": rule} | changes)
        model = build_model(section.architecture, 64, 16, 0)
        scale = lr_scale(section, model)
        return scale_notes(section, scale, pretrain.build_optimizer(section, model, scale))

    assert notes({"name": "horizon", "reference_tokens": 12_800, "reference_batch_tokens": 64}) == [
        "lr_scaling horizon: learning rates x 1.414, beta2 0.9025, eps 7.07e-09"
    ]
    first, second = notes({"name": "steplaw", "reference_parameters": 3072, "reference_tokens": 1280})
    assert first == f"lr_scaling steplaw: learning rates x {10**0.307:.4g}"
    assert second == "lr_scaling steplaw: its source found these rates best with batches of 128 tokens; this run's have 128"
    assert notes({"name": "inverse_width", "reference_width": 32}) == ["lr_scaling inverse_width: learning rates x 2 (matrix), 2 (lm_head)"]
    assert notes({"name": "horizon", "reference_tokens": 12_800}) == ["lr_scaling horizon: learning rates x 1"]
    assert notes(None) == []


@pytest.mark.parametrize(("rule", "missing"), [("horizon", "reference_tokens"), ("porian", "reference_parameters"), ("deepseek", "reference_flops")])
def test_a_rule_without_its_reference_is_refused_by_name(tmp_path, rule, missing):
    (tmp_path / "r.yaml").write_text(f"name: x\nstages: [pretrain]\npretrain:\n  lr_scaling: {rule}\n")
    with pytest.raises(RecipeError, match=rf"r\.yaml:4: key 'pretrain\.lr_scaling\.{missing}' is missing"):
        load(tmp_path / "r.yaml")
    with pytest.raises(ValidationError, match=missing):
        resolve_part("lr_scalings", {"name": rule, missing: 0})
