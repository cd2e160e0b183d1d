"""Presets are the transformer with other defaults; the dial sets three sizes and gives way to what is written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from feebcore.model.build import choose, count_architecture


def config_of(value: Any) -> Any:
    return choose("architectures", value).config


@pytest.mark.parametrize(
    ("dial", "sizes"), [(1, (1, 64, 1)), (4, (4, 256, 4)), (11, (11, 704, 11)), (12, (12, 768, 6)), (13, (13, 896, 7)), (20, (20, 1280, 10))]
)
def test_the_dial_sets_layers_width_and_heads(dial: int, sizes: tuple[int, int, int]) -> None:
    config = config_of({"name": "dial", "dial": dial})
    assert (config.num_layers, config.d_model, config.num_heads) == sizes
    assert config.width_of_head == (64 if dial < 12 else 128)


def test_sizes_that_are_written_win_over_the_dial_and_a_dump_means_the_same_again() -> None:
    config = config_of({"name": "gpt2", "dial": 6, "num_layers": 3})
    assert (config.num_layers, config.d_model, config.num_heads) == (3, 384, 6)
    part = choose("architectures", {"name": "gpt2", "dial": 6, "num_layers": 3})
    assert choose("architectures", part.dump()) == part
    assert config_of("gpt2").d_model == config_of("transformer").d_model


def test_a_dial_that_is_no_size_is_an_error() -> None:
    for dial in (0, "big"):
        with pytest.raises(ValidationError, match="dial"):
            config_of({"name": "llama", "dial": dial})


def test_options_without_a_name_keep_the_rest_of_the_preset() -> None:
    attention = config_of({"name": "qwen3", "attention": {"num_kv_heads": 4}}).attention
    assert (attention.name, attention.config.num_kv_heads, attention.config.qk_norm) == ("gqa", 4, True)
    attention = config_of({"name": "qwen3", "attention": {"name": "mha"}}).attention
    assert (attention.name, attention.config.qk_norm) == ("mha", False)


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    """GPT-2 small: 124,439,808 (the released weights). Llama 3 8B: 8,030,261,248. Qwen3 0.6B: 596,049,920 (both: model cards)."""
    gpt2 = {"name": "gpt2", "num_layers": 12, "d_model": 768, "num_heads": 12}
    assert count_architecture(choose("architectures", gpt2), 50257, 1024).total == 124_439_808
    llama = {"name": "llama", "num_layers": 32, "d_model": 4096, "num_heads": 32, "attention": {"num_kv_heads": 8}, "feedforward": {"hidden": 14336}}
    assert count_architecture(choose("architectures", llama), 128_256, 8).total == 8_030_261_248
    qwen = {"name": "qwen3", "num_layers": 28, "d_model": 1024, "num_heads": 16, "head_dim": 128, "attention": {"num_kv_heads": 8}}
    assert count_architecture(choose("architectures", qwen), 151_936, 8).total == 596_049_920
