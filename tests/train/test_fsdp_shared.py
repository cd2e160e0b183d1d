"""Sharded blocks that run several times and leave tensors to others: the same gradients as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
from test_parallel import TOLERANCE, whole_state

SHARING: dict[str, dict[str, Any]] = {
    "looped": {"stack": {"name": "looped", "num_blocks": 2}},
    "cross_layer": {"attention": {"name": "cross_layer", "kv_share_layers": 2}},
    "looped cross_layer": {"stack": {"name": "looped", "num_blocks": 2}, "attention": {"name": "cross_layer", "kv_share_layers": 2}},
    "value residual": {"attention": {"name": "mha", "value_residual": "learned"}},
    "experts": {"feedforward": {"name": "moe", "num_experts": 4}},
}


def run(sharing: str, **changes: Any) -> dict[str, Any]:
    return {
        "architecture": {"name": "transformer", "num_layers": 4, "d_model": 16, "num_heads": 2, **SHARING[sharing]},
        "optimizer": {"name": "adamw", "lr": 0.002},
        "schedule": {"name": "constant", "warmup_steps": 3},
        "checkpoint_every": 4,
        "log_every": 1,
        "max_steps": 4,
        **changes,
    }


@pytest.mark.parametrize("recompute", [False, True])
def test_what_blocks_share_and_repeat_trains_the_same_when_sharded(tmp_path: Path, recompute: bool) -> None:
    """torch's FSDP copies dataclasses and dicts on the way into a sharded block, so what the block adds to them could be lost."""
    runs = {name: run(name, activation_checkpointing=recompute) for name in SHARING}
    jobs = [{"do": "train", "folder": tmp_path / f"{s}-{n}", "parallel": {"strategy": s}, **runs[n]} for n in runs for s in ("ddp", "fsdp")]
    ranks.start(2, tmp_path / "group", jobs)
    wrong = {}
    for name, options in runs.items():
        reference = tmp_path / f"ddp-{name}"
        if name != "experts":  # the balance of experts is of the sequences that are routed together, so it differs by rank
            reference = tmp_path / f"one-{name}"
            ranks.train(reference, **options)
        one = whole_state(reference)
        for strategy in ("ddp", "fsdp"):
            two = whole_state(tmp_path / f"{strategy}-{name}")
            apart = {tensor: float((value - two[tensor]).norm() / value.norm().clamp_min(1e-12)) for tensor, value in one.items()}
            wrong |= {f"{strategy} {name}: {tensor}": value for tensor, value in apart.items() if value > TOLERANCE}
    assert not wrong, "\n".join(f"{tensor} {value:.3g}" for tensor, value in wrong.items())
