"""What objectives promise. They are given models whose hidden states are the logits, so that every effect is known.

The models answer all that an objective may ask for: the stream after every layer (three of them, the same scores less and
less sure the lower the layer), `final_norm`, auxiliary losses, and a head with `mtp_outputs`. Objectives may draw random
numbers from torch's generator, which is seeded here before each call; what is then true only on average is checked on
average. One that trains on a choice of the targets says so with `selects`: its count may then be
less than the mask's, and need not add up over the documents of a window.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feebcore.model.counting import count_flops
from feebcore.model.parts import LMHeadPart
from feebcore.protocols import Batch, ModelOutput, ObjectiveOutput
from feebcore.testing.framework import Candidate, check, require, skip

VOCAB, ROWS, LENGTH = 11, 3, 7
SURENESS = (0.4, 0.7, 1.0)  # of each layer: what the last layer's scores are multiplied with
DRAWS = 48  # calls over which an objective that draws random numbers is averaged


class PlainHead(LMHeadPart):
    """Hidden states are logits. Entry k of `mtp_outputs` predicts the token k + 1 places on: the logits of k places on."""

    num_mtp = LENGTH - 1

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden

    def mtp_outputs(self, model: Any, batch: Batch, output: ModelOutput) -> list[tuple[Tensor, nn.Module]]:
        return [(output.hidden.roll(-k, 1), nn.Identity()) for k in range(1, LENGTH)]


class KnownModel(nn.Module):
    """What is common to the models here: a subclass says which logits [B,T,V] belong to which tokens."""

    precision, answer = torch.float32, torch.float32  # what it computes in, and what it returns
    num_streams = len(SURENESS)

    def __init__(self, extra_loss: float = 0.0) -> None:
        super().__init__()
        self.lm_head, self.final_norm, self.vocab_size, self.seq_len, self.extra_loss = PlainHead(), nn.Identity(), VOCAB, LENGTH, extra_loss

    def forward(self, tokens_BT: Tensor, want_layers: bool = False, **kwargs: Any) -> ModelOutput:
        logits_BTV = self.logits_of(tokens_BT).to(self.precision)
        losses = {"extra": torch.tensor(self.extra_loss)} if self.extra_loss else {}
        layers = [(s * logits_BTV).to(self.answer) for s in SURENESS] if want_layers else None
        return ModelOutput(logits_BTV.to(self.answer), layers, losses)

    def logits_of(self, tokens_BT: Tensor) -> Tensor:
        raise NotImplementedError


class Table(KnownModel):
    """Fixed logits [B,T,V], whatever the tokens are."""

    def __init__(self, logits_BTV: Tensor, extra_loss: float = 0.0) -> None:
        super().__init__(extra_loss)
        self.logits = nn.Parameter(logits_BTV)

    def logits_of(self, tokens_BT: Tensor) -> Tensor:
        return self.logits[: len(tokens_BT)]


class Bigram(KnownModel):
    """Logits that depend on the token itself alone, learned from nothing: table [V,V]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(VOCAB, VOCAB))

    def logits_of(self, tokens_BT: Tensor) -> Tensor:
        return F.one_hot(tokens_BT, VOCAB).float() @ self.table


def example(seed: int = 0) -> tuple[Tensor, Batch]:
    """Random logits and a batch of which about half the targets count."""
    random = torch.Generator().manual_seed(seed)
    stream = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=random)
    mask = torch.rand(ROWS, LENGTH, generator=random) < 0.6
    mask[:, 0], mask[:, 1] = True, False
    return torch.randn(ROWS, LENGTH, VOCAB, generator=random), Batch(stream[:, :-1], stream[:, 1:], mask)


def everywhere(batch: Batch) -> Batch:
    """The batch with all its targets counting."""
    return dataclasses.replace(batch, mask=torch.ones_like(batch.targets, dtype=torch.bool))


def sure_of(ids_BT: Tensor, sureness: float = 20.0) -> Table:
    """A model that expects these tokens next."""
    return Table(sureness * F.one_hot(ids_BT, VOCAB).float())


def evaluate(objective: Any, model: nn.Module, batch: Batch, seed: int = 0) -> ObjectiveOutput:
    """The objective with torch's generator seeded, as the loop does before each step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return objective(model, batch)


def draws_random_numbers(objective: Any, model: nn.Module, batch: Batch) -> bool:
    losses = [evaluate(objective, model, batch, seed).loss_sum.item() for seed in range(4)]
    return len(set(losses)) > 1


@functools.cache
def _model_folder() -> tempfile.TemporaryDirectory[str]:
    from feebcore.model.build import build_model
    from feebcore.model.io import save_model
    from feebcore.parts import resolve_part

    folder = tempfile.TemporaryDirectory(prefix="feeb-contract-")
    architecture = resolve_part("architectures", {"name": "transformer", "d_model": 16, "num_heads": 2, "num_layers": 1})
    save_model(Path(folder.name) / "model", build_model(architecture, VOCAB, LENGTH, seed=5), architecture)
    return folder


def model_folder() -> Path:
    """A model of the contract's vocabulary on disk, for the `example` of objectives that need another model."""
    return Path(_model_folder().name) / "model"


@check(
    "objectives",
    quick=True,
    meaning="Targets are shifted: the model learns to copy its input or to skip a token; inputs and targets come aligned, do not shift again.",
)
def targets_are_aligned(subject: Candidate) -> None:
    objective, batch = subject.part.build(), everywhere(example()[1])
    mean = lambda ids: float((out := evaluate(objective, sure_of(ids), batch)).loss_sum.detach() / out.count)  # noqa: E731
    right, others = mean(batch.targets), [mean(batch.tokens), *(mean(batch.targets.roll(-places, 1)) for places in range(1, LENGTH))]
    require(right < min(others) - 1, f"a model that knows the next token has loss {right:.2f}; one that knows the wrong place {min(others):.2f}")


@check("objectives", meaning="A planted next-token rule is not learned from `batch.targets`; check the alignment of outputs and targets.")
def learns_next_token(subject: Candidate) -> None:
    following_V = (torch.arange(VOCAB) * 2 + 3) % VOCAB  # a rule that is neither its own inverse nor its own square
    starts = torch.arange(VOCAB).repeat(2)
    columns = [starts]
    for _ in range(LENGTH):
        columns.append(following_V[columns[-1]])
    stream = torch.stack(columns, 1)
    aligned = Batch(stream[:, :-1], stream[:, 1:], torch.ones(len(stream), LENGTH, dtype=torch.bool))

    def learned(batch: Batch) -> float:
        objective, model = subject.part.build(), Bigram()
        mean, square = torch.zeros_like(model.table), torch.zeros_like(model.table)
        for step in range(30):  # Adam, whatever the loss's scale; written out because torch.optim takes seconds to import
            out = evaluate(objective, model, batch, step)
            (gradient,) = torch.autograd.grad(out.loss_sum / out.count, [model.table])
            mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient**2, 0.001)
            with torch.no_grad():
                model.table.sub_(0.2 * mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
        return float((model.table.argmax(1) == following_V).float().mean())

    planted, moved = learned(aligned), learned(dataclasses.replace(aligned, targets=aligned.targets.roll(-1, 1)))
    require(planted > 0.9, f"only {planted:.0%} of a rule of the next token is learned")
    require(moved < 0.5, f"{moved:.0%} of the rule of the next token is learned from targets that are one place off, so targets are not what is learned")


@check(
    "objectives",
    meaning="A confidently wrong prediction is penalized hardly more than an uncertain one, so the model stops learning; the usual cause is a softmax before cross-entropy (double softmax).",
)
def confident_errors_are_penalized(subject: Candidate) -> None:
    objective, batch = subject.part.build(), everywhere(example()[1])
    wrong = (batch.targets + 1) % VOCAB
    less, more = (float((out := evaluate(objective, sure_of(wrong, sureness), batch)).loss_sum.detach() / out.count) for sureness in (10.0, 20.0))
    require(more > less + 1, f"wrong by 10 nats costs {less:.2f}, by 20 nats {more:.2f}")


@check("objectives", quick=True, meaning="Raising all logits by a constant changes the loss: the softmax (logsumexp) is missing.")
def logits_are_normalized(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    table = Table(logits)
    evaluate(objective, table, batch).loss_sum.backward()
    assert table.logits.grad is not None
    together, apart = table.logits.grad.sum(-1).abs().sum().item(), table.logits.grad.abs().sum().item()
    require(apart > 0, "the logits have no gradient")
    require(together < 0.2 * apart, f"raising all logits of a place alike has {together / apart:.0%} of the effect of raising them one by one")


@check("objectives", meaning="Large logits overflow; use log_softmax, cross_entropy or logsumexp, never log(softmax), and bound logarithms of what may be 0.")
def large_logits_stay_finite(subject: Candidate) -> None:
    objective, batch = subject.part.build(), everywhere(example()[1])
    for ids in (batch.targets, (batch.targets + 1) % VOCAB):
        table = sure_of(ids, 300.0)
        out = evaluate(objective, table, batch)
        out.loss_sum.backward()
        assert table.logits.grad is not None
        require(math.isfinite(out.loss_sum.item()), f"the loss of logits of 300 is {out.loss_sum.item()}")
        require(table.logits.grad.isfinite().all(), "the gradient of logits of 300 is not finite")


@check("objectives", meaning="The loss of logits in bf16 is computed in bf16, with two or three digits; raise logits to fp32 before softmax and logarithm.")
def logits_are_raised_to_fp32(subject: Candidate) -> None:
    objective = subject.part.build()
    for seed in range(3):
        logits, batch = example(seed)
        half, same = Table(4 * logits), Table(4 * logits)
        half.precision = half.answer = same.precision = torch.bfloat16
        found, wanted = (evaluate(objective, model, batch).loss_sum.item() for model in (half, same))
        require(abs(found - wanted) <= 2e-5 * abs(wanted), f"the loss of logits in bf16 is {found:.5f}, of the same numbers in fp32 {wanted:.5f}")


@check(
    "objectives",
    quick=True,
    meaning="Masked targets change the loss, so padding or prompts are trained on; multiply by the mask before summing and divide by its sum.",
)
def loss_mask_is_respected(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    assert batch.mask is not None
    before = evaluate(objective, Table(logits), batch)
    counted, most = float(before.count), float(batch.mask.sum())
    fits = 0 < counted <= most if objective.selects else counted == most
    require(fits, f"count {counted}, the mask has {int(most)}")
    scrambled = torch.where(batch.mask, batch.targets, torch.full_like(batch.targets, -100))
    noisy = torch.where(batch.mask[..., None], logits, logits + 3)
    noisy = torch.where(batch.mask[..., None], noisy, noisy.flip(-1))
    after = evaluate(objective, Table(noisy), Batch(batch.tokens, scrambled, batch.mask))
    require(torch.allclose(before.loss_sum, after.loss_sum, rtol=1e-5), f"loss {before.loss_sum.item():.4f} became {after.loss_sum.item():.4f}")
    require(before.count == after.count, f"count {counted} became {float(after.count)}")


@check("objectives", quick=True, meaning="Padding (document id -1) is trained on.")
def padding_is_left_out(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    assert batch.mask is not None
    for padding in (slice(None, 3), slice(4, None)):  # on the left, on the right
        doc_ids = torch.zeros_like(batch.tokens)
        doc_ids[:, padding] = -1
        padded = evaluate(objective, Table(logits), Batch(batch.tokens, batch.targets, batch.mask, doc_ids))
        masked = evaluate(objective, Table(logits), Batch(batch.tokens, batch.targets, batch.mask & (doc_ids >= 0), doc_ids))
        scrambled = batch.targets.masked_fill(doc_ids < 0, -100)
        other = evaluate(objective, Table(logits + 3.0 * (doc_ids < 0)[..., None] * logits), Batch(batch.tokens, scrambled, batch.mask, doc_ids))
        for out in (masked, other):
            require(torch.allclose(padded.loss_sum, out.loss_sum, rtol=1e-5) and padded.count == out.count, "padding changes the loss or the count")


@check(
    "objectives",
    quick=True,
    meaning="The loss of a document depends on its neighbor in the sequence; mask targets across document boundaries (doc_ids of input and target differ).",
)
def documents_are_independent(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    if objective.selects:
        skip("it selects targets across the batch")
    border = LENGTH // 2
    first = (torch.arange(LENGTH) <= border).expand(ROWS, LENGTH)
    mask = torch.ones_like(first).clone()
    mask[:, border] = False  # its target opens the next document
    both, first_alone, second_alone = ((~first).long(), mask), (first.long() - 1, mask & first), (-first.long(), mask & ~first)
    parts = (both, first_alone, second_alone)  # document ids, the other one being padding, and mask
    whole, one, two = (evaluate(objective, Table(logits), Batch(batch.tokens, batch.targets, counts, ids)) for ids, counts in parts)
    apart = float((whole.loss_sum - one.loss_sum - two.loss_sum).detach())
    require(abs(apart) <= 1e-5 * abs(whole.loss_sum.item()), f"two documents cost {apart:+.4f} more than each for itself")
    require(whole.count == one.count + two.count, "the count of two documents is not that of each for itself")


@check(
    "objectives",
    quick=True,
    meaning="The loss of a batch is not the sum over its rows, so the result depends on the micro-batch; return sums and counts, no means.",
)
def adds_up_over_rows(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    assert batch.mask is not None
    random = draws_random_numbers(objective, Table(logits), batch)
    seeds = range(DRAWS) if random else range(1)

    def losses(logits: Tensor, rows: slice) -> tuple[Tensor, float]:
        part = Batch(*(getattr(batch, name)[rows] for name in ("tokens", "targets", "mask")))
        with torch.no_grad():
            outs = [evaluate(objective, Table(logits[rows]), part, seed) for seed in seeds]
        return torch.stack([o.loss_sum for o in outs]).double(), float(outs[0].count)

    whole, count = losses(logits, slice(None))
    rows = [losses(logits, slice(i, i + 1)) for i in range(ROWS)]
    apart = whole.mean() - sum(loss.mean() for loss, _ in rows)
    spread = sum(float(loss.var()) / DRAWS for loss in (whole, *(r for r, _ in rows))) ** 0.5 if random else 0.0
    require(abs(apart) <= 5 * spread + 1e-5 * whole.mean().abs(), f"loss_sum of the batch differs from the rows' sum by {apart:+.4f}")
    require(count == sum(c for _, c in rows), "count of the batch is not the rows' sum")


@check(
    "objectives",
    quick=True,
    meaning="Auxiliary losses of the model (load balance of experts and the like) are dropped; add each of output.losses times the count.",
)
def auxiliary_losses_are_added(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    plain, more = evaluate(objective, Table(logits), batch), evaluate(objective, Table(logits, extra_loss=2.0), batch)
    added, wanted = more.loss_sum.item() - plain.loss_sum.item(), 2.0 * float(plain.count)
    require(abs(added - wanted) < 1e-3 * wanted, f"an auxiliary loss of 2 adds {added:.3f} to the sum over {float(plain.count):.0f} targets")


@check("objectives", meaning="The gradient is not that of the loss; look for a detach, an in-place change or a wrong hand-written backward.")
def gradient_matches_differences(subject: Candidate) -> None:
    objective, (logits, batch) = subject.part.build(), example()
    logits = logits + 0.3 * F.one_hot(logits.argmax(-1), VOCAB)  # no near ties: a loss may have a kink where the likeliest token changes
    for direction_seed in range(3):
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(direction_seed))
        found = [_slopes(objective, logits, batch, direction, seed) for seed in range(3)]  # a random choice may flip within a difference
        slope, difference = min(found, key=lambda pair: abs(pair[0] - pair[1]))
        require(abs(slope - difference) < 0.02 * max(1.0, abs(difference)), f"slope {slope:.4f}, by finite differences {difference:.4f}")


def _slopes(objective: Callable[..., ObjectiveOutput], logits: Tensor, batch: Batch, direction: Tensor, seed: int) -> tuple[float, float]:
    """The derivative of the loss along `direction`, by its gradient and by central differences."""
    table, step = Table(logits.clone()), 5e-3 * direction
    evaluate(objective, table, batch, seed).loss_sum.backward()
    assert table.logits.grad is not None
    with torch.no_grad():
        there, back = (evaluate(objective, Table(logits + sign * step), batch, seed).loss_sum for sign in (1, -1))
    return (table.logits.grad * direction).sum().item(), (there - back).item() / 1e-2


@check(
    "objectives",
    quick=True,
    meaning="The FLOPs of the objective do not match `extra_flops`, so comparisons at matched FLOPs are wrong; declare what it computes beyond one forward pass.",
)
@torch.no_grad()
def extra_flops_are_declared(subject: Candidate) -> None:
    from feebcore.model.build import build_model
    from feebcore.parts import resolve_part

    objective, batch = subject.part.build(), everywhere(example()[1])
    head = {"name": "multi_token", "num_mtp": 3, "logit_softcap": 30.0}  # capped: a plain matrix goes through an operation that the counter does not see
    sizes = {"name": "transformer", "d_model": 16, "num_heads": 2, "num_layers": 3, "lm_head": head}
    for stack in ("sequential", "looped"):
        model = build_model(resolve_part("architectures", {**sizes, "stack": stack}), VOCAB, LENGTH)
        evaluate(objective, model, batch)  # one may look at the model first
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            evaluate(objective, model, batch)
        trained = objective.extra_flops(model, LENGTH)[0]  # what is frozen runs where the counter does not see it
        declared, measured = ROWS * (count_flops(model, LENGTH)[0] + trained), counter.get_total_flops()
        require(
            declared == measured, f"with stack {stack} declares {declared:.0f} forward FLOPs, the model's and its head's among them; measured are {measured}"
        )
