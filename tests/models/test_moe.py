"""Mixture of experts against a loop over tokens; balancing, capacity and what a run must be able to resume."""

from __future__ import annotations

import json.decoder
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from feeb_models.feedforwards.moe import grouped_linear as grouped
from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.counting import hook_optimizer
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.testing import candidate
from feebcore.testing.framework import iterate

ACTIVATIONS = {"gelu": lambda x: F.gelu(x, approximate="tanh"), "relu": torch.relu, "relu_squared": lambda x: torch.relu(x) ** 2}


def made(d_model: int = 16, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    moe = resolve_part("feedforwards", {"name": "moe", "intermediate_size": 8, **options}).build(d_model=d_model)
    moe.register_forward_pre_hook(lambda m, inputs: (*inputs, ForwardContext(Position())) if len(inputs) == 1 else None)  # tests call it with x alone
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return moe


def feedforward(x_C: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
    h = up @ x_C
    if activation in ACTIVATIONS:
        return down @ ACTIVATIONS[activation](h)
    gate, value = h[: len(h) // 2], h[len(h) // 2 :]
    return down @ ((F.silu(gate) if activation == "swiglu" else ACTIVATIONS["gelu"](gate)) * value)


def reference(moe: Any, x_BTC: Tensor) -> Tensor:
    """One token after another, each through its experts in turn; with a capacity, those that still have room."""
    c, rows = moe.config, []
    for x_TC in x_BTC:
        room = [math.ceil(c.capacity * len(x_TC) * c.top_k / c.num_experts) if c.capacity and moe.training else math.inf] * c.num_experts
        tokens = []
        for x_C in x_TC:
            logits = moe.router.scores.weight @ x_C
            scores = logits.sigmoid() if c.router == "sigmoid" else logits.softmax(0)
            rank = scores + moe.router.bias if c.router == "sigmoid" else scores
            chosen = sorted(range(c.num_experts), key=lambda e, rank=rank: -rank[e].item())[: c.top_k]
            total = sum(scores[e] for e in chosen) if c.normalizes else 1.0
            y_C = torch.zeros_like(x_C)
            for e in chosen:
                if room[e] > 0:
                    room[e] -= 1
                    y_C = y_C + c.gate_scale * scores[e] / total * feedforward(x_C, moe.experts.up[e], moe.experts.down[e], c.activation)
            if moe.shared is not None:
                y_C = y_C + feedforward(x_C, moe.shared.hidden.weight, moe.shared.out.weight, c.activation)
            tokens.append(y_C)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


VARIANTS = [
    {},
    {"activation": "relu_squared", "num_shared": 0, "top_k": 1},
    {"router": "sigmoid", "gate_scale": 2.5, "top_k": 3, "activation": "gelu"},
    {"router": "gumbel", "noise": 0.0, "activation": "geglu", "normalize": True},
    {"capacity": 0.7, "num_shared": 1},
    {"capacity": 1.3, "router": "sigmoid", "top_k": 3},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_results_and_gradients_are_those_of_a_loop_over_tokens(options: dict[str, Any]) -> None:
    moe, x = made(**options), torch.randn(2, 7, 16)
    if options.get("router") == "sigmoid":
        moe.router.bias.copy_(0.3 * torch.randn(8))
    x.requires_grad_()
    wanted, direction = reference(moe, x), torch.randn(2, 7, 16)
    found = moe(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    weights = [x, *moe.parameters()]
    for a, b in zip(torch.autograd.grad((found * direction).sum(), weights), torch.autograd.grad((wanted * direction).sum(), weights), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_capacity_drops_exactly_the_tokens_that_come_too_late() -> None:
    moe, x = made(num_experts=4, top_k=1, num_shared=0, capacity=1.0), torch.randn(2, 8, 16)
    with torch.no_grad():
        moe.router.scores.weight[0] = 0.0
        x[0], x[1, 2:] = x[0, :1], x[1, 2:3]  # row 0: all to one expert; row 1: from position 2 on to another or the same
    expert = moe.router(x).experts_BTK[..., 0]
    seen: dict[tuple[int, int], int] = {}
    for row in range(2):
        for t in range(8):
            key = (row, int(expert[row, t]))
            seen[key] = seen.get(key, 0) + 1
            assert bool(moe(x)[row, t].any()) == (seen[key] <= 2), f"row {row}, token {t}"  # 8 tokens over 4 experts: 2 places each
    assert moe.expert_load(x)["dropped"].item() == pytest.approx(sum(n - 2 for n in seen.values() if n > 2) / 16)
    assert moe.eval()(x).any(-1).all(), "in evaluation nothing is dropped"


def test_capacity_keeps_time_and_rows_apart() -> None:
    subject = candidate("feedforwards", resolve_part("feedforwards", {"name": "moe", "capacity": 1.0}))
    checks = ("causality", "batch_invariance", "gradient_everywhere", "counts_are_measured", "document_isolation")
    # documents of one row share its places; all else holds
    assert [r.check for r in iterate(subject, checks) if not r.passed] == ["document_isolation"]


@pytest.mark.parametrize(
    "options", [{"router": "sigmoid", "num_experts": 4}, {"router": "gumbel", "noise": 0.0, "z_loss": 1e-3, "activation": "gelu", "top_k": 1}], ids=str
)
def test_other_routers_keep_the_contract(options: dict[str, Any]) -> None:
    subject = candidate("feedforwards", resolve_part("feedforwards", {"name": "moe", **options}))
    checks = (
        "causality",
        "cache_parity",
        "gradient_everywhere",
        "overfits_one_batch",
        "counts_are_measured",
        "compile_parity",
        "bf16_is_close",
        "saves_and_loads",
    )
    broken = [str(r) for r in iterate(subject, checks) if not r.passed]
    assert not broken, "\n".join(broken)


# --- routers ----------------------------------------------------------------------------------------------------


def skewed(seed: int = 0, **options: Any) -> tuple[Any, Tensor]:
    """A router that sends nearly everything to a few experts, and the tokens for it."""
    moe, x = made(seed=seed, num_experts=8, top_k=2, **options), torch.randn(4, 64, 16)
    with torch.no_grad():
        x[..., 0] = 1.0
        moe.router.scores.weight[:, 0] = torch.linspace(-3, 3, 8)
    return moe, x


def step(moe: Any, *passes: Tensor) -> None:
    """One optimizer step made of so many passes; the weights change a little."""
    for x in passes:
        moe(x).sum().backward()
    with torch.no_grad():
        moe.router.scores.weight.mul_(1 + 1e-6)
    moe.router.after_optimizer_step()


def test_the_bias_balances_a_skewed_router() -> None:
    moe, x = skewed(router="sigmoid", bias_rate=0.02)
    before = moe.expert_load(x)
    for _ in range(100):
        step(moe, x)
    after = moe.expert_load(x)
    assert before["entropy"] < 0.7
    assert before["share"].max() > 0.4
    assert after["entropy"] > 0.98
    assert after["share"].max() < 0.18
    assert after["share"].sum().item() == pytest.approx(1.0)


def test_the_bias_moves_once_a_step_by_the_sign_of_the_whole_steps_load_error() -> None:
    whole, parts = (skewed(router="sigmoid", bias_rate=0.01)[0] for _ in range(2))
    x = skewed()[1]
    load = whole.router(x).load_BE.sum(0).float()
    for moe in (whole, parts):
        moe.router.load.zero_()
    whole(x)
    assert not whole.router.bias.any(), "within the step nothing moves"
    whole.router.load.zero_()
    step(whole, x)
    step(parts, x[:1], x[1:3], x[3:])
    assert torch.allclose(whole.router.bias, 0.01 * torch.sign(load.mean() - load))
    assert torch.equal(whole.router.bias, parts.router.bias)
    whole(x)
    assert torch.equal(whole.router.bias, parts.router.bias), "no step, no move"


def test_the_bias_moves_with_every_optimizer_step_though_the_router_is_frozen() -> None:
    moe, x = skewed(router="sigmoid", bias_rate=0.01)
    moe.router.scores.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in moe.parameters() if p.requires_grad], lr=0.1)
    hook_optimizer(moe, optimizer)
    for number in (1, 2):
        moe(x).sum().backward()
        optimizer.step()
        assert moe.router.bias.abs().max().item() == pytest.approx(0.01 * number)
    assert not moe.router.load.any()


def test_evaluation_and_passes_without_gradient_leave_no_trace() -> None:
    moe, x = skewed(router="sigmoid")
    step(moe, x)
    before = {k: v.clone() for k, v in moe.state_dict().items()}
    moe.eval()(x)
    moe.train().expert_load(x)
    with torch.no_grad():
        moe(x)
    assert all(torch.equal(before[k], v) for k, v in moe.state_dict().items())
    assert moe.training
    assert moe.router.training


def test_a_copy_from_the_state_dict_goes_on_exactly() -> None:
    moe, x = skewed(router="sigmoid")
    step(moe, x)
    step(moe, x[:2])
    other = made(seed=9, num_experts=8, top_k=2, router="sigmoid")
    other.load_state_dict(moe.state_dict())
    for _ in range(5):
        for one in (moe, other):
            step(one, x[1:], x[:1])
    assert all(torch.equal(a, b) for a, b in zip(moe.state_dict().values(), other.state_dict().values(), strict=True))


def test_gradients_are_the_same_when_activations_are_computed_again() -> None:
    plain, again = (skewed(router="sigmoid", bias_rate=0.1)[0] for _ in range(2))
    x = skewed()[1].requires_grad_()
    for moe in (plain, again):
        step(moe, x)
        moe.zero_grad()
    for call, moe in ((plain, plain), (lambda y: checkpoint(again, y, use_reentrant=False), again)):
        moe.zero_grad()
        for _ in range(2):  # as in a looped model: the second call comes before the first is computed again
            call(x).square().sum().backward()
        moe.router.after_optimizer_step()
    assert torch.equal(plain.router.bias, again.router.bias)
    assert plain.router.bias.any()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_compiled_training_moves_the_bias_as_eager_training_does() -> None:
    eager, compiled = (skewed(router="sigmoid", bias_rate=0.1)[0] for _ in range(2))
    x = skewed()[1]
    torch._dynamo.reset()
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        for moe, forward in ((eager, eager), (compiled, call)):
            forward(x, ForwardContext(Position())).sum().backward()
            moe.router.after_optimizer_step()
    assert eager.router.bias.any()
    assert torch.equal(eager.router.bias, compiled.router.bias)
    assert torch.equal(eager.router.load, compiled.router.load)


def test_gumbel_noise_follows_torchs_seed_and_stops_in_evaluation() -> None:
    moe, x = made(router="gumbel"), torch.randn(2, 6, 16)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(moe(x))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])
    calm = made(router="softmax")
    assert torch.equal(moe.eval()(x), calm.eval()(x))


def test_gumbel_noise_chooses_in_proportion_to_the_softmax() -> None:
    moe = made(router="gumbel", num_experts=4, top_k=1)
    x = torch.randn(1, 1, 16).expand(1, 20000, 16)
    found = moe.router(x).load_BE[0] / 20000
    assert torch.allclose(found, (moe.router.scores.weight @ x[0, 0]).softmax(0), atol=0.015)


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_all_goes_to_one() -> None:
    from feeb_models.feedforwards.moe.routers import balance_loss

    moe, x = made(top_k=1), torch.ones(2, 6, 16)
    with torch.no_grad():
        moe.router.scores.weight.zero_()
        assert balance_loss(moe.router(x)).item() == pytest.approx(1.0)
        moe.router.scores.weight[3] = 10.0
        assert balance_loss(moe.router(x)).item() == pytest.approx(8.0, rel=1e-3)


def test_auxiliary_losses_are_added_in_training_alone_and_add_up_over_rows() -> None:
    moe, x = made(balance_loss=0.1, z_loss=0.01), torch.randn(4, 6, 16)

    def losses(x: Tensor) -> dict[str, Tensor]:
        context = ForwardContext(Position())
        moe(x, context)
        return context.losses

    found = losses(x)
    assert found.keys() == {"router_balance", "router_z"}
    for name, value in found.items():
        assert torch.allclose(torch.stack([losses(row[None])[name] for row in x]).mean(), value)
        assert torch.autograd.grad(value, moe.router.scores.weight, retain_graph=True)[0].abs().max() > 0
    logits = x @ moe.router.scores.weight.T
    assert torch.allclose(found["router_z"], 0.01 * logits.exp().sum(-1).log().square().mean())
    moe.eval()
    assert not losses(x)


def test_training_with_the_balance_loss_evens_out_a_skewed_router() -> None:
    moe, x = skewed()
    optimizer = torch.optim.Adam(moe.router.parameters(), lr=0.05)
    before = moe.expert_load(x)["entropy"]
    for _ in range(30):
        context = ForwardContext(Position())
        moe(x, context)
        optimizer.zero_grad()
        context.losses["router_balance"].backward()
        optimizer.step()
    assert moe.expert_load(x)["entropy"] > before + 0.2


# --- the operator -----------------------------------------------------------------------------------------------


def test_flops_of_the_operator_are_those_of_the_products_it_makes() -> None:
    x, weight, ends = torch.randn(9, 4), torch.randn(3, 5, 4), torch.tensor([2, 2, 9])
    for operator, arguments in ((grouped.grouped_linear, (x, weight, ends)), (grouped.grouped_outer, (torch.randn(9, 5), x, ends))):
        with FlopCounterMode(display=False) as declared:
            operator(*arguments)
        with FlopCounterMode(display=False) as made_of_products:
            operator._init_fn(*arguments)
        assert declared.get_total_flops() == 2 * 9 * 4 * 5
        assert made_of_products.get_total_flops() == 2 * 9 * 4 * 5


def test_one_kernel_gives_what_one_product_a_group_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(24, 16).bfloat16(), torch.randn(3, 8, 16).bfloat16()
    y, ends = torch.randn(24, 8).bfloat16(), torch.tensor([5, 5, 24])

    def both() -> list[Tensor]:
        return [grouped.grouped_linear(x, weight, ends), grouped.grouped_linear(y, weight.mT, ends), grouped.grouped_outer(y, x, ends)]

    one_by_one = both()
    monkeypatch.setattr(grouped, "_one_kernel", lambda a, b: True)
    for a, b in zip(both(), one_by_one, strict=True):
        assert torch.allclose(a, b, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("sizes", [[5, 0, 19], [0, 0, 24], [8, 8, 8], [24, 0, 0], [1, 22, 1]], ids=str)
@pytest.mark.parametrize("least", [1, 4, 8, 64])
def test_blocks_of_rows_give_what_one_product_a_group_gives(sizes: list[int], least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "LEAST", least)
    x, weight, ends = torch.randn(24, 6, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True), torch.tensor(sizes).cumsum(0)
    blocks, upstream = grouped.Blocks(ends, 24), torch.randn(24, 5)
    assert sorted(blocks.row_Pb[blocks.real_Pb].tolist()) == list(range(24))
    found = []
    for by_blocks in (False, True):
        monkeypatch.setattr(grouped, "_by_blocks", lambda x, answer=by_blocks: answer)
        y = grouped.grouped_linear(x, weight, ends)
        found.append((y, *torch.autograd.grad(y, (x, weight), upstream)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.bfloat16, 12), (torch.bfloat16, 16)], ids=str)
def test_the_operator_waits_for_no_sizes_of_groups(dtype: torch.dtype, width: int) -> None:
    """On torch's meta device nobody can read a value; what runs is the operator's code, not what stands for it in a trace."""
    x, y, ends = (torch.empty(shape, dtype=kind, device="meta") for shape, kind in (((24, width), dtype), ((24, 8), dtype), ((3,), torch.int64)))
    weight = torch.empty(3, 8, width, device="meta")
    assert grouped.grouped_linear._init_fn(x, weight, ends).shape == (24, 8)
    assert grouped.grouped_outer._init_fn(y, x, ends).shape == (3, 8, width)


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_what_is_kept_for_the_gradient_is_the_parameter_and_no_copy_of_it(capacity: float | None) -> None:
    moe, x = made(capacity=capacity), torch.randn(2, 7, 16)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        moe(x)
    for weight in (moe.experts.up, moe.experts.down):
        assert [t.data_ptr() for t in kept if t.shape in (weight.shape, weight.mT.shape)] == [weight.data_ptr()]


def test_as_many_rows_for_each_group_have_the_gradients_of_a_product() -> None:
    x, weight = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)
    upstream = torch.randn(3, 4, 5)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (grouped.BatchedLinear.apply(x, weight), x @ weight.mT)), strict=True):
        assert torch.equal(a, b)


def test_an_expert_that_nobody_chose_gets_a_gradient_of_zero() -> None:
    x, weight = torch.randn(4, 3), torch.randn(3, 2, 3, requires_grad=True)
    grouped.grouped_linear(x, weight, torch.tensor([1, 1, 4])).sum().backward()
    assert not weight.grad[1].any()
    assert torch.allclose(weight.grad[0], x[:1].sum(0).expand(2, 3))
    assert torch.autograd.gradcheck(
        grouped.grouped_linear, (x.double().requires_grad_(), weight.detach().double().requires_grad_(), torch.tensor([1, 1, 4])), fast_mode=True
    )


# --- in a model -------------------------------------------------------------------------------------------------


def test_active_flops_do_not_grow_with_the_number_of_experts() -> None:
    counts = []
    for experts in (4, 16):
        part = {"name": "moe", "num_experts": experts, "top_k": 2, "intermediate_size": 32}
        architecture = resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 4, "feedforward": part})
        counts.append(build_model(architecture, 61, 12).count())
    assert counts[1].flops_per_token - counts[0].flops_per_token == 2 * 32 * 12  # the wider router
    assert counts[1].matmul - counts[0].matmul == 12 * 3 * 32 * 32 + 12 * 32


def test_experts_are_drawn_as_the_dense_layers_are() -> None:
    part = {"name": "moe", "num_experts": 8, "intermediate_size": 128}
    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": 8, "d_model": 64, "num_heads": 4, "feedforward": part})
    experts = next(m.experts for m in build_model(architecture, 61, 12).modules() if hasattr(m, "experts"))
    assert experts.up.std().item() == pytest.approx(0.02, rel=0.02)
    assert experts.down.std().item() == pytest.approx(0.02 / 4, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"), [({"top_k": 9}, "set top_k to 8 or less"), ({"top_k": 1, "normalize": True}, "never learns"), ({"router": "hash"}, "softmax")]
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resolve_part("feedforwards", {"name": "moe", **options})


@pytest.mark.slow
def test_latent_attention_with_experts_learns_three_thousand_tokens_by_heart() -> None:
    """The notebook's B1 and B2 at a reduced size: the same latents, shallow and narrow; text, a byte a token, a quarter a step."""
    text = Path(json.decoder.__file__).read_bytes()[: 48 * 64 + 1]
    data = torch.tensor(list(text))
    inputs, targets = data[:-1].view(4, 12, 64), data[1:].view(4, 12, 64)
    attention = {"name": "mla", "q_lora_rank": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
    moe = {"name": "moe", "num_experts": 4, "top_k": 2, "num_shared": 2}
    part = resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 128, "num_heads": 8, "attention": attention, "feedforward": moe})
    model = build_model(part, 128, 64, seed=0)
    objective = resolve_part("objectives", "next_token").build()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = [math.inf]
    while sum(losses[-4:]) / 4 >= 0.1 and len(losses) <= 400:
        quarter = len(losses) % 4
        found = objective(model, Batch(inputs[quarter], targets[quarter]))
        optimizer.zero_grad()
        (found.loss_sum / found.count).backward()
        optimizer.step()
        losses.append(float(found.metrics["nll"] / found.count))
    assert sum(losses[-4:]) / 4 < 0.1


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_padding_loads_no_expert_and_takes_no_place(capacity: float | None) -> None:
    moe = made(num_experts=4, top_k=2, capacity=capacity, balance_loss=1.0, z_loss=1.0).train()
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    doc_ids = torch.tensor([[-1, -1, -1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, -1, -1, -1]])
    real = doc_ids >= 0
    padded, alone = (ForwardContext(Position(), doc_ids_BT=ids) for ids in (doc_ids, None))
    found, wanted = moe(x, padded), moe(x[real].view(2, 6, 16), alone)
    if capacity is None:
        torch.testing.assert_close(found[real].view(2, 6, 16), wanted)
    for name in ("router_balance", "router_z"):
        torch.testing.assert_close(padded.losses[name], alone.losses[name])
    noise = x + 5 * ~real[..., None]
    torch.testing.assert_close(moe(noise, ForwardContext(Position(), doc_ids_BT=doc_ids))[real], found[real])
