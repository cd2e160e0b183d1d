"""Memory that runs out, activations made again, averaged weights, overfitting on purpose."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from small_run import VOCAB, B, Cycle, T, run, section

from feebcore.errors import FeebError
from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.train.checkpoint import checkpoints, read_state
from feebcore.train.ema import WeightAverage


class Cramped(torch.nn.Module):
    """Stands in for memory that holds `rows` sequences; only a full machine could show it otherwise."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.seen: list[int] = []

    def forward(self, module, arguments):
        self.seen.append(len(arguments[0]))
        if len(arguments[0]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cramped(rows):
    model = build_model(section().architecture, VOCAB, T, 0)
    watch = Cramped(rows)
    model.register_forward_pre_hook(watch)
    return model, watch


def test_the_micro_batch_that_fits_is_found_and_kept(tmp_path):
    model, watch = cramped(rows=3)
    logged: list[str] = []
    found = run(tmp_path / "a", section(max_steps=6), model=model, logged=logged, save=False)
    assert watch.seen[:3] == [B, B // 2, B // 4]
    assert set(watch.seen[3:]) == {B // 4}
    assert any("micro_batch: 2" in text for text in logged)
    given = run(tmp_path / "b", section(max_steps=6, micro_batch=2), save=False)
    assert all(a.equal(b) for a, b in zip(found.model.parameters(), given.model.parameters(), strict=True))


class CrampedByState(Cramped):
    """Memory that holds the whole batch until the optimizer has its state, and `rows` sequences from the second step on."""

    def __init__(self, rows: int) -> None:
        super().__init__(B)
        self.rows_beside_state = rows
        self.failed: list[weakref.ref] = []

    def forward(self, module, arguments):
        activations = torch.zeros(4)
        if len(self.seen) == 1:  # the second step
            self.rows = self.rows_beside_state
        if len(arguments[0]) > self.rows:
            self.failed.append(weakref.ref(activations))
        super().forward(module, arguments)


def test_memory_that_runs_out_at_the_second_step_halves_the_micro_batch_too(tmp_path):
    model, logged = build_model(section().architecture, VOCAB, T, 0), []
    watch = CrampedByState(rows=3)
    model.register_forward_pre_hook(watch)
    zero_grad, held = torch.nn.Module.zero_grad, []

    def noticing(module, *arguments, **options):
        held.extend(failed() is not None for failed in watch.failed)
        zero_grad(module, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.Module, "zero_grad", noticing)
        found = run(tmp_path / "a", section(max_steps=6), model=model, logged=logged, save=False)
    assert watch.seen[:4] == [B, B, B // 2, B // 4]
    assert set(watch.seen[4:]) == {B // 4}
    assert held == [False, False, False], "what the failed pass held is let go before memory is asked for again"
    assert found.metrics["steps"] == 6
    assert read_state(checkpoints(tmp_path / "a")[0])["micro_batch"] == B // 4


def test_memory_that_runs_out_after_a_pass_beside_the_state_is_an_error(tmp_path):
    model = build_model(section().architecture, VOCAB, T, 0)
    passes = itertools.count()

    def fail_at_the_third(module, arguments):
        if next(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(fail_at_the_third)
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, section(max_steps=6), model=model, save=False)


def test_a_resumed_run_keeps_the_micro_batch_it_found(tmp_path):
    run(tmp_path, section(max_steps=4), model=cramped(rows=3)[0], save=False)
    model, watch = cramped(rows=8)
    run(tmp_path, section(max_steps=6), model=model, save=False)
    assert set(watch.seen) == {2}


def test_one_window_that_does_not_fit_is_explained(tmp_path):
    with pytest.raises(FeebError, match=r"not one sequence fits.*activation_checkpointing"):
        run(tmp_path, model=cramped(rows=0)[0])


def test_making_activations_again_changes_no_bit_and_holds_less(tmp_path):
    architecture = {"name": "transformer", "num_layers": 3, "d_model": 32, "num_heads": 2, "dropout": 0.1}
    saved: dict[bool, int] = {}
    models = {}
    for again in (False, True):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            models[again] = run(
                tmp_path / str(again), section(max_steps=1, architecture=architecture, activation_checkpointing=again), checkpoint=False, save=False
            ).model
        saved[again] = count
    assert saved[True] < saved[False] / 2
    for a, b in zip(models[False].parameters(), models[True].parameters(), strict=True):
        assert a.equal(b)
    assert len(blocks_of(models[True])) == 3


def test_the_average_of_weights_follows_its_formula():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer, decay=0.9)
    expected = layer.weight.item()
    for step in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average.use_eval_weights()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-5)
    average.use_train_weights()
    assert layer.weight.item() == 199


def test_averaged_weights_are_what_is_saved_and_they_survive_a_kill(tmp_path):
    plain = run(tmp_path / "plain", section())
    averaged = run(tmp_path / "whole", section(ema_decay=0.8))
    assert averaged.metrics["final_loss"] == plain.metrics["final_loss"], "training is the same"
    assert not next(averaged.model.parameters()).equal(next(plain.model.parameters()))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", section(ema_decay=0.8), Cycle({13: stop}))
    again = run(tmp_path / "cut", section(ema_decay=0.8))
    assert all(a.equal(b) for a, b in zip(averaged.model.parameters(), again.model.parameters(), strict=True))


def test_overfitting_repeats_the_first_batches_and_learns_them(tmp_path):
    asked: list[int] = []
    data = Cycle({step: lambda step=step: asked.append(step) for step in range(100)})
    result = run(tmp_path, section(overfit_batches=2, max_steps=80, optimizer={"name": "adamw", "lr": 0.02}), data, checkpoint=False, save=False)
    assert asked == [0, 1] * 40
    assert result.metrics["final_loss"] < 0.3, "far below the ln 2 nats a token that fresh text allows"
