"""A run that is killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import contextlib
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import VOCAB, Cycle, T, assert_same_bits, in_process_of_its_own, rows, run, section

from feebcore.artifacts import StageOutput
from feebcore.errors import ArtifactError, FeebError, Interrupted
from feebcore.train import checkpoint
from feebcore.train.checkpoint import checkpoints, name_of
from feebcore.train.pretrain import train_model
from feebcore.train.validation import ValidationInterrupted


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "precision": "bf16", "micro_batch": 4}], ids=["adamw", "muon-bf16-micro"])
def test_resume_after_kill_is_bitwise_identical(tmp_path, changes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, section(**changes))
    step = random.randrange(1, 20)  # any moment must do; the message of a failure names it
    assert in_process_of_its_own(killed, kill_at=step, **changes) == -signal.SIGKILL, step
    run(killed, section(**changes))
    assert_same_bits(whole, killed)


def test_a_stop_saves_at_once_and_the_rest_is_bitwise_identical(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(Interrupted, match="after step 7 of 20"):
        run(tmp_path / "stopped", data=Cycle({6: lambda: signal.raise_signal(signal.SIGTERM)}))
    assert checkpoints(tmp_path / "stopped")[0].name == name_of(7)
    run(tmp_path / "stopped")
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")


def test_a_kill_between_a_repeated_validation_and_its_checkpoint_leaves_no_row_twice(tmp_path, monkeypatch):
    """A stop cuts the validation after step 8 short; the resumed run validates again, and is killed before it has saved that."""
    looks: list[str] = []

    def evaluation(*args):
        def evaluate(forward):
            looks.append("look")
            if len(looks) == cut:
                raise ValidationInterrupted
            return {"loss": 2.0}

        return evaluate

    def go_on(folder):
        folder.mkdir(exist_ok=True)
        out = StageOutput(folder)
        try:
            train_model(section(validation_every=8), Cycle(), object(), None, folder, out, vocab_size=64, final_score=False)
        finally:
            out.close()

    class Killed(BaseException):
        pass

    def killed(trainer):
        raise Killed

    monkeypatch.setattr("feebcore.train.pretrain.make_evaluation", evaluation)
    cut = 0
    go_on(tmp_path / "whole")
    looks.clear()
    cut = 1
    with pytest.raises(Interrupted):
        go_on(tmp_path / "killed")
    with monkeypatch.context() as killing:
        killing.setattr("feebcore.train.checkpointing.Checkpointing.save", killed)
        with pytest.raises(Killed):
            go_on(tmp_path / "killed")
    assert [r["split"] for r in rows(tmp_path / "killed") if r["step"] == 8] == ["validation"]
    go_on(tmp_path / "killed")
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


def test_options_of_an_optimizer_are_those_of_the_code_that_resumes(tmp_path):
    """A checkpoint brings state and counters; how the step is computed (fused, foreach) depends on where it runs."""
    from feebcore.model.build import build_model
    from feebcore.train.checkpoint import load_latest, save_checkpoint
    from feebcore.train.lr_scaling import LRScale
    from feebcore.train.pretrain import build_optimizer

    def made(fused: bool, **options):
        model = build_model(section().architecture, VOCAB, T)
        optimizer = build_optimizer(section(optimizer={"name": "sgd", "lr": 0.1, **options}), model, LRScale())
        optimizer.param_groups[0] |= {"fused": fused, "foreach": not fused}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return model, optimizer

    (model, optimizer), (again, resumed) = made(True, momentum=0.8), made(False, momentum=0.9)
    optimizer.step()
    save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=1)
    before = [dict(group, params=None) for group in resumed.param_groups]
    load_latest(tmp_path, again, resumed, print)
    assert [dict(group, params=None) for group in resumed.param_groups] == before
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[a]["momentum_buffer"], resumed.state[b]["momentum_buffer"])
    resumed.step()


def test_a_finished_run_that_is_called_again_trains_no_further(tmp_path):
    first = run(tmp_path / "a").metrics
    asked: list[int] = []
    again = run(tmp_path / "a", data=Cycle({step: lambda step=step: asked.append(step) for step in range(30)})).metrics
    assert not asked
    assert again["final_loss"] == first["final_loss"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "state", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    run(tmp_path / "whole")
    run(tmp_path / "a")
    newest, older = checkpoints(tmp_path / "a")
    target = newest / ("state.json" if damage == "state" else "optimizer.safetensors")
    content = bytearray(target.read_bytes())
    if damage == "truncate":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-5] ^= 1
        target.write_bytes(content)
    elif damage == "state":
        target.write_text(content.decode().replace('"step": 20', '"step": 21'))
    else:
        target.unlink()
    logged: list[str] = []
    run(tmp_path / "a", logged=logged)
    assert any(newest.name in text and "cannot be used" in text for text in logged)
    assert any(f"resumed after step {int(older.name[5:])}" in text for text in logged)
    assert_same_bits(tmp_path / "whole", tmp_path / "a")


def test_only_the_newest_checkpoints_are_kept_and_no_pickle_is_in_them(tmp_path):
    run(tmp_path, section(keep_checkpoints=3))
    assert [p.name for p in checkpoints(tmp_path)] == [name_of(s) for s in (20, 16, 12)]
    assert {p.suffix for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()} == {".safetensors", ".json"}


def test_a_change_of_threads_is_announced_on_resume(tmp_path):
    with pytest.raises(FeebError):
        run(tmp_path, data=Cycle({9: lambda: (_ for _ in ()).throw(FeebError("stop here"))}))
    logged: list[str] = []
    run(tmp_path, section(threads=2), logged=logged)
    assert any("threads 1 -> 2" in text for text in logged)


def test_full_disk_while_checkpointing_is_explained_and_the_run_continues_after(tmp_path, small_disk):
    run(tmp_path / "whole")
    folder = small_disk / "run"

    def fill() -> None:
        with contextlib.suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as stream:
            while stream.write(b"0" * 65536):
                pass

    with pytest.raises(ArtifactError, match="disk is full"):
        run(folder, section(callbacks=[]), data=Cycle({6: fill}))
    assert [p.name for p in checkpoints(folder)] == [name_of(4)]
    (small_disk / "ballast").unlink()
    logged: list[str] = []
    run(folder, section(callbacks=[], keep_checkpoints=1), logged=logged)
    assert "resumed after step 4 of 20" in logged
    for name in ("model", "optimizer"):
        a, b = (load_file(f / "checkpoints" / name_of(20) / f"{name}.safetensors") for f in (tmp_path / "whole", folder))
        assert all(a[k].equal(b[k]) for k in a)


def test_a_checkpoint_cut_short_while_it_is_written_does_not_count(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    rename = checkpoint.os.rename

    def cut(source: Path, target: Path) -> None:
        if Path(target).name == name_of(12):
            raise KeyboardInterrupt  # as good as a kill: nothing after this line runs
        rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoints" / f".{name_of(12)}.tmp" / "state.json").exists()
    monkeypatch.undo()
    logged: list[str] = []
    run(tmp_path / "cut", logged=logged)
    assert "resumed after step 8 of 20" in logged
    assert not list((tmp_path / "cut" / "checkpoints").glob(".*"))
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


def test_a_run_continues_in_the_precision_it_began_in(tmp_path, monkeypatch):
    """precision: auto may mean another one on the machine that continues."""
    with pytest.raises(FeebError):
        run(tmp_path, section(precision="bf16"), data=Cycle({9: lambda: (_ for _ in ()).throw(FeebError("stop here"))}))
    monkeypatch.setattr("feebcore.model.precision.has_fast_bf16", lambda device: False)
    logged: list[str] = []
    assert run(tmp_path, section(precision="auto"), logged=logged).metrics["precision"] == "bf16"
    assert any("begun in bf16" in text for text in logged)
