"""One number sets width, heads, layers, batch, rates and horizon; what is written wins."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from feebcore.config import identity_of
from feebcore.train.config import TrainSection
from feebcore.train.depth_scaling import block_weights, depth_scaled_run
from feebcore.train.lr_scaling import TrainShape


def section(**keys: Any) -> TrainSection:
    return TrainSection.model_validate(keys)


def test_one_number_sets_model_batch_steps_and_rates() -> None:
    found = section(depth=4)
    sizes = found.architecture.config
    assert (found.architecture.name, sizes.num_layers, sizes.d_model, sizes.num_heads) == ("depth_scaled", 4, 256, 4)
    assert found.batch_size * found.seq_len == 16_384
    tokens = found.batch_size * found.seq_len * found.max_steps
    assert tokens == 20 * 12 * 4 * 256**2
    scale = found.lr_scaling.build()(TrainShape(256, 4, 16_384, found.max_steps))
    assert scale.roles == dict.fromkeys(("matrix", "embedding", "lm_head", "vector"), 1.0)


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 20])
def test_the_horizon_is_tokens_a_parameter_and_a_larger_run_has_larger_batches_and_smaller_rates(depth: int) -> None:
    small, large = section(depth=depth), section(depth=depth + 1)
    for found in (small, large):
        sizes = found.architecture.config
        tokens = found.batch_size * found.seq_len * found.max_steps
        assert abs(tokens / (20 * block_weights(sizes.num_layers, sizes.d_model)) - 1) < 0.01
    assert small.batch_size < large.batch_size
    rates = [s.lr_scaling.build()(shape(s)).of("matrix") for s in (small, large)]
    assert rates[0] > rates[1]


def shape(s: TrainSection) -> TrainShape:
    return TrainShape(s.architecture.config.d_model, s.architecture.config.num_layers, s.batch_size * s.seq_len, s.max_steps)


def test_what_is_written_wins_and_steps_follow_a_batch_that_is() -> None:
    assert section(depth=4, max_steps=7).max_steps == 7
    half = section(depth=4, batch_size=64)
    assert (half.batch_size, half.max_steps) == (64, 7680)
    assert section(depth=4, lr_scaling=None).lr_scaling is None
    assert section(depth=4, tokens_per_parameter=5).max_steps < section(depth=4).max_steps / 2
    wide = section(depth=4, architecture={"d_model": 128})
    assert (wide.architecture.name, wide.architecture.config.d_model) == ("depth_scaled", 128)
    assert wide.max_steps < section(depth=4).max_steps
    assert section(depth=6, architecture="gemma3").architecture.config.num_layers == 6


def test_a_dump_means_the_same_again_and_the_numbers_are_part_of_the_identity() -> None:
    found = section(depth=3)
    assert section(**found.model_dump(mode="json")) == found
    identity = identity_of(found)
    assert (identity["batch_size"], identity["max_steps"]) == depth_scaled_run(3, 192, 128, 20)


def test_a_dial_that_nobody_can_follow_is_an_error() -> None:
    with pytest.raises(ValidationError, match="depth"):
        section(depth=4, architecture="transformer")
    with pytest.raises(ValidationError, match="the architecture's is 5"):
        section(depth=4, architecture={"name": "llama", "depth": 5})


def test_without_a_dial_nothing_changes() -> None:
    assert (section().batch_size, section().max_steps, section().lr_scaling, section().architecture.name) == (32, 1000, None, "transformer")
