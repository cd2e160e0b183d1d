"""A token's vector plus those of the n-grams that end at it, found in tables by hash.

This is the front of the byte latent transformer's local encoder (arXiv:2412.09871, section 3.2.1): with bytes
as tokens, it tells the first block which letters came before. It is not that paper's patching: there, a small model groups
bytes into patches and the large one takes a step per patch. Here the large model still takes a step per byte, so it costs what a
byte-level model costs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.embeddings.hash_ngrams import HashNgramsConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import EmbeddingPart
from feebcore.protocols import BuildContext

PRIME, FACTOR = 2_147_483_647, 1_640_531_527  # PRIME * FACTOR < 2^62: no product overflows


class HashNgrams(EmbeddingPart):
    """(E[x_t] + sum_n G_n[hash(x_{t-n+1} … x_t) mod buckets]) / (number of sizes + 1).

    Tokens before the document's first count as one more symbol, so n-grams never reach into another document or into padding.
    Different n-grams may share a bucket. With a cache, a token's id is kept in it: one number per token.
    """

    def __init__(self, config: HashNgramsConfig, context: BuildContext) -> None:
        super().__init__()
        self.sizes, self.buckets, self.outside = config.sizes, config.buckets, context.vocab_size
        self.table = nn.Embedding(context.vocab_size, context.d_model)
        self.grams = nn.Embedding(len(self.sizes) * config.buckets, context.d_model)  # one table per size, below each other

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:
        total_BTC = self.table(tokens_BT)
        for rows_BT in self.rows(self.windows(tokens_BT, context)):
            total_BTC = total_BTC + self.grams(rows_BT)
        return total_BTC / (len(self.sizes) + 1)

    def windows(self, tokens_BT: Tensor, context: ForwardContext) -> list[Tensor]:
        """[B,T] each: the token itself, the one before, the one before that …; `outside` where the document has none."""
        (known_B1S1,) = context.update(tokens_BT[:, None, :, None])
        known_BS = known_B1S1[:, 0, :, 0]
        T, S = tokens_BT.shape[1], known_BS.shape[1]
        at_T = torch.arange(S - T, S, device=tokens_BT.device)
        windows = [tokens_BT]
        for back in range(1, max(self.sizes)):
            from_T = (at_T - back).clamp(min=0)
            visible = at_T >= back
            if context.mask_BTS is not None:  # query t may see key t - back: same document
                visible = visible & context.mask_BTS[:, torch.arange(T, device=tokens_BT.device), from_T]
            windows.append(torch.where(visible, known_BS[:, from_T], self.outside))
        return windows

    def rows(self, windows: list[Tensor]) -> list[Tensor]:
        """[B,T] each, one a size: the row of `grams` that the n-gram falls on. Polynomial hash modulo a prime."""
        hash_BT, hashes = torch.zeros_like(windows[0]), {}
        for n, ids_BT in enumerate(windows, 1):
            hash_BT = (hash_BT * FACTOR + ids_BT + 1) % PRIME
            hashes[n] = hash_BT
        return [hashes[n] % self.buckets + i * self.buckets for i, n in enumerate(self.sizes)]

    @property
    def cache_bytes_per_token(self) -> int:
        return 4
