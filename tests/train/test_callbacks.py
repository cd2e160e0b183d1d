"""The training log, samples and wandb."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import ClassVar

import pytest
from small_run import B, Cycle, T, in_process_of_its_own, run, section

from feebcore.errors import FeebError
from feebcore.files import read_jsonl
from feebcore.train.callbacks import RunContext


def test_the_log_has_mean_losses_and_every_last_step(tmp_path):
    dense = run(tmp_path / "a", section(log_every=1, max_steps=10), checkpoint=False, save=False)
    run(tmp_path / "b", section(log_every=4, max_steps=10), checkpoint=False, save=False)
    every, some = read_jsonl(tmp_path / "a" / "metrics.jsonl"), read_jsonl(tmp_path / "b" / "metrics.jsonl")
    assert [r["step"] for r in every] == list(range(1, 11))
    assert [r["step"] for r in some] == [4, 8, 10]
    assert some[0]["loss"] == pytest.approx(sum(r["loss"] for r in every[:4]) / 4, rel=1e-4)
    assert some[2]["loss"] == pytest.approx(sum(r["loss"] for r in every[8:]) / 2, rel=1e-4)
    assert some[1]["tokens"] == 8 * B * T
    assert {"lr", "grad_norm", "tokens_per_second", "data_wait", "elapsed", "split"} <= set(some[0])
    assert dense.metrics["steps"] == 10


def test_progress_events_carry_loss_and_rate(tmp_path):
    run(tmp_path, section(callbacks=["progress"], max_steps=5), checkpoint=False, save=False)
    events = [e for e in read_jsonl(tmp_path / "events.jsonl") if e["kind"] == "progress"]
    assert events[-1]["done"] == events[-1]["total"] == 5
    assert events[-1]["loss"] > 0
    assert events[-1]["tokens_per_second"] > 0


class Letters:
    """Stands for a tokenizer: ids are letters."""

    bos_id, eos_id, vocab_size = 62, 63, 64

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 62 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids if i < 62)


def test_samples_are_written_every_so_often_and_at_the_end_and_change_no_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(RunContext, "tokenizer", lambda self: Letters())
    samples = {"name": "samples", "every": 4, "prompts": ["def", ""], "max_new_tokens": 5}
    loud = run(tmp_path / "a", section(callbacks=[samples], max_steps=10), checkpoint=False, save=False).model
    rows = read_jsonl(tmp_path / "a" / "samples.jsonl")
    assert [(r["step"], r["prompt"]) for r in rows] == [(s, p) for s in (4, 8, 10) for p in ("def", "")]
    assert all(1 <= len(r["text"]) <= 5 or r["finish_reason"] == "stop" for r in rows)
    quiet = run(tmp_path / "b", section(callbacks=[], max_steps=10), checkpoint=False, save=False).model
    assert all(a.equal(b) for a, b in zip(loud.parameters(), quiet.parameters(), strict=True))


def test_samples_after_a_resume_equal_those_of_an_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setattr(RunContext, "tokenizer", lambda self: Letters())
    the_section = section(callbacks=[{"name": "samples", "every": 3, "max_new_tokens": 4}], max_steps=10)
    run(tmp_path / "a", the_section)

    def fail() -> None:
        raise FeebError("power cut")

    with pytest.raises(FeebError, match="power cut"):
        run(tmp_path / "b", the_section, Cycle({7: fail}))  # after the samples of step 6, before the checkpoint of step 8
    run(tmp_path / "b", the_section)
    assert read_jsonl(tmp_path / "a" / "samples.jsonl") == read_jsonl(tmp_path / "b" / "samples.jsonl")


def test_wandb_offline_holds_the_rows_of_the_log_and_of_probes_and_no_key(tmp_path):
    pytest.importorskip("wandb")
    environment = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "HOME": str(tmp_path)}
    probes = [{"name": "logits", "every": 5}, {"name": "gradients", "every": 5}]
    changes = {"callbacks": ["metrics", "wandb", *probes], "max_steps": 7}
    folder = tmp_path / "run"
    assert in_process_of_its_own(folder, environment, **changes) == 0
    rows = wandb_rows(folder)
    prefixes = {"train": "train/", "validation": "val/"}
    logged = [
        {"step": row["step"]} | {prefixes[row["split"]] + k: v for k, v in row.items() if k not in ("step", "split")}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]
    assert [row for row in rows if "train/loss" in row or "val/loss" in row] == logged
    assert [(m.glob_name or m.name, m.step_metric) for m in wandb_records(folder, "metric")] == [("*", "step")]
    mirrored = {name: [row for row in rows if any(key.startswith(f"{name}/") for key in row)] for name in ("logits", "gradients")}
    for name, found in mirrored.items():
        assert [row["step"] for row in found] == [row["step"] for row in read_jsonl(folder / "probes" / f"{name}.jsonl")]
    written = read_jsonl(folder / "probes" / "logits.jsonl")[-1]
    assert mirrored["logits"][-1]["logits/entropy"] == written["entropy"]
    assert mirrored["logits"][-1]["logits/quantiles/3"] == written["quantiles"][3]
    layers = {layer["layer"]: layer for layer in read_jsonl(folder / "probes" / "gradients.jsonl")[-1]["layers"]}
    assert mirrored["gradients"][-1]["gradients/layers/lm_head/update"] == layers["lm_head"]["update"]
    assert not any(environment["WANDB_API_KEY"].encode() in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def wandb_rows(folder: Path) -> list[dict]:
    """History rows of the one offline run under a folder."""
    rows = [{(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in history.item} for history in wandb_records(folder, "history")]
    return [{k: v for k, v in items.items() if not k.startswith("_")} for items in rows]


def wandb_records(folder: Path, kind: str) -> list:
    """Records of a kind in wandb's own binary log of the one offline run under a folder."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = []
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            records.append(getattr(record, kind))
    return records


def leveldb_records(content: bytes, header: int = 7, block: int = 32768) -> list[bytes]:
    """Records of a LevelDB log behind a file header: per part a CRC (4 bytes), a length (2), a kind (1) and the data."""
    records, position, parts = [], header, b""
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(parts)
            parts = b""
    return records


def test_training_and_validation_loss_are_two_curves_in_wandb():
    from feeb_tracking.wandb.wandb_run import WandbRun
    from feebcore.parts import resolve_part
    from feebcore.train.callbacks import make_row

    class Session:
        rows: ClassVar[list[dict]] = []

        def log(self, row: dict) -> None:
            self.rows.append(row)

    callback = resolve_part("callbacks", "wandb").build()
    assert isinstance(callback, WandbRun)
    callback.session = Session()
    callback.write(make_row(3, "train", {"loss": 2.0}))
    callback.on_validation(3, {"loss": 1.0, "bits_per_byte": 0.5})
    assert Session.rows == [{"step": 3, "train/loss": 2.0}, {"step": 3, "val/loss": 1.0, "val/bits_per_byte": 0.5}]
