"""Training in a library that runs for seconds: progress, interruption, and the sample of texts to train on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from feeb_data.tokenizers.text_pieces import pieces
from feebcore.protocols import ProgressFn


def watched(work: Callable[[list[float]], Any], progress: ProgressFn) -> Any:
    """The result of `work`, done in a thread, so that this one can report, and be interrupted, while Rust code runs for
    seconds. `work` updates the list it is given: characters read, characters in total."""
    state = [0.0, 1.0]
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work(state))
        except BaseException as error:  # raised again below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="train tokenizer")
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        progress(state[0], state[1])
    if failure:
        raise failure[0]
    return result[0]


def sample(texts: Callable[[], Iterable[str]], sample_chars: int, max_document_chars: int, state: list[float]) -> Iterator[str]:
    """The texts to train on: at most `sample_chars` (0: all), spread evenly, each cut at `max_document_chars`, long ones in
    pieces. `state`: characters read, characters in total."""
    total = sum(min(len(text), max_document_chars) for text in texts())
    share = min(1.0, sample_chars / total) if sample_chars and total else 1.0
    state[1] = max(1.0, total * share)
    seen = 0
    for text in texts():
        head = text[:max_document_chars]
        seen += len(head)
        if state[0] <= seen * share:  # every document while all of it fits, else evenly spread ones
            state[0] += len(head)
            yield from pieces(head)
