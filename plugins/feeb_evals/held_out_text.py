"""Benchmark bits_per_byte: the scorer over the held-out split, with the spread between documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from feebcore.errors import NO_VALIDATION_TEXT, DataError
from feebcore.evaluate.benchmark import EvaluatedModel
from feebcore.evaluate.intervals import bootstrap, dump
from feebcore.evaluate.scorer import score_documents, window_shape

if TYPE_CHECKING:
    from feeb_evals import BitsPerByteConfig


class BitsPerByte:
    title = "Held-out text, bits per byte"
    better = "lower"
    percent = False

    def __init__(self, config: BitsPerByteConfig) -> None:
        self._config = config

    def run(self, target: EvaluatedModel) -> dict[str, Any]:
        if not target.store.num_documents:
            raise DataError(f"bits_per_byte: no document is held out, so there is nothing to score; {NO_VALIDATION_TEXT}")
        config = self._config
        context, stride = window_shape(target.model, config.context, config.stride)
        found = score_documents(
            target.model, target.store, context, stride, target.device, target.precision, target.progress, config.max_documents, config.batch_tokens
        )
        total = found.total()
        interval = bootstrap(found.nats / math.log(2), found.bytes, seed=target.seed)
        details = {"tokens": total.tokens, "bytes": total.bytes, "loss": total.loss, "context": context, "stride": stride, "precision": target.precision}
        return {"bits_per_byte": dump(interval), **details}


def build(config: BitsPerByteConfig) -> BitsPerByte:
    return BitsPerByte(config)
