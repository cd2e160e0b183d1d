"""A model from its recipe: the same weights for the same seed, whatever was drawn before and wherever it will run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from feebcore.model.counting import training_flops
from feebcore.parts import Part
from feebcore.protocols import Counts


def build_model(architecture: Part, vocab_size: int, seq_len: int, seed: int = 0, device: str | torch.device = "cpu") -> Any:
    """A freshly initialized fp32 model (a torch module and LanguageModel) on `device`, in training mode.

    Weights are drawn on the CPU from `seed` alone, each module's from the seed and its name; the caller's random state is left as it was. On device meta it has no weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if torch.device(device).type == "meta":
            with torch.device("meta"):
                return architecture.build(vocab_size=vocab_size, seq_len=seq_len)
        model: nn.Module = architecture.build(vocab_size=vocab_size, seq_len=seq_len)
    return model.to(device)


def count_architecture(architecture: Part, vocab_size: int, seq_len: int) -> Counts:
    """Counts of an architecture without allocating its weights."""
    counts: Counts = build_model(architecture, vocab_size, seq_len, device="meta").count()
    return counts


def count_training(architecture: Part, objective: Any, vocab_size: int, seq_len: int) -> tuple[Counts, float]:
    """Counts of an architecture, and training FLOPs per token under an objective (built), without allocating its weights."""
    model = build_model(architecture, vocab_size, seq_len, device="meta")
    return model.count(), training_flops(model, objective, seq_len)
