"""The scorer over the validation split, with the spread between documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from feebcore.errors import NO_VALIDATION_TEXT, DataError
from feebcore.evaluate.benchmark import Benchmark, EvaluatedModel
from feebcore.evaluate.intervals import bootstrap, dump
from feebcore.evaluate.scorer import score_documents, window_shape
from feebcore.protocols import BuildContext

if TYPE_CHECKING:
    from feeb_evals.benchmarks.bits_per_byte import BitsPerByteConfig


class BitsPerByte(Benchmark):
    title = "Validation text, bits per byte"
    better = "lower"

    def __init__(self, config: BitsPerByteConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def run(self, target: EvaluatedModel) -> dict[str, Any]:
        if not target.store.num_documents:
            raise DataError(f"bits_per_byte: the validation split is empty, so there is nothing to score; {NO_VALIDATION_TEXT}")
        config = self._config
        context, stride = window_shape(target.model, config.context, config.stride)
        where, limits = (target.device, target.precision, target.progress), (config.max_documents, config.batch_tokens, config.max_tokens)
        scores = score_documents(target.model, target.store, context, stride, *where, *limits)
        total = scores.total()
        interval = bootstrap(scores.nats / math.log(2), scores.bytes, seed=target.seed)
        details = {"tokens": total.tokens, "bytes": total.bytes, "loss": total.loss, "context": context, "stride": stride, "precision": target.precision}
        return {"bits_per_byte": dump(interval), **details}
