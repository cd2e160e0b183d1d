"""A token's vector plus those of the n-grams that end at it, found in tables by hash.

This is the front of the byte latent transformer's local encoder (arXiv:2412.09871, section 3.2.1): with bytes
as tokens, it tells the first block which letters came before. It is not that paper's patching: there, a small model groups
bytes into patches and the large one takes a step a patch. Here the large model still takes a step a byte, so it costs what a
byte-level model costs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.embeddings import HashNgramsConfig
from feebcore.model.context import ForwardContext

PRIME, FACTOR = 2_147_483_647, 1_640_531_527  # PRIME * FACTOR < 2^62: no product overflows


class HashNgrams(nn.Module):
    """(E[x_t] + sum_n G_n[hash(x_{t-n+1} … x_t) mod buckets]) / (number of sizes + 1).

    Tokens before the document's first count as one more symbol, so n-grams never reach into another document or into padding.
    Different n-grams may share a bucket. With a cache, a token's id is kept in it: one number a token.
    """

    takes_context = True

    def __init__(self, config: HashNgramsConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.sizes, self.buckets, self.outside = config.sizes, config.buckets, vocab_size
        self.table = nn.Embedding(vocab_size, d_model)
        self.grams = nn.Embedding(len(self.sizes) * config.buckets, d_model)  # one table a size, below each other

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
        found = [tokens_BT]
        for back in range(1, max(self.sizes)):
            from_T = (at_T - back).clamp(min=0)
            visible = at_T >= back
            if context.mask_BTS is not None:  # query t may see key t - back: same document
                visible = visible & context.mask_BTS[:, torch.arange(T, device=tokens_BT.device), from_T]
            found.append(torch.where(visible, known_BS[:, from_T], self.outside))
        return found

    def rows(self, windows: list[Tensor]) -> list[Tensor]:
        """[B,T] each, one a size: the row of `grams` that the n-gram falls on. Polynomial hash modulo a prime."""
        hash_BT, found = torch.zeros_like(windows[0]), {}
        for n, ids_BT in enumerate(windows, 1):
            hash_BT = (hash_BT * FACTOR + ids_BT + 1) % PRIME
            found[n] = hash_BT
        return [found[n] % self.buckets + i * self.buckets for i, n in enumerate(self.sizes)]

    @property
    def cache_bytes_per_token(self) -> int:
        return 4


def build_hash_ngrams(config: HashNgramsConfig, vocab_size: int, d_model: int) -> nn.Module:
    return HashNgrams(config, vocab_size, d_model)
