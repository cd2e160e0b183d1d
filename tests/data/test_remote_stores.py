"""Stores behind an address and compressed stores return the same tokens; damage on the way is found; forks do not hang."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from range_server import Ranges, WithoutRanges, served

from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.errors import ArtifactError

CHUNK, SHARD, VOCAB = 64, 256, 1000


def write(root: Path, compress: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    documents = [np.concatenate([[VOCAB - 2], rng.integers(0, VOCAB - 2, rng.integers(0, 90)), [VOCAB - 1]]) for _ in range(60)]
    for split in ("train", "validation"):
        options = {"vocab_size": VOCAB, "bos_id": VOCAB - 2, "eos_id": VOCAB - 1, "shard_tokens": SHARD, "chunk_tokens": CHUNK, "compress": compress}
        writer = SplitWriter(root / "tokens.zarr", split, **options)  # type: ignore[arg-type]
        writer.append(documents)
        writer.finish(np.array([len(d) for d in documents]), np.zeros(len(documents)), ["test"])
    return np.concatenate(documents)


@pytest.fixture
def http_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A folder served on the loopback interface: (its address, the folder)."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served(folder, WithoutRanges if getattr(request, "param", "") == "no ranges" else Ranges) as address:
        yield address, folder


@pytest.fixture
def memory() -> Iterator[str]:
    fsspec.filesystem("memory").mkdirs("/bucket", exist_ok=True)
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def same(store: TokenStore, flat: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    assert store.num_tokens == len(flat)
    for start, stop in [(0, 0), (0, len(flat)), *np.sort(rng.integers(0, len(flat) + 1, (40, 2)), axis=1).tolist()]:
        assert np.array_equal(store.read(start, stop), flat[start:stop])
    starts = rng.integers(0, len(flat) - 33, 50)
    assert np.array_equal(store.read_batch(starts, 33), np.stack([flat[s : s + 33] for s in starts]))
    assert store.doc_offsets[-1] == len(flat)
    assert np.array_equal(store.document(3), flat[store.doc_offsets[3] : store.doc_offsets[4]])


@pytest.mark.parametrize("compress", [False, True])
def test_a_store_on_a_web_server_returns_the_same_tokens(http_folder: tuple[str, Path], compress: bool) -> None:
    address, folder = http_folder
    flat = write(folder, compress)
    same(TokenStore.open(f"{address}/tokens.zarr", "train"), flat)
    same(TokenStore.open(f"{address}/tokens.zarr/", "validation", verify=True), flat)


@pytest.mark.parametrize("compress", [False, True])
def test_a_store_in_an_object_store_returns_the_same_tokens(tmp_path: Path, memory: str, compress: bool) -> None:
    flat = write(tmp_path, compress)
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    same(TokenStore.open(f"{memory}/tokens.zarr", "train"), flat)


def test_a_chunk_altered_on_the_way_is_found_by_its_hash(http_folder: tuple[str, Path]) -> None:
    address, folder = http_folder
    write(folder)
    path = folder / "tokens.zarr" / "train" / "tokens" / "c" / "1"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    store = TokenStore.open(f"{address}/tokens.zarr", "train")
    assert len(store.read(0, SHARD)) == SHARD
    with pytest.raises(ArtifactError, match=r"chunk 4 was altered"):
        store.read(SHARD, SHARD + 1)
    own = folder / "kept.jsonl"
    (folder / "ledger.jsonl").rename(own)  # without hashes of chunks only the whole can be checked
    with pytest.raises(ArtifactError, match=r"a shard .* was altered"):
        TokenStore.open(f"{address}/tokens.zarr", "train")
    with pytest.raises(ArtifactError, match="chunk 4 was altered"):
        TokenStore.open(f"{address}/tokens.zarr", "train", ledger=own).verify()


@pytest.mark.parametrize("http_folder", ["no ranges"], indirect=True)
def test_a_server_without_ranges_is_refused_and_gives_no_wrong_tokens(http_folder: tuple[str, Path]) -> None:
    address, folder = http_folder
    write(folder)
    with pytest.raises(ArtifactError, match=r"tokens.zarr/train.*chunk 0 cannot be decoded.*answers? Range requests"):
        TokenStore.open(f"{address}/tokens.zarr", "train").read(0, 5)


def test_what_is_missing_at_an_address_is_said(http_folder: tuple[str, Path], memory: str) -> None:
    address, folder = http_folder
    write(folder)
    for wrong in (f"{address}/other.zarr", f"{memory}/tokens.zarr", "http://127.0.0.1:9/tokens.zarr"):
        with pytest.raises(ArtifactError, match=r"has no split 'train'.*check the address"):
            TokenStore.open(wrong, "train")
    with pytest.raises(ArtifactError, match="nosuchkind"):
        TokenStore.open("nosuchkind://bucket/tokens.zarr", "train")
    (folder / "tokens.zarr" / "train" / "tokens" / "c" / "1").unlink()
    with pytest.raises(ArtifactError):
        TokenStore.open(f"{address}/tokens.zarr", "train").read(0, 3 * SHARD)


@pytest.mark.parametrize("kind", ["mapped", "compressed", "http"])
def test_a_forked_child_reads_on_and_ends(http_folder: tuple[str, Path], kind: str) -> None:
    address, folder = http_folder
    flat = write(folder, compress=kind == "compressed")
    store = TokenStore.open(f"{address}/tokens.zarr" if kind == "http" else folder / "tokens.zarr", "train")
    starts = np.arange(0, len(flat) - 33, 7)
    expected = store.read_batch(starts, 33)
    lock = getattr(store._pieces, "_lock", None)
    if lock is not None:
        lock.acquire()  # as if another thread were at it
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(store.read_batch(starts, 33), expected) else 1)
    if lock is not None:
        lock.release()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert np.array_equal(store.read_batch(starts, 33), expected)


def test_a_small_cache_decodes_each_chunk_of_a_batch_once(tmp_path: Path) -> None:
    flat = write(tmp_path, compress=True)
    store = TokenStore.open(tmp_path / "tokens.zarr", "train")
    pieces = store._pieces
    pieces._capacity = 4  # type: ignore[attr-defined]
    pieces._begin()  # type: ignore[attr-defined]
    array, read = pieces._array, []  # type: ignore[attr-defined]

    class Counting:
        def __getitem__(self, key: slice) -> np.ndarray:
            read.append(key.start // CHUNK)
            return array[key]

    pieces._array = Counting()  # type: ignore[attr-defined]
    starts = np.random.default_rng(2).permutation(np.arange(0, len(flat) - 20, 16))
    assert np.array_equal(store.read_batch(starts, 20), np.stack([flat[s : s + 20] for s in starts]))
    assert sorted(set(read)) == list(range(-(-len(flat) // CHUNK)))
    assert len(read) == len(set(read))
