"""The stream's sizes are those of the tensors themselves, whatever the block and the stack."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_run import VOCAB, Cycle, run, section
from torch import nn

from feeb_tracking.residual_stream.residual_stream import describe
from feebcore.files import read_jsonl
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart, StackPart
from feebcore.model.transformer import Transformer
from feebcore.protocols import BuildContext
from feebcore.train.probing import StreamWatch, find_places, layer_of, size_of


def rms(x: torch.Tensor) -> float:
    return math.sqrt(float(np.mean(np.square(x.detach().numpy().astype(np.float64)))))


def small_model(**parts) -> Transformer:
    config = section().architecture.config
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    torch.manual_seed(0)
    described = SimpleNamespace(**fields | {"width_of_head": config.width_of_head} | parts)
    return Transformer(described, BuildContext(vocab_size=VOCAB, seq_len=16)).eval()  # type: ignore[arg-type]


def watched(model: Transformer) -> list[dict]:
    with torch.no_grad(), StreamWatch(model.stack, find_places(model)) as watch:
        model(Cycle().batch(0).tokens)
    return describe(watch.calls)


def test_sizes_of_a_prenorm_model_equal_those_of_its_equation():
    model = small_model()
    rows = watched(model)
    with torch.no_grad():
        context = ForwardContext(model.position, model.position.prepare(16, None))
        x = model.position.add(model.embedding(Cycle().batch(0).tokens, context), None)
        for row, block in zip(rows, model.stack.blocks, strict=True):
            attention = block.attention(block.attention_norm(x), context)
            feedforward = block.feedforward(block.feedforward_norm(x + attention), context)
            expected = {"before": rms(x), "after": rms(x + attention + feedforward)}
            assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-5)
            assert row["between"] == pytest.approx([rms(x + attention)], rel=1e-5)
            for name, y in (("attention", attention), ("feedforward", feedforward)):
                assert row[name]["rms"] == pytest.approx(rms(y), rel=1e-5)
                counts, _ = np.histogram(np.abs(y.numpy()), bins=[0, 0.01, 0.1, 1, 10, 100, np.inf])
                assert row[name]["histogram"] == pytest.approx(counts / counts.sum(), abs=1e-6)
            x = x + attention + feedforward
            assert row["largest"] == pytest.approx(float(x.abs().max()), rel=1e-5)


def a_part(make):
    """A stranger's part, by its factory alone."""
    return SimpleNamespace(name="a stranger's", config=None, build=lambda context: make(None, context))


def test_a_parallel_block_has_nothing_between():
    from feeb_models.blocks.parallel.parallel import Parallel

    rows = watched(small_model(block=a_part(Parallel)))
    assert [row["between"] for row in rows] == [[], []]
    assert all(row["attention"] and row["feedforward"] for row in rows)


class Macaron(BlockPart):
    """A stranger's block: half a feedforward, attention, half a feedforward, under names of its own, norms at the end."""

    def __init__(self, config, context) -> None:
        super().__init__(config, context)
        make = context.make_feedforward
        self.inner = nn.ModuleDict({"mix": context.make_attention(), "one": make(), "two": make()})
        self.gate = nn.Linear(32, 32)
        self.last = context.make_norm()

    def forward(self, x, context):
        x = x + 0.5 * self.inner["one"](x, context)
        x = x + self.inner["mix"](x, context)
        return self.last(self.gate(x) + 0.5 * self.inner["two"](x, context))


class Looped(StackPart):
    """A stranger's stack: one block, run over and over."""

    def __init__(self, config, context) -> None:
        super().__init__()
        self.num_streams, self.only = context.num_layers, context.make_block(0)

    def forward(self, stream, context):
        streams = []
        for _ in range(self.num_streams):
            stream, context = self.only.run(stream, context)
            streams.append(stream)
        return streams, context


def test_any_block_and_any_stack_are_seen_pass_by_pass():
    model = small_model(block=a_part(Macaron), stack=a_part(Looped), num_layers=3)
    rows = watched(model)
    assert [row["layer"] for row in rows] == [0, 0, 0]
    assert [len(row["between"]) for row in rows] == [2, 2, 2]
    assert [row["after"] for row in rows[:-1]] == pytest.approx([row["before"] for row in rows[1:]])
    streams = model(Cycle().batch(0).tokens, want_layers=True).layers
    assert [row["after"] for row in rows] == pytest.approx([rms(s) for s in streams], rel=1e-5)
    halves = [[size_of(torch.full((4,), v))] for v in (3.0, 4.0)]
    from feeb_tracking.residual_stream.residual_stream import fetch, pooled

    assert pooled(fetch(halves[0] + halves[1]))["rms"] == pytest.approx(math.sqrt((9 + 16) / 2))


def test_watching_leaves_no_hook_behind_even_after_an_error():
    model = small_model()
    hooks = lambda: [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]  # noqa: E731
    before = hooks()
    with pytest.raises(RuntimeError, match="stop"), StreamWatch(model.stack, find_places(model)):
        raise RuntimeError("stop")
    assert hooks() == before


def test_an_architecture_of_one_piece_shows_what_its_forward_tells(tmp_path, monkeypatch):
    monkeypatch.setattr("feeb_tracking.residual_stream.residual_stream.Transformer", nn.Bilinear)  # as if the model were something else
    run(tmp_path, section(callbacks=["residual_stream"], max_steps=2), checkpoint=False, save=False)
    rows = read_jsonl(tmp_path / "probes" / "residual_stream.jsonl")
    assert [set(block) for block in rows[0]["blocks"]] == [{"layer", "after", "largest"}] * 2


@pytest.mark.parametrize(
    ("name", "layer"),
    [("stack.blocks.3.attention.qkv.weight", "stack.blocks.3"), ("lm_head.weight", "lm_head"), ("h.0.mlp.1.bias", "h.0"), ("0.weight", "0"), ("gain", "gain")],
)
def test_parameters_belong_to_the_outermost_numbered_module(name, layer):
    assert layer_of(name) == layer
