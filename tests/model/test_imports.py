"""What it costs to have a model in a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from feebcore.generate.engine import generate
from feebcore.model.build import build_model
from feebcore.model.precision import execution
from feebcore.parts import resolve_part
architecture = resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 16, "num_heads": 2})
with execution(1, "auto", torch.device("cpu")):
    assert torch.are_deterministic_algorithms_enabled()
    generate(build_model(architecture, 32, 16), [[1, 2]], 2, 0)
assert not torch.are_deterministic_algorithms_enabled()
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_generating_does_not_load_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[]"
