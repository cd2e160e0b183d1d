"""Most blocks run on patches of tokens instead of tokens: bytes are read without paying a large model's step for each.

    x = before(r)                       blocks on every token
    g = patches(x[boundaries])          blocks on the boundaries alone; they see boundaries before them
    r' = after(x_t + g_b - x_b)         b: the last boundary at or before t; blocks on every token

A boundary is a token whose stream stands for the patch that ends before it: the first blocks have written into it what they
read there. What the blocks on patches add to it is added to every token up to the next boundary.
Where boundaries lie, each document tells for itself and from its past alone:

    stride   every `size` tokens from its first on (arXiv:2110.13711 shortens sequences so, with pooling)
    words    the byte after a word, of these the first in each `size` bytes (arXiv:2404.14408, which has no such limit)

so a document of T tokens has at most ceil(T / size), which is what compute and cache are counted for; in packed rows each further
document may add one (and experts with a capacity have places by the fullest row of the batch). The byte latent transformer
(arXiv:2412.09871) also cuts where a small model is surprised, and pools by cross-attention; neither is done here.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from feeb_models.stacks.patches import PatchesConfig
from feebcore.model.context import Cache, ForwardContext
from feebcore.model.counting import add_caches, count_cache, count_flops
from feebcore.model.masks import PADDING, Masks, make_masks
from feebcore.model.parts import StackPart, windows_of
from feebcore.protocols import BuildContext

BYTES = 258  # ids of tokenizer byte: bytes, BOS, EOS


class Patches(StackPart):
    """See the module's text. num_layers blocks on patches, `before` and `after` of them on tokens."""

    def __init__(self, config: PatchesConfig, context: BuildContext) -> None:
        super().__init__()
        first, second = config.before, config.before + context.num_layers
        make_block, vocab_size = context.make_block, context.vocab_size
        self.num_streams = second + config.after
        self.window, self.size, self.words = config.window, config.size, config.boundaries == "words"
        self.before = nn.ModuleList(make_block(i) for i in range(first))
        self.blocks = nn.ModuleList(make_block(i) for i in range(first, second))
        self.after = nn.ModuleList(make_block(i) for i in range(second, second + config.after))
        if self.words:
            if vocab_size > BYTES:
                raise ValueError(
                    f"stack patches: boundaries words reads token ids as bytes, and there are {vocab_size}; use tokenizer byte, or boundaries stride"
                )
            self.register_buffer("ends_words", ends_words(vocab_size), persistent=False)
        if add_caches(count_cache(block) for block in self.blocks)[1]:
            raise ValueError(
                "stack patches: this attention keeps a state of fixed size for each row, and rows reach boundaries at different times; choose another"
            )

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        near, streams = self.near(context, stream_BTC.shape[1]), []
        for block in self.before:
            stream_BTC, near = block.run(stream_BTC, near)  # type: ignore[operator]
            streams.append(stream_BTC)
        cache = context.cache
        held = None if cache is None else cache.child(PatchCache, -(-cache.length // self.size))
        boundaries = self.boundaries(context, held, *stream_BTC.shape[:2])
        inner = boundaries.context(near, held, context.window, windows_of(self.blocks))
        patches = boundaries.gather(stream_BTC)
        given_BTC, given_BPC = (stream_BTC.detach(), patches.detach()) if context.local_gradients else (stream_BTC, patches)
        for i, block in enumerate(self.blocks):
            if boundaries.P:  # a decoding step without a boundary costs the first and last blocks only
                patches, inner = block.run(patches, inner)  # type: ignore[operator]
            before_B1C = None if held is None else held.before(i, patches - given_BPC, boundaries.count_B)
            if context.want_layers or i == len(self.blocks) - 1:
                streams.append(given_BTC + boundaries.spread(patches - given_BPC, before_B1C))
        if held is not None:
            held.finish()
        stream_BTC, near = streams[-1], dataclasses.replace(near, losses=inner.losses)
        for block in self.after:
            stream_BTC, near = block.run(stream_BTC, near)  # type: ignore[operator]
            streams.append(stream_BTC)
        return streams, near

    def near(self, context: ForwardContext, length: int) -> ForwardContext:
        """What the blocks on every token are given: the context with their window, and masks for it."""
        near = dataclasses.replace(context, window=context.narrowed(self.window))
        if not near.window:
            return near
        windows = {near.narrowed(window) for window in (0, *windows_of(self.before), *windows_of(self.after))}
        num_keys = length if context.cache is None else context.cache.num_keys
        masks = make_masks(length, num_keys, context.masks.dense, windows, context.tokens_BT.device, context.masks.blocks)  # type: ignore[union-attr]
        return dataclasses.replace(near, masks=masks)

    def boundaries(self, context: ForwardContext, held: PatchCache | None, batch: int, length: int) -> Boundaries:
        tokens_BT = context.tokens_BT
        assert tokens_BT is not None
        plain = context.positions_BT is None  # then rows are one document each, from its first token on
        here_BT = torch.arange(length, device=tokens_BT.device).expand(batch, -1) if plain else context.positions_BT.expand(batch, -1)  # type: ignore[union-attr]
        docs_BT = torch.zeros_like(here_BT) if context.doc_ids_BT is None else context.doc_ids_BT.expand(batch, -1)
        known = None if held is None else held.last(batch, tokens_BT.device)
        before_B1 = torch.full_like(docs_BT[:, :1], NOWHERE) if known is None else known["doc"]
        begins_BT = torch.cat([before_B1, docs_BT[:, :-1]], 1) != docs_BT
        opens_BT = begins_BT | (here_BT % self.size == 0)  # each stretch of `size` tokens has one boundary at most
        if self.words:
            ends_BT = self.ends_words[tokens_BT]  # type: ignore[index]
            before_B1 = torch.zeros_like(ends_BT[:, :1]) if known is None else known["ends"]
            candidates_BT = begins_BT | (ends_BT & ~torch.cat([before_B1, ends_BT[:, :-1]], 1))
            counts_BT = candidates_BT.cumsum(1)  # those of the row so far; less those before the stretch, and, in the first, plus what it had
            start_BT = torch.where(opens_BT, counts_BT - candidates_BT.long(), -1).cummax(1).values
            had_BT = (start_BT < 0) & (torch.zeros_like(begins_BT[:, :1]) if known is None else known["had"])
            taken_BT = counts_BT - candidates_BT.long() - start_BT.clamp(min=0) > 0
            boundary_BT = candidates_BT & ~taken_BT & ~had_BT
            if known is not None:
                known["ends"].copy_(ends_BT[:, -1:])
                known["had"].copy_(had_BT[:, -1:] | (counts_BT[:, -1:] > start_BT[:, -1:].clamp(min=0)))
        else:
            boundary_BT = opens_BT
        if known is not None:
            known["doc"].copy_(docs_BT[:, -1:])
        most = math.ceil(length / self.size)
        if plain and held is None:
            return Boundaries(boundary_BT, here_BT, docs_BT, most)
        number = int(boundary_BT.sum(1).max())  # the one wait of a pass: most of its cost is in proportion to this number
        if held is not None:
            return Boundaries(boundary_BT, here_BT, docs_BT, number, to_the_right=True)
        step = max(1, most // 4)  # few different lengths: each is compiled anew
        return Boundaries(boundary_BT, here_BT, docs_BT, -(-number // step) * step, packed=True)

    def flops(self, length: int) -> tuple[float, float]:
        each = [count_flops(block, length) for block in (*self.before, *self.after)]
        each += [count_flops(block, math.ceil(length / self.size)) for block in self.blocks]
        return sum(full for full, _ in each), sum(causal for _, causal in each)

    def cache_bytes(self) -> tuple[int, int]:
        per_token, fixed = add_caches(count_cache(block) for block in (*self.before, *self.after))
        return per_token + round(add_caches(count_cache(block) for block in self.blocks)[0] / self.size), fixed


NOWHERE = -3  # the document of no token


class Boundaries:
    """Which tokens of a pass are boundaries, and the way to and from the short rows [B,P,…] that hold them.

    Rows with fewer than P stand at the left, with copies of the first token after them, which count as padding; `to_the_right` is for
    rows that go on from a cache, so that the last ones of all rows are in line. packed: rows hold several documents.
    """

    def __init__(self, boundary_BT: Tensor, positions_BT: Tensor, docs_BT: Tensor, P: int, to_the_right: bool = False, packed: bool = False) -> None:
        B, T = boundary_BT.shape
        device = boundary_BT.device
        self.P, self.packed = P, packed
        self.number_BT = boundary_BT.cumsum(1)
        self.count_B = self.number_BT[:, -1]
        self.shift_B1 = (P - self.count_B if to_the_right else torch.zeros_like(self.count_B))[:, None]
        slot_BT = torch.where(boundary_BT, self.number_BT - 1 + self.shift_B1, P)  # the last column takes what is no boundary
        place_T = torch.arange(T, device=device).expand(B, -1)
        self.index_BP = torch.zeros(B, P + 1, dtype=torch.int64, device=device).scatter(1, slot_BT, place_T)[:, :P]
        at_P = torch.arange(P, device=device)
        self.real_BP = (at_P >= self.shift_B1) & (at_P < self.shift_B1 + self.count_B[:, None])
        self.positions_BP = positions_BT.gather(1, self.index_BP)
        self.docs_BP = torch.where(self.real_BP, docs_BT.gather(1, self.index_BP), PADDING)

    def gather(self, x: Tensor) -> Tensor:
        """[B,T,…] to [B,P,…]."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.index_BP]

    def spread(self, change_BPC: Tensor, before_B1C: Tensor | None) -> Tensor:
        """[B,T,C]: for each token that of its patch's boundary; before a row's first one `before`, or 0."""
        B, _, C = change_BPC.shape
        first_B1C = change_BPC.new_zeros(B, 1, C) if before_B1C is None else before_B1C
        slot_BT = torch.where(self.number_BT > 0, self.number_BT + self.shift_B1, 0)
        return torch.cat([first_B1C, change_BPC], 1).gather(1, slot_BT[..., None].expand(-1, -1, C))

    def context(self, outer: ForwardContext, held: PatchCache | None, window: int, windows: list[int]) -> ForwardContext:
        """What the blocks on patches are given. Layers share values and keys among themselves only. windows: of their attentions."""
        mask_BPS = None
        if held is not None:
            mask_BPS = held.begin_patches(self.docs_BP, self.real_BP, self.count_B)
        elif self.packed:
            slots = torch.arange(self.P, device=self.docs_BP.device)
            mask_BPS = (self.docs_BP[:, :, None] == self.docs_BP[:, None, :]) & (slots[None, :] <= slots[:, None])
        num_keys = self.P if mask_BPS is None else mask_BPS.shape[2]
        inner = dataclasses.replace(outer, window=window)
        return dataclasses.replace(
            inner,
            prepared=outer.position.prepare(self.P, self.positions_BP),
            masks=make_masks(self.P, num_keys, mask_BPS, {inner.narrowed(w) for w in (0, *windows)}, self.docs_BP.device) if self.P else Masks(mask_BPS),
            cache=held,
            tokens_BT=None if outer.tokens_BT is None else self.gather(outer.tokens_BT),
            start_BTC=None if outer.start_BTC is None else self.gather(outer.start_BTC),
            positions_BT=self.positions_BP,
            doc_ids_BT=self.docs_BP,
            shared={},
        )


class PatchCache(Cache):
    """Keys and values of boundaries. Rows reach theirs at different times, so each counts its own slots, from the left; what
    `update` returns has the rows' last ones in line at the right."""

    def __init__(self, batch: int, length: int, device: torch.device | str) -> None:
        super().__init__(batch, length, device)
        self.filled_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self.row_state: dict[str, Tensor] = {}
        self.changes: dict[int, Tensor] = {}

    def last(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Of each row's last token [B,1]: its document, whether it ended a word, whether its stretch had its boundary. Written in place."""
        if not self.row_state:
            none = torch.zeros(batch, 1, dtype=torch.bool, device=device)
            self.row_state = {"doc": torch.full((batch, 1), NOWHERE, dtype=torch.int64, device=device), "ends": none, "had": none.clone()}
        return self.row_state

    def begin_patches(self, docs_BP: Tensor, real_BP: Tensor, count_B: Tensor) -> Tensor:
        """The mask [B,P,S] of the boundaries of this call, real ones at the right of docs_BP [B,P]."""
        P, device = docs_BP.shape[1], docs_BP.device
        total_B = self.filled_B + count_B
        S = int(total_B.max())  # here too, a step of decoding: what is read of the cache is as long as this
        if self.length < S:
            self._grow(max(S, 2 * self.length))
        self._turn, self._new = 0, P
        slots, filled_B1 = torch.arange(self.length, device=device), self.filled_B[:, None]
        self._fresh_BS = (slots >= filled_B1) & (slots < total_B[:, None])
        self._source_BS = (slots - filled_B1 + P - count_B[:, None]).clamp(min=0, max=max(0, P - 1))
        self._read_BS = torch.arange(S, device=device) - (S - total_B[:, None])
        if P:
            self.doc_ids_BS = torch.where(self._fresh_BS, docs_BP.gather(1, self._source_BS), self.doc_ids_BS)
        keys_BS = torch.where(self._read_BS >= 0, self.doc_ids_BS.gather(1, self._read_BS.clamp(min=0)), NOWHERE)
        self._total_B = total_B
        s, t = torch.arange(S, device=device), torch.arange(S - P, S, device=device)
        visible_BPS = (docs_BP[:, :, None] == keys_BS[:, None, :]) & (s <= t[:, None])
        return visible_BPS | (~real_BP[:, :, None] & (s == t[:, None]))  # one that is no boundary sees itself: no softmax of nothing

    def update(self, *new_BHTD: Tensor) -> tuple[Tensor, ...]:
        if self._turn == len(self.slots):
            self.slots.append(tuple(x.new_zeros(*x.shape[:2], self.length, x.shape[3]) for x in new_BHTD))
        slot, found = self.slots[self._turn], []
        self._turn += 1
        rows = torch.arange(self.batch, device=self.filled_B.device)[:, None]
        for kept, x in zip(slot, new_BHTD, strict=True):
            # each slot takes its boundary, if it has a new one: to write those alone would be to wait for how many there are
            kept.copy_(torch.where(self._fresh_BS[:, None, :, None], x.transpose(1, 2)[rows, self._source_BS].transpose(1, 2), kept))
            read = kept.transpose(1, 2)[rows, self._read_BS.clamp(min=0)].transpose(1, 2)
            found.append(read)
        return tuple(found)

    def before(self, layer: int, change_BPC: Tensor, count_B: Tensor) -> Tensor:
        """[B,1,C]: what this layer changed at each row's last boundary of earlier calls. The newest takes its place."""
        old_B1C = self.changes.get(layer)
        if old_B1C is None:
            old_B1C = change_BPC.new_zeros(len(change_BPC), 1, change_BPC.shape[2])
        if change_BPC.shape[1]:
            self.changes[layer] = torch.where(count_B[:, None, None] > 0, change_BPC[:, -1:], old_B1C)
        return old_B1C

    def finish(self) -> None:
        self.filled_B, self._new = self._total_B, 0

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.filled_B = self.filled_B[rows]
        self.row_state = {name: state[rows] for name, state in self.row_state.items()}
        self.changes = {layer: change[rows] for layer, change in self.changes.items()}

    def _grow(self, length: int) -> None:
        """Packed documents each begin with a boundary, so a row of many may need more slots."""
        more = length - self.length
        self.slots = [tuple(torch.cat([kept, kept.new_zeros(*kept.shape[:2], more, kept.shape[3])], 2) for kept in slot) for slot in self.slots]
        self.doc_ids_BS = torch.cat([self.doc_ids_BS, self.doc_ids_BS.new_full((self.batch, more), NOWHERE)], 1)
        self.length = length


def ends_words(vocab_size: int) -> Tensor:
    """[V] bool: bytes that are no letter, digit or inner byte of a character; BOS and EOS too ('spacelike', arXiv:2404.14408)."""
    inside = [chr(i).isalnum() if i < 128 else i < 192 for i in range(min(vocab_size, 256))]
    return ~torch.tensor(inside + [False] * (vocab_size - len(inside)))
