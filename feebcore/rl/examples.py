"""Solved problems as training batches: what stage sft trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from feebcore.errors import DataError
from feebcore.files import read_json
from feebcore.protocols import Batch, Task, Tokenizer
from feebcore.rl.tasks import encode_example, training_problems
from feebcore.train.config import TrainSection

if TYPE_CHECKING:
    from feebcore.rl.sft_config import SftConfig

_STREAM = 0x736674  # this module's purpose among a seed's random streams


class Examples:
    """`batch(step)`: fresh problems with answers, a pure function of (seed, step).

    Rows are BOS + prompt + answer + EOS, right-padded to a common width; the mask, made from lengths, covers the
    answer and the end token. width: of every batch unless a longer problem turns up.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, batch_size: int, seed: int, seq_len: int) -> None:
        self.task, self.tokenizer, self.batch_size, self.seed, self.seq_len = task, tokenizer, batch_size, seed, seq_len
        self.width = 0
        self.width = self.batch(0).tokens.shape[1]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        examples = [encode_example(self.tokenizer, i) for i in training_problems(self.task, self.batch_size, self.seed, _STREAM, step)]
        longest = max(len(prompt) + len(answer) for prompt, answer in examples) - 1
        if longest > self.seq_len:
            raise DataError(f"an example of task {type(self.task).__name__} has {longest} tokens, but the model's context is {self.seq_len}")
        return collate_examples(examples, max(longest, self.width))


def collate_examples(examples: list[tuple[list[int], list[int]]], width: int) -> Batch:
    """Pairs (prompt ids, answer ids) as one batch of `width` positions; attention is causal, so right padding is unseen."""
    tokens = np.zeros((len(examples), width), dtype=np.int64)
    targets = np.zeros_like(tokens)
    mask = np.zeros(tokens.shape, dtype=bool)
    for i, (prompt, answer) in enumerate(examples):
        ids = [*prompt, *answer]
        tokens[i, : len(ids) - 1] = ids[:-1]
        targets[i, : len(ids) - 1] = ids[1:]
        mask[i, len(prompt) - 1 : len(ids) - 1] = True
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(mask))


def train_section(section: SftConfig, model_folder: Path, width: int) -> TrainSection:
    """The training loop's options for a section of stage sft; the architecture is the model's own."""
    shared = (
        *("objective", "optimizer", "schedule", "batch_size", "max_steps", "grad_clip", "seed", "precision", "on_nonfinite", "device", "compile"),
        *("threads", "deterministic", "micro_batch", "callbacks", "checkpoint_every", "keep_checkpoints", "log_every"),
    )
    options = {key: getattr(section, key) for key in shared}
    architecture = read_json(model_folder / "model.json")["architecture"]
    return TrainSection(architecture=architecture, seq_len=width, validation_every=0, prefetch=0, **options)
