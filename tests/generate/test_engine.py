"""Decoding: cached equals teacher-forced, a row equals itself alone, rows end where they should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from feebcore.errors import DataError
from feebcore.generate import decoding
from feebcore.generate.engine import generate
from feebcore.model.build import build_model
from feebcore.parts import resolve_part
from feebcore.protocols import ModelOutput

VOCAB, EOS = 23, 1
PROMPTS = [[0, 5, 6, 7], [0, 9], [0, 3, 4, 5, 6, 7, 8, 9], [0, 11, 12]]


def make_model(seq_len: int = 24, **options):
    parts = {"num_layers": 2, "d_model": 32, "num_heads": 2} | options
    model = build_model(resolve_part("architectures", {"name": "transformer", **parts}), VOCAB, seq_len, seed=3).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)  # far from uniform
    return model


class Bigram(torch.nn.Module):
    """The next token depends on the last one only, by a known table; it looks at no position and keeps no cache."""

    def __init__(self, table: torch.Tensor, seq_len: int = 64) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.vocab_size, self.seq_len = len(table), seq_len
        self.lm_head = torch.nn.Identity()

    def forward(self, tokens, positions=None, doc_ids=None, cache=None):
        return ModelOutput(self.table[tokens])

    def new_cache(self, batch, length):
        return None


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize("attention", ["mha", {"name": "gqa", "num_kv_heads": 1}])
def test_cached_log_probs_equal_teacher_forced_ones_in_a_left_padded_batch(position, attention):
    model = make_model(position=position, attention=attention)
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, 10, EOS, seed=1), strict=True):
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        log_probs = model.lm_head(model(tokens).hidden).log_softmax(-1)[0]
        expected = [log_probs[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion.tokens)]
        assert completion.log_probs == pytest.approx(expected, abs=1e-5)
        assert completion.raw_log_probs == completion.log_probs


def test_a_row_is_what_it_would_be_alone_whatever_stands_beside_it():
    model = make_model()
    together = generate(model, PROMPTS, 12, EOS, seed=7)
    assert len({c.finish_reason for c in together} | {len(c.tokens) for c in together}) > 1
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 12, EOS, seed=7, rows=[i])[0]
        assert alone.tokens == together[i].tokens
        assert alone.log_probs == pytest.approx(together[i].log_probs, abs=1e-5)
    assert [c.tokens for c in generate(model, PROMPTS, 12, EOS, seed=7, batch_size=2)] == [c.tokens for c in together]
    assert [c.tokens for c in generate(model, PROMPTS[::-1], 12, EOS, seed=7, rows=[3, 2, 1, 0])][::-1] == [c.tokens for c in together]
    assert [c.tokens for c in generate(model, PROMPTS, 12, EOS, seed=8)] != [c.tokens for c in together]


def test_equal_prompts_draw_different_completions():
    drawn = generate(make_model(), [[0, 5]] * 16, 8, EOS)
    assert len({tuple(c.tokens) for c in drawn}) > 8


def test_a_completion_ends_with_the_end_token_and_says_why():
    table = torch.full((4, 4), -30.0)
    table[0, 2], table[2, 3], table[3, EOS] = 0.0, 0.0, 0.0  # 0 -> 2 -> 3 -> EOS, for sure
    model = Bigram(table)
    whole, cut, exact = (generate(model, [[0]], n, EOS)[0] for n in (5, 2, 3))
    assert (whole.tokens, whole.finish_reason) == ([2, 3, EOS], "stop")
    assert (cut.tokens, cut.finish_reason) == ([2, 3], "length")
    assert (exact.tokens, exact.finish_reason) == ([2, 3, EOS], "stop")  # an end token in the last place is no truncation


def test_the_end_token_in_a_prompt_ends_nothing():
    completion = generate(make_model(), [[0, EOS, EOS, 5]], 4, eos_id=EOS, seed=5)[0]
    assert 1 <= len(completion.tokens) <= 4


def test_a_full_context_ends_a_row_and_too_long_prompts_are_refused():
    model = make_model(seq_len=12)
    prompts = [[0] * 11, [0] * 3, [0, 4] * 4]
    completions = generate(model, prompts, 50, eos_id=-1)
    assert [len(c.tokens) for c in completions] == [1, 9, 4]
    assert {c.finish_reason for c in completions} == {"length"}
    with pytest.raises(DataError, match="12 tokens"):
        generate(model, [[0] * 12], 4, EOS)
    with pytest.raises(DataError, match="empty"):
        generate(model, [[]], 4, EOS)


def test_processed_and_raw_log_probs_are_of_their_own_distributions():
    model = make_model()
    half = lambda logits: logits / 0.5  # noqa: E731
    completion = generate(model, [[0, 5, 6]], 6, EOS, [half], seed=2)[0]
    tokens = torch.tensor([[0, 5, 6, *completion.tokens]])
    logits = model.lm_head(model(tokens).hidden)[0, 2:-1]
    chosen = torch.tensor(completion.tokens)[:, None]
    assert completion.raw_log_probs == pytest.approx(logits.log_softmax(-1).gather(-1, chosen)[:, 0].tolist(), abs=1e-5)
    assert completion.log_probs == pytest.approx((logits * 2).log_softmax(-1).gather(-1, chosen)[:, 0].tolist(), abs=1e-5)


def test_sampling_follows_the_models_distribution():
    """All completions of two tokens, enumerated: chi-square of 20,000 draws stays below its 99.9 % point."""
    from scipy.stats import chi2

    table = torch.tensor([[0.0, 0.5, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.3, 0.0], [-0.5, 0.1, 0.2, 0.9]])
    draws = generate(Bigram(table), [[0]] * 20_000, 2, eos_id=-1, seed=11, batch_size=4000)
    counts = np.zeros((4, 4))
    for c in draws:
        counts[c.tokens[0], c.tokens[1]] += 1
    probs = table.softmax(-1).numpy()
    expected = np.array([[probs[0, a] * probs[a, b] for b in range(4)] for a in range(4)]) * len(draws)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 15)


def test_uniforms_are_uniform_and_independent_between_rows_and_draws():
    random = decoding.PerRowRNG(decoding.row_seeds(0, range(2000)))
    draws = torch.stack([random.uniform() for _ in range(20)]).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = np.histogram(draws, 20, (0, 1))[0]
    assert ((histogram - 2000) ** 2 / 2000).sum() < 45  # 99.9 % point of chi-square with 19 degrees
    for a, b in itertools.combinations((draws[0, :-1], draws[0, 1:], draws[1, :-1]), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_a_removed_token_is_never_drawn_even_at_the_ends_of_the_unit_interval():
    class Fixed:
        def __init__(self, u):
            self.u = u

        def uniform(self):
            return torch.tensor([self.u], dtype=torch.float64)

    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    assert decoding.sample(logits, Fixed(0.0)).item() == 1  # type: ignore[arg-type]
    assert decoding.sample(logits, Fixed(1 - 2**-53)).item() == 3  # type: ignore[arg-type]


def test_generation_leaves_mode_and_weights_alone():
    model = make_model(dropout=0.5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b = generate(model, PROMPTS, 6, EOS), generate(model, PROMPTS, 6, EOS)
    assert model.training
    assert [c.tokens for c in a] == [c.tokens for c in b]  # no dropout while decoding
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"attention": "gated_delta"}], ids=["cache", "recurrent"])
def test_samples_of_one_prompt_read_it_once_and_equal_themselves_alone(options):
    model = make_model(**options)
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    together = generate(model, prompts, 8, EOS, seed=5)
    assert sizes[0] == (2, 4)
    assert sizes[1] == (5, 1)
    alone = [generate(model, [prompt], 8, EOS, seed=5, rows=[row])[0] for row, prompt in enumerate(prompts)]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert len({tuple(c.tokens) for c in together}) > 2
