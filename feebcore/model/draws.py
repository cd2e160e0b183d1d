"""Initial weights that depend on the seed, the module's name and its shape, and on nothing else.

Two models that share a seed and differ in one block then agree in every other weight, so that what differs between their losses
is due to the block. One stream of random numbers for all modules in turn would give all weights after the block other values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn


def modules_to_draw(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its name, as `named_modules`; before each one torch's CPU generator is seeded from its own seed, as it was
    at the first, and the name."""
    seed = torch.initial_seed()
    for name, module in model.named_modules():
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield name, module
