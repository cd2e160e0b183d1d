"""Depth patches against loops: where boundaries lie, and what the blocks on patches see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feeb_models.stacks.patches.patches import ends_words
from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.tensors import blocks_of
from feebcore.parts import resolve_part
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.models import enliven
from feebcore.train.step import checkpoint_activations

LENGTH = 48
TEXT = b"def f(x_1): return x_1 + 22  # caf\xc3\xa9 au lait is it"


def transformer(num_layers: int = 2, vocab_size: int = 258, **parts: Any) -> Any:
    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": num_layers, "d_model": 32, "num_heads": 4, **parts})
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
    model = transformer(stack={"name": "patches", "size": size, "boundaries": "words" if words else "stride"})
    tokens = rows()
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor([17, 1, LENGTH - 18])).expand(3, -1)
    for docs in (None, doc_ids):
        context = model.make_context(tokens, doc_ids=docs)
        found = model.stack.boundaries(context, None, 3, LENGTH)
        for row in range(3):
            parts = [(0, LENGTH)] if docs is None else [(0, 17), (17, 18), (18, LENGTH)]
            wanted = [a + t for a, b in parts for t in expected_boundaries(tokens[row, a:b].tolist(), size, words)]
            assert found.index_BP[row][found.real_BP[row]].tolist() == wanted


@torch.no_grad()
@pytest.mark.parametrize("words", [False, True])
def test_blocks_on_patches_see_the_boundaries_alone(words: bool) -> None:
    model = transformer(3, stack={"name": "patches", "size": 4, "boundaries": "words" if words else "stride", "before": 2})
    tokens, stack = rows(), model.stack
    found = model(tokens, want_layers=True)
    for row in range(3):
        context = model.make_context(tokens[row : row + 1])
        stream = model.embedding(tokens[row : row + 1], context)
        wanted = []
        for block in stack.before:
            wanted.append(stream := block(stream, context))
        at = torch.tensor(expected_boundaries(tokens[row].tolist(), 4, words))
        short = stream[:, at]
        inner = ForwardContext(model.position, model.position.prepare(len(at), at[None]))
        last = (torch.arange(LENGTH)[:, None] >= at).sum(1) - 1
        given = stream
        for block in stack.blocks:
            short = block(short, inner)
            wanted.append(stream := given + (short - given[:, at])[:, last])
        for block in stack.after:
            wanted.append(stream := block(stream, context))
        assert found.layers is not None
        assert len(found.layers) == len(wanted) == 6
        for layer, want in zip(found.layers, wanted, strict=True):
            torch.testing.assert_close(layer[row : row + 1], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        {"stack": {"name": "patches", "boundaries": "words"}, "attention": {"name": "sliding_window", "window": 2}},
        {"stack": {"name": "patches", "boundaries": "words", "before": 2, "after": 0}, "attention": "mla", "block": "hyper_connections"},
        {"stack": {"name": "patches", "size": 1}, "attention": {"name": "mha", "value_residual": "learned", "value_embeddings": True}},
    ],
    ids=["window", "latent", "values"],
)
def test_patches_keep_the_contract_with_other_parts(parts: dict[str, Any]) -> None:
    part = resolve_part("architectures", {"name": "transformer", "d_model": 32, "num_heads": 4, **parts})
    quick = ["causality", "document_isolation", "cache_parity", "left_padding_parity", "gradient_everywhere", "counts_are_measured"]
    broken = [str(r) for r in iterate(candidate("architectures", part), quick) if not r.passed]
    assert not broken, "\n".join(broken)


@torch.no_grad()
def test_a_cache_follows_rows_that_are_dropped_and_reordered() -> None:
    model, tokens = transformer(stack={"name": "patches", "boundaries": "words", "size": 3}), rows()
    whole, order = model(tokens).hidden, torch.tensor([2, 0])
    cache = model.new_cache(3, LENGTH)
    model(tokens[:, :20], cache=cache)
    cache.select(order)
    steps = [model(tokens[order, t : t + 1], cache=cache).hidden for t in range(20, LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[order, 20:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_many_documents_in_a_row_get_the_slots_they_need() -> None:
    model, tokens = transformer(stack={"name": "patches", "size": 8}), rows()
    docs = torch.arange(LENGTH).expand(3, -1) // 2
    cache = model.new_cache(3, LENGTH)
    torch.testing.assert_close(model(tokens, doc_ids=docs, cache=cache).hidden, model(tokens, doc_ids=docs).hidden, rtol=1e-4, atol=1e-4)
    assert cache.others[0].length > LENGTH / 8


def test_most_of_the_compute_is_paid_once_a_patch() -> None:
    count = lambda **parts: transformer(6, **parts).count().flops_per_token  # noqa: E731
    plain, patches = count(), count(stack={"name": "patches", "size": 4, "before": 1, "after": 1})
    block = (plain - 2 * 32 * 258) / 6
    assert patches - 2 * 32 * 258 < block * (2 + 6 / 4)


def test_what_cannot_be_read_in_patches_is_said() -> None:
    with pytest.raises(ValueError, match="use tokenizer byte, or boundaries stride"):
        transformer(vocab_size=1000, stack={"name": "patches", "boundaries": "words"})
    with pytest.raises(ValueError, match="choose another"):
        transformer(stack="patches", attention="gated_delta")


@torch.no_grad()
def test_only_blocks_on_every_token_have_the_window() -> None:
    stack = {"name": "patches", "size": 4, "after": 2}
    model, wide = transformer(3, stack=stack | {"window": 5}), transformer(3, stack=stack)
    seen: list[int] = []
    for block in (*model.stack.before, *model.stack.blocks, *model.stack.after):
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].window))
    assert not torch.allclose(model(rows()).hidden, wide(rows()).hidden, atol=1e-3)
    assert seen == [5, 0, 0, 0, 5, 5]
    narrow = transformer(3, stack="sequential", attention={"name": "sliding_window", "window": 5})
    limited = transformer(3, stack="sequential")
    limited.stack.register_forward_pre_hook(lambda module, inputs: setattr(inputs[1], "window", 5))
    torch.testing.assert_close(limited(rows()).hidden, narrow(rows()).hidden)


def test_the_preset_holds_its_window_whatever_else_is_chosen() -> None:
    part = resolve_part("architectures", {"name": "byte_patches", "num_layers": 3, "stack": {"before": 2}, "attention": {"name": "gqa", "num_kv_heads": 2}})
    stack = part.config.stack.config  # type: ignore[attr-defined]
    assert (stack.boundaries, stack.window, stack.before) == ("words", 64, 2)


def test_a_layers_own_loss_reaches_that_layer_alone() -> None:
    model = transformer(2, stack={"name": "patches", "size": 4})
    names = [name for name, _ in model.stack.named_parameters()]
    for layer, owner in enumerate(("before.0", "blocks.0", "blocks.1", "after.0")):
        model.zero_grad()
        streams = model(rows(), want_layers=True, local_gradients=True).layers
        streams[layer].square().sum().backward()
        reached = {".".join(name.split(".")[:2]) for name in names if model.stack.get_parameter(name).grad is not None}
        assert reached == {owner}, layer


@torch.no_grad()
def test_every_layer_is_told_through_the_cache_too() -> None:
    model, tokens = transformer(3, stack={"name": "patches", "size": 5}), rows()
    whole, cache = model(tokens, want_layers=True).layers, model.new_cache(3, LENGTH)
    steps = [model(tokens[:, t : t + 1], cache=cache, want_layers=True).layers for t in range(LENGTH)]
    for layer, wanted in enumerate(whole):
        torch.testing.assert_close(torch.cat([streams[layer] for streams in steps], 1), wanted, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_the_boundaries_of_others() -> None:
    moe = {"name": "moe", "num_experts": 4, "capacity": 4.0, "z_loss": 0.1}
    model = transformer(2, stack={"name": "patches", "size": 2, "boundaries": "words"}, feedforward=moe).train()
    letters, spaces = torch.full((1, LENGTH), ord("a")), torch.tensor([[ord("a"), ord(" ")] * (LENGTH // 2)])
    letters[0, [7, 20]] = ord(" ")
    docs = torch.zeros(1, LENGTH, dtype=torch.int64)
    for options in (lambda n: {}, lambda n: {"doc_ids": docs.expand(n, -1)}):
        together = model(torch.cat([letters, spaces]), **options(2))
        alone = [model(tokens, **options(1)) for tokens in (letters, spaces)]
        for row, output in enumerate(alone):
            torch.testing.assert_close(output.hidden[0], together.hidden[row], rtol=1e-4, atol=1e-4)
        for name, loss in together.losses.items():
            torch.testing.assert_close(sum(output.losses[name] for output in alone) / 2, loss)


@pytest.mark.slow
def test_packed_rows_compile_few_times() -> None:
    model, tokens, passes = transformer(1, stack={"name": "patches", "size": 4}), rows(), []

    def counting(module: Any, inputs: Any) -> Any:
        passes.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda docs: model(tokens, doc_ids=docs).hidden, backend=counting, dynamic=False)
    for cut in range(1, 17):
        docs = (torch.arange(LENGTH) >= 2 * cut).long().expand(3, -1)
        torch.testing.assert_close(compiled(docs), model(tokens, doc_ids=docs).hidden, rtol=1e-4, atol=1e-4)
    assert len(passes) < 12


def test_blocks_on_bytes_and_on_patches_are_checkpointed_and_numbered() -> None:
    model = transformer(3, stack={"name": "patches", "before": 2, "window": 5}, initialization="depth_scaled")
    assert [block.layer for block in blocks_of(model)] == list(range(6))
    fresh = build_model(
        resolve_part("architectures", {"name": "transformer", "num_layers": 3, "d_model": 64, "stack": "patches", "initialization": "depth_scaled"}), 258, 32
    )
    sizes = [block.feedforward.out.weight.std().item() for block in blocks_of(fresh)]
    assert sizes == pytest.approx([0.02 / (2 * layer) ** 0.5 for layer in range(1, 6)], rel=0.05)
    batch, grads = rows(), []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            assert checkpoint_activations(model) == 6
        model(batch).hidden.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
