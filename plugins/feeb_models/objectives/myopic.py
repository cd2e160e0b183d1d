"""Each place learns for its own prediction only: no gradient of a later loss reaches an earlier place (arXiv:2404.00859).

Attention sees, in place of keys k_1 … k_T, the keys sg(k_1) … sg(k_T), k_1 … k_T (sg: stop gradient) and a mask under which
place t sees sg(k_s) for s < t and its own k_t; values alike. The softmax is over the same terms as ever, so the loss is that
of next_token and the gradient alone is another. Attention costs twice the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feeb_models.objectives import NextTokenConfig
from feeb_models.objectives.next_token import NextToken
from feebcore.model.context import C, Cache, attention_mask, positions_in_documents
from feebcore.model.counting import count_flops
from feebcore.protocols import Batch, LanguageModel, ModelOutput, Objective

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

    def also(self, kind: type[C], length: int) -> C:
        raise ValueError("objective myopic: the model's depth keeps a cache for fewer tokens, and that past cannot be detached; choose depth separate")

    def finish(self) -> None:
        """Nothing is kept."""


def detached_past(batch: Batch) -> DetachedPast:
    rows, length = batch.tokens.shape
    return DetachedPast(rows, length, batch.tokens.device)


class Myopic(NextToken):
    """For attentions that go by the context's mask; the first uncompiled call compares with the plain pass, and refuses
    attentions that go by the keys' places (windows, biases of position). A model in evaluation mode runs plainly."""

    proven = False

    def run(self, model: LanguageModel, batch: Batch) -> ModelOutput:
        if not getattr(model, "training", True):
            return super().run(model, batch)
        if not self.proven and not torch.compiler.is_compiling():
            self.prove(model, batch)
        cache = detached_past(batch)
        return model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids, cache=cache)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        """The past's scores and values once more: causal FLOPs are half of them. Of latent attention, which then multiplies latents, this
        is too little."""
        full, causal = count_flops(model.stack, length)  # type: ignore[attr-defined]
        return 2 * (full - causal), 0.0

    @torch.no_grad()
    def prove(self, model: LanguageModel, batch: Batch) -> None:
        """Raises ValueError where the model with a detached past computes something else than the model."""
        model.eval()  # type: ignore[attr-defined]
        plain_BTC = super().run(model, batch).hidden.float()
        cache = detached_past(batch)
        changed_BTC = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids, cache=cache).hidden.float()
        model.train()  # type: ignore[attr-defined]
        if not (plain_BTC - changed_BTC).norm() <= MOST_DIFFERENCE * plain_BTC.norm():
            raise ValueError(
                "objective myopic: the model's attention goes by the places of its keys, not by the mask alone, and cannot detach the past; "
                "choose attention mha or gqa and a position that turns queries and keys, or adds to the embedding"
            )
        self.proven = True


def build_myopic(config: NextTokenConfig) -> Objective:
    return Myopic(config)
