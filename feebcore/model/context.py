"""What one forward pass knows besides the stream: positions, who may attend to whom, and the key/value cache.

Tokens attend to tokens at or before them with the same document id. Padding has id -1 and so attends to padding
only, which keeps every softmax finite and padding out of every document. With no document ids and no cache there
is no mask at all: attention is plainly causal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from feebcore.model.attention import attend, attention_weights, window_block_mask, window_mask
from feebcore.model.parts import Position

C = TypeVar("C", bound="Cache")

PADDING = -1
EMPTY = -2  # the document id of a cache slot that holds nothing yet


@dataclass
class ForwardContext:
    """Handed to every block layout, attention and feedforward. mask_BTS: True where query t may see key s; None: causal, or, for one
    query, everything cached. block_mask: the same for FlexAttention, where that is used.

    tokens_BT and start_BTC: what the model was given, and the stream before the first block. shared: what one layer leaves
    for later ones in the same forward pass (values, keys), under names of the part's own. losses: auxiliary terms, means
    over the batch, each a scalar; add to what is there with `add_loss`. local_gradients: each layer learns for itself, see
    Transformer.forward; begun: the first block has run. want_layers: every layer's stream is asked for, else a depth may leave
    out all but the last. dropout: share of the attention weights that this pass sets to 0. window: no attention sees more tokens than these, itself among them; 0: no such limit. positions_BT, doc_ids_BT [B,T] of these tokens; None: 0..T-1, one document a row.
    """

    position: Position
    prepared: Any = None
    mask_BTS: Tensor | None = None
    cache: Cache | None = None
    block_mask: Any = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    tokens_BT: Tensor | None = None
    start_BTC: Tensor | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    local_gradients: bool = False
    begun: bool = False
    want_layers: bool = False
    dropout: float = 0.0
    window: int = 0
    positions_BT: Tensor | None = None
    doc_ids_BT: Tensor | None = None

    def add_loss(self, name: str, value: Tensor) -> None:
        """Another auxiliary term; those of one name are summed over layers."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def rotate(self, x_BTHD: Tensor) -> Tensor:
        return self.position.rotate(x_BTHD, self.prepared)

    def update(self, *new_BHTD: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of this call after those cached for it, [B,H,S,D] each; without a cache, what was given."""
        return new_BHTD if self.cache is None else self.cache.update(*new_BHTD)

    def attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, logit_softcap: float = 0.0, window: int = 0) -> Tensor:
        """`attend` of feebcore/model/attention.py with this pass's masks and the position's bias. window: each query sees so
        many tokens, itself among them; 0: all."""
        T, S = q_BHTD.shape[2], k_BGSD.shape[2]
        window = min(window, self.window) if window and self.window else window or self.window
        mask_BTS, block_mask = self.mask_BTS, None if self.dropout else self.block_mask  # FlexAttention knows no dropout
        if window and window < S:
            if block_mask is not None:
                block_mask = window_block_mask(block_mask, window)
            elif (reach := T + window - 1) < S:  # older keys are out of every query's sight
                k_BGSD, v_BGSD, S = k_BGSD[:, :, -reach:], v_BGSD[:, :, -reach:], reach
                mask_BTS = None if mask_BTS is None else mask_BTS[..., -reach:]
            if T > 1 and block_mask is None:
                mask_BTS = window_mask(mask_BTS, T, S, window, k_BGSD.device)
        return attend(q_BHTD, k_BGSD, v_BGSD, mask_BTS, logit_softcap, block_mask, self.position.bias(T, S), self.dropout)

    def weights(self, q_BHTD: Tensor, k_BGSD: Tensor, logit_softcap: float = 0.0) -> Tensor:
        """[B,H,T,S] fp32: what `attend` multiplies the values with."""
        T, S = q_BHTD.shape[2], k_BGSD.shape[2]
        mask_BTS = window_mask(self.mask_BTS, T, S, self.window, k_BGSD.device) if 0 < self.window < S else self.mask_BTS
        return attention_weights(q_BHTD, k_BGSD, mask_BTS, logit_softcap, self.position.bias(T, S), self.dropout)


class Cache:
    """Keys and values of the tokens so far, preallocated for `length` tokens a row.

    The n-th attention call of a forward pass that extends owns slot n, so blocks that run several times or hold several
    attentions need no numbering, and those that keep nothing need no slot. A part may keep any tensors [B,H,T,D], as many
    as it likes. A part whose past fits into tensors of a fixed size keeps these with `carry` instead, numbered the same way.
    A depth whose blocks see fewer tokens keeps a cache for these with `also`.
    """

    def __init__(self, batch: int, length: int, device: torch.device | str) -> None:
        self.batch, self.length, self.filled = batch, length, 0
        self.doc_ids_BS = torch.full((batch, length), EMPTY, dtype=torch.int64, device=device)
        self.next_position_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self.plain = True  # one document a row, no padding: no mask needed
        self.slots: list[tuple[Tensor, ...]] = []
        self.states: list[tuple[Tensor, ...]] = []
        self.others: list[Cache] = []
        self._turn = self._state_turn = 0
        self._new = 0

    def begin(self, length: int, positions_BT: Tensor | None, doc_ids_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions and mask of the next `length` tokens. Without doc_ids they continue each row's last document."""
        if self.filled + length > self.length:
            raise ValueError(f"the cache holds {self.length} tokens a row; {self.filled} are there and {length} more do not fit")
        start, end = self.filled, self.filled + length
        self.plain = self.plain and doc_ids_BT is None
        last_B = self.doc_ids_BS[:, start - 1] if start else torch.zeros_like(self.next_position_B)
        if doc_ids_BT is None:
            doc_ids_BT = last_B[:, None].expand(-1, length)
        if positions_BT is None:
            positions_BT = positions_in_documents(doc_ids_BT)
            continues_BT = (positions_BT == torch.arange(length, device=positions_BT.device)) & (doc_ids_BT == last_B[:, None])
            positions_BT = positions_BT + continues_BT * self.next_position_B[:, None]
        self.doc_ids_BS[:, start:end] = doc_ids_BT
        self.next_position_B = (positions_BT[:, -1] + 1).expand(self.batch)
        self._turn, self._state_turn, self._new = 0, 0, length
        if self.plain and (start == 0 or length == 1):
            return positions_BT, None
        return positions_BT, attention_mask(doc_ids_BT, self.doc_ids_BS[:, :end], start)

    def newest_doc_ids(self) -> Tensor:
        """[B,T] of the tokens that this pass began with."""
        return self.doc_ids_BS[:, self.filled : self.filled + self._new]

    def update(self, *new_BHTD: Tensor) -> tuple[Tensor, ...]:
        if self._turn == len(self.slots):
            self.slots.append(tuple(x.new_zeros(*x.shape[:2], self.length, x.shape[3]) for x in new_BHTD))
        slot, end = self.slots[self._turn], self.filled + self._new
        self._turn += 1
        for kept, x_BHTD in zip(slot, new_BHTD, strict=True):
            kept[:, :, self.filled : end] = x_BHTD
        return tuple(kept[:, :, :end] for kept in slot)

    def recurrent_state(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """The tensors [B,…] that this call wrote in the pass before, at first `fresh`. Write the new ones into them in place."""
        if self._state_turn == len(self.states):
            self.states.append(fresh)
        self._state_turn += 1
        return self.states[self._state_turn - 1]

    def child(self, kind: type[C], length: int) -> C:
        """A cache of this kind for shorter rows, made at the first call; at most one a model."""
        if not self.others:
            self.others.append(kind(self.batch, length, self.doc_ids_BS.device))
        (other,) = self.others
        assert isinstance(other, kind)
        return other

    def finish(self) -> None:
        """The forward pass is over: its tokens are part of the past."""
        self.filled += self._new
        self._new = 0

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order (finished rows dropped, beams reordered). rows: [B'] int64."""
        self.batch = len(rows)
        self.doc_ids_BS, self.next_position_B = self.doc_ids_BS[rows], self.next_position_B[rows]
        self.slots = [tuple(kept[rows] for kept in slot) for slot in self.slots]
        self.states = [tuple(kept[rows] for kept in state) for state in self.states]
        for other in self.others:
            other.select(rows)


def attention_mask(query_doc_ids_BT: Tensor, key_doc_ids_BS: Tensor, start: int = 0) -> Tensor:
    """[B,T,S] bool: key s is at or before query t (which is token start + t) and in its document."""
    t = torch.arange(start, start + query_doc_ids_BT.shape[1], device=key_doc_ids_BS.device)
    s = torch.arange(key_doc_ids_BS.shape[1], device=key_doc_ids_BS.device)
    return (query_doc_ids_BT[:, :, None] == key_doc_ids_BS[:, None, :]) & (s <= t[:, None])


def positions_in_documents(doc_ids_BT: Tensor) -> Tensor:
    """[B,T] int64: each token's distance from the first token of its run of equal document ids."""
    index_T = torch.arange(doc_ids_BT.shape[1], device=doc_ids_BT.device)
    begins_BT = torch.ones_like(doc_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1]
    return index_T - torch.where(begins_BT, index_T, 0).cummax(dim=1).values
