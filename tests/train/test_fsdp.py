"""A sharded model is the model of one process: its first weights, the dtypes and values of a pass; and no rank holds all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import load_file
from small_run import VOCAB, T, section

from feebcore.model.build import build_model

SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 32, "num_heads": 2}
PASSES: dict[str, dict[str, Any]] = {
    "experts": {"block": "residual_lambdas", "feedforward": "moe", "attention": {"name": "mha", "qk_norm": True}, **SIZES},
    "keys shared by looped layers": {
        "stack": {"name": "looped", "num_blocks": 2},
        "attention": {"name": "cross_layer", "kv_share_layers": 2},
        **SIZES | {"num_layers": 4},
    },
    "values of the first layer": {"attention": {"name": "mha", "value_residual": "learned"}, **SIZES},
}
ARCHITECTURES: list[dict[str, Any]] = [
    {"name": "transformer", **SIZES},
    {"name": "gpt2", **SIZES},
    {"name": "deepseek", **SIZES},
    {"name": "ngpt", **SIZES},
    {"name": "looped", **SIZES},
    {"name": "byte_patches", **SIZES},
    {
        "name": "transformer",
        "norm": "batchnorm",
        "attention": "gated_delta",
        "embedding": "factorized",
        "lm_head": {"name": "factorized", "tied": True},
        **SIZES,
    },
    {"name": "transformer", "position": "alibi", "initialization": "orthogonal", **SIZES},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    fsdp = {"parallel": {"strategy": "fsdp"}}
    jobs = [
        {"do": "memory", "folder": folder / "memory", **fsdp},
        {"do": "weights", "folder": folder / "weights", "architectures": ARCHITECTURES},
        *({"do": "dtypes", "folder": folder / "two" / name, "architecture": {"name": "transformer", **parts}, **fsdp} for name, parts in PASSES.items()),
    ]
    ranks.start(2, folder / "group", jobs)
    for name, parts in PASSES.items():
        ranks.dtypes(folder / "one" / name, architecture={"name": "transformer", **parts})
    return folder


@pytest.mark.parametrize("number", range(len(ARCHITECTURES)), ids=lambda n: ARCHITECTURES[n]["name"])
def test_the_first_weights_and_buffers_are_those_of_one_process_bit_for_bit(done: Path, number: int) -> None:
    model = build_model(section(architecture=ARCHITECTURES[number]).architecture, VOCAB, T, seed=0)
    expected, found = dict(model.named_parameters()) | dict(model.named_buffers()), load_file(done / "weights" / f"{number}.safetensors")
    assert found.keys() == expected.keys(), "tied tensors stay tied"
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_in_bf16_has_the_dtypes_and_values_of_one_process(done: Path, name: str) -> None:
    """The stream in fp32, gains and routers too, as shards are gathered as they are; losses of the routers and tensors that blocks
    share get their gradients."""
    one, two = (load_file(done / place / name / "seen.safetensors") for place in ("one", "two"))
    assert one["stream 1"].dtype == torch.float32
    assert {key: t.dtype for key, t in two.items()} == {key: t.dtype for key, t in one.items()}
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()), msg=lambda text, key=key: f"{key}: {text}")


def test_no_rank_but_the_first_ever_holds_the_whole_model(done: Path) -> None:
    """Peak memory beyond that of a small model: half of the weights, a block or a tensor at a time, and slack of the allocator."""
    first, second = (json.loads((done / "memory" / f"memory-{rank}.json").read_text()) for rank in range(2))
    assert second["weights"] > 140e6
    assert second["made"] < 0.9 * second["weights"], second
    assert second["gathered"] < 0.9 * second["weights"], second
    assert first["made"] < 1.75 * first["weights"], first
