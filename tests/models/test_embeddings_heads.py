"""Embeddings and heads against plain references, and what heads that predict several tokens promise to objectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from feeb_models.embeddings.hash_ngrams.hash_ngrams import FACTOR, PRIME
from feebcore.model.build import build_model
from feebcore.model.context import ForwardContext
from feebcore.model.counting import count_flops
from feebcore.model.loss import linear_cross_entropy
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.testing import candidate
from feebcore.testing.framework import iterate
from feebcore.testing.models import enliven, some_tokens

HEADS = [
    {"name": "multi_token", "num_mtp": 3},
    {"name": "multi_token", "num_mtp": 2, "num_blocks": 2, "logit_softcap": 10.0},
    {"name": "multi_token", "num_mtp": 3, "num_blocks": 0},
    {"name": "multi_token_sequential", "num_mtp": 3},
]
CONTEXT = ForwardContext(Position())
heads = pytest.mark.parametrize("head", HEADS, ids=lambda h: f"{h['name']}-{h.get('num_blocks', 1)}")


def transformer(vocab_size: int = 61, seq_len: int = 12, vivid: bool = True, num_layers: int = 2, **parts: Any) -> Any:
    architecture = resolve_part("architectures", {"name": "transformer", "num_layers": num_layers, "d_model": 32, "num_heads": 4, **parts})
    model = build_model(architecture, vocab_size, seq_len, seed=3)
    if vivid:
        enliven(model)
    return model


# --- embeddings -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_are_the_rows_of_their_tables() -> None:
    tokens = some_tokens()
    scaled = transformer(embedding={"name": "scaled", "scale": 3.0}).embedding
    torch.testing.assert_close(scaled(tokens, CONTEXT), 3 * scaled.weight[tokens])
    assert transformer(embedding="scaled").embedding.scale == pytest.approx(32**0.5)
    normed = transformer(vivid=False, embedding="normed").embedding
    torch.testing.assert_close(normed(tokens, CONTEXT).square().mean(-1), torch.ones(tokens.shape), rtol=0.01, atol=0)
    factorized = transformer(embedding={"name": "factorized", "rank": 5}).embedding
    torch.testing.assert_close(factorized(tokens, CONTEXT), (factorized.table.weight @ factorized.up.weight.T)[tokens])


@torch.no_grad()
def test_a_factorized_table_begins_as_large_as_a_plain_one() -> None:
    for rank in (4, 200):
        vectors = transformer(vocab_size=2000, vivid=False, embedding={"name": "factorized", "rank": rank}).embedding(torch.arange(2000)[None], CONTEXT)
        assert vectors.std().item() == pytest.approx(0.02, rel=0.15)


def test_a_tied_head_shares_scaled_and_normed_tables_and_says_where_it_cannot() -> None:
    for name in ("scaled", "normed"):
        model = transformer(embedding=name, lm_head="tied")
        assert model.lm_head.weight is model.embedding.weight
    model = transformer(embedding={"name": "factorized", "rank": 5}, lm_head={"name": "factorized", "tied": True})
    assert model.lm_head.table is model.embedding.table.weight
    with torch.no_grad():
        hidden = torch.randn(2, 32)
        torch.testing.assert_close(model.lm_head(hidden), hidden @ model.lm_head.down.weight.T @ model.embedding.table.weight.T)
    with pytest.raises(ValueError, match="choose lm_head linear"):
        transformer(embedding="factorized", lm_head="tied")
    with pytest.raises(ValueError, match="tied: false"):
        transformer(embedding="standard", lm_head={"name": "factorized", "tied": True})


def test_the_products_of_a_tied_factorized_pair_are_counted() -> None:
    head = resolve_part("lm_heads", {"name": "factorized", "tied": True, "logit_softcap": 12.0})
    pair = resolve_part(
        "architectures",
        {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 4, "lm_head": head, "embedding": {"name": "factorized", "rank": 8}},
    )
    model = build_model(pair, 61, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.lm_head(torch.randn(12, 32))
        model.embedding(some_tokens(1), CONTEXT)
    assert counter.get_total_flops() == 2 * 12 * (32 * 8 + 8 * 61 + 8 * 32)
    assert sum(count_flops(part, 12)[0] for part in (model.lm_head, model.embedding)) == counter.get_total_flops()


def ngram_row(ids: list[int], buckets: int) -> int:
    """The hash in plain integers, from the last token back."""
    value = 0
    for i in reversed(ids):
        value = (value * FACTOR + i + 1) % PRIME
    return value % buckets


@torch.no_grad()
def test_hashed_ngrams_are_those_that_end_at_the_token_inside_its_document() -> None:
    model = transformer(embedding={"name": "hash_ngrams", "sizes": [4, 2], "buckets": 37})
    embedding, tokens = model.embedding, some_tokens()
    doc_ids = torch.tensor([[0] * 12, [0] * 5 + [1] * 7, [-1] * 3 + [0] * 6 + [4] * 3])
    found = model.embedding(tokens, model.make_context(tokens, doc_ids=doc_ids))
    for b in range(3):
        for t in range(12):
            start = int((doc_ids[b] == doc_ids[b, t]).nonzero()[0])
            wanted = embedding.table.weight[tokens[b, t]]
            for i, n in enumerate((2, 4)):
                ids = [int(tokens[b, j]) if j >= start else 61 for j in range(t - n + 1, t + 1)]
                wanted = wanted + embedding.grams.weight[37 * i + ngram_row(ids, 37)]
            torch.testing.assert_close(found[b, t], wanted / 3)


def test_the_hash_spreads_ngrams_over_the_buckets() -> None:
    for buckets, offset in ((1000, 0), (1000, 97), (1024, 31)):
        rows = [ngram_row([offset + a, offset + b, offset + c], buckets) for a in range(20) for b in range(20) for c in range(20)]
        counts = torch.bincount(torch.tensor(rows), minlength=buckets).float()
        assert counts.var().item() < 12, "evenly random hashing has a variance of 8"


def test_sizes_of_ngrams_are_checked() -> None:
    for sizes in ([1, 2], [3, 3], []):
        with pytest.raises(ValidationError, match="sizes"):
            resolve_part("embeddings", {"name": "hash_ngrams", "sizes": sizes})


# --- heads ------------------------------------------------------------------------------------------------------


def batch_of(stream: Tensor, doc_ids: Tensor | None = None) -> Batch:
    return Batch(stream[:, :-1], stream[:, 1:], doc_ids=doc_ids)


def futures_of(model: Any, batch: Batch) -> list[Tensor]:
    """Logits [B,T,V] of every future."""
    output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
    return [head(hidden) for hidden, head in model.lm_head.mtp_outputs(model, batch, output)]


def future_loss(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Next token and mtp_outputs, summed: what objective multi_token does, plainly."""
    batch = Batch(tokens, targets)
    output = model(batch.tokens)
    loss = F.cross_entropy(model.lm_head(output.hidden).flatten(0, 1), targets.flatten())
    for k, (hidden, head) in enumerate(model.lm_head.mtp_outputs(model, batch, output), 1):
        loss = loss + F.cross_entropy(head(hidden[:, :-k]).flatten(0, 1), targets[:, k:].flatten())
    return loss


@heads
@torch.no_grad()
def test_no_future_sees_the_token_that_it_predicts(head: dict[str, Any]) -> None:
    model, stream = transformer(lm_head=head), some_tokens(3, 13)
    before = futures_of(model, batch_of(stream))
    assert len(before) == head["num_mtp"]
    for changed in (1, 6, 12):
        other = stream.clone()
        other[:, changed:] = (other[:, changed:] + 7) % 61
        for k, (x, y) in enumerate(zip(before, futures_of(model, batch_of(other)), strict=True), 1):
            # input place t predicts token t + k + 1 of the stream
            torch.testing.assert_close(x[:, : max(0, changed - k)], y[:, : max(0, changed - k)], rtol=1e-4, atol=1e-4)


@heads
@torch.no_grad()
def test_futures_of_packed_documents_are_those_of_each_alone(head: dict[str, Any]) -> None:
    model, stream = transformer(lm_head=head), some_tokens(3, 13)
    doc_ids = torch.tensor([0] * 5 + [1] * 7).expand(3, -1)
    packed = futures_of(model, batch_of(stream, doc_ids))
    for start, stop in ((0, 5), (5, 12)):
        alone = futures_of(model, batch_of(stream[:, start : stop + 1]))
        for k, (x, y) in enumerate(zip(packed, alone, strict=True), 1):
            torch.testing.assert_close(x[:, start : stop - k], y[:, : stop - start - k], rtol=1e-4, atol=1e-4)


@heads
def test_every_parameter_learns_from_the_futures(head: dict[str, Any]) -> None:
    model, stream = transformer(lm_head=head), some_tokens(3, 13)
    future_loss(model, stream[:, :-1], stream[:, 1:]).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("head", ["multi_token", "multi_token_sequential"])
def test_compiled_futures_agree(head: str) -> None:
    model, stream = transformer(num_layers=1, lm_head={"name": head, "num_mtp": 1}), some_tokens(3, 13)
    loss = future_loss(model, stream[:, :-1], stream[:, 1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(future_loss, backend="aot_eager", fullgraph=True)(model, stream[:, :-1], stream[:, 1:])
    torch.testing.assert_close(compiled, loss)
    for x, y in zip(torch.autograd.grad(compiled, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@heads
def test_a_future_goes_through_the_chunked_loss(head: dict[str, Any]) -> None:
    model, stream = transformer(lm_head=head), some_tokens(3, 13)
    batch = batch_of(stream)
    output = model(batch.tokens)
    for k, (hidden, module) in enumerate(model.lm_head.mtp_outputs(model, batch, output), 1):
        found = linear_cross_entropy(module, hidden[:, :-k], batch.targets[:, k:], vocab_size=61).loss_sum
        wanted = F.cross_entropy(module(hidden[:, :-k]).flatten(0, 1), batch.targets[:, k:].flatten(), reduction="sum")
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_sequential_futures_follow_the_paper() -> None:
    model, stream = transformer(lm_head={"name": "multi_token_sequential", "num_mtp": 3}), some_tokens(3, 13)
    batch = batch_of(stream)
    output = model(batch.tokens)
    h, found = output.hidden, list(model.lm_head.mtp_outputs(model, batch, output))
    for k, step in enumerate(model.lm_head.steps, 1):
        T = 12 - k + 1  # places whose token t_{i+k} exists
        joined = torch.cat([step.stream_norm(h[:, :T]), step.token_norm(model.embedding(stream[:, k : k + T], CONTEXT))], -1) @ step.join.weight.T
        h = step.tower.blocks[0](joined, model.make_context(stream[:, :T]))
        torch.testing.assert_close(found[k - 1][0][:, :T], step.tower.norm(h), rtol=1e-4, atol=1e-4)
        assert found[k - 1][1] is model.lm_head


@torch.no_grad()
def test_targets_that_do_not_count_may_hold_anything() -> None:
    model, stream = transformer(lm_head="multi_token_sequential"), some_tokens(3, 13)
    masked = batch_of(stream)
    masked.targets = masked.targets.clone()
    masked.targets[:, 8:] = -100
    (found,), (wanted,) = futures_of(model, masked), futures_of(model, batch_of(stream))
    torch.testing.assert_close(found[:, :8], wanted[:, :8])


@pytest.mark.parametrize("head", ["multi_token", "multi_token_sequential"])
def test_auxiliary_losses_of_futures_reach_the_output(head: str) -> None:
    model, batch = transformer(lm_head={"name": head, "num_mtp": 2}), batch_of(some_tokens(3, 13))
    blocks = [b for tower in model.lm_head.modules() if type(tower).__name__ == "Tower" for b in tower.blocks]
    for block in [*model.stack.blocks, *blocks]:
        block.register_forward_hook(lambda m, inputs, result: inputs[1].add_loss("balance", torch.tensor(1.0)))
    output = model(batch.tokens)
    assert output.losses["balance"] == 2
    list(model.lm_head.mtp_outputs(model, batch, output))
    assert output.losses["balance"] == 4


@pytest.mark.parametrize("head", ["multi_token", "multi_token_sequential"])
@pytest.mark.parametrize("block", ["hyper_connections", "residual_lambdas"])
def test_futures_work_with_wirings_that_know_the_start_or_widen_the_stream(head: str, block: str) -> None:
    model = transformer(lm_head={"name": head, "num_mtp": 1}, block=block, embedding={"name": "hash_ngrams", "buckets": 50})
    (logits,) = futures_of(model, batch_of(some_tokens(3, 13)))
    assert logits.shape == (3, 12, 61)
    assert logits.isfinite().all()


@heads
def test_futures_learn_what_comes_later(head: dict[str, Any]) -> None:
    """Rows that count up by 3 from anywhere: every later token follows from the last."""
    model = transformer(vocab_size=20, vivid=False, lm_head=head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        stream = (torch.randint(20, (12, 1), generator=random) + 3 * torch.arange(13)) % 20
        loss = future_loss(model, stream[:, :-1], stream[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for k, logits in enumerate(futures_of(model, batch_of(stream)), 1):
        assert (logits[:, :-k].argmax(-1) == stream[:, 1 + k :]).float().mean() > 0.95, k


def test_scoring_does_not_pay_for_futures() -> None:
    plain, ahead = transformer().count(), transformer(lm_head={"name": "multi_token", "num_mtp": 3}).count()
    assert (plain.flops_per_token, plain.cache_bytes_per_token) == (ahead.flops_per_token, ahead.cache_bytes_per_token)
    assert ahead.total > plain.total


@pytest.mark.parametrize(
    "value",
    [("embeddings", {"name": "hash_ngrams", "sizes": [2], "buckets": 11}), ("lm_heads", {"name": "factorized", "rank": 6, "logit_softcap": 9.0})],
    ids=lambda v: v[1]["name"],
)
def test_parts_keep_the_contract_with_other_options(value: tuple[str, dict[str, Any]]) -> None:
    quick = ["causality", "document_isolation", "cache_parity", "left_padding_parity", "initial_loss", "gradient_everywhere", "counts_are_measured"]
    broken = [str(r) for r in iterate(candidate(value[0], resolve_part(*value)), quick) if not r.passed]
    assert not broken, "\n".join(broken)
