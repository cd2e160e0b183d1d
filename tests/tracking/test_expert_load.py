"""The probe expert_load: what it writes is what the router does, and looking changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from small_run import VOCAB, B, Cycle, T, assert_same_bits, run, section

from feebcore.files import read_jsonl
from feebcore.model.build import build_model

EXPERTS = {"name": "moe", "num_experts": 4, "top_k": 2, "num_shared": 0, "intermediate_size": 16}


def of_experts(**changes):
    architecture = {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 2, "feedforward": EXPERTS | changes.pop("experts", {})}
    return section(architecture=architecture, checkpoint_every=1000, **changes)


def test_shares_are_those_of_the_routers_choices(tmp_path):
    the_section = of_experts(callbacks=[{"name": "expert_load", "every": 2, "sequences": B}], max_steps=3)
    run(tmp_path, the_section, checkpoint=False, save=False)
    rows = read_jsonl(tmp_path / "probes" / "expert_load.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert [layer["layer"] for layer in rows[0]["layers"]] == ["stack.blocks.0", "stack.blocks.1"]
    model = build_model(the_section.architecture, VOCAB, T, the_section.seed, torch.device("cpu")).eval()
    chosen: list[torch.Tensor] = []
    for module in model.modules():
        if getattr(module, "num_experts", 0) and hasattr(module, "expert_load"):
            module.router.register_forward_hook(lambda router, inputs, routing: chosen.append(routing.experts_BTK))
    with torch.no_grad():
        model(Cycle().batch(0).tokens)
    for layer, experts in zip(rows[0]["layers"], chosen, strict=True):
        shares = torch.bincount(experts.flatten(), minlength=4).double() / experts.numel()
        assert layer["shares"] == pytest.approx(shares.tolist(), abs=1e-5)
        assert layer["largest"] == pytest.approx(4 * shares.max().item(), rel=1e-5)
        assert layer["smallest"] == pytest.approx(4 * shares.min().item(), rel=1e-5)
        assert layer["entropy"] == pytest.approx(float(torch.special.entr(shares).sum()) / math.log(4), rel=1e-5)
        assert layer["dropped"] == 0.0


@pytest.mark.parametrize("router", ["gumbel", "sigmoid"])
def test_looking_changes_no_bit(tmp_path, router):
    """Routers that draw noise, and those that keep counts, are the ones that looking could disturb."""
    for folder, callbacks in (("a", ["metrics"]), ("b", ["metrics", {"name": "expert_load", "every": 1}])):
        run(tmp_path / folder, of_experts(experts={"router": router}, callbacks=callbacks, max_steps=4))
    assert_same_bits(tmp_path / "a", tmp_path / "b", step=4)
    assert len(read_jsonl(tmp_path / "b" / "probes" / "expert_load.jsonl")) == 5


def test_a_model_without_experts_is_told_and_left_alone(tmp_path):
    logged: list[str] = []
    run(tmp_path, section(callbacks=["expert_load"], max_steps=2), checkpoint=False, save=False, logged=logged)
    assert any("no layer routes tokens" in text for text in logged)
    assert read_jsonl(tmp_path / "probes" / "expert_load.jsonl") == []
