"""A frozen model next to the one that is trained: a teacher or a reference. Loaded once, opaque to torch.compile.

The models stand in a table by the digest of their files, so that an operation can name the one it means; they leave it with
the last objective that uses them.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from feebcore.model.counting import count_flops
from feebcore.model.io import load_model
from feebcore.model.transformer import Transformer
from feebcore.protocols import Batch

_MODELS: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()


class ReferenceModel:
    """The model of a model folder, or of an artifact that has one. key: its option, for errors. digest: of its files."""

    def __init__(self, objective: str, key: str, folder: str, digest: str) -> None:
        self.name, self.digest = f"objective {objective}: {key} {folder}", digest
        path = Path(folder)
        model = _MODELS.get(digest)
        if model is None:
            model = _MODELS[digest] = load_model(path / "model" if (path / "model").is_dir() else path).requires_grad_(False)
        self.model = model
        self.vocab_size, self.seq_len = int(model.vocab_size), int(model.seq_len)  # type: ignore[arg-type]
        with torch.no_grad():
            self.width = model(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)).hidden.shape[-1]

    def hidden(self, batch: Batch, vocab_size: int) -> Tensor:
        """[B,T,C] fp32. Raises ValueError where the two models' vocabularies differ."""
        if vocab_size != self.vocab_size:
            raise ValueError(f"{self.name} has {self.vocab_size} tokens, the trained model {vocab_size}; both need the same tokenizer")
        if batch.tokens.shape[1] > self.seq_len:
            raise ValueError(f"{self.name} was made for seq_len {self.seq_len}, the batch has {batch.tokens.shape[1]} tokens per row")
        return _hidden(self.digest, self.width, batch.tokens, batch.positions, batch.doc_ids, _in_bf16(batch.tokens))

    def flops(self, length: int) -> float:
        """Forward FLOPs of the model and its head on one sequence."""
        if isinstance(self.model, Transformer):
            return count_flops(self.model, length)[0]
        return length * self.model.count().flops_per_token  # type: ignore[operator]

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """[N,V] fp32."""
        return _logits(self.digest, self.vocab_size, hidden_NC, _in_bf16(hidden_NC))


def _in_bf16(x: Tensor) -> bool:
    """Whether the trained model computes in bf16 here; the frozen one then does too."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


@torch.library.custom_op("feeb::frozen_hidden", mutates_args=())
def _hidden(digest: str, width: int, tokens_BT: Tensor, positions_BT: Tensor | None, doc_ids_BT: Tensor | None, bf16: bool) -> Tensor:
    model = _MODELS[digest].to(tokens_BT.device)
    with torch.no_grad(), torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=bf16):
        return model(tokens_BT, positions=positions_BT, doc_ids=doc_ids_BT).hidden.float().contiguous()


@_hidden.register_fake
def _(digest: str, width: int, tokens_BT: Tensor, positions_BT: Tensor | None, doc_ids_BT: Tensor | None, bf16: bool) -> Tensor:
    return tokens_BT.new_empty((*tokens_BT.shape, width), dtype=torch.float32)


@torch.library.custom_op("feeb::frozen_logits", mutates_args=())
def _logits(digest: str, vocab_size: int, hidden_NC: Tensor, bf16: bool) -> Tensor:
    with torch.no_grad(), torch.autocast(hidden_NC.device.type, dtype=torch.bfloat16, enabled=bf16):
        return _MODELS[digest].lm_head(hidden_NC).float().contiguous()  # type: ignore[operator]


@_logits.register_fake
def _(digest: str, vocab_size: int, hidden_NC: Tensor, bf16: bool) -> Tensor:
    return hidden_NC.new_empty((len(hidden_NC), vocab_size), dtype=torch.float32)
