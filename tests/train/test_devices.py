"""What is decided by the device, shown without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_run import section

from feebcore.errors import FeebError
from feebcore.evaluate.scorer import BATCH_TOKENS
from feebcore.generate.decoding import AHEAD, PerRowRNG
from feebcore.model import loss, precision
from feebcore.train import compilation, parallel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_kernels_are_deterministic_on_a_cpu_and_the_fastest_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    chosen = {}
    for device in (CPU, CUDA):
        for option in ("auto", True, False):
            with precision.execution(1, option, device):  # type: ignore[arg-type]
                chosen[device.type, option] = torch.are_deterministic_algorithms_enabled()
    assert chosen == {(d, o): (d == "cpu" if o == "auto" else o) for d in ("cpu", "cuda") for o in ("auto", True, False)}
    assert section(deterministic=True).deterministic is True
    assert section().deterministic == "auto"


def test_logits_at_once_follow_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for gigabytes, expected in ((80, 2**28), (4, 2**25)):
        memory = SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, memory=memory: memory)
        assert expected <= loss.most_logits_on("cuda", 0) < 1.3 * expected
    assert loss.most_logits_on("cpu", None) == loss.MOST_LOGITS
    assert BATCH_TOKENS["cuda"] > BATCH_TOKENS["cpu"]


def test_a_task_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv(parallel.RENDEZVOUS, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert parallel.local_device(CUDA) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parallel.local_device(CUDA) == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FeebError, match="4 or more ranks on this machine, and 2 GPUs"):
        parallel.local_device(CUDA)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv(parallel.RENDEZVOUS, "file")  # started by feeb: ranks share what the machine has
    with pytest.raises(FeebError, match="4 or more ranks on this machine, and 1 GPUs"):
        parallel.local_device(CUDA)
    assert taken == [0, 3]


def test_versions_of_what_computes_on_a_gpu_are_compared_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    assert {"cuda", "cudnn", "nccl", "triton"} <= precision.environment(CUDA).keys()
    assert "cuda" not in precision.environment(CPU)


def test_a_compiled_forward_is_eager_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: lambda x: x + 100)
    forward = compilation.compiled(lambda x: x + 1)
    assert forward(1) == 101
    with torch.no_grad():
        assert forward(1) == 2


def test_random_numbers_that_are_made_ahead_are_those_of_each_row_alone() -> None:
    seeds = np.array([5, 2**63 + 9], dtype=np.uint64)
    together, number = PerRowRNG(seeds), AHEAD + 3
    drawn = torch.stack([together.uniform() for _ in range(number)])
    for row, seed in enumerate(seeds):
        alone = PerRowRNG(np.array([seed], dtype=np.uint64))
        assert torch.equal(drawn[:, row], torch.cat([alone.uniform() for _ in range(number)]))
    assert len(drawn.unique()) == 2 * number
