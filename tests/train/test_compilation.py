import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from feebcore.model.build import build_model
from feebcore.model.tensors import blocks_of
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.train import compilation
from feebcore.train.parallel import Strategy
from feebcore.train.step import GradientAccumulator, LossModule

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


def test_a_short_run_compiles_blocks_and_a_long_one_the_whole_graph() -> None:
    decide = lambda option, flops, by_blocks: compilation.should_compile(option, CPU, "fp32", flops, 1000, by_blocks)[0]  # noqa: E731
    assert decide("auto", 1e13, True) == "blocks"
    assert decide("auto", 1e13, False) == "whole"
    assert decide("auto", 1e15, True) == "whole"
    assert decide("blocks", 1.0, True) == "blocks"
    assert decide("on", 1.0, True) == "whole"


@pytest.mark.parametrize("options", [{}, {"feedforward": "moe"}, {"dropout": 0.1}], ids=["plain", "moe", "dropout"])
def test_equal_blocks_are_compiled_once_and_only_for_training(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(compilation, "compiled", lambda forward: torch.compile(forward, dynamic=False, backend=backend))
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": 4, "d_model": 16, "num_heads": 2, **options})
    model = build_model(architecture, 32, 8)
    module = LossModule(model, resolve_part("objectives", "next_token").build(), "fp32", CPU)
    gradients = GradientAccumulator(module, Strategy(), 0, print)
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def step() -> list[torch.Tensor]:
        loss = gradients.add(batch, 16, 0)[0]
        found = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
        model.zero_grad(set_to_none=True)
        return found

    expected = step()
    gradients.compile("blocks")
    torch.testing.assert_close(step(), expected)
    assert gradients.compiled == "blocks"
    number = len(graphs)
    step()
    assert len(graphs) == number
    if options != {"feedforward": "moe"}:  # where graphs break a block is several
        assert number == 1
    with torch.no_grad():
        model(tokens[:1, :5])
    assert len(graphs) == number
    assert not any("forward" in vars(block) for block in blocks_of(model))


@pytest.mark.parametrize(
    ("capability", "avx512", "asked", "answer"),
    [("AVX512", True, None, True), ("AVX2", False, None, True), ("AVX2", True, None, None), ("DEFAULT", False, None, None), ("AVX512", True, False, False)],
)
def test_only_vectors_that_torch_itself_uses_are_not_tried_first(
    monkeypatch: pytest.MonkeyPatch, capability: str, avx512: bool, asked: bool | None, answer: bool | None
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    with inductor.patch({"cpp.vec_isa_ok": asked}):
        compilation.trust_vector_instructions()
        assert inductor.cpp.vec_isa_ok is answer


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


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [True, False], ids=["inductor loaded before", "loaded inside"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_compiled_code_is_as_deterministic_as_the_run(deterministic: bool, loaded: bool) -> None:
    load = "import torch._inductor.config as inductor\n"
    code = f"""
import torch
from feebcore.model.precision import execution
{load if loaded else ""}with execution(1, {deterministic}, torch.device("cpu")):
    {load}    print(inductor.deterministic)
print(inductor.deterministic)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [str(deterministic), "False"]
