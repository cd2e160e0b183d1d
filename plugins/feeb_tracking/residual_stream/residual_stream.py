"""How large the residual stream is before, between and after each block, and what attention and feedforward add to it.

Explosions show here long before the loss does: a stream that grows from layer to layer, or outputs that wander into the
bins of tens and hundreds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from feeb_tracking.options import ProbeConfig
from feeb_tracking.probe import Probe
from feebcore.model.transformer import Transformer
from feebcore.protocols import Batch, BuildContext
from feebcore.train.callbacks import RunContext
from feebcore.train.probing import BlockCall, Places, StreamWatch, eval_mode, find_places, first_sequences, forward, size_of


class ResidualStream(Probe):
    """A row has `blocks`, one entry a pass through a block, in order: layer; before, after and the list between: root
    mean squares; largest: of |stream| after it; attention and feedforward: rms and the shares of |value| in the six
    bins that EDGES of feebcore/train/probing.py separate (null where a block has none).

    An architecture that is not assembled from block parts shows what its forward pass tells: the stream after layers.
    """

    name = "residual_stream"

    def __init__(self, config: ProbeConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.batch: Batch | None = None
        self.places: Places | None = None

    def on_start(self, run: RunContext) -> None:
        self.places = find_places(run.model) if isinstance(run.model, Transformer) else None
        super().on_start(run)

    def measure(self, step: int) -> dict[str, Any]:
        run = self.run
        self.batch = first_sequences(run, self.config.sequences) if self.batch is None else self.batch
        with eval_mode(run) as model:
            if self.places is not None:
                with StreamWatch(model.stack, self.places) as watch:  # type: ignore[arg-type]
                    forward(model, self.batch)
                return {"blocks": describe(watch.calls)}
            sizes = [size_of(stream) for stream in forward(model, self.batch, want_layers=True).layers or []]
        return {"blocks": [{"layer": i, "after": math.sqrt(s[0]), "largest": s[1]} for i, s in enumerate(fetch(sizes))]}


def describe(calls: list[BlockCall]) -> list[dict[str, Any]]:
    """Rows of JSON values; one wait for the device."""
    parts: list[list[list[Any]]] = [[[c.before], c.between, [c.after], c.attention, c.feedforward] for c in calls]
    values = iter(fetch([size for groups in parts for group in groups for size in group if size is not None]))
    rows = []
    for call, groups in zip(calls, parts, strict=True):
        before, between, after, attention, feedforward = ([next(values) for _ in group] for group in groups)
        rows.append(
            {
                "layer": call.layer,
                "before": math.sqrt(before[0][0]),
                "between": [math.sqrt(size[0]) for size in between],
                "after": math.sqrt(after[0][0]),
                "largest": after[0][1],
                "attention": pooled(attention),
                "feedforward": pooled(feedforward),
            }
        )
    return rows


def pooled(sizes: list[list[float]]) -> dict[str, Any] | None:
    """Of several tensors of one shape as if they were one."""
    if not sizes:
        return None
    mean = [sum(column) / len(sizes) for column in zip(*sizes, strict=True)]
    return {"rms": math.sqrt(mean[0]), "histogram": mean[2:]}


def fetch(sizes: list[Tensor]) -> list[list[float]]:
    return torch.stack(sizes).tolist() if sizes else []
