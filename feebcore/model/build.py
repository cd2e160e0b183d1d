"""A model from its recipe: the same weights for the same seed, whatever was drawn before and wherever it will run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from feebcore.config import Part
from feebcore.model.counting import training_flops
from feebcore.protocols import Counts

if TYPE_CHECKING:
    from feebcore.registry import Registry


def build_model(architecture: Part, vocab_size: int, seq_len: int, seed: int = 0, device: str | torch.device = "cpu") -> Any:
    """A freshly initialized fp32 model (a torch module and LanguageModel) on `device`, in training mode.

    Weights are drawn on the CPU from `seed` alone; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = architecture.build(vocab_size, seq_len)
    return model.to(device)


def count_architecture(architecture: Part, vocab_size: int, seq_len: int) -> Counts:
    """Counts of an architecture without allocating its weights."""
    with torch.device("meta"):
        return architecture.build(vocab_size, seq_len).count()


def count_training(architecture: Part, objective: Any, vocab_size: int, seq_len: int) -> tuple[Counts, float]:
    """Counts of an architecture, and training FLOPs a token under an objective (built), without allocating its weights."""
    with torch.device("meta"):
        model = architecture.build(vocab_size, seq_len)
    return model.count(), training_flops(model, objective, seq_len)


def resolve_part(kind: str, value: Any, registry: Registry | None = None) -> Part:
    """The part that `value` (a name, or {name: …, option: …}) means on `kind`, as in a recipe. Raises ValidationError."""
    from typing import Annotated

    from pydantic import TypeAdapter

    from feebcore.config import PartKey

    return TypeAdapter(Annotated[Part, PartKey(kind)]).validate_python(value, context={"registry": registry})  # type: ignore[arg-type]
