"""Stages sft and rl as the pipeline calls them: a model folder in, a model folder and metrics out."""

from __future__ import annotations

import json

import pytest
import torch
from rl_toys import output

from feebcore.artifacts import Artifact
from feebcore.data.tokenizers import load_tokenizer, save_part
from feebcore.errors import Interrupted
from feebcore.model.build import build_model
from feebcore.model.io import load_model, save_model
from feebcore.parts import resolve_part
from feebcore.stages import rl, sft

TINY = {"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 2}
SFT = {
    "task": {"name": "sort", "digits": 2},
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "batch_size": 64,
    "max_steps": 60,
    "eval_prompts": 32,
    "precision": "fp32",
}
RL = {"task": SFT["task"], "max_steps": 4, "prompts_per_step": 4, "group_size": 4, "eval_prompts": 32, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An untrained model of a byte tokenizer, as stage pretrain would leave it."""
    folder = tmp_path_factory.mktemp("pretrain")
    part = resolve_part("tokenizers", "byte")
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir()
    tokenizer = part.build().train(lambda: iter(["abc"]), tokenizer_folder, lambda done, total: None)
    save_part(tokenizer_folder, part)
    architecture = resolve_part("architectures", TINY)
    save_model(folder / "model", build_model(architecture, tokenizer.vocab_size, 32), architecture, tokenizer_folder)
    return Artifact(folder, {"stage": "pretrain"})


def run(stage, section, source, folder):
    out = output(folder)
    metrics = stage.run(section, {"model": source}, out)
    assert out.content_patterns == ("model/*",)
    assert json.loads(json.dumps(metrics)) == metrics
    return Artifact(folder, {"stage": stage.__name__}), metrics


def section(config, options, **more):
    return config.model_validate(options | {"threads": 1} | more)


def test_sft_then_rl_make_models_and_say_how_good_they_are(pretrained, tmp_path):
    tuned, metrics = run(sft, section(sft.SftConfig, SFT), pretrained, tmp_path / "sft")
    assert metrics["steps"] == 60
    assert metrics["examples"] == 60 * 64
    assert metrics["final_loss"] < 2.5
    for name in ("accuracy_sampled", "accuracy_greedy"):
        found = metrics[name]
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    logged = [json.loads(line) for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < logged[0]["loss"]
    better, metrics = run(rl, section(rl.RlConfig, RL), tuned, tmp_path / "rl")
    assert {"value", "low", "high", "n"} == set(metrics["accuracy_before"]) == set(metrics["accuracy_greedy_after"])
    assert metrics["rollouts"] == 4 * 16
    rows = [json.loads(line) for line in (tmp_path / "rl/metrics.jsonl").read_text().splitlines()]
    wanted = {"step", "reward", "kl", "entropy", "length", "clip_fraction", "zero_variance", "grad_norm", "pg_loss", "seconds", "mismatch_kl"}
    assert all(wanted <= set(r) for r in rows if r["split"] == "train")
    assert [(r["step"], r["split"]) for r in rows] == [(0, "validation"), (1, "train"), (2, "train"), (3, "train"), (4, "train"), (4, "validation")]
    rollouts = [json.loads(line) for line in (tmp_path / "rl/rollouts.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "completion", "reward", "finish_reason"} <= set(rollouts[0])
    model, before = load_model(better.path / "model"), load_model(tuned.path / "model")
    assert model.seq_len == 32
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert load_tokenizer(better.path / "model/tokenizer").vocab_size == model.vocab_size


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("value_optimizer", ["separate", "shared"])
def test_ppo_runs_with_every_optimizer_and_resumes(pretrained, tmp_path, optimizer, value_optimizer):
    options = RL | {"algorithm": "ppo", "optimizer": {"name": optimizer, "lr": 1e-3}, "value_optimizer": value_optimizer}
    whole, expected = run(rl, section(rl.RlConfig, options), pretrained, tmp_path / "whole")
    out = output(tmp_path / "stopped")
    out.stop_requested = True
    with pytest.raises(Interrupted):
        rl.run(section(rl.RlConfig, options), {"model": pretrained}, out)
    again, found = run(rl, section(rl.RlConfig, options), pretrained, tmp_path / "stopped")
    assert (again.path / "model/model.safetensors").read_bytes() == (whole.path / "model/model.safetensors").read_bytes()
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in expected.items() if k != "seconds"}


def test_sft_stopped_and_continued_has_the_same_weights(pretrained, tmp_path):
    options = SFT | {"max_steps": 12, "checkpoint_every": 5}
    whole, _ = run(sft, section(sft.SftConfig, options), pretrained, tmp_path / "whole")
    out = output(tmp_path / "stopped")
    out.stop_requested = True
    with pytest.raises(Interrupted):
        sft.run(section(sft.SftConfig, options), {"model": pretrained}, out)
    again, _ = run(sft, section(sft.SftConfig, options), pretrained, tmp_path / "stopped")
    assert (again.path / "model/model.safetensors").read_bytes() == (whole.path / "model/model.safetensors").read_bytes()


def test_bad_sections_are_refused_before_anything_runs(tmp_path):
    from feebcore import recipe

    path = tmp_path / "bad.yaml"
    text = (
        "stages: [download, tokenizer, shard, pretrain, rl]\ndownload: {sources: [stdlib]}\npretrain: {seq_len: 6, max_steps: 1}\n"
        "rl:\n  group_size: 1\n  prompts_per_step: 1\n  logits_processors: [top_p]\n  algorithm: {name: grpo, minibatches: 4}\n"
    )
    path.write_text(text)
    with pytest.raises(recipe.RecipeError) as caught:
        recipe.load(path)
    message = str(caught.value)
    for part in ("rl.logits_processors.0: top_p removes tokens", "rl.group_size: grpo compares", "rl.algorithm.minibatches: 4 are more", "rl.task: sort needs"):
        assert part in message


def test_a_task_that_does_not_fit_the_context_says_so(pretrained, tmp_path):
    options = SFT | {"task": {"name": "sort", "digits": 30}, "max_steps": 1}
    with pytest.raises(Exception, match="context is 32"):
        sft.run(section(sft.SftConfig, options), {"model": pretrained}, output(tmp_path / "x"))
