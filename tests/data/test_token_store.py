"""Token stores: every read path gives the same tokens, damage is found, writing continues exactly."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from feebcore.data.shard_index import read_shard_index
from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter, default_shard_tokens, token_dtype
from feebcore.errors import ArtifactError, DataError

CHUNK, SHARD, VOCAB = 64, 256, 1000


def make_documents(seed: int = 0, number: int = 60, longest: int = 90) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    documents = [np.concatenate([[VOCAB - 2], rng.integers(0, VOCAB - 2, rng.integers(0, longest)), [VOCAB - 1]]) for _ in range(number)]
    documents[7] = np.concatenate([[VOCAB - 2], np.zeros(3 * SHARD + 5, dtype=np.int64), [VOCAB - 1]])  # longer than a shard, whole chunks of zeros
    return documents


def writer(root: Path, **changes: object) -> SplitWriter:
    options = {"vocab_size": VOCAB, "bos_id": VOCAB - 2, "eos_id": VOCAB - 1, "shard_tokens": SHARD, "chunk_tokens": CHUNK} | changes
    return SplitWriter(root, "train", **options)  # type: ignore[arg-type]


def finish(w: SplitWriter, documents: list[np.ndarray]) -> dict:
    return w.finish(np.array([len(d) for d in documents]), np.zeros(len(documents)), ["test"])


def write(root: Path, documents: list[np.ndarray], **changes: object) -> dict:
    w = writer(root, **changes)
    w.append(documents)
    return finish(w, documents)


def tree(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def shard_path(root: Path, number: int) -> Path:
    return root / "train" / "tokens" / "c" / str(number)


@pytest.mark.parametrize("compress", [False, True])
def test_every_path_reads_the_same_tokens(tmp_path: Path, compress: bool) -> None:
    import zarr

    documents = make_documents()
    flat = np.concatenate(documents)
    write(tmp_path / "t.zarr", documents, compress=compress)
    mapped = TokenStore.open(tmp_path / "t.zarr", "train")
    decoded = TokenStore.open(tmp_path / "t.zarr", "train", mapped=False)
    plain = zarr.open_group(str(tmp_path / "t.zarr"), mode="r")["train/tokens"][:]
    assert np.array_equal(plain, flat)
    assert mapped.dtype == np.uint16
    assert mapped.num_tokens == decoded.num_tokens == len(flat) == len(mapped.tokens)
    rng = np.random.default_rng(1)
    for start, stop in [(0, 0), (0, len(flat)), (CHUNK, 2 * CHUNK), *np.sort(rng.integers(0, len(flat) + 1, (200, 2)), axis=1).tolist()]:
        assert np.array_equal(mapped.read(start, stop), flat[start:stop])
        assert np.array_equal(decoded.read(start, stop), flat[start:stop])
    starts = rng.integers(0, len(flat) - 33, 50)
    assert np.array_equal(mapped.read_batch(starts, 33), np.stack([flat[s : s + 33] for s in starts]))
    assert np.array_equal(mapped.doc_offsets, np.concatenate([[0], np.cumsum([len(d) for d in documents])]))
    assert all(np.array_equal(mapped.document(i), d) for i, d in enumerate(documents))
    assert mapped.num_documents == len(documents)
    assert mapped.tokens[-1] == flat[-1]
    assert np.array_equal(mapped.tokens[5:9], flat[5:9])


def test_chunks_may_lie_in_any_order_with_gaps(tmp_path: Path) -> None:
    import google_crc32c

    documents = make_documents()
    write(tmp_path / "t.zarr", documents)
    path = shard_path(tmp_path / "t.zarr", 0)
    index = read_shard_index(path, SHARD // CHUNK)
    data = path.read_bytes()
    pieces, offsets = b"", {}
    for i in (2, 0, 3, 1):
        pieces += b"\xaa" * 7
        offsets[i] = (len(pieces), int(index.sizes[i]))
        pieces += data[index.offsets[i] : index.offsets[i] + index.sizes[i]]
    table = np.array([offsets[i] for i in range(4)], dtype="<u8").tobytes()
    path.write_bytes(pieces + table + int(google_crc32c.value(table)).to_bytes(4, "little"))
    store = TokenStore.open(tmp_path / "t.zarr", "train")
    assert np.array_equal(store.read(0, store.num_tokens), np.concatenate(documents))


def test_tokens_do_not_depend_on_layout_but_files_are_reproducible(tmp_path: Path) -> None:
    documents = make_documents()
    rows = [write(tmp_path / name / "t.zarr", documents, **o) for name, o in (("a", {}), ("b", {}), ("c", {"shard_tokens": 512}), ("d", {"compress": True}))]
    assert len({json.dumps(row) for row in rows}) == 1
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")


@pytest.mark.parametrize("kill_at", range(0, 60, 4))
def test_a_writer_continues_to_the_same_files(tmp_path: Path, kill_at: int) -> None:
    documents = make_documents()
    write(tmp_path / "whole" / "t.zarr", documents)
    first = writer(tmp_path / "cut" / "t.zarr")
    first.append(documents[:kill_at])  # and gone, without finish
    (tmp_path / "cut" / "t.zarr").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cut" / "t.zarr" / "0.abc.partial").write_bytes(b"left over")
    if (ledger := tmp_path / "cut" / "ledger.jsonl").exists():
        ledger.write_bytes(ledger.read_bytes() + b'{"split": "train", "sha')  # a row that the kill cut short
    second = writer(tmp_path / "cut" / "t.zarr")
    assert sum(len(d) for d in documents[second.next_document : kill_at]) < SHARD + max(map(len, documents))
    second.append(documents[second.next_document :])
    finish(second, documents)
    assert tree(tmp_path / "whole") == tree(tmp_path / "cut")
    third = writer(tmp_path / "cut" / "t.zarr")
    assert third.done is not None


def test_a_kill_before_the_ledger_row_rewrites_that_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = make_documents()
    write(tmp_path / "whole" / "t.zarr", documents)
    first = writer(tmp_path / "cut" / "t.zarr")
    calls = []

    def fail(row: dict) -> None:
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt
        SplitWriter._append_row(first, row)

    monkeypatch.setattr(first, "_append_row", fail)
    with pytest.raises(KeyboardInterrupt):
        first.append(documents)
    second = writer(tmp_path / "cut" / "t.zarr")
    second.append(documents[second.next_document :])
    finish(second, documents)
    assert tree(tmp_path / "whole") == tree(tmp_path / "cut")


@pytest.mark.parametrize("mapped", [True, False])
def test_truncated_altered_and_missing_shards_are_found(tmp_path: Path, mapped: bool) -> None:
    documents = make_documents()
    write(tmp_path / "t.zarr", documents)
    path = shard_path(tmp_path / "t.zarr", 1)
    good = path.read_bytes()

    def reopen() -> TokenStore:
        return TokenStore.open(tmp_path / "t.zarr", "train", mapped=mapped)

    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ArtifactError, match=r"truncated or altered.*run the recipe again"):
        reopen()
    path.write_bytes(good[100:])  # the index at the end is whole, the data before it is not
    with pytest.raises(ArtifactError, match="truncated"):
        reopen()
    path.write_bytes(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    with pytest.raises(ArtifactError, match="checksum"):
        reopen()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])  # one token differs
    with pytest.raises(ArtifactError, match="altered"):
        reopen()
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        reopen()
    path.write_bytes(good)
    reopen()


def test_unfinished_and_absent_splits_are_refused(tmp_path: Path) -> None:
    writer(tmp_path / "t.zarr").append(make_documents())
    with pytest.raises(ArtifactError, match="unfinished"):
        TokenStore.open(tmp_path / "t.zarr", "train")
    with pytest.raises(ArtifactError, match="no split 'validation'"):
        TokenStore.open(tmp_path / "t.zarr", "validation")


def test_an_empty_split_is_a_store_without_tokens(tmp_path: Path) -> None:
    w = writer(tmp_path / "t.zarr")
    w._group()
    finish(w, [])
    store = TokenStore.open(tmp_path / "t.zarr", "train")
    assert (store.num_tokens, store.num_documents) == (0, 0)


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside its vocabulary"):
        writer(tmp_path / "t.zarr").append([np.array([0, VOCAB])])


def test_dtype_and_shard_size_follow_vocabulary_and_corpus() -> None:
    assert token_dtype(2**16 - 1) == np.uint16
    assert token_dtype(2**16) == np.uint32
    assert default_shard_tokens(0) == 2**20
    assert default_shard_tokens(10**13) == 2**26
    assert default_shard_tokens(3 * 8 * 2**22) == 2**22
