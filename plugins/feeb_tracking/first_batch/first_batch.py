"""The first batch as the model gets it, as text: inputs next to targets, what counts in the loss, and where documents begin.

A target that is not the next input, a mask that hides the wrong half, a document that sees its neighbor: all of these
train without an error and are seen here at once.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from feeb_tracking.probe import FOLDER
from feebcore.files import write_atomic
from feebcore.protocols import Batch
from feebcore.train.callbacks import Callback

FILE = "first_batch.txt"


class FirstBatch(Callback):
    """Writes probes/first_batch.txt before the first step. State: none."""

    def on_batch(self, step: int, batch: Batch) -> None:
        if step:
            return
        folder = self.run.folder / FOLDER
        folder.mkdir(exist_ok=True)
        write_atomic(folder / FILE, describe(batch, self.run.tokenizer(), self.config.sequences))
        apart, pairs = not_shifted(batch)
        if apart:
            self.run.out.log(f"first batch: {apart} of {pairs} targets are not the next input; see {FOLDER}/{FILE}")


def describe(batch: Batch, tokenizer: Any, sequences: int) -> str:
    """A page of text: a summary, then a line a position for the first `sequences` sequences."""
    B, T = batch.tokens.shape
    apart, pairs = not_shifted(batch)
    counted = B * T if batch.mask is None else int(batch.mask.sum())
    lines = [
        f"The first batch: {B} sequences of {T} tokens.",
        f"{counted} of {B * T} targets count in the loss.",
        f"{pairs - apart} of {pairs} targets are the next input of their sequence" + (", as next-token prediction wants it." if not apart else "."),
        "Lines below: position in the sequence, the input, the target next to it; '-' where a target does not count.",
        "",
    ]
    for b in range(min(B, sequences)):
        lines.append(f"--- sequence {b} ---")
        if tokenizer is not None:
            lines.append(json.dumps(tokenizer.decode(batch.tokens[b].tolist()), ensure_ascii=False))
        document = None
        for t in range(T):
            own = None if batch.doc_ids is None else int(batch.doc_ids[b, t])
            if own != document:
                lines.append("      padding" if own == -1 else f"      document {own}")
                document = own
            counts = batch.mask is None or bool(batch.mask[b, t])
            place = f"{t:>5}" if batch.positions is None else f"{t:>5} @{int(batch.positions[b, t]):<5}"
            lines.append(f"{place} {word(batch.tokens[b, t], tokenizer):<24} {' ' if counts else '-'} {word(batch.targets[b, t], tokenizer)}")
    return "\n".join(lines) + "\n"


def word(token: Tensor, tokenizer: Any) -> str:
    """'1234 "text"', or the name of a special token, or the id alone."""
    i = int(token)
    if tokenizer is None:
        return str(i)
    special = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    if tokenizer.bos_id == tokenizer.eos_id:
        special = {tokenizer.bos_id: "<bos/eos>"}
    return f"{i} {special.get(i) or json.dumps(tokenizer.decode([i]), ensure_ascii=False)}"


def not_shifted(batch: Batch) -> tuple[int, int]:
    """How many targets differ from the next input of their sequence, and of how many; those that do not count are left out."""
    differ = batch.targets[:, :-1] != batch.tokens[:, 1:]
    if batch.mask is None:
        return int(differ.sum()), differ.numel()
    counts = batch.mask[:, :-1]
    return int((differ & counts).sum()), int(counts.sum())
