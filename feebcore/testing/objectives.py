"""What objectives promise. They are given a model whose hidden states are the logits, so that every effect is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feebcore.protocols import Batch, ModelOutput
from feebcore.testing.framework import Candidate, check, require

VOCAB, ROWS, LENGTH = 11, 3, 7


class Table(nn.Module):
    """hidden = logits [B,T,V], whatever the tokens are; the head is the identity."""

    def __init__(self, logits_BTV: Tensor) -> None:
        super().__init__()
        self.logits, self.head, self.vocab_size, self.seq_len = nn.Parameter(logits_BTV), nn.Identity(), VOCAB, LENGTH

    def forward(self, tokens_BT: Tensor, **kwargs: Any) -> ModelOutput:
        return ModelOutput(self.logits[: len(tokens_BT)])


def example(seed: int = 0) -> tuple[Tensor, Batch]:
    """Random logits and a batch of which about half the targets count."""
    random = torch.Generator().manual_seed(seed)
    stream = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=random)
    mask = torch.rand(ROWS, LENGTH, generator=random) < 0.6
    mask[:, 0], mask[:, 1] = True, False
    return torch.randn(ROWS, LENGTH, VOCAB, generator=random), Batch(stream[:, :-1], stream[:, 1:], mask)


@check("objectives", meaning="Targets are shifted: the model learns to copy its input or to skip a token; inputs and targets come aligned, do not shift again.")
def targets_are_aligned(subject: Candidate) -> None:
    objective, (_, batch) = subject.part.build(), example()
    assert batch.mask is not None
    everywhere = Batch(batch.tokens, batch.targets, torch.ones_like(batch.mask))
    knowing = lambda ids: Table(20.0 * F.one_hot(ids, VOCAB).float())  # noqa: E731
    mean = lambda ids: float((out := objective(knowing(ids), everywhere)).loss_sum.detach() / out.count)  # noqa: E731
    right, others = mean(batch.targets), [mean(batch.tokens), mean(batch.targets.roll(-1, 1))]
    require(right < min(others) / 2, f"a model that knows the next token has loss {right:.2f}; one that knows the wrong place {min(others):.2f}")


@check(
    "objectives",
    meaning="Targets that do not count change the loss, so padding or prompts are trained on; multiply by the mask before summing, divide by its sum.",
)
def mask_decides(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    assert batch.mask is not None
    before = objective(Table(logits), batch)
    require(float(before.count) == float(batch.mask.sum()), f"count {float(before.count)}, the mask has {int(batch.mask.sum())}")
    scrambled = torch.where(batch.mask, batch.targets, torch.full_like(batch.targets, -100))
    noisy = torch.where(batch.mask[..., None], logits, logits + 3)
    noisy = torch.where(batch.mask[..., None], noisy, noisy.flip(-1))
    after = objective(Table(noisy), Batch(batch.tokens, scrambled, batch.mask))
    require(torch.allclose(before.loss_sum, after.loss_sum, rtol=1e-5), f"loss {before.loss_sum.item():.4f} became {after.loss_sum.item():.4f}")


@check("objectives", meaning="Padding (document id -1) is trained on.")
def padding_is_left_out(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    doc_ids = torch.zeros_like(batch.tokens)
    doc_ids[:, :3] = -1
    assert batch.mask is not None
    padded = objective(Table(logits), Batch(batch.tokens, batch.targets, batch.mask, doc_ids))
    masked = objective(Table(logits), Batch(batch.tokens, batch.targets, batch.mask & (doc_ids >= 0)))
    require(torch.allclose(padded.loss_sum, masked.loss_sum) and padded.count == masked.count, "padding changes the loss or the count")


@check("objectives", meaning="The loss of a batch is not the sum over its rows, so the result depends on the micro-batch; return sums and counts, no means.")
def adds_up_over_rows(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    assert batch.mask is not None
    whole = objective(Table(logits), batch)
    rows = [objective(Table(logits[i : i + 1]), Batch(batch.tokens[i : i + 1], batch.targets[i : i + 1], batch.mask[i : i + 1])) for i in range(ROWS)]
    require(torch.allclose(whole.loss_sum, torch.stack([r.loss_sum for r in rows]).sum(), rtol=1e-5), "loss_sum of the batch is not the rows' sum")
    require(float(whole.count) == sum(float(r.count) for r in rows), "count of the batch is not the rows' sum")


@check("objectives", meaning="The gradient is not that of the loss; look for a detach, an in-place change or a wrong hand-written backward.")
def gradient_matches_differences(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    table = Table(logits.clone())
    objective(table, batch).loss_sum.backward()
    assert table.logits.grad is not None
    for seed in range(3):
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        step = 5e-3 * direction
        with torch.no_grad():
            difference = (objective(Table(logits + step), batch).loss_sum - objective(Table(logits - step), batch).loss_sum).item() / 1e-2
        slope = (table.logits.grad * direction).sum().item()
        require(abs(slope - difference) < 0.02 * max(1.0, abs(difference)), f"slope {slope:.4f}, by finite differences {difference:.4f}")
