"""What parts promise each other, as protocols and small records. Importing this loads no torch.

Shapes: B batch, T time, C model width, V vocabulary, H heads, D head width.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import polars
    import torch
    from torch import Tensor, nn

ProgressFn = Callable[[float, float], None]
"""`progress(done, total)` in whatever unit the caller announced."""


# --- building ---------------------------------------------------------------------------------------------------


def _not_offered(*arguments: Any, **named: Any) -> Any:
    raise TypeError("this kind of part does not receive this factory; the docstring of its spec lists the fields of its BuildContext")


@dataclass(frozen=True)
class BuildContext:
    """What the factory of a part receives as second argument, `build(config, context)`: model sizes, factories of other parts, data and
    training settings.

    One record for all kinds of part; the docstring of each spec (feebcore/specs.py) lists the fields that its kind receives.
    The others keep their defaults.

    Sizes of the model: vocab_size, seq_len, d_model (for a norm: the width that it normalizes), num_heads, head_dim, layer (of
    num_layers, from 0), dropout (of the results of attention and feedforward). Its parts: position (the model's Position), embedding, and
    factories of parts that it may contain: make_norm(dim=d_model), make_attention(), make_feedforward(), make_block(layer).
    Data: store (TokenStore), packing, num_sequences of one epoch, sources (the sequences of each source, where the data order
    asks for them), batch_size, seed. Training: groups (ParamGroup), total_steps (0: not known), world: ranks
    that hold the same parameters and take the same steps.
    """

    vocab_size: int = 0
    seq_len: int = 0
    d_model: int = 0
    num_heads: int = 0
    head_dim: int = 0
    layer: int = 0
    num_layers: int = 0
    dropout: float = 0.0
    position: Any = None
    embedding: Any = None
    make_norm: Callable[..., Any] = _not_offered
    make_attention: Callable[..., Any] = _not_offered
    make_feedforward: Callable[..., Any] = _not_offered
    make_block: Callable[..., Any] = _not_offered
    store: Any = None
    packing: Any = None
    num_sequences: int = 0
    sources: dict[str, range] = field(default_factory=dict)
    batch_size: int = 0
    seed: int = 0
    groups: list[ParamGroup] = field(default_factory=list)
    total_steps: int = 0
    world: int = 1


# --- data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One text. key: stable name inside its source (a relative path, a row id)."""

    text: str
    source: str
    key: str


class Skipped(Counter[str]):
    """Number of texts or files left out, by reason. names: the first MOST_NAMES of each reason."""

    MOST_NAMES = 20

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}

    def add(self, why: str, name: str) -> None:
        self[why] += 1
        if len(names := self.names.setdefault(why, [])) < self.MOST_NAMES:
            names.append(name)


class Source:
    """A dataset source. `fetch` downloads (resumable); `documents` reads the downloaded files.

    name: the source that its documents carry; empty where it is known only from the documents.
    """

    name: str = ""

    @functools.cached_property
    def skipped(self) -> Skipped:
        """What `documents` had to leave out: `self.skipped.add(reason, name)`. Ends on the console and in statistics.json."""
        return Skipped()

    def check(self) -> list[str]:
        """What is wrong with the options, each as 'key: what and what to do'; called before anything runs."""
        return []

    def fetch(self, folder: Path, progress: ProgressFn) -> None:
        """Download into `folder`; what is there already is kept. Default: nothing to fetch."""

    def documents(self, folder: Path) -> Iterator[Document]:
        """The documents, in an order that does not change from one reading to the next. folder: as for `fetch`."""
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """JSON that says what exactly was read (a commit, versions); ends in statistics.json."""
        return {}


Filter = Callable[["polars.LazyFrame"], "polars.LazyFrame"]
"""Documents to documents: columns text, source, key, num_bytes (others may be added), rows in order."""


class Tokenizer:
    """Encodes text to token ids and decodes them. Special tokens are never parsed from text: `<|endoftext|>` in a document stays text.

    bos_id precedes every document, eos_id follows every document and every completion. encodes_in_threads: `encode_batch` is
    multithreaded (unless TOKENIZERS_PARALLELISM is false), so no worker processes are started.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    encodes_in_threads: bool = False

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens. Raises UnicodeEncodeError for a lone surrogate."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, an integer array [n]."""
        return [np.asarray(self.encode(text), dtype=np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text; special tokens are skipped, invalid UTF-8 becomes U+FFFD."""
        raise NotImplementedError


class TokenizerTrainer:
    """Trains a tokenizer into a folder, and loads it from there."""

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> Tokenizer:
        """texts: each call gives all training texts once, in order. `progress` may raise to stop the training."""
        raise NotImplementedError

    def load(self, folder: Path) -> Tokenizer:
        """The tokenizer that `train` wrote. Raises DataError for a damaged folder."""
        raise NotImplementedError


@dataclass
class PackedSequences:
    """Sequences of a packing. tokens [B, T+1]: inputs and, shifted by one, targets. mask [B,T] bool: which targets count.
    doc_ids [B,T] int64: which document inside the sequence. positions [B,T] int64. None: all count, one document, 0..T-1."""

    tokens: np.ndarray
    mask: np.ndarray | None = None
    doc_ids: np.ndarray | None = None
    positions: np.ndarray | None = None


class Packing:
    """Documents to training sequences, each addressed by its index. num_sequences: of one epoch."""

    num_sequences: int

    def sequences(self, indices: np.ndarray) -> PackedSequences:
        """The sequences with these indices, int64 [B]; the result for one does not depend on the others."""
        raise NotImplementedError

    @property
    def statistics(self) -> dict[str, Any]:
        """For the run's metrics: padding_share (of the sequences' positions), dropped_share (of the split's tokens that are in no
        sequence), cut_documents_share (of documents that no sequence holds whole). Default: none."""
        return {}


class DataOrder:
    """Which sequence each sample of the run gets: a pure function of the sample index."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Sequences int64 [B] of the sample indices int64 [B], any indices in any order."""
        raise NotImplementedError

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Epochs of each source, by name, in a run of `num_samples` samples. Default: not reported by source."""
        return {}


# --- models -----------------------------------------------------------------------------------------------------


@dataclass
class ModelOutput:
    """hidden [B,T,C] after the final norm: `model.lm_head(hidden)` makes logits [.., V]. layers: per-layer streams
    when asked for. losses: auxiliary terms, each a scalar."""

    hidden: Tensor
    layers: list[Tensor] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class LanguageModel(Protocol):
    """`model(tokens [B,T], positions=[B,T]|None, doc_ids=[B,T]|None, cache=None, want_layers=False) -> ModelOutput`.

    positions default to 0..T-1 (plus the cache's length). Tokens attend within equal doc_ids only; doc_id -1
    marks padding. `lm_head(hidden) -> logits`. `final_norm(stream)` is what the head reads of a stream in `ModelOutput.layers`, of which
    want_layers gives num_streams. `new_cache(batch, length) -> Cache`. `count() -> Counts`.
    """

    lm_head: Any  # an nn.Module; of the transformer a LMHeadPart (feebcore/model/parts.py)
    final_norm: nn.Module
    vocab_size: int
    seq_len: int
    training: bool

    @property
    def num_streams(self) -> int: ...

    def __call__(self, tokens: Tensor, **kwargs: Any) -> ModelOutput: ...
    def new_cache(self, batch: int, length: int) -> Any: ...
    def count(self) -> Counts: ...


@dataclass(frozen=True)
class Counts:
    """Parameters and FLOPs, conventions explicit. total: every parameter once. non_embedding: without embedding
    and position tables. matmul: parameters that multiply activations (transformer + head, tied or not).
    flops_per_token: forward, full T x T attention, as FlopCounterMode counts (training is 3x this).
    flops_per_token_causal: attention halved. cache_bytes_per_token: key/value cache in fp32. cache_bytes_fixed: the
    constant-size part of the cache per sequence (a recurrent state)."""

    total: int
    non_embedding: int
    matmul: int
    flops_per_token: float
    flops_per_token_causal: float
    cache_bytes_per_token: int
    cache_bytes_fixed: int = 0


@dataclass
class ObjectiveOutput:
    """loss_sum: nats summed over `count` targets (fp32 scalar); loss = loss_sum / count. metrics: extra sums."""

    loss_sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """One (micro-)batch. tokens [B,T] int64 inputs; targets [B,T] int64, position t holds the token after
    tokens[:, t]; mask [B,T] bool: which targets count; doc_ids [B,T] int64 or None; positions [B,T] or None."""

    tokens: Tensor
    targets: Tensor
    mask: Tensor | None = None
    doc_ids: Tensor | None = None
    positions: Tensor | None = None


class Objective:
    """Training objective: `objective(model, batch) -> ObjectiveOutput`. The base class of objectives; `build(config, context)` makes one."""

    selects: bool = False
    """Whether it trains on a subset of the unmasked targets; `count` may then be smaller than the mask sum."""

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        raise NotImplementedError

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        """Forward FLOPs per sequence in addition to one forward pass of the model and LM head, as (with backward, without backward)."""
        return 0.0, 0.0

    def check(self, model: LanguageModel) -> None:
        """Called once before training, uncompiled. Raises ValueError, saying what to change, for a model that cannot be trained with it."""


@dataclass
class ParamGroup:
    """Parameters that share a role. role: 'matrix' (2-D weights inside blocks), 'embedding', 'lm_head', 'vector'
    (norms, biases, scalars). names and parameters run in parallel. row_blocks: by name, the rows of each map, for matrices that hold
    several maps of one input (q, k and v; gate and up); an optimizer of matrices treats them separately."""

    role: str
    names: list[str]
    parameters: list[torch.nn.Parameter]
    row_blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)


# --- RL tasks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One problem of a task. key: canonical text whose SHA-256 decides the split. answer: one right completion."""

    prompt: str
    answer: str
    key: str
    data: tuple[Any, ...] = ()


class Task:
    """Problems with a verifiable reward. max_completion_tokens: the longest a completion may be, the end token included."""

    max_completion_tokens: int

    def problem(self, rng: np.random.Generator) -> Problem:
        """A random problem, a function of `rng` alone."""
        raise NotImplementedError

    def reward(self, problem: Problem, completion: str) -> float:
        """In [0, 1]; 1 for a right completion. The completion is read, never executed."""
        raise NotImplementedError


# --- scaling ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. overrides: recipe keys of the train section, dotted. flops: planned training FLOPs, exact.
    budget: the FLOPs that were asked for, equal for the runs of one isoFLOP curve (0: none). round: it starts when the
    runs of all lower rounds have ended. predicted: its loss is predicted before it starts. original: name of a longer run that trains its
    first `shared_steps` steps exactly as this one; it begins where they part, once that run has ended."""

    name: str
    overrides: dict[str, Any]
    flops: float
    heldout: bool = False
    budget: float = 0.0
    round: int = 0
    predicted: bool = False
    original: str = ""
    shared_steps: int = 0

    @property
    def trained_flops(self) -> float:
        """`flops` without those of the steps that the original run trains."""
        return self.flops * (1 - self.shared_steps / self.overrides["max_steps"]) if self.shared_steps else self.flops
