"""Depth patches against loops: where boundaries lie, and what the blocks on patches see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feeb_models.depths.patches import ends_words
from feebcore.model.build import build_model, choose
from feebcore.model.context import Context
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.models import enliven

LENGTH = 48
TEXT = b"def f(x_1): return x_1 + 22  # caf\xc3\xa9 au lait is it"


def transformer(num_layers: int = 2, vocab_size: int = 258, **parts: Any) -> Any:
    architecture = choose("architectures", {"name": "transformer", "num_layers": num_layers, "d_model": 32, "num_heads": 4, **parts})
    model = build_model(architecture, vocab_size, LENGTH, seed=3)
    enliven(model)
    return model


def expected_boundaries(tokens: list[int], size: int, words: bool) -> list[int]:
    """Of one document, told from the definition."""
    if not words:
        return [t for t in range(len(tokens)) if t % size == 0]
    ends = ends_words(258).tolist()
    after_word = [t for t, token in enumerate(tokens) if t == 0 or (ends[token] and not ends[tokens[t - 1]])]
    return [t for i, t in enumerate(after_word) if i == 0 or t // size != after_word[i - 1] // size]


def rows() -> Tensor:
    text = torch.tensor(list(TEXT[:LENGTH]))
    return torch.stack([text, text.roll(5), torch.randint(258, (LENGTH,), generator=torch.Generator().manual_seed(1))])


def test_bytes_that_end_words() -> None:
    table = ends_words(258)
    assert [chr(i) for i in range(128) if not table[i]] == [c for c in map(chr, range(128)) if c.isalnum()]
    assert table[0xC3]
    assert not table[0xA9]
    assert table[256]
    assert table[257]


@pytest.mark.parametrize(("size", "words"), [(4, False), (3, True), (6, True), (1, True), (5, False)])
def test_boundaries_are_those_of_each_document(size: int, words: bool) -> None:
    model = transformer(depth={"name": "patches", "size": size, "boundaries": "words" if words else "stride"})
    tokens = rows()
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor([17, 1, LENGTH - 18])).expand(3, -1)
    for docs in (None, doc_ids):
        context, _ = model.make_context(tokens, doc_ids=docs)
        found = model.depth.boundaries(context, None, 3, LENGTH)
        for row in range(3):
            parts = [(0, LENGTH)] if docs is None else [(0, 17), (17, 18), (18, LENGTH)]
            wanted = [a + t for a, b in parts for t in expected_boundaries(tokens[row, a:b].tolist(), size, words)]
            assert found.index_BP[row][found.real_BP[row]].tolist() == wanted


@torch.no_grad()
@pytest.mark.parametrize("words", [False, True])
def test_blocks_on_patches_see_the_boundaries_alone(words: bool) -> None:
    model = transformer(3, depth={"name": "patches", "size": 4, "boundaries": "words" if words else "stride", "before": 2})
    tokens, depth = rows(), model.depth
    found = model(tokens, want_layers=True)
    for row in range(3):
        context, _ = model.make_context(tokens[row : row + 1])
        stream = model.embed(tokens[row : row + 1], context)
        wanted = []
        for block in depth.before:
            wanted.append(stream := block(stream, context))
        at = torch.tensor(expected_boundaries(tokens[row].tolist(), 4, words))
        short = stream[:, at]
        inner = Context(model.position, model.position.prepare(len(at), at[None]))
        last = (torch.arange(LENGTH)[:, None] >= at).sum(1) - 1
        given = stream
        for block in depth.blocks:
            short = block(short, inner)
            wanted.append(stream := given + (short - given[:, at])[:, last])
        for block in depth.after:
            wanted.append(stream := block(stream, context))
        assert found.layers is not None
        assert len(found.layers) == len(wanted) == 6
        for layer, want in zip(found.layers, wanted, strict=True):
            torch.testing.assert_close(layer[row : row + 1], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        {"depth": {"name": "patches", "boundaries": "words"}, "attention": {"name": "sliding_window", "window": 2}},
        {"depth": {"name": "patches", "boundaries": "words", "before": 2, "after": 0}, "attention": "mla", "wiring": "hyper_connections"},
        {"depth": {"name": "patches", "size": 1}, "attention": {"name": "mha", "value_residual": "learnt", "value_embeddings": True}},
    ],
    ids=["window", "latent", "values"],
)
def test_patches_keep_the_contract_with_other_parts(parts: dict[str, Any]) -> None:
    part = choose("architectures", {"name": "transformer", "d_model": 32, "num_heads": 4, **parts})
    quick = ["causality", "document_isolation", "cache_parity", "left_padding_parity", "gradient_everywhere", "counts_are_measured"]
    broken = [str(r) for r in iterate(candidate("architectures", part), quick) if not r.passed]
    assert not broken, "\n".join(broken)


@torch.no_grad()
def test_a_cache_follows_rows_that_are_dropped_and_reordered() -> None:
    model, tokens = transformer(depth={"name": "patches", "boundaries": "words", "size": 3}), rows()
    whole, order = model(tokens).hidden, torch.tensor([2, 0])
    cache = model.new_cache(3, LENGTH)
    model(tokens[:, :20], cache=cache)
    cache.select(order)
    steps = [model(tokens[order, t : t + 1], cache=cache).hidden for t in range(20, LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[order, 20:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_many_documents_in_a_row_get_the_slots_they_need() -> None:
    model, tokens = transformer(depth={"name": "patches", "size": 8}), rows()
    docs = torch.arange(LENGTH).expand(3, -1) // 2
    cache = model.new_cache(3, LENGTH)
    torch.testing.assert_close(model(tokens, doc_ids=docs, cache=cache).hidden, model(tokens, doc_ids=docs).hidden, rtol=1e-4, atol=1e-4)
    assert cache.others[0].length > LENGTH / 8


def test_most_of_the_compute_is_paid_once_a_patch() -> None:
    count = lambda **parts: transformer(6, **parts).count().flops_per_token  # noqa: E731
    plain, patches = count(), count(depth={"name": "patches", "size": 4, "before": 1, "after": 1})
    block = (plain - 2 * 32 * 258) / 6
    assert patches - 2 * 32 * 258 < block * (2 + 6 / 4)


def test_what_cannot_be_read_in_patches_is_said() -> None:
    with pytest.raises(ValueError, match="use tokenizer byte, or boundaries stride"):
        transformer(vocab_size=1000, depth={"name": "patches", "boundaries": "words"})
    with pytest.raises(ValueError, match="choose another"):
        transformer(depth="patches", attention="gated_delta")


def test_the_preset_gives_layers_on_bytes_a_window() -> None:
    part = choose("architectures", {"name": "byte_patches", "num_layers": 3, "depth": {"before": 2}})
    assert part.config.attention.config.pattern == "LLGGGL"  # type: ignore[attr-defined]
    assert part.config.depth.config.boundaries == "words"  # type: ignore[attr-defined]
