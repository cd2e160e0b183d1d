"""What each probe writes is what an independent computation finds."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import VOCAB, B, Cycle, T, run, section

from feeb_tracking.first_batch.first_batch import describe
from feeb_tracking.logits.logits import LEVELS
from feeb_tracking.repetition import repetition
from feebcore.files import read_jsonl
from feebcore.model.build import build_model
from feebcore.protocols import Batch
from feebcore.train import matmul_peak
from feebcore.train.optimizer import Optimizer


def rows_of(folder: Path, probe: str) -> list[dict]:
    return read_jsonl(folder / "probes" / f"{probe}.jsonl")


# --- logits -----------------------------------------------------------------------------------------------------


def test_logits_are_described_as_numpy_would(tmp_path):
    the_section = section(callbacks=[{"name": "logits", "every": 100, "sequences": B}], max_steps=1)
    run(tmp_path, the_section, checkpoint=False, save=False)
    row = rows_of(tmp_path, "logits")[0]
    model = build_model(the_section.architecture, VOCAB, T, the_section.seed, torch.device("cpu")).eval()
    batch = Cycle().batch(0)
    with torch.no_grad():
        logits = model.lm_head(model(batch.tokens).hidden).double().numpy()
    log_z = np.log(np.exp(logits).sum(-1))
    p = np.exp(logits - log_z[..., None])
    expected = {
        "logsumexp": log_z.mean(),
        "entropy": -(p * np.log(p)).sum(-1).mean(),
        "top1": p.max(-1).mean(),
        "accuracy": (p.argmax(-1) == batch.targets.numpy()).mean(),
    }
    assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert row["quantiles"] == pytest.approx(np.quantile(logits, LEVELS), rel=1e-4, abs=1e-5)
    assert row["step"] == 0
    assert row["finite"] is True
    assert row["entropy"] == pytest.approx(math.log(VOCAB), rel=0.05)


def test_logits_that_are_no_numbers_are_told_once(tmp_path, monkeypatch):
    from feeb_tracking.logits import logits

    def broken(model, batch, **options):
        output = model(batch.tokens)
        return dataclasses.replace(output, hidden=output.hidden * math.nan)

    monkeypatch.setattr(logits, "forward", broken)
    logged: list[str] = []
    run(tmp_path, section(callbacks=[{"name": "logits", "every": 2}], max_steps=4), checkpoint=False, save=False, logged=logged)
    assert [text for text in logged if "not finite" in text] == ["step 0: some logits are not finite"]
    assert [row["finite"] for row in rows_of(tmp_path, "logits")] == [False] * 3
    assert rows_of(tmp_path, "logits")[0]["entropy"] is None


# --- repetition -------------------------------------------------------------------------------------------------


def test_repetition_is_none_in_a_text_without_and_near_all_in_a_loop():
    fresh, loop, stuck = list(range(64)), [1, 2, 3] * 20, [7] * 64
    assert repetition.repetition_of([fresh]) == {"repeated": 0.0, "distinct_1": 1.0, "distinct_2": 1.0, "longest_run": pytest.approx(1 / 64)}
    assert repetition.repetition_of([loop])["repeated"] == pytest.approx(1 - 3 / 57)
    assert repetition.repetition_of([stuck])["longest_run"] == 1.0
    assert repetition.repetition_of([stuck])["distinct_1"] == pytest.approx(1 / 64)
    mixed = repetition.repetition_of([fresh, stuck])
    assert mixed["longest_run"] == pytest.approx((1 / 64 + 1) / 2)
    assert repetition.repetition_of([[1, 2]])["repeated"] == 0.0
    assert repetition.is_degenerate(repetition.repetition_of([loop]), repetition.repetition_of([fresh]), 0.5)
    assert not repetition.is_degenerate(repetition.repetition_of([loop]), repetition.repetition_of([loop]), 0.5)


def test_degenerate_repetition_is_logged_when_it_begins_and_when_it_ends(tmp_path, monkeypatch):
    from feebcore.generate.engine import Completion

    looks = iter([[5] * 8, [5] * 8, list(range(8))])  # greedy text at steps 0, 2 and 4

    def writes(model, prompts, room, eos_id, sampler, seed):
        assert room == 8
        text = next(looks) if sampler is repetition.greedy else None
        return [Completion(text or list(range(i, i + 8)), [], [], "length") for i in range(len(prompts))]

    monkeypatch.setattr(repetition, "generate", writes)
    logged: list[str] = []
    part = {"name": "repetition", "every": 2, "max_new_tokens": 8}
    run(tmp_path, section(callbacks=[part], max_steps=4), checkpoint=False, save=False, logged=logged)
    told = [text for text in logged if "degenerate" in text]
    assert [text.partition(" (")[0] for text in told] == [
        "step 0: greedy text is degenerate repetition",
        "step 4: greedy text is no longer degenerate repetition",
    ]
    assert [row["degenerate"] for row in rows_of(tmp_path, "repetition")] == [["greedy"], ["greedy"], []]


@pytest.mark.parametrize("at_once", [512, 3])
def test_greedy_text_is_greedy_and_sampled_text_is_not(tmp_path, monkeypatch, at_once):
    """Here the model has learned that two tokens may follow each. at_once: how many texts the engine decodes together."""
    monkeypatch.setattr(repetition, "generate", functools.partial(repetition.generate, batch_size=at_once))
    kept: list[list[list[int]]] = []
    original = repetition.repetition_of
    monkeypatch.setattr(repetition, "repetition_of", lambda texts: kept.append(texts) or original(texts))
    part = {"name": "repetition", "every": 1000, "sequences": 8, "prompt_tokens": 4}
    model = run(tmp_path, section(callbacks=[part], max_steps=100), checkpoint=False, save=False).model
    greedy, sampled, text = kept[-3:]
    prompts = Cycle().batch(0).tokens[:, :4]
    with torch.no_grad():
        tokens = prompts
        for _ in range(T - 4):
            tokens = torch.cat([tokens, model.lm_head(model(tokens).hidden[:, -1]).argmax(-1, keepdim=True)], 1)
    assert greedy == tokens[:, 4:].tolist()
    assert not any(a == b for a, b in zip(sampled, greedy, strict=True))
    assert text == Cycle().batch(0).tokens[:, 4:].tolist()


# --- the first batch --------------------------------------------------------------------------------------------


class Letters:
    bos_id, eos_id, vocab_size = 62, 63, 64

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids if i < 62)


def test_the_first_batch_shows_inputs_beside_targets_masks_and_documents():
    tokens = torch.tensor([[62, 0, 1, 63, 62, 2]])
    targets = torch.tensor([[0, 1, 63, 62, 2, 3]])
    mask = torch.tensor([[True, True, True, False, True, True]])
    page = describe(Batch(tokens, targets, mask, torch.tensor([[0, 0, 0, 0, 1, 1]]), torch.tensor([[0, 1, 2, 3, 0, 1]])), Letters(), 2)
    lines = page.splitlines()
    assert "5 of 6 targets count in the loss." in lines
    assert any(line.startswith("4 of 4 targets are the next input") for line in lines)
    body = lines[lines.index("--- sequence 0 ---") + 1 :]
    assert json.loads(body[0]) == "ABC"
    assert [line.split() for line in body[1:]] == [
        ["document", "0"],
        ["0", "@0", "62", "<bos>", "0", '"A"'],
        ["1", "@1", "0", '"A"', "1", '"B"'],
        ["2", "@2", "1", '"B"', "63", "<eos>"],
        ["3", "@3", "63", "<eos>", "-", "62", "<bos>"],
        ["document", "1"],
        ["4", "@0", "62", "<bos>", "2", '"C"'],
        ["5", "@1", "2", '"C"', "3", '"D"'],
    ]


def test_a_wrong_slice_of_the_data_is_told_before_the_first_step(tmp_path):
    class Wrong(Cycle):
        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            right = super().batch(step)
            return Batch(right.tokens, right.tokens.clone())

    logged: list[str] = []
    run(tmp_path / "wrong", section(callbacks=["first_batch"], max_steps=1), Wrong(), checkpoint=False, save=False, logged=logged)
    assert any("targets are not the next input" in text for text in logged)
    logged.clear()
    run(tmp_path / "right", section(callbacks=["first_batch"], max_steps=3), checkpoint=False, save=False, logged=logged)
    assert not any("first batch" in text for text in logged)
    batch = Cycle().batch(0)
    first_line = (tmp_path / "right" / "probes" / "first_batch.txt").read_text().partition("--- sequence 0 ---\n")[2].splitlines()[0]
    assert first_line.split() == ["0", str(int(batch.tokens[0, 0])), str(int(batch.targets[0, 0]))]


# --- gradients --------------------------------------------------------------------------------------------------


class PlainSGD(Optimizer, torch.optim.SGD):
    pass


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradients_of_the_layers_add_up_to_the_whole_and_updates_follow_from_them(tmp_path, clip, monkeypatch):
    """With plain SGD an update is the rate times the gradient, clipped or not."""
    monkeypatch.setattr("feebcore.train.pretrain.build_optimizer", lambda section, model, scale, world: PlainSGD(model.parameters(), lr=0.1))
    the_section = section(callbacks=[{"name": "gradients", "every": 2}, "metrics"], max_steps=6, grad_clip=clip, log_every=1)
    run(tmp_path, the_section, checkpoint=False, save=False)
    log = {row["step"]: row for row in read_jsonl(tmp_path / "metrics.jsonl")}
    found = rows_of(tmp_path, "gradients")
    assert [row["step"] for row in found] == [2, 4, 6]
    for row in found:
        norm = math.sqrt(sum(layer["gradient"] ** 2 for layer in row["layers"]))
        assert norm == pytest.approx(min(log[row["step"]]["grad_norm"], clip or math.inf), rel=1e-4)
        for layer in row["layers"]:
            assert layer["update"] == pytest.approx(log[row["step"]]["lr"] * layer["gradient"], rel=1e-2)
    assert {"stack.blocks.0", "stack.blocks.1"} < {layer["layer"] for layer in found[0]["layers"]}


def test_gradients_are_those_that_a_fused_optimizer_gets_which_clips_as_it_reads(tmp_path):
    the_section = section(callbacks=[{"name": "gradients", "every": 2}, "metrics"], max_steps=4, grad_clip=0.05, log_every=1)
    run(tmp_path, the_section, checkpoint=False, save=False)
    log = {row["step"]: row["grad_norm"] for row in read_jsonl(tmp_path / "metrics.jsonl")}
    for row in rows_of(tmp_path, "gradients"):
        norm = math.sqrt(sum(layer["gradient"] ** 2 for layer in row["layers"]))
        assert log[row["step"]] > 0.05
        assert norm == pytest.approx(0.05, rel=1e-4)


def test_updates_can_be_left_out(tmp_path):
    run(tmp_path, section(callbacks=[{"name": "gradients", "updates": False}], max_steps=2), checkpoint=False, save=False)
    assert all(set(layer) == {"layer", "gradient", "weight"} for layer in rows_of(tmp_path, "gradients")[0]["layers"])


# --- throughput -------------------------------------------------------------------------------------------------


def test_on_a_cpu_the_share_of_the_measured_peak_is_not_called_mfu(tmp_path):
    result = run(tmp_path, section(callbacks=[{"name": "throughput", "every": 4}], max_steps=10), checkpoint=False, save=False)
    rows = rows_of(tmp_path, "throughput")
    assert [row["step"] for row in rows] == [4, 8, 10]
    flops = 3 * result.model.count().flops_per_token
    for row in rows:
        assert "mfu" not in row
        assert row["matmul_utilization"] == pytest.approx(row["tokens_per_second"] * flops / row["peak_flops"], rel=1e-4)
        assert 0 <= row["data_wait"] < 1
        assert 0 <= row["outside"] < 1
        assert row["memory"] > 50e6
    peak = matmul_peak.matmul_peak(torch.device("cpu"), "fp32")
    assert peak.measured
    assert rows[0]["peak_flops"] == pytest.approx(peak.flops, rel=1e-5)


def test_gpus_have_the_peak_of_their_data_sheet_and_others_are_measured():
    assert matmul_peak.data_sheet_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert matmul_peak.data_sheet_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert matmul_peak.data_sheet_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert matmul_peak.data_sheet_peak("NVIDIA L40S", "fp8") == 362e12
    assert matmul_peak.data_sheet_peak("NVIDIA L4", "bf16") == 121e12
    assert matmul_peak.data_sheet_peak("NVIDIA GeForce GTX 1080", "bf16") is None
    side = 256
    assert 1e8 < matmul_peak.measure(torch.device("cpu"), torch.float32, side, seconds=0.02) < 1e14


def test_measuring_the_peak_draws_no_random_number():
    state = torch.get_rng_state()
    matmul_peak.measure(torch.device("cpu"), torch.float32, side=64, seconds=0.01)
    assert state.equal(torch.get_rng_state())
