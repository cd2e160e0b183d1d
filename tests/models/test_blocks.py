"""Blocks compute the formulas in their summaries; hyper-connections carry several streams through everything that knows one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import BuildContext
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.models import enliven, loss_of, some_tokens
from feebcore.train.probing import StreamWatch, find_places
from feebcore.train.step import checkpoint_activations

QUICK = ["causality", "document_isolation", "cache_parity", "left_padding_parity", "gradient_everywhere", "counts_are_measured", "bf16_is_close"]


def ln(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def a(x: Tensor) -> Tensor:
    return 0.7 * x.roll(1, dims=1) + 0.1


def a2(x: Tensor) -> Tensor:
    return 1.3 * x.roll(2, dims=1) - 0.2


def m(x: Tensor) -> Tensor:
    return torch.tanh(2 * x.roll(1, dims=2))


def m2(x: Tensor) -> Tensor:
    return torch.sin(3 * x.roll(2, dims=2))


class Step(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        return self.function(x)


def wired(name: str, layer: int = 1, **options: Any) -> nn.Module:
    """The block around the functions above, in the order in which it asks for instances."""
    attentions, feedforwards = iter([a, a2]), iter([m, m2])
    return resolve_part("blocks", {"name": name, **options}).build(
        BuildContext(d_model=8, num_heads=2, head_dim=4, seq_len=6, layer=layer, num_layers=4),
        make_attention=lambda: Step(next(attentions)),
        make_feedforward=lambda: Step(next(feedforwards)),
        make_norm=lambda dim=8: Step(ln),
    )


def stream() -> Tensor:
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))


def then(step: Any) -> Any:
    """y + m(ln y) of y = step(r)."""
    return lambda r: (y := step(r)) + m(ln(y))


FORMULAS = {
    "prenorm": then(lambda r: r + a(ln(r))),
    "parallel": lambda r: r + a(ln(r)) + m(ln(r)),
    "postnorm": lambda r: ln((y := ln(r + a(r))) + m(y)),
    "deepnorm": lambda r: ln(8**0.25 * (y := ln(8**0.25 * r + a(r))) + m(y)),
    "sandwich": lambda r: (y := r + ln(a(ln(r)))) + ln(m(ln(y))),
    "perinorm": lambda r: (y := r + ln(a(ln(r)))) + ln(m(ln(y))),
    "output_norm": lambda r: (y := r + ln(a(r))) + ln(m(y)),
    "layerscale": lambda r: (y := r + 0.1 * a(ln(r))) + 0.1 * m(ln(y)),
    "product": lambda r: r + a(ln(r)) * m(ln(r)),
    "multiplied_attention": then(lambda r: r * a(ln(r))),
    "affine_attention": then(lambda r: r * a2(ln(r)) + a(ln(r))),
    "multiplied_feedforward": lambda r: (y := r + a(ln(r))) * m(ln(y)),
    "affine_feedforward": lambda r: (y := r + a(ln(r))) * m2(ln(y)) + m(ln(y)),
    "normed_residual": then(lambda r: ln(r) + a(ln(r))),
    "attention_through_feedforward": lambda r: r + m(ln(r + a(ln(r)))),
    "normed_branch": lambda r: ln(r) + m(ln(r + a(ln(r)))),
    "sum_of_norms": lambda r: (y := r + a(ln(r))) + m(ln(r) + ln(y)),
    "no_stream": lambda r: a(ln(r)) + m(ln(r)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_block_computes_its_formula(name: str) -> None:
    torch.testing.assert_close(wired(name)(stream(), None), FORMULAS[name](stream()))


def test_perinorm_norms_the_embedded_tokens_once() -> None:
    torch.testing.assert_close(wired("perinorm", layer=0)(stream(), None), FORMULAS["sandwich"](ln(stream())))


def test_residual_lambdas_weigh_the_stream_and_its_start() -> None:
    start = 2 * stream().flip(0)
    found = wired("residual_lambdas", stream=0.9, start=0.4)(stream(), ForwardContext(Position(), start_BTC=start))
    torch.testing.assert_close(found, FORMULAS["prenorm"](0.9 * stream() + 0.4 * start))


@pytest.mark.parametrize("name", ["multiplied_attention", "multiplied_feedforward"])
def test_multiplied_streams_train_through_twelve_blocks_when_factors_begin_near_one(name: str) -> None:
    model = transformer(num_layers=12, block=name, initialization="fan_in")
    loss_of(model, some_tokens()).backward()
    assert 1e-3 < model.stack.blocks[0].attention.qkv.weight.grad.norm() < 1e3
    assert 0.5 < model(some_tokens()).hidden.square().mean() < 1.5


# --- hyper-connections ------------------------------------------------------------------------------------------


def transformer(num_layers: int = 3, seed: int = 0, **parts: Any) -> Any:
    sizes = {"num_layers": num_layers, "d_model": 32, "num_heads": 4}
    return build_model(resolve_part("architectures", {"name": "transformer", **sizes, **parts}), 61, 12, seed=seed)


@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections_begin_as_prenorm(dynamic: bool) -> None:
    plain = transformer()
    hyper = transformer(block={"name": "hyper_connections", "dynamic": dynamic, "num_streams": 3})
    missing, unexpected = hyper.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("_mix." in name for name in missing)
    with torch.no_grad():
        layers, wanted = (model(some_tokens(), want_layers=True).layers for model in (hyper, plain))
    for layer, one in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer, 3 * one)  # three equal streams


@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections_mix_as_the_paper_writes_it(dynamic: bool) -> None:
    N, C = 3, 8
    block = wired("hyper_connections", num_streams=N, dynamic=dynamic)
    enliven(block)
    H = torch.randn(2, 6, N, C, generator=torch.Generator().manual_seed(4))

    def connect(connection: Any, f: Any, H: Tensor) -> Tensor:
        """Token by token, with the matrices of the paper: Am [N,1], Ar [N,N], B [1,N]."""

        def matrices(H_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            A, B = connection.mix.view(N, N + 1), connection.write.view(1, N)
            if dynamic:
                change = torch.tanh(ln(H_NC) @ connection.weights.weight.T)
                A, B = A + connection.mix_scale * change[:, : N + 1], B + connection.write_scale * change[:, N + 1].view(1, N)
            return A[:, :1], A[:, 1:], B

        every = [[matrices(H[b, t]) for t in range(6)] for b in range(2)]
        x = torch.stack([torch.stack([(every[b][t][0].T @ H[b, t])[0] for t in range(6)]) for b in range(2)])
        y = f(ln(x))
        return torch.stack([torch.stack([every[b][t][1].T @ H[b, t] + every[b][t][2].T @ y[b, t][None] for t in range(6)]) for b in range(2)])

    wanted = connect(block.feedforward_mix, m, connect(block.attention_mix, a, H))
    torch.testing.assert_close(block(H.flatten(-2), None), wanted.flatten(-2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stack", ["sequential", {"name": "looped", "inject": True, "pass_embedding": True}, "act", "early_exit", "denseformer"])
def test_layers_of_hyper_connections_are_the_sum_of_streams_whatever_the_depth(stack: Any) -> None:
    model = transformer(block="hyper_connections", stack=stack)
    enliven(model)
    with torch.no_grad():
        output = model(some_tokens(), want_layers=True)
        assert [layer.shape for layer in output.layers] == [(3, 12, 32)] * 3
        assert torch.equal(model.final_norm(output.layers[-1]), output.hidden)
        with StreamWatch(model.stack, find_places(model)) as watch:
            model(some_tokens())
    assert len(watch.calls) == 3


def test_hyper_connections_survive_recomputation_and_copies() -> None:
    model = transformer(block="hyper_connections")
    enliven(model)
    again = copy.deepcopy(model)
    assert checkpoint_activations(again) == 3
    for each in (model, again):
        loss_of(each, some_tokens()).backward()
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("options", [{"dynamic": False, "num_streams": 2}, {"num_streams": 1}])
def test_hyper_connections_keep_the_contract_with_other_options(options: dict[str, Any]) -> None:
    broken = [str(r) for r in iterate(candidate("blocks", resolve_part("blocks", {"name": "hyper_connections", **options})), QUICK) if not r.passed]
    assert not broken, "\n".join(broken)
