"""Shared by all tests: quiet trackers, small thread counts, and a registry that a test can extend."""

from __future__ import annotations

import gc
import os
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers, each of which imports torch
gc.set_threshold(100_000, 20, 100)  # a worker has a million objects: looking through them was a seventh of what compiling takes
for name in ("FEEB_PLUGINS_BLOCK", "FEEB_PLUGINS_ALLOW", "FEEB_PLUGINS_STRICT", "FEEB_WORKSPACE", "PREFECT_API_URL"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: with two workers, one of them would otherwise end with them alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MB; skipped where mounting is not allowed."""
    folder = Path(tmp_path) / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture(scope="session")
def tiny_chain(tmp_path_factory: pytest.TempPathFactory):
    """(workspace, artifacts by stage) of a real chain in seconds: 40 files, bytes, a 30 k-parameter model, evaluation."""
    from feebcore.artifacts import Workspace
    from feebcore.recipe import load
    from feebcore.run.build import run_all

    folder = tmp_path_factory.mktemp("chain")
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n")
    (folder / "tiny.yaml").write_text(TINY_CHAIN.replace("FOLDER", str(folder / "text")))
    workspace = Workspace(folder / "data")
    return workspace, run_all(load(folder / "tiny.yaml"), workspace)


TINY_CHAIN = """
name: tiny
stages: [download, tokenizer, shard, pretrain, evaluate]
download: {sources: [{name: files, paths: [FOLDER]}]}
tokenizer: {tokenizer: byte}
pretrain: {architecture: {name: transformer, num_layers: 1, d_model: 32, num_heads: 2}, seq_len: 64, batch_size: 4, max_steps: 6, log_every: 2,
  validation_every: 3, validation_tokens: 256, precision: fp32, threads: 1, compile: "off"}
evaluate:
  benchmarks: [bits_per_byte, {name: python_parses, samples: 8, max_new_tokens: 12}, {name: task_accuracy, problems: 8}]
  precision: fp32
  threads: 1
"""
