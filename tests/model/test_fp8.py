"""Which layers fp8 takes, and that the model is itself again afterwards. The products are emulated here: the hardware is a GPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from feebcore.errors import FeebError
from feebcore.evaluate.scorer import precision as scorer_autocast
from feebcore.model import fp8
from feebcore.model.build import build_model
from feebcore.model.precision import scoring_precision
from feebcore.parts import resolve_part
from feebcore.train import compilation
from feebcore.train.config import TrainSection

CPU = torch.device("cpu")


def model_of(architecture: str = "transformer", **options: Any) -> Any:
    sizes = {"name": architecture, "num_layers": 1, "d_model": 32, "num_heads": 2}
    return build_model(resolve_part("architectures", sizes | options), 64, 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_without_cuda_it_says_what_to_do() -> None:
    with pytest.raises(FeebError, match=r"precision: fp8 needs .* use precision: bf16"):
        fp8.convert_to_fp8(nn.Linear(16, 16))


def test_layers_in_blocks_are_taken_and_the_head_is_not() -> None:
    assert set(fp8.fp8_layers(model_of(feedforward={"name": "relu", "intermediate_size": 40}))) == {
        "stack.blocks.0.attention.qkv",
        "stack.blocks.0.attention.out",
    }, "40 is no multiple of 16"


@pytest.mark.parametrize("name", ["ngpt"])
def test_layers_that_multiply_in_their_own_way_are_refused_by_name(name: str) -> None:
    with pytest.raises(FeebError, match=r"such as stack\.blocks\.0.*\(Normalized\w+\); use precision: bf16"):
        fp8.fp8_layers(model_of(name))


def test_a_parametrized_layer_is_refused_too() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
    with pytest.raises(FeebError, match="such as 0 "):
        fp8.fp8_layers(model)


def test_products_are_in_fp8_and_afterwards_the_model_is_itself_again() -> None:
    pytest.importorskip("torchao")
    model, tokens = model_of(), torch.arange(16)[None]
    parameters, plain = dict(model.named_parameters()), model(tokens).hidden
    put_back = fp8.exchange(model, emulate=True)
    assert dict(model.named_parameters()) == parameters, "the same parameters under the same names"
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens).hidden
    output.float().sum().backward()
    assert all(p.grad is not None for name, p in parameters.items() if "blocks" in name)
    assert 1e-4 < (output - plain).norm() / plain.norm() < 0.2
    put_back()
    assert all(type(m).__module__.startswith("torchao") is False for m in model.modules())
    assert torch.equal(model(tokens).hidden, plain)


def test_what_was_trained_in_fp8_is_scored_in_bf16() -> None:
    assert [scoring_precision(p) for p in ("fp32", "bf16", "fp8")] == ["fp32", "bf16", "bf16"]
    assert scorer_autocast(CPU, scoring_precision("fp8")).fast_dtype is torch.bfloat16  # type: ignore[attr-defined]


def test_fp8_is_compiled_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="precision: fp8 is slower than bf16 unless it is compiled; set compile: auto"):
        TrainSection(precision="fp8", compile="off")
    monkeypatch.setattr(compilation, "has_compiler", lambda device: True)
    assert compilation.should_compile("auto", CPU, "fp8", 1.0, 1) == ("whole", "")
    monkeypatch.setattr(compilation, "has_compiler", lambda device: False)
    with pytest.raises(FeebError, match=r"fp8 needs torch\.compile"):
        compilation.should_compile("auto", CPU, "fp8", 1.0, 1)
