"""What sources of documents and benchmarks promise."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.evaluate.benchmark import EvaluatedModel, intervals
from feebcore.model.build import build_model
from feebcore.parts import resolve_part
from feebcore.protocols import Document
from feebcore.testing.framework import Candidate, check, require

MOST = 40  # documents of a source that are looked at
CONTEXT = 192  # tokens; prompts of built-in tasks in bytes fit
SMALL = {"samples": 6, "problems": 6, "max_documents": 5, "max_new_tokens": 8}


def first_documents(subject: Candidate, folder: Path) -> tuple[Any, list[Document]]:
    source = subject.part.build()
    source.fetch(folder, lambda done, total: None)
    return source, list(itertools.islice(source.documents(folder), MOST))


@check("sources", meaning="Two reads give different documents or another order, so shards and splits differ; sort directory listings.")
def documents_are_deterministic(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, first = first_documents(subject, Path(folder))
        require(first, "there are no documents")
        require(list(itertools.islice(source.documents(Path(folder)), MOST)) == first, "a second reading gives other documents")
        require(first_documents(subject, Path(folder))[1] == first, "fetched again into the same folder, it gives other documents")


@check("sources", meaning="A document cannot be found again, or is not text: keys must be unique in a source, texts encodable as UTF-8.")
def documents_are_texts_with_names(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, documents = first_documents(subject, Path(folder))
        keys = [d.key for d in documents]
        require(all(keys) and len(set(keys)) == len(keys), "keys are empty, or one stands twice")
        require(len({d.source for d in documents}) == 1 and documents[0].source, f"several names of a source: {sorted({d.source for d in documents})}")
        for document in documents:
            document.text.encode()  # raises where a lone surrogate got in
        json.dumps(source.provenance(), allow_nan=False)
        require(source.name in ("", documents[0].source), f"the source is called {source.name!r}, its documents {documents[0].source!r}")


@contextlib.contextmanager
def small_target() -> Iterator[EvaluatedModel]:
    """A tiny untrained model of bytes with a validation split of a dozen documents."""
    tokenizer = resolve_part("tokenizers", "byte").build()
    texts = [f"def f{i}(x):\n    return x * {i} + {i * i}\n" * (1 + i % 4) for i in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        codec = tokenizer.train(lambda: iter(texts), Path(folder), lambda done, total: None)
        writer = SplitWriter(
            Path(folder) / "tokens.zarr",
            "validation",
            vocab_size=codec.vocab_size,
            bos_id=codec.bos_id,
            eos_id=codec.eos_id,
            shard_tokens=1024,
            chunk_tokens=256,
        )
        writer.append([np.array([codec.bos_id, *codec.encode(text), codec.eos_id]) for text in texts])
        writer.finish(np.array([len(text) for text in texts]), np.zeros(len(texts), dtype=np.int64), ["a"])
        architecture = resolve_part("architectures", {"name": "transformer", "d_model": 16, "num_heads": 2, "num_layers": 1})
        model = build_model(architecture, codec.vocab_size, CONTEXT, seed=7).eval()
        yield EvaluatedModel("pretrain", model, codec, TokenStore.open(Path(folder) / "tokens.zarr", "validation"), seed=3)


def small_benchmark(subject: Candidate, **options: Any) -> Any:
    fields = subject.spec.config.model_fields
    changed = {key: value for key, value in (SMALL | options).items() if key in fields}
    return dataclasses.replace(subject.part, config=subject.part.config.model_copy(update=changed)).build()


@check(
    "benchmarks",
    quick=True,
    meaning="The result cannot be displayed or compared: metrics are {value, low, high, n} with low <= value <= high; other values must be JSON.",
)
def result_is_valid(subject: Candidate) -> None:
    benchmark = small_benchmark(subject)
    require(benchmark.better in ("lower", "higher"), f"title {benchmark.title!r}, better {benchmark.better!r}")
    with small_target() as model:
        result = benchmark.run(model)
    metrics = intervals(result)
    require(metrics, f"no metric with a value among {', '.join(result)}")
    json.dumps(result, allow_nan=False)
    for name, entry in metrics.items():
        require(entry["n"] > 0 and all(math.isfinite(entry[key]) for key in ("value", "low", "high")), f"{name} is {entry}")
        require(entry["low"] <= entry["value"] <= entry["high"], f"{name}: {entry['value']} is outside of {entry['low']} to {entry['high']}")
        require(not benchmark.percent or 0 <= entry["low"] <= entry["high"] <= 1, f"{name} is a share, but {entry['low']} to {entry['high']}")


@check(
    "benchmarks",
    quick=True,
    meaning="Scores differ from one run to the next or with the batch size, or scoring changes the model; draw by `target.seed`, row by row.",
)
def result_is_repeatable(subject: Candidate) -> None:
    with small_target() as model:
        weights = [p.clone() for p in model.model.parameters()]  # type: ignore[attr-defined]
        before = torch.random.get_rng_state()
        first = small_benchmark(subject).run(model)
        require(torch.equal(before, torch.random.get_rng_state()), "it moves torch's random state")
        require(all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True)), "it changes the model's weights")  # type: ignore[attr-defined]
        again = small_benchmark(subject, batch_size=2, batch_tokens=256).run(model)
    for name, entry in intervals(first).items():
        there = intervals(again)[name]
        require(abs(entry["value"] - there["value"]) <= 1e-5 * abs(entry["value"]), f"{name} is {entry['value']}, and {there['value']} in smaller batches")
