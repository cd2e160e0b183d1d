"""How a probe runs the model during training: a forward pass of its own, on the same sequences every time.

The pass is without gradients, eager, in evaluation mode and in the run's precision; hooks stay only as long as it
takes. So the training's compiled code, its random numbers and its weights are not affected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feebcore.model.precision import autocast
from feebcore.model.transformer import Transformer
from feebcore.protocols import Batch, ModelOutput
from feebcore.train.callbacks import RunContext

EDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Between the six bins of |value|: fixed, so that layers, steps and runs compare."""


@contextlib.contextmanager
def eval_mode(run: RunContext) -> Iterator[nn.Module]:
    """The run's model for forward passes inside; afterwards it is as it was."""
    was_training = run.model.training
    run.model.eval()
    try:
        with torch.no_grad(), autocast(run.precision, run.device):
            yield run.model
    finally:
        run.model.train(was_training)


def first_sequences(run: RunContext, number: int) -> Batch:
    """The first sequences of the run's first batch, on its device: rows of tokens [B,T] and what belongs to them."""
    batch = run.data.batch(0)
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
    return Batch(**{k: None if v is None else v[:number].to(run.device) for k, v in fields.items()})  # type: ignore[arg-type]


def forward(model: nn.Module, batch: Batch, **options: Any) -> ModelOutput:
    return model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids, **options)


def layer_of(name: str) -> str:
    """Where a parameter belongs: 'stack.blocks.3.attention.qkv.weight' to 'stack.blocks.3', 'lm_head.weight' to 'lm_head'."""
    numbered = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
    return numbered.group() if numbered else name.partition(".")[0]


# --- the residual stream ----------------------------------------------------------------------------------------


def size_of(x: Tensor) -> Tensor:
    """[8] fp32 on its device: mean square, largest magnitude, and the share of |x| in each of the six bins."""
    magnitude = x.detach().abs().float()
    above = torch.stack([(magnitude >= edge).sum() for edge in EDGES]).float() / magnitude.numel()
    shares = torch.cat([above.new_ones(1), above]) - torch.cat([above, above.new_zeros(1)])
    return torch.cat([torch.stack([magnitude.square().mean(), magnitude.max()]), shares])


@dataclasses.dataclass
class BlockCall:
    """One pass through one block, as `size_of` what was there. between: the stream as later sublayers of the block read
    it, where that is not the block's input. attention, feedforward: what these returned, call by call."""

    layer: int
    before: Tensor
    after: Tensor | None = None
    between: list[Tensor] = dataclasses.field(default_factory=list)
    attention: list[Tensor] = dataclasses.field(default_factory=list)
    feedforward: list[Tensor] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Places:
    """Names of modules inside a transformer's stack: of blocks with their layer, and of what the blocks were given."""

    blocks: dict[str, int]
    attention: set[str]
    feedforward: set[str]
    norms: set[str]


def find_places(model: Transformer) -> Places:
    """Where a block, whatever it is, keeps its attentions, feedforwards and norms: another stack is built from the same
    parts, without memory for weights, and what the parts make is looked up in it."""
    made: dict[str, list[nn.Module]] = {"block": [], "attention": [], "feedforward": [], "norm": []}
    layers: list[int] = []

    def keep(kind: str, layer: int, module: nn.Module) -> None:
        made[kind].append(module)
        if kind == "block":
            layers.append(layer)

    with torch.device("meta"):
        depth = model.make_stack(keep)
    names = {id(module): name for name, module in depth.named_modules()}

    def names_of(kind: str) -> list[str | None]:
        return [names.get(id(module)) for module in made[kind]]

    blocks = {name: layer for name, layer in zip(names_of("block"), layers, strict=True) if name is not None}
    attention, feedforward, norms = ({name for name in names_of(kind) if name is not None} for kind in ("attention", "feedforward", "norm"))
    return Places(blocks, attention, feedforward, norms)


class StreamWatch:
    """While it is open, every pass through a block of `depth` leaves a BlockCall in `calls`, in the order of the passes: a
    block that runs several times a forward pass is there several times."""

    def __init__(self, depth: nn.Module, places: Places) -> None:
        self.calls: list[BlockCall] = []
        self._depth, self._places = depth, places
        self._handles: list[RemovableHandle] = []
        self._open: list[_Pass] = []

    def __enter__(self) -> StreamWatch:
        modules = dict(self._depth.named_modules())
        for name, layer in self._places.blocks.items():
            self._before(modules[name], lambda x, layer=layer: self._enter_block(x, layer))
            self._after(modules[name], self._leave_block)
        for kind in ("attention", "feedforward"):
            for name in getattr(self._places, kind):
                self._before(modules[name], self._read)
                self._after(modules[name], lambda x, y, kind=kind: getattr(self._open[-1].call, kind).append(size_of(y)))
        for name in self._places.norms:
            self._after(modules[name], lambda x, y: self._open[-1].normed.append((y, x)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], []

    def _before(self, module: nn.Module, call: Any) -> None:
        hook = lambda m, args, kwargs: call(_tensor((args, kwargs)))  # noqa: E731
        self._handles.append(module.register_forward_pre_hook(lambda *arguments: hook(*arguments) and None, with_kwargs=True))

    def _after(self, module: nn.Module, call: Any) -> None:
        hook = lambda m, args, kwargs, result: call(_tensor((args, kwargs)), _tensor(result))  # noqa: E731
        self._handles.append(module.register_forward_hook(lambda *arguments: hook(*arguments) and None, with_kwargs=True))

    def _enter_block(self, x: Tensor, layer: int) -> None:
        self._open.append(_Pass(BlockCall(layer, size_of(x)), [x]))

    def _leave_block(self, x: Tensor, y: Tensor) -> None:
        call = self._open.pop().call
        call.after = size_of(y)
        self.calls.append(call)

    def _read(self, x: Tensor) -> None:
        current = self._open[-1]
        stream = next((of for result, of in current.normed if result is x), x)
        if not any(stream is known for known in current.streams):
            current.streams.append(stream)
            current.call.between.append(size_of(stream))


@dataclasses.dataclass
class _Pass:
    """A pass that has not ended. streams: what was read, the block's input first. normed: results of norms with what they
    are of; kept here so that no other tensor takes a result's place in memory."""

    call: BlockCall
    streams: list[Tensor]
    normed: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)


def _tensor(value: Any) -> Tensor:
    """The first tensor in nested arguments or results."""
    tensor = next(_tensors(value), None)
    if tensor is None:
        raise TypeError("a block part was called with, or returned, no tensor")
    return tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
