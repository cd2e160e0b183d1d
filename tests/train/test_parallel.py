"""A run means the same for any number of ranks and either strategy: real processes that talk through Gloo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from ranks import CPU
from safetensors.torch import load_file
from small_run import rows, section

from feebcore.errors import FeebError
from feebcore.files import read_jsonl
from feebcore.model.build import build_model
from feebcore.train.checkpoint import Checkpointer, checkpoints, read_state, step_of
from feebcore.train.compilation import has_compiler
from feebcore.train.parallel import make_parallel
from feebcore.train.parallel_config import ParallelConfig
from feebcore.train.pretrain import build_optimizer
from feebcore.train.tensor_files import TensorFiles

STEPS = {"none-1": 50, "ddp-2": 50, "fsdp-2": 50, "ddp-4": 25, "fsdp-4": 25}
RUN = {
    "architecture": {"name": "transformer", "num_layers": 2, "d_model": 26, "num_heads": 1},  # 26 rows are 7 + 7 + 7 + 5
    "optimizer": {"name": "adamw", "lr": 0.002},
    "schedule": {"name": "constant", "warmup_steps": 3},  # so that a shorter run is the beginning of a longer one
    "checkpoint_every": 25,
    "log_every": 1,
    "ema_decay": 0.9,
}
TOLERANCE = 2e-4
"""Of a tensor's difference relative to its norm: fp32 sums in another order, over 50 steps of a fast AdamW. Seen: 5e-5."""

RUNS = tuple(name for name in STEPS if name != "none-1")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """One run by 1 rank, and by 2 and 4 with either strategy; and their checkpoints, saved again by other groups."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.train(folder / "none-1", max_steps=STEPS["none-1"], **RUN)
    for world in (2, 4):
        jobs = [{"do": job, "folder": folder / f"{job}-{world}"} for job in ("sums", "score")]
        jobs += [
            {"do": "train", "folder": folder / f"{s}-{world}", "parallel": {"strategy": s}, "max_steps": STEPS[f"{s}-{world}"], **RUN} for s in ("ddp", "fsdp")
        ]
        if world == 2:
            stopped = RUN | {"max_steps": 2, "checkpoint_every": 0, "validation_every": 0}
            jobs += [{"do": "score_stopped", "folder": folder / f"stopped-{s}", "parallel": {"strategy": s}, **stopped} for s in ("ddp", "fsdp")]
        sources = ["none-1"] if world == 2 else ["none-1", "ddp-2", "fsdp-2"]
        jobs += [{"do": "reshard", "source": folder / s, "folder": folder / f"{s}_fsdp-{world}", "parallel": {"strategy": "fsdp"}, **RUN} for s in sources]
        ranks.start(world, folder / f"group-{world}", jobs)
    back = [{"do": "reshard", "source": folder / "fsdp-4", "folder": folder / f"fsdp-4_{s}-2", "parallel": {"strategy": s}, **RUN} for s in ("ddp", "fsdp")]
    ranks.start(2, folder / "group-back", back)
    for source in ("fsdp-2", "fsdp-4"):
        ranks.reshard(folder / source, folder / f"{source}_none-1", **RUN)
    return folder


def whole_state(folder: Path, step: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, of the newest by default, put together."""
    path = next(p for p in checkpoints(folder) if step in (0, step_of(p)))
    state = read_state(path)
    groups = {name.partition(".")[0].partition("-")[0] for name in state["files"]}
    files = {g: TensorFiles([path / n for n in state["files"] if n.startswith(g)], state["index"].get(g, {})) for g in groups}
    return {f"{g}/{name}": files[g].read(name) for g in sorted(groups) for name in sorted(files[g].names())}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_ends_with_the_same_weights_state_and_average_for_any_number_of_ranks(done, run):
    one, other = whole_state(done / "none-1", STEPS[run]), whole_state(done / run)
    assert one.keys() == other.keys()
    assert {name.partition("/")[0] for name in one} == {"model", "optimizer", "ema"}
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= TOLERANCE * tensor.norm(), name


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_gradient_norms_are_of_the_whole_batch(done, run):
    """Rows are masked unevenly, so a mean of the ranks' means, or an averaged gradient, would be another number."""
    one, other = (read_jsonl(done / name / "metrics.jsonl") for name in ("none-1", run))
    train = [[row for row in rows if row["split"] == "train"] for rows in (one, other)]
    assert len(train[1]) == STEPS[run]
    for a, b in zip(*train, strict=False):
        assert (a["step"], a["tokens"], a["lr"]) == (b["step"], b["tokens"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=TOLERANCE)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * TOLERANCE)


@pytest.mark.parametrize("run", RUNS)
def test_the_stream_of_batches_is_the_same_for_any_number_of_ranks(done, run):
    whole = json.loads((done / "none-1" / "seen-0.json").read_text())["rows"]
    world = int(run[-1])
    shares = [json.loads((done / run / f"seen-{rank}.json").read_text())["rows"] for rank in range(world)]
    together = [[shares[slot % world][step][slot // world] for slot in range(len(whole[step]))] for step in range(STEPS[run])]
    assert together == whole[: STEPS[run]]


@pytest.mark.parametrize("run", RUNS)
def test_every_rank_reports_the_numbers_of_the_whole_run(done, run):
    told = [json.loads((done / run / f"seen-{rank}.json").read_text())["metrics"] for rank in range(int(run[-1]))]
    assert all(one == told[0] for one in told)
    assert told[0]["tokens"] == STEPS[run] * ranks.B * ranks.T


@pytest.mark.parametrize("run", RUNS)
def test_the_model_that_is_saved_is_whole_and_has_the_averaged_weights(done, run):
    averages = {name.removeprefix("ema/"): t for name, t in whole_state(done / run).items() if name.startswith("ema/")}
    saved = load_file(done / run / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], average) for name, average in averages.items())


@pytest.mark.parametrize("source", ["none-1", "ddp-2", "fsdp-2", "fsdp-4"])
def test_a_checkpoint_loads_at_another_number_of_ranks_and_strategy_bit_for_bit(done, source):
    again = sorted(done.glob(f"{source}_*"))
    assert len(again) == {"none-1": 2, "ddp-2": 1, "fsdp-2": 2, "fsdp-4": 3}[source]
    before, (path, *_) = whole_state(done / source), checkpoints(done / source)
    for folder in again:
        after, (copy, *_) = whole_state(folder), checkpoints(folder)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor, after[name]), f"{folder.name}: {name}"
        assert read_state(path)["optimizer"]["groups"] == read_state(copy)["optimizer"]["groups"]
        assert read_state(path)["train_state"] == read_state(copy)["train_state"]


def test_a_sharded_checkpoint_has_no_tensor_twice_and_no_pickle(done):
    (path, *_) = checkpoints(done / "fsdp-4")
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    whole = sum(t.numel() for t in whole_state(done / "fsdp-4").values())
    assert sum(t.numel() for file in path.glob("*.safetensors") for t in load_file(file).values()) == whole
    sizes = [sum(f.stat().st_size for f in path.glob(f"*-{rank:05d}-of-00004.safetensors")) for rank in range(4)]
    assert max(sizes) < 0.4 * sum(sizes)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "index"])
def test_a_damaged_piece_is_noticed_by_any_reader(done, tmp_path, damage):
    shutil.copytree(done / "fsdp-2", tmp_path / "run")
    newest, older = checkpoints(tmp_path / "run")
    piece, state = newest / "optimizer-00001-of-00002.safetensors", newest / "state.json"
    content = piece.read_bytes()
    if damage == "truncate":
        piece.write_bytes(content[:-8])
    elif damage == "flip":
        piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        piece.unlink()
    else:
        state.write_text(state.read_text().replace('"shape": [\n', '"shape": [\n 1,', 1))
    wanted = section(**RUN)
    model = build_model(wanted.architecture, ranks.VOCAB, wanted.seq_len, seed=1)
    told: list[str] = []
    found = Checkpointer(tmp_path / "run", make_parallel(wanted, CPU), log=told.append).load_latest(model, build_optimizer(wanted, model))
    assert found is not None
    assert found[0]["step"] == int(older.name[5:])
    assert newest.name in told[0]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_on_sums_flags_and_texts(done, world):
    found = [json.loads((done / f"sums-{world}" / f"sums-{rank}.json").read_text()) for rank in range(world)]
    assert all(one == found[0] for one in found)
    assert found[0] == {"sum": [world, sum(range(world))], "any": [True, False], "exchange": ["é" * rank for rank in range(world)]}


@pytest.mark.parametrize("how", ["together", "fsdp"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_score_together_what_one_scores_alone_bit_for_bit(done, world, how):
    found = [json.loads((done / f"score-{world}" / f"score-{rank}.json").read_text()) for rank in range(world)]
    alone, together = [one["alone"] for one in found], [one[how] for one in found]
    assert all(one["nats"] == alone[0]["nats"] and one["progress"] == 1 for one in together)
    assert sum(one["batches"] for one in together) == alone[0]["batches"]
    assert max(one["batches"] for one in together) == -(-alone[0]["batches"] // world)


def test_a_sharded_model_that_does_not_fit_whole_on_one_rank_is_whole_on_the_first_alone(done):
    first, *others = (json.loads((done / "score-4" / f"score-{rank}.json").read_text())["one without room"] for rank in range(4))
    assert first == {"everywhere": False, "sharded": False, "equal": True}
    assert others == [{"everywhere": False, "sharded": True}] * 3


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stop_of_one_rank_in_the_final_validation_stops_all_and_the_next_run_scores_the_same(done, strategy):
    first, second = (json.loads((done / f"stopped-{strategy}" / f"stopped-{rank}.json").read_text()) for rank in range(2))
    assert first["message"] == second["message"] == "stopped during the final validation; run the same command again to continue"
    assert first["stopped metrics"] == first["whole metrics"] == second["stopped metrics"]
    whole, stopped, again = first["reads"]
    assert 0 < stopped < whole / 2
    assert again == whole
    one, other = (done / f"stopped-{strategy}" / name for name in ("whole", "stopped"))
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    assert rows(one) == rows(other)


MATRIX_RUNS = {"ddp": {"optimizer": "soap"}, "fsdp": {"optimizer": "normuon"}}


def test_ranks_that_share_matrices_out_resume_bit_for_bit_also_alone(tmp_path):
    """Continued from a checkpoint by as many ranks, and by one, which finds all of the state of every matrix in it."""
    options = {name: RUN | {"max_steps": 6, "checkpoint_every": 3, "parallel": {"strategy": name}} | more for name, more in MATRIX_RUNS.items()}
    ranks.start(2, tmp_path / "first", [{"do": "train", "folder": tmp_path / name, **run} for name, run in options.items()])
    for name in options:
        for other in ("again", "alone"):
            (tmp_path / f"{name}-{other}" / "checkpoints").mkdir(parents=True)
            middle = checkpoints(tmp_path / name)[1]
            assert step_of(middle) == 3
            shutil.copytree(middle, tmp_path / f"{name}-{other}" / "checkpoints" / middle.name)
    ranks.start(2, tmp_path / "second", [{"do": "train", "folder": tmp_path / f"{name}-again", **run} for name, run in options.items()])
    for name, run in options.items():
        ranks.train(tmp_path / f"{name}-alone", **run | {"parallel": {"strategy": "none"}})
        whole, again, alone = (whole_state(tmp_path / folder) for folder in (name, f"{name}-again", f"{name}-alone"))
        assert whole.keys() == again.keys() == alone.keys()
        assert [place for place, tensor in whole.items() if not torch.equal(tensor, again[place])] == []
        apart = {place: float((tensor - alone[place]).norm() / tensor.norm().clamp_min(1e-12)) for place, tensor in whole.items() if "basis" not in place}
        assert {place: gap for place, gap in apart.items() if gap > 0.02} == {}, "sums in another order"


def test_ranks_without_a_strategy_and_a_strategy_without_ranks_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="2 processes need strategy: ddp or fsdp"):
        ParallelConfig(ranks=2)
    with pytest.raises(FeebError, match="this one is alone"):
        make_parallel(section(parallel={"strategy": "ddp", "ranks": 2}), CPU)
    assert make_parallel(section(parallel={"strategy": "fsdp"}), CPU).strategy == "none"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FeebError, match="2 processes were started"):
        make_parallel(section(), CPU)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(FeebError, match="batch_size: 8 sequences do not divide over 3 ranks"):
        make_parallel(section(parallel={"strategy": "ddp"}), CPU)


def test_parallel_is_no_identity():
    from feebcore.config import identity_of

    assert identity_of(section(parallel={"strategy": "fsdp", "ranks": 4})) == identity_of(section())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_shards_train_as_one_compiled_process_does(tmp_path):
    if not has_compiler(CPU):
        pytest.skip("no C++ compiler here")
    run = RUN | {"max_steps": 8, "compile": "on", "architecture": RUN["architecture"] | {"num_layers": 1}}
    ranks.train(tmp_path / "one", micro_batch=4, **run)  # rows at a time as each rank has, so that one machine code serves all
    ranks.start(2, tmp_path / "group", [{"do": "train", "folder": tmp_path / "two", "parallel": {"strategy": "fsdp"}, **run}])
    one, two = whole_state(tmp_path / "one"), whole_state(tmp_path / "two")
    assert all((tensor - two[name]).norm() <= TOLERANCE * tensor.norm() for name, tensor in one.items())
    losses = [[row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if row["split"] == "train"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)
