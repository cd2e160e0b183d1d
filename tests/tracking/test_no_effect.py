"""Probes change nothing, whichever run and however the run is stopped."""

from __future__ import annotations

import pytest
import torch
from small_run import Cycle, run, section

from feebcore.errors import FeebError
from feebcore.files import read_jsonl
from feebcore.train import compilation

ALL = [
    {"name": "residual_stream", "every": 3, "sequences": 2},
    {"name": "logits", "every": 2},
    {"name": "repetition", "every": 5, "max_new_tokens": 8, "prompt_tokens": 4},
    "first_batch",
    {"name": "gradients", "every": 3},
    {"name": "throughput", "every": 4},
]
SAME_EVERY_TIME = ("residual_stream", "logits", "repetition", "gradients")


def weights(folder, **changes) -> list[torch.Tensor]:
    the_section = section(**{"max_steps": 10, "grad_clip": 0.1} | changes)
    return list(run(folder, the_section, checkpoint=False, save=False).model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_probes_together_change_no_bit(tmp_path, optimizer):
    options = {"optimizer": optimizer, "architecture": {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 2, "dropout": 0.1}}
    loud = weights(tmp_path / "a", callbacks=ALL, **options)
    quiet = weights(tmp_path / "b", callbacks=[], **options)
    assert all(a.equal(b) for a, b in zip(loud, quiet, strict=True))


@pytest.mark.slow
def test_all_probes_together_change_no_bit_of_compiled_training_and_compile_nothing_anew(tmp_path, monkeypatch):
    compilations = []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        compilations.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(compilation, "compiled", lambda forward: torch.compile(forward, backend=backend, dynamic=False))
    monkeypatch.setattr(compilation, "has_compiler", lambda device: True)
    found, graphs = {}, {}
    for name, callbacks in {"loud": ALL, "quiet": []}.items():
        torch._dynamo.reset()
        compilations.clear()
        found[name] = weights(tmp_path / name, callbacks=callbacks, compile="on")
        graphs[name] = len(compilations)
    assert graphs["loud"] == graphs["quiet"] > 0
    assert all(a.equal(b) for a, b in zip(found["loud"], found["quiet"], strict=True))


def test_after_a_kill_and_a_resume_probes_hold_each_step_once_as_if_nothing_had_happened(tmp_path):
    the_section = section(callbacks=ALL, max_steps=14, checkpoint_every=4)
    run(tmp_path / "a", the_section)

    def fail() -> None:
        raise FeebError("power cut")

    for moment in (2, 7, 11):  # before the first checkpoint, and between others
        with pytest.raises(FeebError, match="power cut"):
            run(tmp_path / "b", the_section, Cycle({moment: fail}))
    run(tmp_path / "b", the_section)
    for name in SAME_EVERY_TIME:
        whole, cut = (read_jsonl(tmp_path / folder / "probes" / f"{name}.jsonl") for folder in "ab")
        assert whole == cut
        assert len(whole) > 3
    assert (tmp_path / "a" / "probes" / "first_batch.txt").read_text() == (tmp_path / "b" / "probes" / "first_batch.txt").read_text()
    steps = [row["step"] for row in read_jsonl(tmp_path / "b" / "probes" / "throughput.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 14


def test_probes_look_at_the_first_and_the_last_state_and_every_so_often(tmp_path):
    run(tmp_path, section(callbacks=[{"name": "logits", "every": 4}, {"name": "gradients", "every": 4}], max_steps=10), checkpoint=False, save=False)
    steps = {name: [row["step"] for row in read_jsonl(tmp_path / "probes" / f"{name}.jsonl")] for name in ("logits", "gradients")}
    assert steps == {"logits": [0, 4, 8, 10], "gradients": [4, 8, 10]}


def test_where_the_model_is_in_parts_probes_wait_for_the_end(tmp_path, monkeypatch):
    """Under fsdp no rank can run the model alone: a probe that tried would wait for the others for ever."""
    from feeb_tracking import probe

    monkeypatch.setattr(probe, "is_sharded", lambda run: True)
    monkeypatch.setattr("feeb_tracking.gradients.gradients.is_sharded", lambda run: True)
    logged: list[str] = []
    run(tmp_path, section(callbacks=ALL[:5], max_steps=6), checkpoint=False, save=False, logged=logged)
    for name in ("residual_stream", "logits", "repetition"):
        assert [row["step"] for row in read_jsonl(tmp_path / "probes" / f"{name}.jsonl")] == [6]
        assert any(name in text and "fsdp" in text for text in logged)
    assert read_jsonl(tmp_path / "probes" / "gradients.jsonl") == []


def test_a_hook_that_nobody_has_is_never_called(tmp_path, monkeypatch):
    """So that probes that are off cost nothing, not even a call a step."""
    from feebcore.train.callbacks import Callback

    def called(self, *args):
        raise AssertionError("called, though nobody has it")

    for hook in ("on_batch", "on_gradients"):
        monkeypatch.setattr(Callback, hook, called)
    run(tmp_path, section(callbacks=["metrics", "progress"], max_steps=2), checkpoint=False, save=False)
