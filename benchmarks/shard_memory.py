"""Seconds and peak memory of download, tokenizer and shard on a generated corpus.

    python benchmarks/shard_memory.py [MEGABYTES] [TOKENIZER] [VOCAB_SIZE] [FOLDER] [key=value ...]

Each stage runs in a process of its own, as `run_all` runs it, so the peaks are apart. Memory is the resident set of that
process and all its children, summed, read twenty times a second. key=value are keys of the shard section. The folder (a temporary one
by default) is removed at the end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from machine_text import documents

FILE_BYTES = 64 << 20
STAGES = ("download", "tokenizer", "shard")
ONE_STAGE = "import sys; from feebcore.recipe import load; from feebcore.artifacts import Workspace; from feebcore.run.build import run_all; run_all(load(sys.argv[1]), Workspace(sys.argv[2]), [sys.argv[3]])"


def main(megabytes: int = 1000, tokenizer: str = "bpe", vocab_size: int = 32768, folder: str = "", *options: str) -> None:
    work = Path(tempfile.mkdtemp(prefix="feeb-memory-", dir=folder or None))
    try:
        number = write_corpus(work / "text", megabytes * 10**6)
        print(f"{megabytes} MB of text, {number} documents, {tokenizer} {vocab_size} {' '.join(options)}")
        chosen = {"name": tokenizer} | ({"vocab_size": vocab_size} if tokenizer not in ("byte", "char") else {})
        recipe = {
            "name": "memory",
            "stages": list(STAGES),
            "download": {"sources": [{"name": "files", "paths": ["text/*.parquet"]}]},
            "tokenizer": {"tokenizer": chosen},
            "shard": {key: json.loads(value) if value[:1].isdigit() else value for key, _, value in (o.partition("=") for o in options)},
        }
        (work / "recipe.yaml").write_text(json.dumps(recipe))
        for stage in STAGES:
            seconds, peak = measure([sys.executable, "-c", ONE_STAGE, str(work / "recipe.yaml"), str(work / "data"), stage])
            (manifest,) = (work / "data" / stage).glob("*/manifest.json")
            metrics = json.loads(manifest.read_text())["metrics"]
            known = {k: v for k, v in metrics.items() if k in ("encoder", "bytes_per_token", "tokens_per_second", "waiting_for_tokens_share")}
            print(f"{stage:<10} {seconds:7.1f} s   peak {peak / 1024:6.0f} MB   {known}", flush=True)
    finally:
        shutil.rmtree(work)


def write_corpus(folder: Path, num_bytes: int) -> int:
    """Parquet files of about FILE_BYTES; the number of documents."""
    folder.mkdir()
    number = size = 0
    rows: list[str] = []
    for text in documents(num_bytes):
        rows.append(text)
        size += len(text)
        if size >= FILE_BYTES:
            pl.DataFrame({"text": rows}).write_parquet(folder / f"{number:08}.parquet", compression="lz4")
            number, size, rows = number + len(rows), 0, []
    if rows:
        pl.DataFrame({"text": rows}).write_parquet(folder / f"{number:08}.parquet", compression="lz4")
    return number + len(rows)


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds, and the largest sum of resident sets of the process and its children, in KB."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, sum(map(resident, family(process.pid))))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command[-1]} failed")
    return time.monotonic() - began, peak


def family(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass  # it ended meanwhile
    return found


def resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*(int(a) if i in (0, 2) else a for i, a in enumerate(arguments)))  # type: ignore[arg-type]
