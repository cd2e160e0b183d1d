"""Each position learns for its own prediction only: no gradient of a later loss reaches an earlier position (arXiv:2404.00859).

Attention sees, in place of keys k_1 … k_T, the keys sg(k_1) … sg(k_T), k_1 … k_T (sg: stop gradient) and a mask under which
position t sees sg(k_s) for s < t and its own k_t; values alike. The softmax is over the same terms as ever, so the loss is that
of next_token and the gradient alone is another. Attention costs twice the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feeb_models.objectives.next_token.next_token import NextToken
from feebcore.model.context import C, Cache
from feebcore.model.counting import count_flops
from feebcore.model.masks import attention_mask, positions_in_documents
from feebcore.model.transformer import Transformer
from feebcore.protocols import Batch, LanguageModel, ModelOutput

MOST_DIFFERENCE = 0.03  # of the hidden states' size; bf16 stays below


class DetachedPast(Cache):
    """What attention finds in its cache is this very pass's past, detached."""

    def begin(self, length: int, positions_BT: Tensor | None, doc_ids_BT: Tensor | None) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        if positions_BT is None and doc_ids_BT is not None:
            positions_BT = positions_in_documents(doc_ids_BT)
        if doc_ids_BT is None:
            doc_ids_BT = torch.zeros_like(self.doc_ids_BS)
        self.doc_ids_BS, self._new = doc_ids_BT, length
        self_TT = torch.eye(length, dtype=torch.bool, device=doc_ids_BT.device)
        past_BTT = attention_mask(doc_ids_BT, doc_ids_BT) & ~self_TT
        return positions_BT, torch.cat([past_BTT, self_TT.expand_as(past_BTT)], dim=2)

    def update(self, *new_BHTD: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat([x.detach(), x], dim=2) for x in new_BHTD)

    def child(self, kind: type[C], length: int) -> C:
        raise ValueError("objective myopic: the model's stack keeps a cache for fewer tokens, and that past cannot be detached; choose stack sequential")

    def finish(self) -> None:
        """Nothing is kept."""


def detached_past(batch: Batch) -> DetachedPast:
    rows, length = batch.tokens.shape
    return DetachedPast(rows, length, batch.tokens.device)


class Myopic(NextToken):
    """For attentions that go by the context's mask; `check` refuses those that go by the keys' places (windows, biases of
    position). A model in evaluation mode runs plainly."""

    def run(self, model: LanguageModel, batch: Batch) -> ModelOutput:
        if not model.training:
            return super().run(model, batch)
        return self.run_detached(model, batch)

    def run_detached(self, model: LanguageModel, batch: Batch) -> ModelOutput:
        cache = detached_past(batch)
        return model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids, cache=cache)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        """The past's scores and values once more: causal FLOPs are half of them. Of latent attention, which then multiplies latents, this
        is too little."""
        full, causal = count_flops(model.stack, length) if isinstance(model, Transformer) else (0.0, 0.0)
        return 2 * (full - causal), 0.0

    @torch.no_grad()
    def check(self, model: LanguageModel) -> None:
        """Raises ValueError where the model with a detached past computes something else than the model."""
        if not isinstance(model, Transformer):
            raise ValueError("objective myopic: it detaches the past in the attentions of architecture transformer; choose that, or another objective")
        device, was_training = next(model.parameters()).device, model.training
        tokens_BT = torch.arange(model.seq_len, device=device)[None] % model.vocab_size
        batch = Batch(tokens_BT, tokens_BT)
        model.eval()
        plain_BTC, changed_BTC = super().run(model, batch).hidden.float(), self.run_detached(model, batch).hidden.float()
        model.train(was_training)
        if not (plain_BTC - changed_BTC).norm() <= MOST_DIFFERENCE * plain_BTC.norm():
            raise ValueError(
                "objective myopic: the model's attention goes by the places of its keys, not by the mask alone, and cannot detach the past; "
                "choose attention mha or gqa and a position that rotates queries and keys, or is added to the embedding"
            )
