"""Rotary positions and their variants for longer windows against the papers' formulas; ALiBi against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import feebcore.model.attention as attention
from feebcore.model.attention import attend
from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.masks import attention_mask, document_block_mask
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext
from feebcore.testing import check_part

D = 16
SCALED = ["rope_linear", "rope_ntk", "rope_yarn", "rope_llama3"]


def position(options: Any, head_dim: int = D, seq_len: int = 64, num_heads: int = 4) -> Position:
    return resolve_part("positions", options).build(BuildContext(d_model=num_heads * head_dim, num_heads=num_heads, head_dim=head_dim, seq_len=seq_len))


def turned(rope: Position, x_D: Tensor, place: int) -> Tensor:
    return rope.rotate(x_D.view(1, 1, 1, -1), rope.prepare(1, torch.tensor([[place]]))).flatten()


def frequencies(options: Any, head_dim: int = D, seq_len: int = 64) -> Tensor:
    """[D/2]: how far each pair turns from one position to the next, seen from outside: by turning (1, 0)."""
    rope = position(options, head_dim, seq_len)
    ones = torch.cat([torch.ones(head_dim // 2), torch.zeros(head_dim // 2)])
    a, b = turned(rope, ones, 1).chunk(2)
    return torch.atan2(b, a)


def broken(results: Any) -> list[str]:
    return [str(r) for r in results if not r.passed]


# --- rope: pairs and partial rotation----------------------------------------------------------------------------------


def test_adjacent_pairs_are_turned_as_in_the_paper() -> None:
    """arXiv:2104.09864, equation 15: a block-diagonal matrix of 2 x 2 rotations."""
    x, place = torch.randn(D), 11
    matrix = torch.zeros(D, D)
    for i in range(D // 2):
        angle = place * 10_000.0 ** (-2 * i / D)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    torch.testing.assert_close(turned(position({"name": "rope", "interleaved": True}), x, place), matrix @ x, rtol=1e-5, atol=1e-5)


def test_the_two_pairings_differ_in_the_order_of_dimensions_alone() -> None:
    x, halves = torch.randn(D), torch.arange(D).view(2, D // 2).T.flatten()  # 0, D/2, 1, D/2 + 1, ...
    found = turned(position({"name": "rope", "interleaved": True}), x[halves], 9)
    assert torch.equal(found, turned(position("rope"), x, 9)[halves])
    assert not torch.allclose(turned(position({"name": "rope", "interleaved": True}), x, 9), turned(position("rope"), x, 9), atol=0.1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_partial_rotary_factor_rotates_the_first_dimensions_as_a_narrower_head(interleaved: bool) -> None:
    x = torch.randn(D)
    found = turned(position({"name": "rope", "partial_rotary_factor": 0.5, "interleaved": interleaved}), x, 7)
    assert torch.equal(found[D // 2 :], x[D // 2 :])
    assert torch.equal(found[: D // 2], turned(position({"name": "rope", "interleaved": interleaved}, head_dim=D // 2), x[: D // 2], 7))
    assert torch.equal(turned(position({"name": "rope", "partial_rotary_factor": 0.01}), x, 7)[2:], x[2:])  # one pair at least


def test_heads_of_another_width_turn_as_if_all_were_so_wide() -> None:
    rope, x = position("rope"), torch.randn(6)
    with pytest.raises(ValueError, match=r"no angles for heads of width 6.*also_rotate\(6\)"):
        turned(rope, x, 5)
    rope.also_rotate(6)
    rope.also_rotate(6)
    assert torch.equal(turned(rope, x, 5), turned(position("rope", head_dim=6), x, 5))
    assert torch.equal(turned(rope, torch.ones(D), 5), turned(position("rope"), torch.ones(D), 5))
    assert not rope.state_dict()


# --- rope for longer windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALED)
def test_a_factor_of_one_is_plain_rope(name: str) -> None:
    x = torch.randn(D)
    torch.testing.assert_close(turned(position({"name": name, "factor": 1}), x, 13), turned(position("rope"), x, 13))


def test_linear_scaling_puts_positions_between_the_trained_ones() -> None:
    x = torch.randn(D)
    torch.testing.assert_close(turned(position({"name": "rope_linear", "factor": 4}), x, 20), turned(position("rope"), x, 5))


def test_ntk_scaling_keeps_the_fastest_pair_and_stretches_the_slowest_by_the_factor() -> None:
    plain, found = frequencies("rope"), frequencies({"name": "rope_ntk", "factor": 4})
    ratios = plain / found
    assert ratios[0].item() == pytest.approx(1, abs=1e-6)
    assert ratios[-1].item() == pytest.approx(4, rel=1e-4)
    assert (ratios.diff() > 0).all()
    torch.testing.assert_close(frequencies({"name": "rope_ntk", "factor": 4}, head_dim=2), frequencies("rope", head_dim=2))


def test_llama_scaling_is_that_of_llama_3_1() -> None:
    """The published rule, in wavelengths, at the published options: factor 8, trained on 8,192, between factors 1 and 4."""
    base, dim, trained, factor, low, high = 500_000.0, 128, 8192, 8.0, 1.0, 4.0
    want, kinds = [], set()
    for i in range(dim // 2):
        frequency = base ** (-2 * i / dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < trained / high:
            kinds.add("kept")
        elif wavelength > trained / low:
            kinds.add("divided")
            frequency /= factor
        else:
            kinds.add("between")
            smooth = (trained / wavelength - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        want.append(frequency)
    assert kinds == {"kept", "between", "divided"}
    options = {"name": "rope_llama3", "base": base, "factor": factor, "original_max_position_embeddings": trained}
    torch.testing.assert_close(frequencies(options, dim), torch.tensor(want), rtol=1e-4, atol=1e-9)


def test_yarn_stretches_by_parts_and_sharpens_attention() -> None:
    """arXiv:2309.00071, equations 17 to 22: s 4, L 4,096, alpha 1, beta 32; scores times (0.1 ln s + 1)^2."""
    base, dim, trained, factor = 10_000.0, 64, 4096, 4.0
    want = []
    for i in range(dim // 2):
        frequency = base ** (-2 * i / dim)
        turns = trained * frequency / (2 * math.pi)
        ramp = 0.0 if turns < 1 else 1.0 if turns > 32 else (turns - 1) / 31
        want.append((1 - ramp) * frequency / factor + ramp * frequency)
    options = {"name": "rope_yarn", "factor": factor, "original_max_position_embeddings": trained}
    torch.testing.assert_close(frequencies(options, dim), torch.tensor(want), rtol=1e-4, atol=1e-9)
    assert position(options, dim).score_scale == pytest.approx((0.1 * math.log(4) + 1) ** 2)


@pytest.mark.parametrize("attention", ["mha", "mla", "differential", "no_value", {"name": "mha", "logit_softcap": 20.0}], ids=str)
def test_yarn_sharpens_every_dimension_of_a_score(attention: Any) -> None:
    """Where nothing is rotated by another angle, YaRN is RoPE with queries that are (1 + 0.1 ln s)^2 times as long, on rotated and
    other dimensions alike; with a cache too."""
    factor, sharper = 4.0, (1 + 0.1 * math.log(4)) ** 2
    yarn = {"name": "rope_yarn", "factor": factor, "beta_slow": 1e-9, "beta_fast": 2e-9}
    models = [
        build_model(
            resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 4, "attention": attention, "position": p}),
            50,
            40,
            seed=1,
        )
        for p in ("rope", yarn)
    ]
    plain, with_yarn = (model.stack.all_blocks()[0].attention for model in models)
    with torch.no_grad():
        for module in (plain, with_yarn):
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))))
    x_BTC = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    contexts = [model.make_context(torch.zeros(2, 12, dtype=torch.int64)) for model in models]
    models[0].position.score_scale = sharper
    torch.testing.assert_close(with_yarn(x_BTC, contexts[1]), plain(x_BTC, contexts[0]), rtol=1e-4, atol=1e-4)
    models[0].position.score_scale = 1.0
    assert not torch.allclose(with_yarn(x_BTC, contexts[1]), plain(x_BTC, contexts[0]), rtol=1e-3)


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_yarn_keeps_the_contract_of_attention(attention: str) -> None:
    part = resolve_part("attentions", attention)
    model = build_model(
        resolve_part(
            "architectures", {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 4, "attention": part.dump(), "position": "rope_yarn"}
        ),
        50,
        40,
        seed=1,
    ).eval()
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 12)
    pieces = [model(tokens[:, a:b], cache=cache).hidden for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens).hidden, rtol=1e-4, atol=1e-4)


def test_the_trained_window_is_the_model_s_over_the_factor_unless_said() -> None:
    for name in ("rope_yarn", "rope_llama3"):
        said = frequencies({"name": name, "factor": 4, "original_max_position_embeddings": 1024}, 64, seq_len=4096)
        assert torch.equal(frequencies({"name": name, "factor": 4}, 64, seq_len=4096), said)
        assert not torch.equal(frequencies({"name": name, "factor": 4}, 64, seq_len=2048), said)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="beta_slow 40 must be below beta_fast 32"):
        resolve_part("positions", {"name": "rope_yarn", "beta_slow": 40})


# --- ALiBi --------------------------------------------------------------------------------------------------------------


def test_slopes_are_the_published_ones() -> None:
    from feeb_models.positions.alibi.alibi import slopes

    assert slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]  # section 3
    sixteen = slopes(16)
    assert sixteen[:4] == pytest.approx([1 / 2**0.5, 1 / 2, 1 / 2**1.5, 1 / 4])
    assert slopes(12) == slopes(8) + sixteen[0:8:2]  # appendix: every other slope of the next power of two
    assert slopes(1) == [1 / 256]
    assert all(len(slopes(n)) == n for n in range(1, 20))


def test_the_bias_is_the_distance_times_the_slope() -> None:
    bias = position("alibi", num_heads=8).bias(2, 5)
    assert bias.shape == (8, 2, 5)
    for h in range(8):
        for row, t in enumerate((3, 4)):
            assert bias[h, row, : t + 1].tolist() == [-(2.0 ** -(h + 1)) * (t - s) for s in range(t + 1)]


def biased_by_definition(q: Tensor, k: Tensor, v: Tensor, mask_BTS: Tensor, bias_HTS: Tensor, logit_softcap: float) -> Tensor:
    scores = q.double() @ k.double().repeat_interleave(2, 1).mT / q.shape[-1] ** 0.5
    scores = logit_softcap * torch.tanh(scores / logit_softcap) if logit_softcap else scores
    return (scores + bias_HTS).masked_fill(~mask_BTS[:, None], -math.inf).softmax(-1) @ v.double().repeat_interleave(2, 1)


@pytest.mark.parametrize("logit_softcap", [0.0, 2.0])
def test_every_form_of_attention_adds_the_bias(logit_softcap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 24, 8, generator=generator) for heads in (4, 2, 2))
    bias = torch.randn(4, 24, 24, generator=generator)
    doc_ids = torch.tensor([[0] * 5 + [1] * 19, [-1] * 3 + [0] * 21])
    mask, causal = attention_mask(doc_ids, doc_ids), torch.ones(2, 24, 24, dtype=torch.bool).tril()
    plain, documents = (biased_by_definition(q, k, v, m, bias, logit_softcap) for m in (causal, mask))
    for found, right in [
        (attend(q, k, v, None, logit_softcap, bias_HTS=bias), plain),
        (attention._explicit(q, k, v, None, logit_softcap, bias), plain),
        (attend(q, k, v, mask, logit_softcap, bias_HTS=bias), documents),
        (attention._explicit(q, k, v, mask, logit_softcap, bias), documents),
        (attend(q, k, v, None, logit_softcap, document_block_mask(doc_ids), bias), documents),
        (attend(q[:, :, -1:], k, v, None, logit_softcap, bias_HTS=bias[:, -1:]), plain[:, :, -1:]),
    ]:
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


def test_a_window_keeps_the_distances_right() -> None:
    """The keys out of sight are cut off in front, so the bias counts from the end."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 10, 8, generator=generator) for _ in range(3))
    context = ForwardContext(position("alibi"))
    whole = context.attend(q, k, v, window=3)
    one = context.attend(q[:, :, -1:], k, v, window=3)
    torch.testing.assert_close(one, whole[:, :, -1:])
    near = torch.ones(1, 10, 10, dtype=torch.bool).tril().triu(-2)
    right = biased_by_definition(q, k[:, ::2], v[:, ::2], near, context.position.bias(10, 10), 0.0)
    torch.testing.assert_close(context.attend(q, k[:, ::2], v[:, ::2], window=3).double(), right, rtol=1e-5, atol=1e-5)


def test_positions_without_a_bias_leave_attention_s_masks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    model = build_model(resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 4}), 50, 16)
    kernel = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda q, k, v, mask, **o: seen.append((mask, o["is_causal"])) or kernel(q, k, v, mask, **o)
    )
    model(torch.zeros(1, 8, dtype=torch.int64))
    assert seen == [(None, True)]


# --- in a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"name": "rope", "interleaved": True},
        {"name": "rope", "partial_rotary_factor": 0.5},
        {"name": "rope_yarn", "original_max_position_embeddings": 6, "beta_fast": 2.0, "beta_slow": 0.5},
        {"name": "rope_llama3", "original_max_position_embeddings": 6, "beta_fast": 2.0, "beta_slow": 0.5, "partial_rotary_factor": 0.5, "interleaved": True},
    ],
    ids=str,
)
def test_options_keep_the_contract(options: dict[str, Any]) -> None:
    forms = ("document_isolation", "cache_parity", "left_padding_parity", "counts_are_measured", "bf16_is_close", "saves_and_loads")
    assert not broken(check_part("positions", resolve_part("positions", options), forms))


@pytest.mark.parametrize("name", ["rope", "alibi", "rope_yarn"])
def test_only_distances_matter(name: str) -> None:
    model = build_model(
        resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 4, "position": name}), 50, 40, seed=1
    )
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    moved = model(tokens, positions=torch.arange(20, 32)[None]).hidden
    torch.testing.assert_close(moved, model(tokens).hidden, rtol=1e-4, atol=1e-4)
