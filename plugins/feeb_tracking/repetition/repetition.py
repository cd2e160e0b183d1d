"""Degenerate repetition: how much generated text repeats itself, greedy and sampled, compared with the training text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from feeb_tracking.probe import Probe
from feeb_tracking.repetition import RepetitionConfig
from feebcore.generate.decoding import greedy, sample
from feebcore.generate.engine import generate
from feebcore.protocols import Batch, BuildContext
from feebcore.train.probing import first_sequences

SAMPLERS = {"greedy": greedy, "sampled": sample}


class Repetition(Probe):
    """A row has measures of `greedy` and `sampled` continuations and of the `text` itself, by `repetition_of`;
    degenerate: which of the two repeat themselves far more than the text. State: those of the last measurement, so that
    the log reports its begin and its end once each."""

    name = "repetition"

    def __init__(self, config: RepetitionConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.batch: Batch | None = None
        self.degenerate: list[str] = []

    def measure(self, step: int) -> dict[str, Any]:
        run, config = self.run, self.config
        self.batch = batch = first_sequences(run, config.sequences) if self.batch is None else self.batch
        length = batch.tokens.shape[1]
        prompt = min(config.prompt_tokens, length - 1)
        room = min(config.max_new_tokens, length - prompt)
        rows = batch.tokens.tolist()
        prompts = [row[:prompt] for row in rows]
        seed = run.section.seed * 1_000_003 + step
        tokenizer_free_end = -1  # text may continue past its end: what is measured is the loop
        texts = {
            kind: [c.tokens for c in generate(run.model, prompts, room, tokenizer_free_end, sampler=sampler, seed=seed)]  # type: ignore[arg-type]
            for kind, sampler in SAMPLERS.items()
        }
        values: dict[str, Any] = {
            **{kind: repetition_of(completions) for kind, completions in texts.items()},
            "text": repetition_of([r[prompt : prompt + room] for r in rows]),
        }
        now = [kind for kind in SAMPLERS if is_degenerate(values[kind], values["text"], config.flag_above)]
        for kind in SAMPLERS:
            if (kind in now) != (kind in self.degenerate):
                shares = f"{values[kind]['repeated']:.0%} of its 4-grams are repeated, {values['text']['repeated']:.0%} in the training text"
                run.out.log(f"step {step}: {kind} text {'is' if kind in now else 'is no longer'} degenerate repetition ({shares})")
        self.degenerate = now
        return values | {"degenerate": now}

    def state_dict(self) -> dict[str, Any]:
        return {"degenerate": self.degenerate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.degenerate = state["degenerate"]


def repetition_of(texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Means over texts (ids). repeated: share of 4-grams that the text had before; distinct_1, distinct_2: different
    tokens and pairs by their number (Li et al. 2016, arXiv:1510.03055); longest_run: of one token, by the text's length."""
    each = [
        {
            "repeated": 1.0 - distinct(text, 4),
            "distinct_1": distinct(text, 1),
            "distinct_2": distinct(text, 2),
            "longest_run": max((len(list(run)) for _, run in groupby(text)), default=0) / max(len(text), 1),
        }
        for text in texts
    ]
    return {key: sum(one[key] for one in each) / len(each) for key in each[0]}


def distinct(text: Sequence[int], n: int) -> float:
    """Different n-grams by their number; 1 for a text shorter than n."""
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def is_degenerate(values: dict[str, float], text: dict[str, float], flag_above: float) -> bool:
    """More than `flag_above` beyond what the training text itself repeats, in 4-grams or in one token's run."""
    return any(values[key] - text[key] > flag_above for key in ("repeated", "longest_run"))
