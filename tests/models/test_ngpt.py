"""nGPT: everything on the unit sphere."""

from __future__ import annotations

from typing import Any

import torch

from feeb_models.normalized_linear import LearnedScale, NormalizedLinear, NormalizedResidualLinear
from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext

C, H, D, T, VOCAB = 32, 4, 8, 10, 61


def model() -> Any:
    return build_model(resolve_part("architectures", {"name": "ngpt", "num_layers": 3, "d_model": C, "num_heads": H}), VOCAB, T, seed=1)


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_stream_has_unit_norm_after_every_layer_and_logits_are_cosines_at_first() -> None:
    ngpt = model()
    output = ngpt(tokens(), want_layers=True)
    for stream in output.layers:
        torch.testing.assert_close(stream.norm(dim=-1), torch.ones(2, T))
    cosines = torch.cosine_similarity(output.hidden[:, :, None], ngpt.lm_head.weight, dim=-1)
    torch.testing.assert_close(ngpt.lm_head(output.hidden), cosines)


@torch.no_grad()
def test_the_size_of_a_weight_vector_changes_nothing() -> None:
    ngpt = model()
    before = ngpt.lm_head(ngpt(tokens()).hidden)
    for module in ngpt.modules():
        if isinstance(module, NormalizedLinear):
            module.weight *= torch.rand(len(module.weight), 1) + 0.5
        elif isinstance(module, NormalizedResidualLinear):
            module.weight *= torch.rand(module.weight.shape[1]) + 0.5
    torch.testing.assert_close(ngpt.lm_head(ngpt(tokens()).hidden), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_compares_cosines_with_learned_gains() -> None:
    """arXiv:2410.01131, equations 15 and 16 and the softmax scale sqrt(D), without positions."""
    torch.manual_seed(0)
    part = resolve_part("attentions", {"name": "ngpt", "init_value": 1.5})
    attention = part.build(BuildContext(d_model=C, num_heads=H, head_dim=D, seq_len=T, num_layers=3, position=Position(), vocab_size=VOCAB))
    attention.gain.weight.mul_(torch.rand(H * D) + 0.5)
    x, gain = torch.randn(1, T, C), attention.gain().view(H, D)
    unit = lambda z, dim=-1: z / z.norm(dim=dim, keepdim=True)  # noqa: E731
    q, k, v = (x[0] @ unit(attention.qkv.weight).T).view(T, 3, H, D).unbind(1)
    want = torch.zeros(T, H, D)
    for h in range(H):
        for t in range(T):
            scores = D**0.5 * (gain[h] * unit(q[t, h])) @ (gain[h] * unit(k[: t + 1, h])).T
            want[t, h] = scores.softmax(-1) @ v[: t + 1, h]
    found = attention(x, ForwardContext(Position()))[0]
    torch.testing.assert_close(found, want.flatten(1) @ unit(attention.out.weight, 0).T, rtol=1e-4, atol=1e-5)


def test_a_scale_begins_at_its_value_and_moves_in_proportion_to_it() -> None:
    scale = LearnedScale(3, 0.05, 0.25)
    torch.testing.assert_close(scale(), torch.full((3,), 0.05))
    with torch.no_grad():
        scale.weight.add_(0.25)
    torch.testing.assert_close(scale(), torch.full((3,), 0.1))
