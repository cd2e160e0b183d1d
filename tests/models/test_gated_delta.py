"""The gated delta rule against its recurrence, written plainly a token at a time; its state in the cache; patterns over layers."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feeb_models.attentions.gated_delta import gated_delta
from feebcore.model.build import build_model, count_architecture
from feebcore.model.context import ForwardContext
from feebcore.model.masks import Masks, attention_mask
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext
from feebcore.testing.models import enliven

B, T, C, H, K, V, VOCAB = 2, 13, 32, 4, 8, 6, 61


def alone(**options: Any) -> Any:
    part = resolve_part("attentions", {"name": "gated_delta", "value_dim": V, **options})
    module = part.build(BuildContext(d_model=C, num_heads=H, head_dim=K, seq_len=T, num_layers=4, position=Position(), vocab_size=VOCAB))
    enliven(module)
    return module


def some_x() -> Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))


def plainly(m: nn.Module, x_TC: Tensor) -> Tensor:
    """One document [T,C] in double precision: arXiv:2412.06464, equation 10, with section 3.4's convolutions, gates and norm."""
    m = m.double()
    x = x_TC.double()
    raw, filters = x @ m.qkv.weight.T, m.filter.view(m.conv, -1)
    mixed = torch.stack([sum(filters[j] * raw[t - j] for j in range(m.conv) if t >= j) for t in range(len(x))])
    queries, keys, values = (part.view(len(x), H, -1) for part in (mixed * mixed.sigmoid()).split([H * K, H * K, H * V], -1))
    forget, write = (x @ m.rates.weight.T).view(len(x), 2, H).unbind(1)
    kept, write = torch.exp(-m.decay.exp() * torch.log1p(torch.exp(forget + m.shift))), write.sigmoid()
    out = torch.zeros(len(x), H, V, dtype=torch.float64)
    for h in range(H):
        state = torch.zeros(V, K, dtype=torch.float64)
        for t in range(len(x)):
            q, k, v = queries[t, h], keys[t, h], values[t, h]
            q, k = q / q.norm(), k / k.norm()
            state = kept[t, h] * state @ (torch.eye(K) - write[t, h] * torch.outer(k, k)) + write[t, h] * torch.outer(v, k)
            o = state @ q
            out[t, h] = o / (o.square().mean() + 1e-5).sqrt() * m.norm.weight
    gate = x @ m.gate.weight.T
    return (out.flatten(1) * gate * gate.sigmoid()) @ m.out.weight.T


@pytest.mark.parametrize(("chunk", "conv"), [(1, 4), (4, 2), (64, 4)])
@torch.no_grad()
def test_chunks_of_any_size_follow_the_recurrence(chunk: int, conv: int) -> None:
    module, x = alone(chunk=chunk, conv_kernel_size=conv), some_x()
    found = module(x, ForwardContext(Position()))
    for b in range(B):
        torch.testing.assert_close(found[b].double(), plainly(module, x[b]), rtol=1e-4, atol=1e-5)
        module.float()


@pytest.mark.parametrize("chunk", [3, 5, 64])
@torch.no_grad()
def test_documents_begin_anew_wherever_they_lie_in_chunks(chunk: int) -> None:
    module, x = alone(chunk=chunk), some_x()
    doc_ids = torch.tensor([[0] * 6 + [1] + [2] * 6, [-1] * 3 + [0] * 10])
    found = module(x, ForwardContext(Position(), masks=Masks(attention_mask(doc_ids, doc_ids))))
    for row, start, stop in ((0, 0, 6), (0, 6, 7), (0, 7, 13), (1, 3, 13)):
        torch.testing.assert_close(found[row, start:stop].double(), plainly(module, x[row, start:stop]), rtol=1e-4, atol=1e-5)
        module.float()


@torch.no_grad()
def test_the_cache_is_a_state_that_does_not_grow_and_rows_can_be_chosen() -> None:
    part = resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": C, "num_heads": H, "attention": "gated_delta"})
    model = build_model(part, VOCAB, T, seed=1)
    enliven(model)
    counts, tokens = model.count(), torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(4))
    assert counts.cache_bytes_per_token == 0
    assert counts.cache_bytes_fixed == 2 * 4 * H * (K * K + 3 * 3 * K)
    cache = model.new_cache(B, T)
    model(tokens[:, :7], cache=cache)
    shapes = [[x.shape for x in state] for state in cache.states]
    cache.select(torch.tensor([1, 0]))
    found = model(tokens[[1, 0], 7:8], cache=cache).hidden
    assert not cache.slots
    assert [[x.shape for x in state] for state in cache.states] == shapes
    torch.testing.assert_close(found, model(tokens[[1, 0]]).hidden[:, 7:8], rtol=1e-4, atol=1e-4)


def test_forgetting_starts_between_one_and_a_thousand_tokens() -> None:
    module = alone()
    torch.manual_seed(0)
    module.init_weights(0.02, 0.02)
    memory = 1 / (module.decay.exp() * torch.log1p(module.shift.exp()))
    assert memory.min() > 1 / 1.7
    assert memory.max() < 1001
    assert math.isclose(float(module.filter.detach().abs().max()), 0.5, rel_tol=0.05)


def test_a_pattern_over_layers_gives_each_layer_its_attention() -> None:
    value = {"name": "gated_delta_hybrid", "num_layers": 6, "d_model": C, "num_heads": H}
    model = build_model(resolve_part("architectures", value), VOCAB, T)
    assert [type(b.attention).__name__ for b in model.stack.blocks] == ["GatedDelta"] * 3 + ["GroupedQueryAttention"] + ["GatedDelta"] * 2
    counts = count_architecture(resolve_part("architectures", value), VOCAB, T)
    assert counts.cache_bytes_per_token == 2 * C * 4
    assert counts.cache_bytes_fixed == 5 * 4 * H * (K * K + 3 * 3 * K)


@torch.no_grad()
def test_a_hybrid_decodes_through_states_and_cache_as_it_trains_documents_and_padding_included() -> None:
    model = build_model(resolve_part("architectures", {"name": "gated_delta_hybrid", "num_layers": 4, "d_model": C, "num_heads": H}), VOCAB, T, seed=1)
    enliven(model)
    tokens, doc_ids = torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(4)), torch.tensor([[0] * 5 + [1] * 8, [-1] * 2 + [0] * 11])
    whole, cache, parts = model(tokens, doc_ids=doc_ids).hidden, model.new_cache(B, T), []
    for start, stop in ((0, 4), (4, 7), (7, 8), (8, 13)):
        parts.append(model(tokens[:, start:stop], doc_ids=doc_ids[:, start:stop], cache=cache).hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_the_cost_a_token_does_not_grow_with_the_row() -> None:
    value = {"name": "transformer", "num_layers": 2, "d_model": C, "num_heads": H, "attention": "gated_delta"}
    short, long = (count_architecture(resolve_part("architectures", value), VOCAB, n).flops_per_token for n in (64, 640))
    assert short == long


def stand_in(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor, output_final_state: bool) -> tuple[Tensor, Tensor]:
    """flash-linear-attention 0.6's `chunk_gated_delta_rule` as its documentation has it: q, k, v [B,T,H,.], g (log decay) and beta
    [B,T,H], state [B,H,K,V]; a token at a time."""
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert output_final_state
    state, outputs = initial_state, []
    for t in range(q.shape[1]):
        q_BHK, k_BHK, v_BHV = (x[:, t].float() for x in (q, k, v))
        state = state * g[:, t].exp()[..., None, None]
        change = beta[:, t, :, None] * (v_BHV - torch.einsum("bhkv,bhk->bhv", state, k_BHK))
        state = state + torch.einsum("bhk,bhv->bhkv", k_BHK, change)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q_BHK))
    return torch.stack(outputs, 1).to(q.dtype), state


@pytest.mark.parametrize("docs", [None, [[0] * 6 + [1] + [2] * 6, [-1] * 3 + [0] * 10]], ids=["one document", "several"])
@torch.no_grad()
def test_installed_kernels_are_given_what_they_document(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("fla.ops.gated_delta_rule")
    package.chunk_gated_delta_rule = stand_in  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    ids = None if docs is None else torch.tensor(docs)
    context = ForwardContext(Position(), masks=Masks(None if ids is None else attention_mask(ids, ids)))
    module, x = alone(chunk=5), some_x()
    own = module(x, context)
    monkeypatch.setattr(gated_delta, "fused_takes", lambda *_: True)
    torch.testing.assert_close(module(x, context), own, rtol=0.02, atol=0.02 * float(own.abs().max()))


def test_installed_kernels_compute_training_in_bf16_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    takes, bf16 = gated_delta.fused_takes, torch.bfloat16
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not takes("cuda", bf16, 64, 64, 64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert takes("cuda", bf16, 64, 64, 128)
    assert not any((takes("cpu", bf16, 64, 64, 64), takes("cuda", torch.float32, 64, 64, 64), takes("cuda", bf16, 1, 64, 64)))
    assert not any((takes("cuda", bf16, 64, 288, 64), takes("cuda", bf16, 64, 8, 64), takes("cuda", bf16, 64, 64, 17)))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not takes("cuda", bf16, 64, 64, 64)
