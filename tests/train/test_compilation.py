import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feebcore.train import compilation

CPU = torch.device("cpu")


def test_a_run_shorter_than_its_compiling_stays_eager() -> None:
    assert not compilation.should_compile("auto", CPU, "fp32", 1e11, 100)[0]
    assert compilation.should_compile("auto", CPU, "fp32", 1e14, 100)[0]


def test_the_decision_knows_no_clock_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = [compilation.should_compile("auto", CPU, "fp32", flops, 1000) for flops in (1e11, 1e12, 1e13, 1e14)]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert wanted == [compilation.should_compile("auto", CPU, "fp32", flops, 1000) for flops in (1e11, 1e12, 1e13, 1e14)]


def test_without_a_compiler_a_run_says_so_and_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    wanted, notice = compilation.should_compile("on", CPU, "fp32", 1e15, 1000)
    assert not wanted
    assert "g++" in notice


def test_on_a_gpu_it_is_triton_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils._triton

    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: False)
    notice = compilation.should_compile("on", torch.device("cuda"), "bf16", 1e15, 1000)[1]
    assert "Triton" in notice
    assert "g++" not in notice


def test_compiled_code_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep_compiled_code()
    found = os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    assert Path(found) == tmp_path / "feeb" / "inductor"
    assert Path(found).is_dir()


def test_a_chosen_cache_folder_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compilation.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation.keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


FAULTS = """
import resource, torch
from feebcore.model import precision

assert precision.keep_freed_memory()

def faults(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(1 << 23) for _ in range(tensors)]  # 32 MB each: 8,192 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(6)  # glibc puts an aligned tensor into what held one only if there is a little room next to it: as here, with 2 more
print(min(faults(4) for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not Path("/proc/self/stat").exists(), reason="asks glibc and Linux")
def test_large_tensors_of_the_next_step_reuse_memory_without_page_faults() -> None:
    # in the main thread of a process of its own, as training is: the heaps of other threads are handed back all the same
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 8192  # of 32,768, which it takes where memory is handed back
