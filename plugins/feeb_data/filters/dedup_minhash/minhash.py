"""Near duplicates by MinHash: of documents that are nearly equal, keeps the first.

A document is the set of its shingles: runs of `ngram` words, a word being letters, digits and whatever is not ASCII. Its
signature is the least value of each of bands x rows hash functions over that set; two signatures agree in a share of
places that estimates the Jaccard similarity of the sets (Broder 1997). Documents that agree in a whole band are compared;
those whose estimate reaches the threshold are linked, and each linked group keeps its first document.

Words and shingles are hashed in numpy over blocks of text. Signatures (4 bytes a hash: 448 a document by default) lie in a
temporary file, so memory holds a block of text and some hundred bytes a document. Nothing depends on the blocks' size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from feebcore.data.permutation import splitmix64
from feebcore.protocols import BuildContext, Filter

if TYPE_CHECKING:
    from feeb_data.filters.dedup_minhash import DedupMinhashConfig

BLOCK_BYTES = 1 << 20
PAIRS = 1 << 16  # compared together
_PRIME = 0x9E3779B97F4A7C15 | 1
_WORD_BYTES = np.array([chr(b).isalnum() or b >= 128 for b in range(128)] + [True] * 128)


def shingle_hashes(texts: Sequence[str], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """(hash uint64 [S], document int64 [S]) of every shingle; a text with fewer words is one shingle, one with none has none."""
    encoded = [text.lower().encode("utf-8", "surrogatepass") for text in texts]
    data = np.frombuffer(b" ".join([*encoded, b" "]), dtype=np.uint8)
    is_word = _WORD_BYTES[data]
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    words = splitmix64(_span_hashes(data, starts, stops))
    text_begins = np.cumsum([0, *(len(e) + 1 for e in encoded)])
    document_W = np.searchsorted(text_begins, starts, side="right") - 1
    first_W = np.searchsorted(document_W, np.arange(len(texts)))  # each document's first word
    counts = np.diff([*first_W, len(words)])
    combined = np.zeros(len(words), dtype=np.uint64)
    words_padded, document_padded = np.pad(words, (0, ngram)), np.pad(document_W, (0, ngram), constant_values=-1)
    for k in range(ngram):  # a shingle is named by its first word; what comes after the document's last word counts as nothing
        own_W = document_padded[k : k + len(words)] == document_W
        combined = splitmix64(combined ^ np.where(own_W, words_padded[k : k + len(words)], np.uint64(0)))
    place_W = np.arange(len(words)) - np.repeat(first_W, counts)
    keep = place_W <= np.maximum(np.repeat(counts, counts) - ngram, 0)
    return combined[keep], document_W[keep]


def _span_hashes(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Polynomial hash of data[start:stop], wherever it stands: sum of byte x prime^place, divided by prime^start, modulo 2^64."""
    powers = np.full(len(data), _PRIME, dtype=np.uint64)
    powers[0] = 1
    inverses = np.full(len(data), pow(_PRIME, -1, 2**64), dtype=np.uint64)
    inverses[0] = 1
    with np.errstate(over="ignore"):
        np.cumprod(powers, out=powers)
        np.cumprod(inverses, out=inverses)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers)])
        return (sums[stops] - sums[starts]) * inverses[starts]


def signatures(texts: Sequence[str], ngram: int, num_hashes: int, seed: int) -> np.ndarray:
    """uint32 [N, num_hashes]; all ones for a text without words."""
    hashes, documents = shingle_hashes(texts, ngram)
    table = np.full((len(texts), num_hashes), 2**32 - 1, dtype=np.uint32)
    if not len(hashes):
        return table
    present, begins = np.unique(documents, return_index=True)
    factors = splitmix64(splitmix64(np.full(2 * num_hashes, seed, dtype=np.uint64)) ^ np.arange(2 * num_hashes, dtype=np.uint64))
    with np.errstate(over="ignore"):
        for number in range(num_hashes):
            mixed = hashes * (factors[2 * number] | np.uint64(1)) + factors[2 * number + 1]
            table[present, number] = np.minimum.reduceat((mixed >> np.uint64(32)).astype(np.uint32), begins)
    return table


def near_duplicates(table: np.ndarray, bands: int, rows: int, threshold: float) -> np.ndarray:
    """bool [N]: documents that are linked to an earlier one. table: signatures [N, bands x rows]."""
    number = len(table)
    edges = np.empty((0, 2), dtype=np.int64)
    firsts = np.arange(number)  # of each document's group
    has_words = np.array(table[:, 0] != np.uint32(2**32 - 1)) | np.array(table[:, -1] != np.uint32(2**32 - 1))
    for band in range(bands):
        columns = np.array(table[:, band * rows : (band + 1) * rows], dtype=np.uint64)
        key = np.zeros(number, dtype=np.uint64)
        for column in columns.T:
            key = splitmix64(key ^ column)
        order = np.argsort(key, kind="stable")
        same = (key[order[1:]] == key[order[:-1]]) & has_words[order[1:]] & has_words[order[:-1]]
        group = np.concatenate([[0], np.cumsum(~same)])
        first = order[np.searchsorted(group, group)][1:]
        for pairs in (np.stack([order[:-1], order[1:]], axis=1)[same], np.stack([first, order[1:]], axis=1)[same]):
            edges = np.concatenate([edges, *(p[_agreement(table, p) >= threshold] for p in _cut(pairs))])
        graph = coo_matrix((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(number, number))
        component = connected_components(graph, directed=False)[1]
        firsts = np.unique(component, return_index=True)[1][component]
        edges = np.stack([firsts, np.arange(number)], axis=1)[firsts < np.arange(number)]  # all that is needed of them
    return firsts < np.arange(number)


def _agreement(table: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Share of hashes in which each pair agrees: the estimate of its similarity."""
    return (table[pairs[:, 0]] == table[pairs[:, 1]]).mean(axis=1)


def _cut(pairs: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(pairs), PAIRS):
        yield pairs[begin : begin + PAIRS]


def dedup_minhash(config: DedupMinhashConfig, context: BuildContext | None = None) -> Filter:
    """Drops documents that are linked to an earlier one."""

    def apply(frame: pl.LazyFrame) -> pl.LazyFrame:
        sizes = frame.select("num_bytes").collect()["num_bytes"].to_numpy()
        num_hashes = config.bands * config.rows
        if not len(sizes):
            return frame
        with tempfile.NamedTemporaryFile(prefix="feeb-minhash-") as spool:
            start, ends = 0, np.cumsum(sizes)
            while start < len(sizes):
                stop = max(start + 1, int(ends.searchsorted(ends[start] - sizes[start] + BLOCK_BYTES)))
                texts = frame.select("text").slice(start, stop - start).collect()["text"].to_list()
                spool.write(signatures(texts, config.ngram, num_hashes, config.seed).tobytes())
                start = stop
            spool.flush()
            table = np.memmap(spool.name, dtype=np.uint32, mode="r", shape=(len(sizes), num_hashes))
            dropped = near_duplicates(table, config.bands, config.rows, config.threshold)
            del table
        numbers = pl.LazyFrame({"_row": np.flatnonzero(dropped).astype(np.uint32)})
        return frame.with_row_index("_row").join(numbers, on="_row", how="anti", maintain_order="left").drop("_row")

    return apply
