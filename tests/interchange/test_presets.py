"""Presets are the transformer with other defaults; the depth sets three sizes and gives way to what is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feebcore.model.build import build_model, count_architecture
from feebcore.parts import resolve_part
from feebcore.registry import BUILTIN, get_registry

ARCHITECTURES = [spec.name for kind, spec in get_registry().parts() if kind == "architectures" and spec.distribution == BUILTIN]


def config_of(value: Any) -> Any:
    return resolve_part("architectures", value).config


@pytest.mark.parametrize(
    ("depth", "sizes"), [(1, (1, 64, 1)), (4, (4, 256, 4)), (11, (11, 704, 11)), (12, (12, 768, 6)), (13, (13, 896, 7)), (20, (20, 1280, 10))]
)
def test_the_depth_sets_layers_width_and_heads(depth: int, sizes: tuple[int, int, int]) -> None:
    config = config_of({"name": "depth_scaled", "depth": depth})
    assert (config.num_layers, config.d_model, config.num_heads) == sizes
    assert config.width_of_head == (64 if depth < 12 else 128)


def test_sizes_that_are_written_win_over_the_dial_and_a_dump_means_the_same_again() -> None:
    config = config_of({"name": "gpt2", "depth": 6, "num_layers": 3})
    assert (config.num_layers, config.d_model, config.num_heads) == (3, 384, 6)
    part = resolve_part("architectures", {"name": "gpt2", "depth": 6, "num_layers": 3})
    assert resolve_part("architectures", part.dump()) == part
    assert config_of("gpt2").d_model == config_of("transformer").d_model


def test_a_dial_that_is_no_size_is_an_error() -> None:
    for depth in (0, "big"):
        with pytest.raises(ValidationError, match="depth"):
            config_of({"name": "llama", "depth": depth})


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "transformer"])
def test_every_preset_has_a_dial_that_fits_at_any_size(name: str) -> None:
    for depth in (1, 3, 4, 7, 12, 13):
        config = config_of({"name": name, "depth": depth})
        assert (config.num_layers, config.d_model % config.num_heads) == (depth, 0)


def test_the_dial_can_be_narrower_and_sets_groups_of_key_value_heads() -> None:
    config = config_of({"name": "depth_scaled", "depth": 3, "width_per_layer": 16})
    assert (config.num_layers, config.d_model, config.num_heads) == (3, 48, 3)
    groups = [config_of({"name": "llama", "depth": depth}).attention.config.num_kv_heads for depth in (1, 4, 7, 9, 20)]
    assert groups == [1, 2, 1, 3, 5]
    assert config_of({"name": "qwen3", "depth": 8, "attention": {"num_kv_heads": 8}}).attention.config.num_kv_heads == 8


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_declared_parameters_and_flops_are_the_measured_ones(name: str) -> None:
    """Exactly, over layers enough for every pattern and rows longer than a local window and a chunk."""
    model = build_model(resolve_part("architectures", {"name": name, "num_layers": 8, "d_model": 64, "num_heads": 4}), 97, 160)
    counts = model.count()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.lm_head(model(torch.zeros(1, 160, dtype=torch.int64)).hidden)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.flops_per_token * 160 == counter.get_total_flops()
    assert counts.flops_per_token_causal < counts.flops_per_token


def test_options_without_a_name_keep_the_rest_of_the_preset() -> None:
    attention = config_of({"name": "qwen3", "attention": {"num_kv_heads": 4}}).attention
    assert (attention.name, attention.config.num_kv_heads, attention.config.qk_norm) == ("gqa", 4, True)
    attention = config_of({"name": "qwen3", "attention": {"name": "mha"}}).attention
    assert (attention.name, attention.config.qk_norm) == ("mha", False)


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    """GPT-2 small: 124,439,808 (the released weights). Llama 3 8B: 8,030,261,248. Qwen3 0.6B: 596,049,920 (both: model cards)."""
    gpt2 = {"name": "gpt2", "num_layers": 12, "d_model": 768, "num_heads": 12}
    assert count_architecture(resolve_part("architectures", gpt2), 50257, 1024).total == 124_439_808
    llama = {"name": "llama", "num_layers": 32, "d_model": 4096, "num_heads": 32, "attention": {"num_kv_heads": 8}, "feedforward": {"intermediate_size": 14336}}
    assert count_architecture(resolve_part("architectures", llama), 128_256, 8).total == 8_030_261_248
    qwen = {"name": "qwen3", "num_layers": 28, "d_model": 1024, "num_heads": 16, "head_dim": 128, "attention": {"num_kv_heads": 8}}
    assert count_architecture(resolve_part("architectures", qwen), 151_936, 8).total == 596_049_920
