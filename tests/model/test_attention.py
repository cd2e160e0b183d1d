from typing import Any

import pytest
import torch

from feebcore.model import attention, transformer
from feebcore.model.attention import _explicit, attend
from feebcore.model.build import build_model
from feebcore.model.masks import attention_mask, document_block_mask
from feebcore.parts import resolve_part

B, H, T, D = 2, 4, 24, 8


def qkv(groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, heads, T, D, generator=generator).requires_grad_() for heads in (H, groups, groups)]


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask_BTS: torch.Tensor, logit_softcap: float) -> torch.Tensor:
    """One query at a time, in double precision."""
    y = torch.zeros(B, H, T, D, dtype=torch.float64)
    for h in range(H):
        g = h // (H // k.shape[1])
        for b in range(B):
            for t in range(T):
                scores = k[b, g].double() @ q[b, h, t].double() / D**0.5
                scores = logit_softcap * torch.tanh(scores / logit_softcap) if logit_softcap else scores
                y[b, h, t] = scores[mask_BTS[b, t]].softmax(0) @ v[b, g].double()[mask_BTS[b, t]]
    return y


@pytest.mark.parametrize("logit_softcap", [0.0, 2.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_form_of_attention_agrees_with_the_definition(groups: int, logit_softcap: float) -> None:
    q, k, v = (x.detach() for x in qkv(groups))  # FlexAttention has no backward pass on a CPU
    doc_ids = torch.tensor([[0] * 5 + [1] * 19, [-1] * 3 + [0] * 21])
    causal_BTT = torch.ones(T, T, dtype=torch.bool).tril().expand(B, T, T)
    mask_BTT = attention_mask(doc_ids, doc_ids)
    plain, documents = by_definition(q, k, v, causal_BTT, logit_softcap), by_definition(q, k, v, mask_BTT, logit_softcap)
    block_mask = document_block_mask(doc_ids)
    for found, right in [
        (attend(q, k, v, None, logit_softcap), plain),
        (_explicit(q, k, v, None, logit_softcap), plain),
        (attend(q, k, v, mask_BTT, logit_softcap), documents),
        (_explicit(q, k, v, mask_BTT, logit_softcap), documents),
        (attend(q, k, v, None, logit_softcap, block_mask), documents),
    ]:
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


def test_the_form_for_compiled_bf16_has_the_gradients_of_the_other() -> None:
    mask_BTT = attention_mask(*[torch.tensor([[0] * 5 + [1] * 19, [0] * 24])] * 2)
    for mask in (None, mask_BTT):
        q, k, v = qkv(2)
        weight = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
        a, b = (torch.autograd.grad((form(q, k, v, mask, 0.0) * weight).sum(), (q, k, v)) for form in (attend, _explicit))
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit_softcap", [0.0, 50.0], ids=["kernel", "explicit"])
def test_dropout_drops_weights_and_keeps_their_mean(logit_softcap):
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    v = torch.eye(4).expand(1, 2, 4, 4).contiguous()  # so that what comes out is the weights
    whole = attend(q, k, v, logit_softcap=logit_softcap)
    draws = torch.stack([attend(q, k, v, logit_softcap=logit_softcap, dropout=0.25) for _ in range(4000)])
    kept = draws[:, whole > 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(draws[0][draws[0] != 0], whole[draws[0] != 0] / 0.75)
    torch.testing.assert_close(draws.mean(0), whole, atol=0.03, rtol=0)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {"attention": {"name": "mha", "logit_softcap": 5.0}},
        {"attention": {"name": "sliding_window", "window": 7}},
        {"attention": {"name": "mha", "logit_softcap": 5.0}, "position": "alibi"},
        {"attention": "gqa", "position": "rope_yarn"},
        {"attention": "mla", "position": "rope_yarn"},
    ],
    ids=str,
)
def test_a_model_computes_the_same_where_flexattention_is_a_kernel(parts: dict[str, Any], documents: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: caps, windows, biases and documents go through FlexAttention; here through its slow form."""
    used: list[bool] = []
    original = attention._by_blocks
    monkeypatch.setattr(attention, "_by_blocks", lambda *arguments: used.append(True) or original(*arguments))
    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": 2, "d_model": 64, "num_heads": 4, **parts})
    model = build_model(architecture, 50, 24, seed=1).requires_grad_(False)
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    doc_ids = (torch.arange(24) >= torch.tensor([[9], [15]])).long() if documents else None
    expected = model(tokens, doc_ids=doc_ids).hidden
    assert not used
    monkeypatch.setattr(transformer, "has_flex_kernel", lambda kind: True)
    torch.testing.assert_close(model(tokens, doc_ids=doc_ids).hidden, expected, rtol=1e-4, atol=1e-4)
    assert bool(used) == (documents or bool(parts["attention"] not in ("gqa", "mla")))
