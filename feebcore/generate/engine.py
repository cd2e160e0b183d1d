"""Batched decoding with a key/value cache.

Prompts are padded on the left, with explicit positions and doc_id -1 on the padding, so a row's result is what it
would be alone; equal ones are read once. Masks come from lengths, never from token ids: the end token may be any id. Every completion carries
the log-probabilities of the distribution it was really drawn from (after the logits_processors) and the model's own.

Cost on two cores, 3 layers of width 256, V 4096, fp32: about 25 ms a step for 512 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feebcore.errors import DataError, plural
from feebcore.generate.decoding import LogitsProcessor, PerRowRNG, Sampler, row_seeds, sample
from feebcore.protocols import LanguageModel, Tokenizer

CHECK_EVERY = {"cuda": 16}
"""Tokens between two looks at whether all rows are done, by device: on a GPU a look waits for it."""


@dataclass(frozen=True)
class Completion:
    """What a model added to one prompt.

    tokens: ids, the end token included when it was drawn. log_probs: of each token under the processed distribution,
    the one sampled from. raw_log_probs: under the model's own softmax. finish_reason: 'stop' when the end token was
    drawn (also as the last one allowed), else 'length'.
    """

    tokens: list[int]
    log_probs: list[float]
    raw_log_probs: list[float]
    finish_reason: str


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """BOS and the text's ids: how every prompt begins."""
    return [tokenizer.bos_id, *tokenizer.encode(text)]


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int,
    logits_processors: Sequence[LogitsProcessor] = (),
    sampler: Sampler | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    rows: Sequence[int] | None = None,
    batch_size: int = 512,
) -> list[Completion]:
    """Complete every prompt (ids, BOS included by the caller) by up to `max_new_tokens` ids.

    logits_processors run in the order given. sampler: default sampling. rows: the number of each prompt's random stream
    under `seed`, default 0, 1, …; a prompt with the same seed and row draws the same, whatever else is in the batch.
    device: default the model's. A completion ends early ('length') where the model's context is full.
    Raises DataError for an empty prompt or one that fills the context.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {i} is empty; begin it with the tokenizer's BOS")
        if len(prompt) >= model.seq_len:
            raise DataError(f"prompt {i} has {plural(len(prompt), 'token')}; this model's context is {model.seq_len}, so at most {model.seq_len - 1} fit")
    if device is None:
        device = next(model.parameters()).device  # type: ignore[attr-defined]
    seeds = row_seeds(seed, rows if rows is not None else range(len(prompts)))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: list[Completion | None] = [None] * len(prompts)
    was_training = model.training  # type: ignore[attr-defined]
    model.eval()  # type: ignore[attr-defined]
    try:
        for chunk in _chunks(order, [len(p) for p in prompts], max_new_tokens, model.seq_len, batch_size):
            random = PerRowRNG(seeds[chunk], device)
            completions = _decode(model, [list(prompts[i]) for i in chunk], max_new_tokens, eos_id, logits_processors, sampler or sample, random, device)
            for i, completion in zip(chunk, completions, strict=True):
                done[i] = completion
    finally:
        model.train(was_training)  # type: ignore[attr-defined]
    return done  # type: ignore[return-value]


def _chunks(order: list[int], lengths: list[int], max_new_tokens: int, seq_len: int, batch_size: int) -> Iterator[list[int]]:
    """Rows that are decoded together, shortest first: padding and the longest completion must fit the context."""
    chunk: list[int] = []
    steps = 0
    for i in order:
        if chunk and (len(chunk) == batch_size or lengths[i] + steps > seq_len):
            yield chunk
            chunk = []
        if not chunk:
            steps = min(max_new_tokens, seq_len - lengths[i])
        chunk.append(i)
    if chunk:
        yield chunk


def _decode(
    model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_id: int,
    logits_processors: Sequence[LogitsProcessor],
    sampler: Sampler,
    random: PerRowRNG,
    device: torch.device | str,
) -> list[Completion]:
    lengths = np.array([len(p) for p in prompts])
    limits = np.minimum(max_new_tokens, model.seq_len - lengths)
    num_steps = int(limits.max())
    if num_steps <= 0:
        return [Completion([], [], [], "length") for _ in prompts]
    places: dict[tuple[int, ...], int] = {}
    copies = [places.setdefault(tuple(p), len(places)) for p in prompts]
    tokens, positions, doc_ids = (t.to(device) if t is not None else None for t in left_pad(list(places)))
    assert tokens is not None
    assert positions is not None
    cache = model.new_cache(len(places), tokens.shape[1] + num_steps)
    hidden = model(tokens, positions=positions, doc_ids=doc_ids, cache=cache).hidden[:, -1]
    next_positions = positions[:, -1:]
    next_doc_ids = None if doc_ids is None else doc_ids[:, -1:]
    if len(places) < len(prompts):  # samples of one prompt: it was read once, and each of them continues from a copy
        rows = torch.tensor(copies, device=device)
        if cache is not None:  # a model that looks at the last token only keeps none
            cache.select(rows)
        hidden, next_positions = hidden[rows], next_positions[rows]
        next_doc_ids = None if next_doc_ids is None else next_doc_ids[rows]
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    active = torch.ones(len(prompts), dtype=torch.bool, device=device)
    limit = torch.from_numpy(limits).to(device)
    check_every = CHECK_EVERY.get(torch.device(device).type, 1)
    for step in range(num_steps):
        raw = model.lm_head(hidden).float()
        logits = raw
        for processor in logits_processors:
            logits = processor(logits)
        chosen = sampler(logits, random)
        log_probs = _log_prob_of(logits, chosen)
        columns.append((chosen, log_probs, log_probs if logits is raw else _log_prob_of(raw, chosen)))
        active &= (chosen != eos_id) & (limit > step + 1)
        if step + 1 == num_steps or ((step + 1) % check_every == 0 and not active.any()):
            break
        next_positions = (next_positions + 1).clamp(max=model.seq_len - 1)  # rows that are done run on, unseen
        hidden = model(chosen[:, None], positions=next_positions, doc_ids=next_doc_ids, cache=cache).hidden[:, -1]
    ids, processed, plain = (torch.stack(c, 1).cpu().numpy() for c in zip(*columns, strict=True))
    return [_cut(ids[i], processed[i], plain[i], int(limits[i]), eos_id) for i in range(len(prompts))]


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """tokens, positions [B,T] int64 and doc_ids [B,T] (0, or -1 on padding; None when nothing is padded)."""
    width = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), dtype=np.int64)
    padding = np.array([width - len(p) for p in prompts])[:, None]
    for i, prompt in enumerate(prompts):
        tokens[i, padding[i, 0] :] = prompt
    columns = np.arange(width)[None]
    positions = np.maximum(columns - padding, 0)
    doc_ids = torch.from_numpy(np.where(columns < padding, -1, 0)) if padding.any() else None
    return torch.from_numpy(tokens), torch.from_numpy(positions), doc_ids


def _log_prob_of(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)


def _cut(ids: np.ndarray, log_probs: np.ndarray, raw_log_probs: np.ndarray, limit: int, eos_id: int) -> Completion:
    """One row up to its end token, or to its limit."""
    ends = np.flatnonzero(ids[:limit] == eos_id)
    length = int(ends[0]) + 1 if ends.size else min(limit, len(ids))
    return Completion(ids[:length].tolist(), log_probs[:length].tolist(), raw_log_probs[:length].tolist(), "stop" if ends.size else "length")
