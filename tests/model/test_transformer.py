"""The transformer and its parts against independent formulas, and sizes refused while the recipe loads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from feebcore.model.attention import _explicit, attend
from feebcore.model.build import build_model, count_architecture
from feebcore.model.context import Cache
from feebcore.model.groups import param_groups
from feebcore.model.masks import attention_mask, positions_in_documents
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext


def transformer(**options: Any) -> Any:
    return resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 4, **options})


def test_explicit_attention_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    assert torch.allclose(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), atol=1e-5)
    mask = attention_mask(*[torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [-1, -1, 0, 0, 0, 0, 0, 0, 0]])] * 2)
    wanted = F.scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=True)
    assert torch.allclose(_explicit(q, k, v, mask, 0.0), wanted, atol=1e-5)


def test_long_sequences_agree_with_short_form(monkeypatch: pytest.MonkeyPatch) -> None:
    import feebcore.model.attention as attention

    model = build_model(transformer(attention="gqa"), 50, 16)
    tokens = torch.randint(50, (2, 16))
    doc_ids = torch.tensor([[-1] * 3 + [0] * 13, [0] * 8 + [1] * 8])
    explicit = [model(tokens).hidden, model(tokens, doc_ids=doc_ids).hidden]
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", 0)
    for found, wanted in zip([model(tokens).hidden, model(tokens, doc_ids=doc_ids).hidden], explicit, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_no_mask_exists_on_the_plain_path() -> None:
    seen = []
    model = build_model(transformer(), 50, 16)
    model.stack.register_forward_hook(lambda module, arguments, result: seen.append(arguments[1].mask_BTS))
    model(torch.zeros(1, 8, dtype=torch.int64))
    cache = model.new_cache(1, 16)
    model(torch.zeros(1, 8, dtype=torch.int64), cache=cache)
    model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert seen == [None] * 3


def test_rope_scores_depend_on_distance_alone() -> None:
    rope = resolve_part("positions", "rope").build(BuildContext(d_model=32, num_heads=4, head_dim=8, seq_len=64))
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(m: int, n: int) -> float:
        at = lambda x, p: rope.rotate(x, rope.prepare(1, torch.tensor([[p]])))  # noqa: E731
        return float((at(q, m) * at(k, n)).sum())

    assert score(5, 2) == pytest.approx(score(40, 37), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)
    # complex form of RoFormer, equation 12: (x_i + i x_{i+D/2}) e^{i p theta_i}
    x = torch.randn(8)
    turned = torch.complex(x[:4], x[4:]) * torch.polar(torch.ones(4), 7 * 10000.0 ** (-torch.arange(0, 8, 2) / 8))
    assert torch.allclose(rope.rotate(x.view(1, 1, 1, 8), rope.prepare(1, torch.tensor([[7]]))).flatten(), torch.cat([turned.real, turned.imag]), atol=1e-5)


def test_norms_follow_their_formulas() -> None:
    x = torch.randn(3, 32) * 5 + 2
    assert torch.allclose(resolve_part("norms", "rmsnorm").build(d_model=32)(x), F.rms_norm(x, (32,), eps=1e-6), atol=1e-5)
    assert torch.allclose(resolve_part("norms", "layernorm").build(d_model=32)(x), F.layer_norm(x, (32,)), atol=1e-5)
    for name in ("rmsnorm", "layernorm"):
        assert not list(resolve_part("norms", {"name": name, "learnable": False}).build(d_model=32).parameters())


def test_positions_count_within_documents() -> None:
    doc_ids = torch.tensor([[-1, -1, 0, 0, 0], [0, 0, 1, 1, 2]])
    assert positions_in_documents(doc_ids).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 0]]


def test_cache_rows_can_be_selected_and_reordered() -> None:
    model = build_model(transformer(), 50, 16)
    tokens = torch.randint(50, (3, 6))
    cache = model.new_cache(3, 16)
    model(tokens[:, :5], cache=cache)
    rows = torch.tensor([2, 0])
    cache.select(rows)
    step = model(tokens[rows, 5:], cache=cache).hidden[:, 0]
    assert torch.allclose(step, model(tokens[rows]).hidden[:, 5], atol=1e-5)


def test_a_full_cache_and_a_long_row_are_refused() -> None:
    model = build_model(transformer(), 50, 8)
    with pytest.raises(ValueError, match="seq_len 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="seq_len 8"):
        model.new_cache(1, 9)
    with pytest.raises(ValueError, match="do not fit"):
        Cache(1, 4, "cpu").begin(5, None, None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"d_model": 30}, r"d_model 30 does not divide into num_heads 4; set num_heads to 3, d_model to 32"),
        ({"attention": {"name": "gqa", "num_kv_heads": 3}}, r"num_kv_heads 3 does not divide num_heads 4; set num_kv_heads to one of \[1, 2, 4\]"),
        ({"head_dim": 5}, "head_dim 5 is odd; set head_dim to 6"),
        ({"d_model": 33, "head_dim": 8, "position": "sinusoidal"}, "even d_model, not 33"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"d_modle": 32}, "Extra inputs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_while_loading(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        transformer(**options)


def test_layers_are_returned_when_asked_for() -> None:
    model = build_model(transformer(), 50, 16)
    output = model(torch.zeros(2, 5, dtype=torch.int64), want_layers=True)
    assert len(output.layers) == 2
    assert torch.equal(model.final_norm(output.layers[-1]), output.hidden)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).layers is None


def test_dropout_acts_in_training_only() -> None:
    model = build_model(transformer(dropout=0.5), 50, 16)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    assert not torch.equal(model(tokens).hidden, model(tokens).hidden)
    model.eval()
    assert torch.equal(model(tokens).hidden, model(tokens).hidden)


@pytest.mark.parametrize("attention", ["mha", "mla", "no_value", "differential", {"name": "sliding_window", "window": 3}])
def test_attention_dropout_acts_in_training_only(attention) -> None:
    model = build_model(transformer(attention_dropout=0.5, attention=attention), 50, 16)
    plain = build_model(transformer(attention=attention), 50, 16)
    tokens, doc_ids = torch.randint(50, (2, 9)), torch.tensor([0] * 4 + [1] * 5).expand(2, -1)
    for options in ({}, {"doc_ids": doc_ids}):
        assert not torch.equal(model.train()(tokens, **options).hidden, model(tokens, **options).hidden)
        assert torch.equal(model.eval()(tokens, **options).hidden, plain(tokens, **options).hidden)


def test_roles_of_parameters() -> None:
    model = build_model(transformer(position="learned", norm="layernorm"), 50, 16)
    roles = {g.role: g.names for g in param_groups(model)}
    assert roles["embedding"] == ["embedding.weight", "position.table.weight"]
    assert roles["lm_head"] == ["lm_head.weight"]
    assert len(roles["matrix"]) == 2 * 4
    assert all(n.endswith((".gain", ".shift")) for n in roles["vector"])
    tied = {g.role: g.names for g in param_groups(build_model(transformer(lm_head="tied"), 50, 16))}
    assert tied["embedding"] == ["embedding.weight"]
    assert "lm_head" not in tied


def test_counts_of_gpt2_small_are_the_known_ones() -> None:
    gpt2 = transformer(num_layers=12, d_model=768, num_heads=12, attention={"name": "mha", "bias": True}, feedforward={"name": "gelu", "bias": True})
    gpt2 = resolve_part("architectures", gpt2.dump() | {"norm": "layernorm", "position": "learned", "lm_head": "tied"})
    counts = count_architecture(gpt2, 50257, 1024)
    assert counts.total == 124_439_808  # Hugging Face's gpt2
    assert counts.non_embedding == 124_439_808 - 50257 * 768 - 1024 * 768
    assert counts.matmul == 12 * 12 * 768**2 + 50257 * 768
    assert counts.flops_per_token == 2 * counts.matmul + 12 * 4 * 1024 * 768
    assert counts.cache_bytes_per_token == 12 * 2 * 768 * 4


def test_residual_projections_start_smaller_with_depth() -> None:
    model = build_model(transformer(num_layers=8, d_model=128), 50, 16)
    block = model.stack.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for module in (block.attention, block.feedforward):
        assert module.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    zero = build_model(transformer(initialization={"name": "normal", "zero_lm_head": True}), 50, 16)
    assert not zero.lm_head.weight.any()
