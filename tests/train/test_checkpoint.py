"""What is saved is what is loaded; a damaged checkpoint is told and passed over; the right ones are kept."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from feebcore.errors import ArtifactError, FeebError
from feebcore.files import digest_of
from feebcore.train import checkpoint as module
from feebcore.train.checkpoint import Checkpointer, checkpoints, name_of, read_state
from feebcore.train.dtensor import ShardSpec
from feebcore.train.parallel import SingleProcess
from feebcore.train.tensor_files import DTYPES, TensorFiles, write_tensors


def made(seed: int = 0, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = [v for p in model.parameters() for v in dict(sorted(optimizer.state[p].items())).values() if isinstance(v, torch.Tensor)]
    return [t.detach().clone() for t in [*model.state_dict().values(), *state]]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def checkpointer(folder: Path, told: list[str] | None = None, **options) -> Checkpointer:
    return Checkpointer(folder, SingleProcess(), log=(told if told is not None else []).append, **options)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_everything_comes_back_bit_for_bit(tmp_path, asynchronous):
    model, optimizer = made()
    extras = {"ema": {"0.weight": torch.randn(3, 5), "half": torch.randn(7).bfloat16()}, "counts": {"n": torch.tensor(5)}}
    writer = checkpointer(tmp_path, asynchronous=asynchronous)
    writer.save(7, model, optimizer, {"note": [1, "é"]}, extras)
    writer.wait()
    other, other_optimizer = made(seed=1)
    state, back = checkpointer(tmp_path).load_latest(other, other_optimizer)
    assert same(tensors_of(model, optimizer), tensors_of(other, other_optimizer))
    assert other_optimizer.param_groups[0]["lr"] != optimizer.param_groups[0]["lr"], "options are the recipe's, and no part of a checkpoint"
    assert (state["step"], state["note"]) == (7, [1, "é"])
    assert {group: named.keys() for group, named in back.items()} == {group: named.keys() for group, named in extras.items()}
    assert all(torch.equal(back[group][name], t) and back[group][name].dtype == t.dtype for group, named in extras.items() for name, t in named.items())


def test_what_is_saved_is_the_moment_of_the_call_not_of_the_writing(tmp_path, monkeypatch):
    go, write = threading.Event(), module.write_tensors
    monkeypatch.setattr(module, "write_tensors", lambda *given: (go.wait(20), write(*given))[1])
    model, optimizer = made()
    before = tensors_of(model, optimizer)
    state = {"recent": [1.0]}
    writer = checkpointer(tmp_path)
    for step in (1, 2):  # the second is copied into the memory of the first
        writer.save(step, model, optimizer, state)
        with torch.no_grad():
            for tensor in [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]:
                tensor.add_(1)
        state["recent"].append(2.0)
        go.set()
        writer.wait()
        other, other_optimizer = made(seed=1)
        found, _ = checkpointer(tmp_path).load(tmp_path / "checkpoints" / name_of(step), other, other_optimizer)
        assert same(before, tensors_of(other, other_optimizer))
        assert len(found["recent"]) == step
        before = tensors_of(model, optimizer)


def test_an_error_while_writing_is_raised_by_the_next_call_and_the_earlier_checkpoint_stays(tmp_path, monkeypatch):
    model, optimizer = made()
    writer = checkpointer(tmp_path)
    writer.save(1, model, optimizer, {})
    writer.wait()

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    writer.save(2, model, optimizer, {})
    with pytest.raises(ArtifactError, match="disk is full"):
        writer.save(3, model, optimizer, {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [name_of(1)]


@pytest.mark.parametrize("damage", ["truncate", "flip", "grow", "missing", "state", "state missing"])
@pytest.mark.parametrize("file", ["model", "optimizer", "ema"])
def test_a_damaged_checkpoint_is_named_removed_and_passed_over(tmp_path, damage, file):
    writer = checkpointer(tmp_path, asynchronous=False)
    older = made()
    writer.save(1, *older, {}, {"ema": {"a": torch.ones(9)}})
    writer.save(2, *made(seed=3), {}, {"ema": {"a": torch.ones(9)}})
    newest = tmp_path / "checkpoints" / name_of(2)
    target, state = newest / f"{file}.safetensors", newest / "state.json"
    content = target.read_bytes()
    if damage == "truncate":
        target.write_bytes(content[:-1])
    elif damage == "grow":
        target.write_bytes(content + b" ")
    elif damage == "flip":
        target.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    elif damage == "missing":
        target.unlink()
    elif damage == "state":
        state.write_text(state.read_text().replace('"step": 2', '"step": 9'))
    else:
        state.unlink()
    told: list[str] = []
    mine = made(seed=5)
    found, _ = checkpointer(tmp_path, told).load_latest(*mine)
    assert found["step"] == 1
    assert same(tensors_of(*mine), tensors_of(*older))
    assert len(told) == 1
    assert name_of(2) in told[0]
    assert "cannot be used" in told[0]
    assert [p.name for p in checkpoints(tmp_path)] == [name_of(1)]


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_an_error_and_stays(tmp_path):
    writer = checkpointer(tmp_path, asynchronous=False)
    writer.save(1, *made(), {})
    path = tmp_path / "checkpoints" / name_of(1)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"step-00000001 cannot be used: model\.safetensors has 0 bytes"):
        writer.load(path, *made())
    assert path.is_dir()


def test_weights_alone_can_be_taken_and_leave_the_optimizer_as_it_is(tmp_path):
    saved = made()
    checkpointer(tmp_path, asynchronous=False).save(1, *saved, {})
    model, optimizer = made(seed=2)
    before = tensors_of(model, optimizer)[len(model.state_dict()) :]
    checkpointer(tmp_path).load(tmp_path / "checkpoints" / name_of(1), model, None)
    assert same(list(model.state_dict().values()), list(saved[0].state_dict().values()))
    assert same(tensors_of(model, optimizer)[len(model.state_dict()) :], before)


def test_weights_of_another_model_are_refused_with_names_or_shapes(tmp_path):
    checkpointer(tmp_path, asynchronous=False).save(1, *made(), {})
    for other, problem in ((nn.Linear(5, 3), "0.weight"), (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), r"0.weight has shape \[3, 5\], not \[3, 6\]")):
        with pytest.raises(ArtifactError, match=problem):
            checkpointer(tmp_path).load_latest(other, torch.optim.SGD(other.parameters(), lr=1.0))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_checkpoints_of_another_format_are_refused_by_number_and_stay(tmp_path, number):
    model, optimizer = made()
    checkpointer(tmp_path, asynchronous=False).save(4, model, optimizer, {})
    path = tmp_path / "checkpoints" / name_of(4)
    state = read_state(path) | {"format": number}
    (path / "state.json").write_text(json.dumps(state | {"digest": digest_of(state)}))
    with pytest.raises(FeebError, match=rf"checkpoint format {number}, and this version of feeb reads format {module.FORMAT} only"):
        checkpointer(tmp_path).load_latest(*made(seed=1))
    assert path.is_dir()


def sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_the_newest_the_best_and_every_nth_are_kept(tmp_path):
    scores = {1: 5.0, 2: 1.0, 3: 4.0, 4: float("nan"), 5: 2.0, 6: 3.0, 7: None, 8: 9.0, 9: 8.0}
    model, optimizer = made()
    for step, score in scores.items():  # a new one each time: what is best is known from disk
        checkpointer(tmp_path, keep=1, keep_every=4, keep_best=2, asynchronous=False).save(step, model, optimizer, {}, metric=score)
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == [9, 8, 5, 4, 2]


def test_a_kill_between_the_renames_of_a_replaced_checkpoint_loses_nothing(tmp_path, monkeypatch):
    first, second = made(), made(seed=4)
    checkpointer(tmp_path, asynchronous=False).save(1, *first, {})
    rename, moved = module.os.rename, []

    def cut(source, target):
        if moved:
            raise KeyboardInterrupt  # as good as a kill: nothing after this line runs
        moved.append(target)
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpointer(tmp_path, asynchronous=False).save(1, *second, {})
    monkeypatch.undo()
    assert not checkpoints(tmp_path)
    mine = made(seed=6)
    assert checkpointer(tmp_path).load_latest(*mine) is not None
    assert same(tensors_of(*mine), tensors_of(*first))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [name_of(1)]


def test_a_run_begun_again_in_the_same_process_waits_for_what_the_failed_one_still_writes(tmp_path, monkeypatch):
    go, write = threading.Event(), module.write_tensors
    monkeypatch.setattr(module, "write_tensors", lambda *given: (go.wait(20), write(*given))[1])
    model, optimizer = made()
    checkpointer(tmp_path).save(3, model, optimizer, {})  # and nobody waits for it
    threading.Timer(0.3, go.set).start()
    found = checkpointer(tmp_path).load_latest(*made(seed=1))
    assert found is not None
    assert found[0]["step"] == 3


def test_files_are_plain_safetensors_and_their_hashes_are_in_the_state(tmp_path):
    model, optimizer = made()
    checkpointer(tmp_path, asynchronous=False).save(1, model, optimizer, {})
    path = tmp_path / "checkpoints" / name_of(1)
    assert {k: v.tolist() for k, v in load_file(path / "model.safetensors").items()} == {k: v.tolist() for k, v in model.state_dict().items()}
    for name, entry in read_state(path)["files"].items():
        assert entry == {"size": (path / name).stat().st_size, "sha256": sha256((path / name).read_bytes())}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_format_is_written_as_safetensors_reads_it(tmp_path, dtype):
    tensors = {"a": torch.arange(6).reshape(2, 3).to(dtype), "odd": torch.ones(3, dtype=torch.uint8), "none": torch.zeros(0, 4, dtype=dtype)}
    tensors["scalar"] = torch.tensor(1).to(dtype)
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert {k: (v.dtype, v.shape, v.double().tolist()) for k, v in read.items()} == {k: (v.dtype, v.shape, v.double().tolist()) for k, v in tensors.items()}


def test_a_number_format_that_files_do_not_know_is_an_error_with_its_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"weight cannot be saved.*complex64"):
        write_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(2, dtype=torch.complex64)})


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 11), written=st.integers(1, 5), read=st.integers(1, 5))
def test_what_any_number_of_ranks_wrote_any_other_number_reads(tmp_path_factory, rows, written, read):
    """Slices of ceil(rows / ranks), the last ones smaller or empty, as sharding makes them."""
    folder = tmp_path_factory.mktemp("pieces")
    whole = torch.arange(rows * 3).reshape(rows, 3)

    def slices(ranks):
        each = -(-rows // ranks)
        return [(min(rows, r * each), min(rows, (r + 1) * each)) for r in range(ranks)]

    names = [folder / f"x-{r}.safetensors" for r in range(written)]
    for path, (low, high) in zip(names, slices(written), strict=True):
        write_tensors(path, {"t": whole[low:high]})
    index = {"t": {"shape": [rows, 3], "offsets": {p.name: [low, 0] for p, (low, _) in zip(names, slices(written), strict=True)}}}
    files = TensorFiles(names, index)
    assert torch.equal(files.read("t"), whole)
    for low, high in slices(read):
        assert torch.equal(files.read("t", ShardSpec((rows, 3), (low, 0), (high - low, 3))), whole[low:high])


def test_a_piece_that_is_in_no_file_is_an_error(tmp_path):
    write_tensors(tmp_path / "x-0.safetensors", {"t": torch.zeros(2, 3)})
    files = TensorFiles([tmp_path / "x-0.safetensors"], {"t": {"shape": [4, 3], "offsets": {"x-0.safetensors": [0, 0]}}})
    with pytest.raises(ArtifactError, match="6 of 12 values are in no file"):
        files.read("t")
