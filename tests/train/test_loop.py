"""What a step computes, when it is refused, and that looking changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from small_run import VOCAB, B, Cycle, T, run, section
from torch.nn import functional as F

from feebcore.errors import FeebError
from feebcore.files import read_jsonl
from feebcore.model.build import build_model
from feebcore.train import compilation
from feebcore.train.callbacks import Callback


def plain_loop(the_section, data, steps):
    """The same training written out with torch alone."""
    model = build_model(the_section.architecture, VOCAB, T, the_section.seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95), foreach=False)
    losses = []
    for step in range(steps):
        batch = data.batch(step)
        logits = model.lm_head(model(batch.tokens).hidden)
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        mask = torch.ones_like(nats) if batch.mask is None else batch.mask.flatten().float()
        loss = (nats * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            warmup, total = 3, the_section.max_steps
            group["lr"] = 0.01 * ((step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_training_equals_a_plain_torch_loop(tmp_path, masked, micro_batch):
    the_section = section(max_steps=10, micro_batch=micro_batch)
    result = run(tmp_path, the_section, Cycle(masked=masked), checkpoint=False, save=False)
    model, losses = plain_loop(the_section, Cycle(masked=masked), 10)
    assert result.metrics["final_loss"] == pytest.approx(sum(losses) / 10, abs=1e-5)
    for a, b in zip(result.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


class Poison:
    """Data whose tokens are fine but whose mask weight makes the loss infinite at chosen steps."""

    def __init__(self, model_holder: dict, bad: set[int]) -> None:
        self.holder, self.bad = model_holder, bad

    def batch(self, step: int):
        hook = self.holder.pop("hook", None)
        if hook:
            hook.remove()
        if step in self.bad:
            self.holder["hook"] = self.holder["model"].final_norm.register_forward_hook(lambda m, i, o: o * float("nan"))
        return Cycle().batch(step)


def poisoned(the_section, bad):
    model = build_model(the_section.architecture, VOCAB, T, 0)
    return model, Poison({"model": model}, bad)


def test_a_bad_step_stops_the_run_and_says_what_to_do(tmp_path):
    model, data = poisoned(section(), {5})
    with pytest.raises(FeebError, match=r"step 6: loss nan.*on_nonfinite: skip"):
        run(tmp_path, data=data, model=model)


def test_a_bad_step_can_be_skipped_and_is_recorded(tmp_path):
    model, data = poisoned(section(), {5, 9})
    result = run(tmp_path, section(on_nonfinite="skip", log_every=1), data, model=model)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows if r["loss"] is None] == [6, 10]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert result.metrics["anomalous_steps"] == [6, 10]
    assert all(p.isfinite().all() for p in result.model.parameters())


def test_too_many_anomalous_steps_in_a_row_stop_the_run(tmp_path):
    model, data = poisoned(section(), {3, 4, 5, 6})
    with pytest.raises(FeebError, match="3 skipped steps in a row"):
        run(tmp_path, section(on_nonfinite="skip", max_recoveries=3), data, model=model)


def test_a_callback_that_draws_random_numbers_changes_no_bit(tmp_path, monkeypatch):
    from feeb_tracking.progress.progress import ProgressBar

    the_section = section(architecture={"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 2, "dropout": 0.2}, max_steps=8)
    quiet = run(tmp_path / "a", the_section.model_copy(update={"callbacks": []}), checkpoint=False, save=False).model
    monkeypatch.setattr(ProgressBar, "on_step_end", lambda self, step, metrics: torch.rand(step))
    loud = run(tmp_path / "b", section(**{**the_section.model_dump(), "callbacks": ["progress"]}), checkpoint=False, save=False).model
    assert all(a.equal(b) for a, b in zip(quiet.parameters(), loud.parameters(), strict=True))


def test_callbacks_are_told_in_order_and_always_closed(tmp_path, monkeypatch):
    from feeb_tracking.progress.progress import ProgressBar

    told: list[str] = []
    for name in ("on_start", "on_step_end", "on_save", "on_end", "on_close"):
        monkeypatch.setattr(ProgressBar, name, lambda self, *a, name=name: told.append(name))
    run(tmp_path / "a", section(callbacks=["progress"], max_steps=2, checkpoint_every=1), save=False)
    assert told == ["on_start", "on_step_end", "on_save", "on_step_end", "on_save", "on_end", "on_close"]
    told.clear()
    model, data = poisoned(section(), {0})
    with pytest.raises(FeebError):
        run(tmp_path / "b", section(callbacks=["progress"]), data, model=model)
    assert told == ["on_start", "on_close"]
    assert issubclass(ProgressBar, Callback)


def test_a_compile_that_fails_falls_back_to_eager_and_says_so(tmp_path, monkeypatch):
    def broken(forward):
        def call(*arguments):
            raise RuntimeError("CppCompileError: no such header")

        return call

    monkeypatch.setattr(compilation, "compiled", broken)
    logged: list[str] = []
    result = run(tmp_path / "a", section(compile="on", max_steps=6), checkpoint=False, save=False, logged=logged)
    eager = run(tmp_path / "b", section(max_steps=6), checkpoint=False, save=False)
    assert any("compiling failed" in text and "no such header" in text for text in logged)
    assert result.metrics["compiled"] is False
    assert all(a.equal(b) for a, b in zip(result.model.parameters(), eager.model.parameters(), strict=True))


def test_compiling_without_a_compiler_is_announced_not_fatal(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "has_compiler", lambda device: False)
    logged: list[str] = []
    assert run(tmp_path, section(compile="on", max_steps=2), checkpoint=False, save=False, logged=logged).metrics["compiled"] is False
    assert any("no C++ compiler" in text for text in logged)


def test_short_runs_stay_eager_and_long_ones_compile(monkeypatch):
    monkeypatch.setattr(compilation, "has_compiler", lambda device: True)
    cpu = torch.device("cpu")
    assert compilation.should_compile("auto", cpu, "bf16", 1e12, 300) == ("", "")
    assert compilation.should_compile("auto", cpu, "bf16", 1e14, 300) == ("whole", "")
    assert compilation.should_compile("on", cpu, "bf16", 1.0, 1) == ("whole", "")
    assert compilation.should_compile("off", cpu, "bf16", 1e18, 10**6) == ("", "")


def test_settings_of_the_process_are_restored(tmp_path):
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    run(tmp_path, section(max_steps=1), checkpoint=False, save=False)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_the_loss_goes_down_to_what_the_text_allows(tmp_path):
    result = run(tmp_path, section(max_steps=150, optimizer={"name": "muon"}, callbacks=[]), checkpoint=False, save=False)
    assert result.metrics["final_loss"] < math.log(2) + 0.35  # each token leaves one bit open


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValidationError, match="micro_batch: 3 does not divide batch_size 8"):
        section(micro_batch=3)
    with pytest.raises(ValidationError, match="tokens would go unscored"):
        section(validation_stride=T + 1)
    assert section(micro_batch=4).batch_size == B


def test_tokens_flops_and_counts_are_reported(tmp_path):
    metrics = run(tmp_path, section(max_steps=3), checkpoint=False).metrics
    assert metrics["tokens"] == 3 * B * T
    assert metrics["steps"] == 3
    counts = build_model(section().architecture, VOCAB, T).count()
    assert metrics["flops"] == 3 * counts.flops_per_token * 3 * B * T
    assert metrics["parameters"]["total"] == counts.total
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_flops_include_what_the_objective_runs_besides(tmp_path):
    counts, steps = build_model(section().architecture, VOCAB, T).count(), 2
    layers = section().architecture.config.num_layers
    head = 2 * section().architecture.config.d_model * VOCAB
    metrics = run(tmp_path, section(max_steps=steps, objective="all_layer"), checkpoint=False, save=False).metrics
    assert metrics["flops"] == 3 * (counts.flops_per_token + (layers - 1) * head) * steps * B * T


def test_a_metric_that_equals_the_loss_is_logged_at_every_step(tmp_path):
    """The router's loss is 0 while experts are balanced; then nll is the loss, and still a metric."""
    from feebcore.files import read_jsonl

    run(tmp_path, section(max_steps=6, log_every=1), checkpoint=False, save=False)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(row["nll"] == row["loss"] for row in rows)
    assert len(rows) == 6
