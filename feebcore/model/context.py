"""What one forward pass knows besides the stream: positions, masks, the key/value cache, and what blocks share.

A block is given a context of its own (BlockPart.run in feebcore/model/parts.py): what earlier blocks left in `shared` and `losses` goes in,
and what the block adds comes out as part of its result. So a block that is computed again for its gradient sees what it saw before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from feebcore.model.attention import attend, attention_weights, flex_takes
from feebcore.model.masks import NO_MASKS, Masks, attention_mask, positions_in_documents, window_block_mask, window_mask
from feebcore.model.position import Position

C = TypeVar("C", bound="Cache")

EMPTY = -2  # the document id of a cache slot that holds nothing yet


@dataclass
class ForwardContext:
    """Passed to embedding, stack, blocks, attentions and feedforwards with the tensor that they process.

    position, prepared: the model's Position and what its `prepare` made for this pass. masks: who may attend to whom.
    tokens_BT, positions_BT, doc_ids_BT [B,T] of the tokens of this pass (positions None: 0..T-1; doc_ids None: one document a row).
    start_BTC: the stream before the first block. cache: of a model that generates. dropout: of attention weights. window: no attention
    sees more tokens than these, its own among them; 0: no such limit. want_layers: the stream after every layer is asked for; else a
    stack may leave out all but the last. local_gradients: each block but the first of a pass is given detached tensors (`begun`: the first
    has run). shared: tensors by name, or tuples of them, that blocks leave for later blocks of the pass. losses: auxiliary
    losses by name, each a scalar mean over the batch.
    """

    position: Position
    prepared: Any = None
    masks: Masks = NO_MASKS
    cache: Cache | None = None
    tokens_BT: Tensor | None = None
    positions_BT: Tensor | None = None
    doc_ids_BT: Tensor | None = None
    start_BTC: Tensor | None = None
    dropout: float = 0.0
    window: int = 0
    want_layers: bool = False
    local_gradients: bool = False
    begun: bool = False
    shared: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mask_BTS(self) -> Tensor | None:
        """[B,T,S] bool: query t may see key s; None: causal, or, for one query, everything cached."""
        return self.masks.dense

    def for_block(self) -> ForwardContext:
        """A copy for one block, whose additions to `shared` and `losses` stay its own."""
        return dataclasses.replace(self, shared=dict(self.shared), losses=dict(self.losses))

    def after_block(self, shared: Mapping[str, Any], losses: Mapping[str, Tensor]) -> ForwardContext:
        """What the next block is given: this context with what the block before added."""
        return dataclasses.replace(self, shared={**self.shared, **shared}, losses={**self.losses, **losses}, begun=True)

    def detached(self) -> ForwardContext:
        """A copy whose shared tensors and start of the stream carry no gradient."""
        shared = {key: detached(value) for key, value in self.shared.items()}
        return dataclasses.replace(self, shared=shared, start_BTC=detached(self.start_BTC))

    def add_loss(self, name: str, value: Tensor) -> None:
        """Another auxiliary loss; those of one name are summed over layers."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def rotate(self, x_BTHD: Tensor) -> Tensor:
        """Queries or keys with the position encoding applied."""
        return self.position.rotate(x_BTHD, self.prepared)

    def update(self, *new_BHTD: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of this call appended to those cached for it; without a cache, as they are."""
        return new_BHTD if self.cache is None else self.cache.update(*new_BHTD)

    def attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, logit_softcap: float = 0.0, window: int = 0) -> Tensor:
        """`attend` of feebcore/model/attention.py with this pass's masks and the position's bias and score scale. window: number of tokens that each
        query attends to, including itself; 0: all."""
        T, S = q_BHTD.shape[2], k_BGSD.shape[2]
        window = self.narrowed(window)
        position, mask_BTS = self.position, self.masks.dense
        plain = mask_BTS is None and not (logit_softcap or position.has_bias or 0 < window < S)  # causal, which other kernels do faster
        usable = not (self.dropout or plain) and flex_takes(q_BHTD, v_BGSD)  # FlexAttention knows no dropout
        block_mask = self.masks.blocks if usable else None
        if window and window < S:
            if block_mask is not None:
                block_mask = self.masks.near[window] if window in self.masks.near else window_block_mask(block_mask, window)
            else:
                mask_BTS = self._near(T, S, window, k_BGSD.device) if T > 1 else mask_BTS
                if (reach := T + window - 1) < S:  # older keys are out of every query's sight
                    k_BGSD, v_BGSD, S = k_BGSD[:, :, -reach:], v_BGSD[:, :, -reach:], reach
                    mask_BTS = None if mask_BTS is None else mask_BTS[..., -reach:]
        by_distance = block_mask is not None and type(position).bias_of is not Position.bias_of
        bias_HTS, bias_of = (None, position.bias_of) if by_distance else (position.bias(T, S), None)
        return attend(q_BHTD, k_BGSD, v_BGSD, mask_BTS, logit_softcap, block_mask, bias_HTS, self.dropout, position.score_scale, bias_of)

    def weights(self, q_BHTD: Tensor, k_BGSD: Tensor, logit_softcap: float = 0.0) -> Tensor:
        """[B,H,T,S] fp32: what `attend` multiplies the values with."""
        T, S = q_BHTD.shape[2], k_BGSD.shape[2]
        mask_BTS = self._near(T, S, self.window, k_BGSD.device) if 0 < self.window < S else self.masks.dense
        position = self.position
        return attention_weights(q_BHTD, k_BGSD, mask_BTS, logit_softcap, position.bias(T, S), self.dropout, position.score_scale)

    def narrowed(self, window: int) -> int:
        """An attention's window within that of the pass; 0: none."""
        return min(window, self.window) if window and self.window else window or self.window

    def _near(self, length: int, num_keys: int, window: int, device: torch.device) -> Tensor:
        """[B or 1,T,S]: made before the blocks ran, if this window was announced (AttentionPart.window)."""
        if self.masks.blocks is None and window in self.masks.near:
            return self.masks.near[window]
        return window_mask(self.masks.dense, length, num_keys, window, device)


def detached(value: Any) -> Any:
    """Tensors in it, lists and tuples included, without their gradient."""
    if isinstance(value, list | tuple):
        return type(value)(detached(v) for v in value)
    return value.detach() if isinstance(value, Tensor) else value


class Cache:
    """KV cache, preallocated for `length` tokens per row.

    The n-th call of `update` in a forward pass owns slot n, so blocks that run several times or hold several attentions need
    no numbering, and those that keep nothing need no slot. A part may keep any tensors [B,H,T,D], as many as it likes. A part
    whose past fits into tensors of a fixed size keeps these with `recurrent_state` instead, numbered the same way. A stack
    whose blocks see fewer tokens keeps a cache for these with `child`.
    """

    def __init__(self, batch: int, length: int, device: torch.device | str) -> None:
        self.batch, self.length, self.filled = batch, length, 0
        self.doc_ids_BS = torch.full((batch, length), EMPTY, dtype=torch.int64, device=device)
        self.next_position_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self.plain = True  # one document per row, no padding: no mask needed
        self.slots: list[tuple[Tensor, ...]] = []
        self.states: list[tuple[Tensor, ...]] = []
        self.others: list[Cache] = []
        self._turn = self._state_turn = 0
        self._new = 0

    def begin(self, length: int, positions_BT: Tensor | None, doc_ids_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions and mask of the next `length` tokens. Without doc_ids they continue each row's last document."""
        if self.filled + length > self.length:
            raise ValueError(f"the KV cache is full: {self.length} tokens per sequence, {self.filled} used, {length} more do not fit")
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

    @property
    def num_keys(self) -> int:
        """Tokens of a row in this pass and before it."""
        return self.filled + self._new

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
