"""Deliberately broken tokenizers, sources, logits_processors, samplers and benchmarks: each is caught by a named check."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import feebcore as feeb
from feeb_data.tokenizers.byte.byte import ByteTrainer
from feebcore.config import NoOptions
from feebcore.evaluate.benchmark import Benchmark, EvaluatedModel
from feebcore.evaluate.intervals import dump, wilson
from feebcore.generate import decoding
from feebcore.generate.decoding import PerRowRNG
from feebcore.parts import Part
from feebcore.protocols import Document, Source, TokenizerTrainer
from feebcore.testing import check_part


def part(spec_class: type[feeb.PartSpec], kind: str, build: Callable[..., Any]) -> Part:
    spec = spec_class("mutant", build=build, summary="A broken part.")
    return Part(kind, spec, spec.config())


def tokenizer(**changes: Callable[..., Any]) -> Part:
    """`byte` with methods of its codec replaced; each is given the sound codec first."""

    class Codec:
        def __init__(self, sound: Any) -> None:
            self.sound = sound

        def __getattr__(self, name: str) -> Any:
            if name in changes:
                return lambda *given: changes[name](self.sound, *given)
            return getattr(self.sound, name)

    class Trainer(TokenizerTrainer):
        def train(self, texts: Any, folder: Path, progress: Any) -> Codec:
            return Codec(ByteTrainer(NoOptions()).train(texts, folder, progress))

        def load(self, folder: Path) -> Codec:
            return Codec(ByteTrainer(NoOptions()).load(folder))

    return part(feeb.TokenizerSpec, "tokenizers", lambda config, context: Trainer())


def parsed(sound: Any, text: str) -> list[int]:
    """Special tokens written out in a text are taken for themselves."""
    first, *rest = text.split("<|endoftext|>")
    return list(itertools.chain(sound.encode(first), *([sound.eos_id, *sound.encode(piece)] for piece in rest)))


TOKENIZERS = {
    "Unicode normalized": (tokenizer(encode=lambda sound, text: sound.encode(unicodedata.normalize("NFKC", text))), "text_round_trip"),
    "spaces stripped": (tokenizer(encode=lambda sound, text: sound.encode(text.strip())), "text_round_trip"),
    "line ends changed": (tokenizer(decode=lambda sound, ids: sound.decode(ids).replace("\r\n", "\n")), "text_round_trip"),
    "unknown characters replaced": (
        tokenizer(encode=lambda sound, text: sound.encode(text.encode("cp1252", "replace").decode("cp1252", "ignore"))),
        "text_round_trip",
    ),
    "special tokens parsed in text": (tokenizer(encode=parsed), "no_injection"),
    "batch adds BOS": (tokenizer(encode_batch=lambda sound, texts: [[sound.bos_id, *sound.encode(t)] for t in texts]), "batch_equals_single"),
}


def source(documents: Callable[[int], Iterator[Document]]) -> Part:
    """documents(n): those of the n-th reading."""
    readings = itertools.count()

    class Mutant(Source):
        def documents(self, folder: Path) -> Iterator[Document]:
            return documents(next(readings))

    return part(feeb.SourceSpec, "sources", lambda config, context: Mutant())


def sound_documents(reading: int) -> Iterator[Document]:
    return (Document(f"text {i}", "mutant", str(i)) for i in range(5))


SOURCES = {
    "another sequence each time": (
        source(lambda n: (Document(f"text {i ^ (n & 1)}", "mutant", str(i ^ (n & 1))) for i in range(4))),
        "documents_are_deterministic",
    ),
    "nothing the second time": (source(lambda n: (d for d in sound_documents(n) if n == 0)), "documents_are_deterministic"),
    "one key for all": (source(lambda n: (dataclasses.replace(d, key="row") for d in sound_documents(n))), "documents_are_texts_with_names"),
    "bytes smuggled in as surrogates": (
        source(lambda n: (dataclasses.replace(d, text="\udc80") for d in sound_documents(n))),
        "documents_are_texts_with_names",
    ),
}


def processor(change: Callable[[Tensor], Tensor]) -> Part:
    return part(feeb.LogitsProcessorSpec, "logits_processors", lambda config, context: change)


def sampler(choose: Callable[[Tensor, PerRowRNG], Tensor]) -> Part:
    return part(feeb.SamplerSpec, "samplers", lambda config, context: choose)


def top_two(logits: Tensor) -> Tensor:
    return logits.masked_fill(logits < logits.topk(2, -1).values[:, -1:], -torch.inf)


SAMPLERS = {
    "nothing left": (processor(lambda logits: logits.masked_fill(logits < 50, -torch.inf)), "keeps_a_token"),
    "removed tokens are back": (processor(lambda logits: logits.nan_to_num(neginf=-1e4)), "removed_stays_removed"),
    "threshold of the whole batch": (
        processor(lambda logits: logits.masked_fill(logits < logits.max() - 61, -torch.inf)),
        "processor_works_by_row",
    ),
    "logits upside down": (processor(lambda logits: torch.where(logits > -torch.inf, -logits, logits)), "most_likely_token_stays"),
    "temperature applied twice": (sampler(lambda logits, random: decoding.sample(logits * 2, random)), "draws_from_the_logits"),
    "probabilities taken for logits": (sampler(lambda logits, random: decoding.sample(logits.softmax(-1), random)), "draws_from_the_logits"),
    "least likely taken": (sampler(lambda logits, random: logits.nan_to_num(neginf=9.0).argmin(-1)), "draws_from_the_logits"),
    "torch's own random numbers": (sampler(lambda logits, random: logits.softmax(-1).multinomial(1)[:, 0]), "sampler_works_by_row"),
    "removed token drawn": (sampler(lambda logits, random: logits.argmin(-1)), "chooses_possible_tokens"),
}


def benchmark(run: Callable[[EvaluatedModel], dict[str, Any]], percent: bool = True) -> Part:
    class Mutant(Benchmark):
        title = "Mutant"

    made = Mutant()
    made.run, made.percent = run, percent  # type: ignore[attr-defined]
    return part(feeb.BenchmarkSpec, "benchmarks", lambda config, context: made)


def guesses(target: EvaluatedModel, seed: int | None = None) -> dict[str, Any]:
    drawn = torch.randint(2, (50,), generator=torch.Generator().manual_seed(target.seed if seed is None else seed))
    return {"right": dump(wilson(int(drawn.sum()), 50))}


counter = itertools.count()

BENCHMARKS = {
    "plain number": (benchmark(lambda subject: {"right": 0.5}), "result_is_valid"),
    "interval without its value": (benchmark(lambda subject: {"right": {"value": 0.9, "low": 0.1, "high": 0.5, "n": 9}}), "result_is_valid"),
    "per cent in place of shares": (benchmark(lambda subject: {"right": {"value": 50.0, "low": 40.0, "high": 60.0, "n": 9}}), "result_is_valid"),
    "no observations": (benchmark(lambda subject: {"right": {"value": float("nan"), "low": 0.0, "high": 1.0, "n": 0}}), "result_is_valid"),
    "seed of its own": (benchmark(lambda subject: guesses(subject, next(counter))), "result_is_repeatable"),
    "global random numbers": (benchmark(lambda subject: {"right": dump(wilson(int(torch.rand(50).gt(0.5).sum()), 50))}), "result_is_repeatable"),
    "trains on its questions": (benchmark(lambda subject: [p.data.mul_(0.9) for p in subject.model.parameters()] and guesses(subject)), "result_is_repeatable"),  # type: ignore[attr-defined]
}

FAMILIES = {"tokenizers": TOKENIZERS, "sources": SOURCES, "samplers": SAMPLERS, "benchmarks": BENCHMARKS}
MUTANTS = {name: pair for family in FAMILIES.values() for name, pair in family.items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    broken, wanted = MUTANTS[name]
    (result,) = check_part(broken.kind, broken, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"


@pytest.mark.parametrize(
    "twin",
    [
        tokenizer(),
        source(sound_documents),
        processor(lambda logits: logits),
        processor(top_two),
        sampler(decoding.sample),
        sampler(decoding.greedy),
        benchmark(guesses),
    ],
    ids=lambda twin: twin.kind,
)
def test_the_unbroken_form_of_the_mutants_passes(twin: Part, failures: Callable[[str, Part], list[str]]) -> None:
    assert failures(twin.kind, twin) == []
