"""The attention parts against their papers' equations, written plainly in double precision, and against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from feebcore.errors import FeebError
from feebcore.model.attention import attend, attention_weights
from feebcore.model.build import build_model, count_architecture
from feebcore.model.context import ForwardContext
from feebcore.model.masks import Masks, attention_mask, document_block_mask, window_block_mask, window_mask
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext
from feebcore.testing import check_part
from feebcore.testing.models import enliven
from feebcore.train.step import checkpoint_activations

B, T, C, H, D = 2, 12, 32, 4, 8
VOCAB = 61


def transformer(attention: Any, **options: Any) -> Any:
    return resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": C, "num_heads": H, "attention": attention, **options})


def vivid(attention: Any, **options: Any) -> Any:
    model = build_model(transformer(attention, **options), VOCAB, T, seed=1)
    enliven(model)
    return model


def alone(attention: Any, layer: int = 0) -> nn.Module:
    """One attention in fp64, vivid, without positions; its norms have no weights."""
    norm = resolve_part("norms", {"name": "rmsnorm", "learnable": False})
    sizes = {"d_model": C, "num_heads": H, "head_dim": D, "seq_len": T, "layer": layer, "num_layers": 4, "vocab_size": VOCAB}
    context = BuildContext(**sizes, position=Position(), make_norm=lambda dim: norm.build(d_model=dim))
    module = resolve_part("attentions", attention).build(context)
    enliven(module)
    return module.double()


def some_x() -> Tensor:
    return torch.randn(B, T, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def some_tokens() -> Tensor:
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(4))


def softmax_of(q: Tensor, k: Tensor, t: int) -> Tensor:
    """Weights of query t over tokens 0..t; q, k [T,D]."""
    return (k[: t + 1] @ q[t] / math.sqrt(q.shape[-1])).softmax(0)


def broken(results: Any) -> list[str]:
    return [str(r) for r in results if not r.passed]


# --- every part, with other positions, options and forms ------------------------------------------------------------

NAMES = ["mha", "gqa", "mqa", "sliding_window", "local_global", "cross_layer", "mla", "differential", "no_value"]
SMALL: dict[str, dict[str, Any]] = {"sliding_window": {"window": 4}, "local_global": {"window": 4, "pattern": "LG"}}
FORMS = ("causality", "document_isolation", "cache_parity", "left_padding_parity", "counts_are_measured")


@pytest.mark.parametrize(
    "position", ["alibi", "learned", {"name": "rope_yarn", "interleaved": True, "partial_rotary_factor": 0.5}], ids=["alibi", "learned", "yarn"]
)
@pytest.mark.parametrize("name", NAMES)
def test_packed_padded_and_cached_forms_agree_at_every_position(name: str, position: Any) -> None:
    architecture = transformer({"name": name, **SMALL.get(name, {})}, position=position)
    assert not broken(check_part("architectures", architecture, FORMS))


@pytest.mark.parametrize(
    "attention",
    [
        {"name": "mqa", "value_residual": "learned", "value_embeddings": True, "qk_norm": True},
        {"name": "gqa", "value_residual": "constant", "logit_softcap": 5.0},
        {"name": "sliding_window", "window": 1, "num_kv_heads": 2},
        {"name": "sliding_window", "window": 3, "num_kv_heads": 2, "logit_softcap": 5.0},
        {"name": "local_global", "window": 3, "pattern": "LG", "rotate_global": False},
        {"name": "cross_layer", "num_kv_heads": 2, "qk_norm": True, "logit_softcap": 5.0},
        {"name": "mla", "q_lora_rank": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10, "logit_softcap": 5.0},
        {"name": "mla", "latent_norm": False, "qk_rope_head_dim": 8},
        {"name": "differential", "qk_norm": True, "logit_softcap": 5.0, "bias": True},
        {"name": "no_value", "projection": False, "qk_norm": True},
        {"name": "scaled", "scale": 0.5, "inner": {"name": "mla", "kv_lora_rank": 12}},
    ],
    ids=str,
)
def test_options_keep_the_contract(attention: dict[str, Any]) -> None:
    assert not broken(check_part("attentions", resolve_part("attentions", attention), (*FORMS, "gradient_everywhere", "bf16_is_close", "initial_loss")))


# --- windows --------------------------------------------------------------------------------------------------------


def test_a_window_reaches_as_far_as_it_says() -> None:
    model, tokens = vivid({"name": "sliding_window", "window": 4}, num_layers=1), some_tokens()
    before = model(tokens).hidden
    for s in range(T):
        changed = tokens.clone()
        changed[:, s] = (changed[:, s] + 7) % VOCAB
        moved = (model(changed).hidden - before).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [s <= t < s + 4 for t in range(T)]


def test_a_window_as_long_as_the_text_is_full_attention() -> None:
    full, tokens = vivid("mha"), some_tokens()
    for window in (T, 10 * T):
        windowed = vivid({"name": "sliding_window", "window": window})
        assert torch.equal(windowed(tokens).hidden, full(tokens).hidden)
        assert windowed.count().flops_per_token_causal == full.count().flops_per_token_causal


def test_the_pattern_repeats_over_the_layers() -> None:
    model = build_model(transformer({"name": "local_global", "pattern": "LLG", "window": 5, "rotate_global": False}, num_layers=7), VOCAB, T)
    assert [b.attention.window for b in model.stack.blocks] == [5, 5, 0, 5, 5, 0, 5]
    assert [b.attention.rotates for b in model.stack.blocks] == [True, True, False, True, True, False, True]


def test_causal_flops_of_a_window_are_the_pairs_it_leaves() -> None:
    per_pair = 4 * H * D
    for window in (1, 3, T):
        full, causal = alone({"name": "sliding_window", "window": window}).extra_flops(T)
        pairs = sum(min(t + 1, window) for t in range(T))
        assert full == per_pair * T**2
        assert causal / per_pair == pairs - window / 2  # as everywhere, the diagonal counts half


def test_decoding_reads_no_keys_out_of_sight() -> None:
    context = ForwardContext(Position(), masks=Masks(attention_mask(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 10, dtype=torch.int64), 8)))
    q, k, v = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 10, 4), torch.randn(1, 2, 10, 4)
    k[:, :, :6], v[:, :, :6] = math.nan, math.nan  # token 8 sees 6..8, token 9 sees 7..9
    assert context.attend(q, k, v, window=3).isfinite().all()
    assert ForwardContext(Position()).attend(q[:, :, 1:], k, v, window=4).isfinite().all()


def test_blocks_of_windows_say_what_the_dense_mask_says() -> None:
    doc_ids = torch.tensor([[0] * 5 + [1] * 295, [-1] * 3 + [0] * 297])  # more than two blocks of 128
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 8, generator=generator) for heads in (4, 2, 2))
    dense = window_mask(attention_mask(doc_ids, doc_ids), 300, 300, 40, q.device)
    found = attend(q, k, v, None, 3.0, window_block_mask(document_block_mask(doc_ids), 40))
    torch.testing.assert_close(found, attend(q, k, v, dense, 3.0), rtol=1e-5, atol=1e-5)


# --- latent attention -----------------------------------------------------------------------------------------------

B1 = {"q_lora_rank": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 64, "qk_rope_head_dim": 16}  # 512 and 128 dimensions over 8 heads


def test_latent_attention_follows_its_equations() -> None:
    """arXiv:2405.04434, equations 9 to 19 with no positions, one head and one query at a time."""
    dc, dr, dv, latent = 6, 4, 10, 16
    mla = alone({"name": "mla", "q_lora_rank": 8, "kv_lora_rank": latent, "qk_nope_head_dim": dc, "qk_rope_head_dim": dr, "v_head_dim": dv})
    x = some_x()
    norm = lambda z: z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    want = torch.zeros(B, T, H, dv, dtype=torch.float64)
    for b in range(B):
        queries = norm(x[b] @ mla.query_down.weight.T) @ mla.query_up.weight.T
        down = x[b] @ mla.down.weight.T
        c, shared_key = norm(down[:, :latent]), down[:, latent:]
        for h in range(H):
            q = queries[:, h * (dc + dr) : (h + 1) * (dc + dr)]
            w_uk, w_uv = mla.up.weight[h * (dc + dv) :][:dc], mla.up.weight[h * (dc + dv) + dc :][:dv]
            k, v = torch.cat([c @ w_uk.T, shared_key], -1), c @ w_uv.T
            for t in range(T):
                want[b, t, h] = softmax_of(q, k, t) @ v[: t + 1]
    found = mla(x, ForwardContext(Position()))
    torch.testing.assert_close(found, want.flatten(2) @ mla.out.weight.T, rtol=1e-5, atol=1e-5)  # softmax is in fp32


@pytest.mark.parametrize("past", [1, 7])
def test_the_absorbed_form_is_the_naive_form(past: int) -> None:
    mla = alone({"name": "mla", "q_lora_rank": 8, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 10, "logit_softcap": 4.0})
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))  # noqa: E731
    new, S = T - past, T
    doc_ids = torch.tensor([[0] * T, [0] * 3 + [1] * (T - 3)])
    context = ForwardContext(Position(), masks=Masks(attention_mask(doc_ids[:, past:], doc_ids, past)))
    given = draw(B, H, new, D), draw(B, H, new, 4), draw(B, 1, S, 16 + 4)
    torch.testing.assert_close(mla.absorbed(*given, context), mla.naive(*given, context), rtol=1e-5, atol=1e-5)


def test_decoding_uses_the_absorbed_form_and_a_first_pass_does_not() -> None:
    model, seen = vivid("mla", num_layers=1), []
    mla = model.stack.blocks[0].attention
    naive, absorbed = mla.naive, mla.absorbed
    mla.naive = lambda *given: seen.append("naive") or naive(*given)
    mla.absorbed = lambda *given: seen.append("absorbed") or absorbed(*given)
    cache, tokens = model.new_cache(B, T), some_tokens()
    for start, stop in ((0, 6), (6, 7), (7, 10)):
        model(tokens[:, start:stop], cache=cache)
    model(tokens)
    assert seen == ["naive", "absorbed", "absorbed", "naive"]


def test_the_notebook_shape_of_latent_attention_counts_as_it_should() -> None:
    sizes = {"d_model": 512, "num_heads": 8, "num_layers": 12}
    counts = count_architecture(resolve_part("architectures", {"name": "transformer", **sizes, "attention": {"name": "mla", **B1}}), 32_000, 1024)
    assert counts.cache_bytes_per_token == 12 * (16 + 16) * 4
    none = count_architecture(resolve_part("architectures", {"name": "transformer", **sizes, "attention": "none"}), 32_000, 1024)
    a_layer = 512 * 8 + 8 * 8 * 80 + 512 * (16 + 16) + 16 * 8 * 128 + 512 * 512
    assert counts.matmul - none.matmul == 12 * a_layer
    assert counts.flops_per_token - none.flops_per_token == 12 * (2 * a_layer + 2 * 1024 * 8 * (80 + 64))


# --- sharing over layers ----------------------------------------------------------------------------------------------


def test_cross_layer_attention_of_groups_of_one_is_multi_head_attention() -> None:
    mha, cross = alone("mha"), alone({"name": "cross_layer", "kv_share_layers": 1})
    with torch.no_grad():
        cross.q.weight.copy_(mha.qkv.weight[: H * D])
        cross.kv.weight.copy_(mha.qkv.weight[H * D :])
        cross.out.weight.copy_(mha.out.weight)
    torch.testing.assert_close(cross(some_x(), ForwardContext(Position())), mha(some_x(), ForwardContext(Position())))


def test_sharing_layers_keep_one_slot_a_group_beside_other_layers() -> None:
    model = vivid({"name": "cross_layer", "kv_share_layers": 3}, num_layers=7)
    assert [b.attention.kv is not None for b in model.stack.blocks] == [True, False, False, True, False, False, True]
    cache, tokens = model.new_cache(B, T), some_tokens()
    model(tokens[:, :8], cache=cache)
    assert len(cache.slots) == 3
    assert model.count().cache_bytes_per_token == 3 * 2 * H * D * 4
    cache.select(torch.tensor([1, 0]))
    torch.testing.assert_close(model(tokens[[1, 0], 8:], cache=cache).hidden, model(tokens[[1, 0]]).hidden[:, 8:], rtol=1e-4, atol=1e-4)


def test_a_layer_without_keys_says_who_should_have_made_them() -> None:
    with pytest.raises(FeebError, match=r"layer 1 has no keys of its own.*kv_share_layers: 1"):
        alone("cross_layer", layer=1)(some_x(), ForwardContext(Position()))


@pytest.mark.parametrize(
    "attention", [{"name": "cross_layer", "kv_share_layers": 2}, {"name": "mha", "value_residual": "learned"}], ids=["cross_layer", "value_residual"]
)
def test_activations_computed_again_give_the_same_gradients(attention: dict[str, Any]) -> None:
    found = []
    for again in (False, True):
        model = vivid(attention, num_layers=4)
        if again:
            assert checkpoint_activations(model) == 4
        model(some_tokens()).hidden.square().sum().backward()
        found.append({n: p.grad for n, p in model.stack.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["constant", "learned"])
def test_later_layers_mix_in_the_first_layers_values(kind: str) -> None:
    model, seen = vivid({"name": "mha", "value_residual": kind, "value_embeddings": True}, num_layers=3), []
    for block in model.stack.blocks:
        block.attention.register_forward_hook(lambda m, inputs, y: seen.append(m.qkv(inputs[0]).view(B, T, 3, H, D)[:, :, 2].transpose(1, 2)))
    cache, tokens = model.new_cache(B, T), some_tokens()
    model(tokens, cache=cache)
    for block, made, (_, kept) in zip(model.stack.blocks, list(seen), cache.slots, strict=True):
        mixing = block.attention.values
        a, b = (0.5, 0.5) if mixing.weights is None else mixing.weights.tolist()
        table = mixing.table.weight[tokens].view(B, T, H, D).transpose(1, 2)
        torch.testing.assert_close(kept, (made if block is model.stack.blocks[0] else a * seen[0] + b * made) + table)
    assert [block.attention.values.weights is not None for block in model.stack.blocks] == [False, kind == "learned", kind == "learned"]


def test_options_that_are_off_leave_multi_head_attention_as_it_was() -> None:
    assert [n for n, _ in alone("mha").named_parameters()] == ["qkv.weight", "out.weight"]


def test_attention_without_values_sums_the_weights_of_the_heads() -> None:
    attention, x = alone({"name": "no_value", "projection": False}), some_x()
    q, k = (x @ attention.qk.weight.T).view(B, T, 2, H, D).unbind(2)
    want = torch.zeros(B, T, C, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            want[b, t] = sum(softmax_of(q[b, :, h], k[b, :, h], t) for h in range(H)) @ x[b, : t + 1]
    torch.testing.assert_close(attention(x, ForwardContext(Position())), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 3])
def test_differential_attention_follows_its_equations(layer: int) -> None:
    """arXiv:2410.05258, equations 1 to 3, one head and one query at a time."""
    attention, x = alone("differential", layer=layer), some_x()
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    a1, b1, a2, b2 = attention.balance.view(4, D)
    share = torch.exp(a1 @ b1) - torch.exp(a2 @ b2) + start
    q, k, v = (x @ attention.qkv.weight.T).view(B, T, 3, H, D).unbind(2)
    want = torch.zeros(B, T, H // 2, 2 * D, dtype=torch.float64)
    for b in range(B):
        for h in range(H // 2):
            v_h = torch.cat([v[b, :, 2 * h], v[b, :, 2 * h + 1]], -1)
            for t in range(T):
                first, second = (softmax_of(q[b, :, 2 * h + i], k[b, :, 2 * h + i], t) for i in (0, 1))
                y = (first - share * second) @ v_h[: t + 1]
                want[b, t, h] = (1 - start) * attention.norm.weight * y / (y.square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(attention(x, ForwardContext(Position())), want.flatten(2) @ attention.out.weight.T, rtol=1e-4, atol=1e-4)


def test_differential_attention_starts_as_its_paper_says() -> None:
    model = build_model(transformer("differential", num_layers=3), VOCAB, T, seed=0)
    balance = torch.cat([b.attention.balance for b in model.stack.blocks])
    assert balance.std().item() == pytest.approx(0.1, rel=0.2)
    assert [round(b.attention.start, 3) for b in model.stack.blocks] == [0.2, 0.356, 0.471]


# --- more, less, none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaled_attention_is_the_inner_one_times_its_scale(scale: float) -> None:
    inner, scaled = alone("gqa"), alone({"name": "scaled", "scale": scale, "inner": "gqa"})
    assert torch.equal(scaled(some_x(), ForwardContext(Position())), scale * inner(some_x(), ForwardContext(Position())))


def test_without_attention_a_token_is_alone_and_nothing_is_kept() -> None:
    model, tokens = vivid("none"), some_tokens()
    assert not [n for n, _ in model.named_parameters() if ".attention." in n]
    torch.testing.assert_close(model(tokens).hidden[:, -1:], model(tokens[:, -1:]).hidden)
    model(tokens, cache=(cache := model.new_cache(B, T)))
    assert cache.slots == []
    assert cache.filled == T


# --- weights and sizes ------------------------------------------------------------------------------------------------


def test_weights_are_those_that_attention_multiplies_values_with() -> None:
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 5)
    weights = attention_weights(q, k, logit_softcap=2.0)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9))
    torch.testing.assert_close(weights @ v.repeat_interleave(2, 1), attend(q, k, v, logit_softcap=2.0))


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ({"name": "sliding_window", "num_kv_heads": 3}, r"num_kv_heads 3 does not divide num_heads 4; set num_kv_heads to one of \[1, 2, 4\]"),
        ({"name": "cross_layer", "num_kv_heads": 8}, "does not divide num_heads 4"),
        ({"name": "mla", "qk_rope_head_dim": 5}, "qk_rope_head_dim 5 is odd, but positions rotate pairs; set it to 6"),
        ({"name": "local_global", "pattern": "LXG"}, "pattern"),
        ({"name": "scaled", "inner": {"name": "gqa", "num_kv_heads": 3}}, "does not divide"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_while_the_recipe_loads(attention: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        transformer(attention)


def test_differential_attention_wants_pairs_of_heads() -> None:
    with pytest.raises(ValidationError, match="num_heads is 3; set num_heads to 4"):
        transformer("differential", num_heads=3, head_dim=8)
