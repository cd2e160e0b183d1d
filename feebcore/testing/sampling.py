"""What logits processors and samplers promise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from feebcore.generate.decoding import PerRowRNG, row_seeds
from feebcore.testing.framework import Candidate, check, require


def example_logits() -> Tensor:
    """[B,V] fp32: ordinary, peaked, flat, and partly removed rows."""
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    logits[1] = 0.0
    logits[2, 7] = 60.0
    logits[3, 5:] = float("-inf")
    logits[4, :39] = float("-inf")
    return logits


@check("logits_processors", quick=True, meaning="No token is left, so sampling fails or returns nonsense.")
def keeps_a_token(subject: Candidate) -> None:
    processed = subject.part.build()(example_logits())
    require(processed.shape == example_logits().shape and not processed.isnan().any(), "shape changed or NaN")
    require((processed > float("-inf")).any(-1).all(), "a row has no token left")


@check("logits_processors", quick=True, meaning="A token that an earlier processor removed is possible again.")
def removed_stays_removed(subject: Candidate) -> None:
    logits = example_logits()
    require((subject.part.build()(logits.clone())[logits == float("-inf")] == float("-inf")).all(), "a removed token is back")


@check("logits_processors", quick=True, meaning="A row depends on the rest of the batch, so batched and single decoding differ.")
def processor_works_by_row(subject: Candidate) -> None:
    logits, processor = example_logits(), subject.part.build()
    together = processor(logits.clone())
    for i in range(len(logits)):
        require(torch.equal(processor(logits[i : i + 1].clone()), together[i : i + 1]), f"row {i} alone differs")


@check(
    "logits_processors",
    meaning="Another token becomes the most likely one, so greedy text changes with options that should only cut the tail; look at signs and sorts.",
)
def most_likely_token_stays(subject: Candidate) -> None:
    logits = example_logits()
    processed, sharp = subject.part.build()(logits.clone()), logits.topk(2).values.diff()[:, 0] < -1e-3
    require(torch.equal(processed.argmax(-1)[sharp], logits.argmax(-1)[sharp]), "the most likely token of a row changes")


@check("samplers", quick=True, meaning="A sampler returns a token that was removed, or one outside the vocabulary.")
def chooses_possible_tokens(subject: Candidate) -> None:
    logits, sampler = example_logits().repeat(40, 1), subject.part.build()
    tokens = sampler(logits, PerRowRNG(row_seeds(1, range(len(logits)))))
    require(tokens.shape == (len(logits),) and not tokens.is_floating_point(), f"tokens {tuple(tokens.shape)} {tokens.dtype}")
    require((logits.gather(-1, tokens[:, None]) > float("-inf")).all(), "a removed token was chosen")


@check("samplers", quick=True, meaning="A row's choice depends on the rest of the batch or on the previous call, so completions change with batch size.")
def sampler_works_by_row(subject: Candidate) -> None:
    logits, sampler = example_logits().repeat(6, 1), subject.part.build()
    seeds = row_seeds(3, range(len(logits)))
    together = sampler(logits, PerRowRNG(seeds))
    alone = [int(sampler(logits[i : i + 1], PerRowRNG(np.asarray(seeds[i : i + 1])))[0]) for i in range(len(logits))]
    require(together.tolist() == alone, f"together {together.tolist()}, alone {alone}")


@check(
    "samplers",
    quick=True,
    meaning="Tokens are drawn from another distribution than softmax(logits), so log-probabilities of rollouts are wrong; change logits in a processor.",
)
def draws_from_the_logits(subject: Candidate) -> None:
    logits, sampler, rows = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")]), subject.part.build(), 4000
    drawn = sampler(logits.expand(rows, -1).clone(), PerRowRNG(row_seeds(5, range(rows))))
    if bool((drawn == drawn[0]).all()):
        require(int(drawn[0]) == 0, f"it always takes token {int(drawn[0])}, which is not the most likely one")
        return
    expected, shares = logits.softmax(-1), torch.bincount(drawn, minlength=5) / rows
    apart = ((shares - expected).abs() / (expected * (1 - expected) / rows).sqrt().clamp(min=1e-9)).max().item()
    require(apart < 5, f"shares {[round(s, 3) for s in shares.tolist()]}, softmax says {[round(s, 3) for s in expected.tolist()]}")
