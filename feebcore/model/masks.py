"""Which tokens attend to which, made once per forward pass and once per attention window, before any block runs.

Tokens attend to tokens at or before them with the same document id. Padding has id -1 and so attends to padding only, which keeps
every softmax finite and padding out of every document. With neither document ids nor a cache there is no mask: attention is causal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

PADDING = -1


@dataclass(frozen=True)
class Masks:
    """dense [B,T,S] bool: True where query t may see key s; None: causal, or, for one query, everything cached. blocks: the same as a
    BlockMask of FlexAttention, where that is used. near: for each window, `dense` ([B or 1,T,S]) or, where there is one, `blocks`,
    narrowed to the last so many tokens, each query's own among them."""

    dense: Tensor | None = None
    blocks: Any = None
    near: dict[int, Any] = field(default_factory=dict)


NO_MASKS = Masks()
"""Plainly causal."""


def make_masks(length: int, num_keys: int, dense_BTS: Tensor | None, windows: Iterable[int], device: torch.device, blocks: Any = None) -> Masks:
    """The masks of one pass of `length` queries over num_keys keys. windows: those that attentions of the model have."""
    windows = [w for w in windows if 0 < w < num_keys]
    if blocks is not None:
        return Masks(dense_BTS, blocks, {w: window_block_mask(blocks, w) for w in windows})
    if length == 1:  # one query: keys out of its sight are cut off, no mask is needed
        return Masks(dense_BTS)
    return Masks(dense_BTS, None, {w: window_mask(dense_BTS, length, num_keys, w, device) for w in windows})


def attention_mask(query_doc_ids_BT: Tensor, key_doc_ids_BS: Tensor, start: int = 0) -> Tensor:
    """[B,T,S] bool: key s is at or before query t (which is token start + t) and in its document."""
    t = torch.arange(start, start + query_doc_ids_BT.shape[1], device=key_doc_ids_BS.device)
    s = torch.arange(key_doc_ids_BS.shape[1], device=key_doc_ids_BS.device)
    return (query_doc_ids_BT[:, :, None] == key_doc_ids_BS[:, None, :]) & (s <= t[:, None])


def window_mask(mask_BTS: Tensor | None, length: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """[B or 1,T,S] bool: `mask_BTS` (None: causal, the last query aligned with the last key), and no further back than
    `window` tokens, each query's own among them."""
    t = torch.arange(num_keys - length, num_keys, device=device)[:, None]
    s = torch.arange(num_keys, device=device)
    near_TS = t - s < window
    return ((s <= t) & near_TS)[None] if mask_BTS is None else mask_BTS & near_TS


def causal_block_mask(length: int, device: torch.device) -> BlockMask:
    """Causal, the same in every row."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, t, s: t >= s, None, None, length, length, device=device)


def document_block_mask(doc_ids_BT: Tensor) -> BlockMask:
    """Causal within equal document ids, as FlexAttention's mask (arXiv:2412.05496): blocks of 128 x 128 that are seen
    whole, in part or not at all, so no [B,T,T] is held and blocks between documents cost nothing."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (t >= s) & (doc_ids_BT[b, t] == doc_ids_BT[b, s])

    B, T = doc_ids_BT.shape
    return create_block_mask(sees, B, None, T, T, device=doc_ids_BT.device)


def window_block_mask(block_mask: Any, window: int) -> BlockMask:
    """A `document_block_mask` narrowed to the last `window` tokens, each query's own among them."""
    from torch.nn.attention.flex_attention import and_masks, create_block_mask

    def near(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return t - s < window

    B, _, T, S = block_mask.shape
    return create_block_mask(and_masks(block_mask.mask_mod, near), B, None, T, S, device=block_mask.kv_indices.device)


def positions_in_documents(doc_ids_BT: Tensor) -> Tensor:
    """[B,T] int64: each token's distance from the first token of its run of equal document ids."""
    index_T = torch.arange(doc_ids_BT.shape[1], device=doc_ids_BT.device)
    begins_BT = torch.ones_like(doc_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1]
    return index_T - torch.where(begins_BT, index_T, 0).cummax(dim=1).values
