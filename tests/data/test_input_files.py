"""Files as they come: names that look like patterns, links, suffixes, compression, companions of macOS, damaged and deep content."""

import bz2
import csv
import gzip
import json
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from numcodecs import zstd

from feeb_data.sources.files import FilesConfig
from feeb_data.sources.files.files import FilesSource
from feeb_data.sources.urls import UrlsConfig
from feeb_data.sources.urls.urls import UrlsSource
from feebcore.artifacts import Workspace
from feebcore.data.downloader import Downloader, Item
from feebcore.errors import DataError
from feebcore.protocols import Skipped
from feebcore.recipe import load
from feebcore.run.build import run_all

ROWS = b'{"text": "one"}\n{"text": "two"}\n'


def read(folder: Path, *paths: str, **options: object) -> tuple[dict[str, str], Skipped]:
    config = FilesConfig.model_validate({"paths": list(paths), **options}, context={"recipe_folder": folder})
    source = FilesSource(config)
    assert source.check() == []
    return {d.key: d.text for d in source.documents(folder)}, source.skipped


def write(path: Path, content: str | bytes = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- names and patterns


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a", "b"]}).write_parquet(tmp_path / "data1.parquet")
    pl.DataFrame({"text": ["c", "d"]}).write_parquet(tmp_path / "data[1].parquet")
    assert list(read(tmp_path, "data[1].parquet")[0].values()) == ["c", "d"]
    assert sorted(read(tmp_path, ".")[0].values()) == ["a", "b", "c", "d"]
    (tmp_path / "data1.parquet").unlink()
    assert list(read(tmp_path, "data[1].parquet")[0].values()) == ["c", "d"]


@pytest.mark.parametrize("name", ["[exp] 1", "try?", "a*b", "x=1", "{a}", "~x", "ä b"])
def test_only_what_the_recipe_writes_is_a_pattern(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "corpus" / "a.txt", "here")
    write(tmp_path / "try1" / "corpus" / "a.txt", "elsewhere")
    assert read(tmp_path / name, "corpus/*.txt")[0] == {"a.txt": "here"}
    assert read(tmp_path, f"./{name}/*/a.txt")[0] == {"corpus/a.txt": "here"}
    stored = FilesConfig.model_validate({"paths": ["corpus/*.txt"]}, context={"recipe_folder": tmp_path / name})
    assert FilesConfig.model_validate(stored.model_dump(), context={"recipe_folder": Path("/")}).content == stored.content != ""


@pytest.mark.parametrize("name", ["[exp] 1", "try?"])
def test_a_workspace_whose_name_looks_like_a_pattern_reads_its_own_files_only(tmp_path: Path, name: str) -> None:
    for i in range(40):
        write(tmp_path / "text" / f"{i}.txt", f"document {i}")
    data: dict[str, Any] = {"name": "t", "stages": ["download", "tokenizer", "shard"], "tokenizer": {"tokenizer": "byte"}}
    data["download"] = {"sources": [{"name": "files", "paths": ["text"]}], "filters": ["dedup_exact", {"name": "dedup_minhash"}, "quality_statistics"]}
    write(tmp_path / "r.yaml", json.dumps(data))
    made = [run_all(load(tmp_path / "r.yaml"), Workspace(tmp_path / w))["shard"].manifest["metrics"] for w in ("try1", name)]
    assert [m["train_tokens"] for m in made] == [made[0]["train_tokens"]] * 2


# --- links


def test_folders_behind_links_are_read_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "data" / "here" / "a.txt", "a")
    write(tmp_path / "elsewhere" / "b.txt", "b")
    (tmp_path / "data" / "there").symlink_to("../elsewhere")
    for i in range(3):  # each loop alone would double what a pattern finds at every level
        (tmp_path / "data" / "here" / f"up{i}").symlink_to("..")
    for path in ("data", "data/**/*.txt", "data/**"):
        documents, skipped = read(tmp_path, path)
        assert documents == {"here/a.txt": "a", "there/b.txt": "b"}
        assert skipped.names == {"link to a folder that is read already": ["here/up0", "here/up1", "here/up2"]}


def test_one_file_behind_several_names_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "d" / "m.txt", "text")
    (tmp_path / "d" / "a.txt").symlink_to("m.txt")
    os.link(tmp_path / "d" / "m.txt", tmp_path / "d" / "z.txt")
    (tmp_path / "d" / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "d" / "round.txt").symlink_to("round.txt")
    os.mkfifo(tmp_path / "d" / "pipe.txt")
    documents, skipped = read(tmp_path, "d")
    assert documents == {"m.txt": "text"}
    assert skipped.names["link to a file that is read already"] == ["z.txt", "a.txt"]
    assert skipped.names["link that leads nowhere"] == ["gone.txt", "round.txt"]
    assert skipped.names["neither file nor folder"] == ["pipe.txt"]


def test_names_that_are_no_utf8_are_escaped(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w") as stream:
        stream.write("text")
    assert read(tmp_path, ".")[0] == {"\\xff.txt": "text"}


# --- suffixes and compression

PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("name", ["A.JSONL", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_compressed_files_are_read_as_what_is_inside(tmp_path: Path, name: str, suffix: str) -> None:
    pl.DataFrame({"text": ["one", "two"]}).write_parquet(tmp_path / "p")
    plain = {"json": b'[{"text": "one"}, {"text": "two"}]', "csv": b"id,text\n1,one\n2,two\n", "txt": b"one\n\ntwo", "jsonl": ROWS}
    content = plain.get(name.lower().rpartition(".")[2], (tmp_path / "p").read_bytes())
    write(tmp_path / "d" / (name + suffix), PACKED[suffix](content))
    write(tmp_path / "d" / "plain" / (name + suffix.upper()), content)  # the suffix lies: it is not compressed
    write(tmp_path / "d" / "twice" / (name + suffix + ".gz"), gzip.compress(PACKED[suffix](content)))
    documents, skipped = read(tmp_path, "d", separator="\n\n")
    assert sorted(documents.values()) == ["one"] * 3 + ["two"] * 3
    assert not skipped


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", gzip.compress(b"hello", mtime=0)), ("a", b"hello"), ("a.log", b"hello"), ("a.txt", b"\xef\xbb\xbfhello")]
)
def test_the_first_bytes_decide_where_the_suffix_does_not(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / name, content)
    assert read(tmp_path, name)[0] == {name: "hello"}


def test_rows_are_known_without_a_suffix(tmp_path: Path) -> None:
    write(tmp_path / "download", ROWS)
    pl.DataFrame({"text": ["one", "two"]}).write_parquet(tmp_path / "p.txt")
    assert list(read(tmp_path, "download")[0].values()) == list(read(tmp_path, "p.txt")[0].values()) == ["one", "two"]


def test_json_in_all_its_forms(tmp_path: Path) -> None:
    for i, content in enumerate([ROWS, json.dumps([{"text": "one"}, {"text": "two"}]), json.dumps([{"text": "one"}, {"text": "two"}], indent=2)]):
        for suffix in ("json", "jsonl", "ndjson"):
            write(tmp_path / f"{i}.{suffix}", content)
            assert list(read(tmp_path, f"{i}.{suffix}")[0].values()) == ["one", "two"]
    write(tmp_path / "one.json", json.dumps({"text": "alone"}, indent=1))
    assert list(read(tmp_path, "one.json")[0].values()) == ["alone"]


def test_csv_keeps_quoted_text_and_refuses_to_cut_it(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], [1, 'a, "b"\nc'], [2, "x" * 200_000]])
    assert list(read(tmp_path, "a.csv")[0].values()) == ['a, "b"\nc', "x" * 200_000]
    write(tmp_path / "b.tsv", "text\tn\none, two\t1\n")
    write(tmp_path / "c.csv", "n;text\n1;drei\n2\n")
    assert list(read(tmp_path, "b.tsv")[0].values()) == ["one, two"]
    documents, skipped = read(tmp_path, "c.csv")
    assert (list(documents.values()), skipped.names) == (["drei"], {"row without text": ["c.csv:3"]})
    write(tmp_path / "d.csv", "n,text\n1,not, quoted\n")
    with pytest.raises(DataError, match=r"d\.csv:2: 3 fields under 2 columns; put fields that hold ',' in quotes"):
        read(tmp_path, "d.csv")
    write(tmp_path / "e.csv", 'n,text\n1,"never closed\n')
    with pytest.raises(DataError, match=r"e\.csv:\d: not CSV"):
        read(tmp_path, "e.csv")
    write(tmp_path / "f.csv", b"n,text\n1,\xff\n")
    assert read(tmp_path, "f.csv")[1] == {"not UTF-8": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "n,txt\n1,a\n" if name == "a.csv" else '{"txt": "a"}\n')
    with pytest.raises(DataError, match=rf"{name}.*'text' \(text_column\); did you mean 'txt'"):
        read(tmp_path, name)


@pytest.mark.parametrize("suffix", PACKED)
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.txt{suffix}", PACKED[suffix](os.urandom(4000).hex().encode())[:-20])
    with pytest.raises(DataError, match=rf"a\.txt\{suffix} is truncated or damaged"):
        read(tmp_path, f"a.txt{suffix}")


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,n,text\na,1,b\n")
    with pytest.raises(DataError, match=r"a\.csv: its first line has 2 columns 'text' .*; rename all but one"):
        read(tmp_path, "a.csv")


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_folder_of_the_recipe(tmp_path: Path, path: str) -> None:
    write(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"an empty path; write \. for the folder of the recipe"):
        read(tmp_path, path)


@pytest.mark.parametrize("path", ["a" * 300, f"{'a' * 300}/*.txt", f"*.txt/{'a' * 300}"])
def test_a_path_too_long_for_the_disk_is_not_there(tmp_path: Path, path: str) -> None:
    write(tmp_path / "b.txt")
    source = FilesSource(FilesConfig.model_validate({"paths": [path]}, context={"recipe_folder": tmp_path}))
    assert source.check() == [f"paths: nothing at {tmp_path}/{path}; paths are relative to the recipe"]


# --- what is left out


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_left_out_by_its_name(tmp_path: Path, name: str, code: str) -> None:
    write(tmp_path / "d" / name, ('{"text": "one"}\n' if ".json" in name else "text\none\n").encode(code))
    write(tmp_path / "d" / "b.txt", "ä\0")
    documents, skipped = read(tmp_path, "d")
    assert list(documents.values()) == ["ä\0"]
    assert skipped.names == {"UTF-16; save it as UTF-8": [name]}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_an_empty_file_is_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"")
    assert read(tmp_path, name)[1].names == {"empty": [name]}


def test_a_folder_names_what_it_leaves_out(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.txt", "a")
    write(tmp_path / "d" / "image.png")
    write(tmp_path / "d" / "._a.txt", b"\x00\x05\x16\x07")
    write(tmp_path / "d" / "__MACOSX" / "b.txt")
    write(tmp_path / "d" / ".DS_Store")
    with zipfile.ZipFile(tmp_path / "d" / "packed.txt", "w") as archive:
        archive.writestr("x.txt", "x")
    documents, skipped = read(tmp_path, "d")
    assert documents == {"a.txt": "a"}
    assert skipped.names == {
        "macOS companion file": [".DS_Store", "._a.txt", "__MACOSX/b.txt"],
        "suffix not read": ["image.png"],
        "archive; unpack it": ["packed.txt"],
    }


def test_a_folder_without_readable_files_says_so(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.png")
    source = FilesSource(FilesConfig.model_validate({"paths": ["d"]}, context={"recipe_folder": tmp_path}))
    (problem,) = source.check()
    assert problem.startswith(f"paths: no file at {tmp_path}/d can be read: 1 left out (suffix not read: a.png); files are read by suffix: .txt")


def test_what_is_left_out_stands_on_the_console_and_in_the_statistics(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / "d" / f"{i}.txt", f"text {i}")
    write(tmp_path / "d" / "x.png")
    write(tmp_path / "d" / "y.csv", "n,text\n1,\n2,second\n")
    write(tmp_path / "d" / "z.jsonl", '{"text": ""}\n{"text": "\\ud800"}\n')
    write(tmp_path / "r.yaml", json.dumps({"name": "t", "stages": ["download"], "download": {"sources": [{"name": "files", "paths": ["d"]}]}}))
    rows: list[dict[str, Any]] = []
    artifact = run_all(load(tmp_path / "r.yaml"), Workspace(tmp_path / "w"), on_progress=rows.append)["download"]
    assert [r["text"] for r in rows if r["kind"] == "log" and "left out" in r["text"]] == [
        "source files: 1 left out (suffix not read: x.png), 2 left out (empty: y.csv:000000000, z.jsonl:000000000), "
        "1 left out (lone surrogates, which UTF-8 does not have: z.jsonl:000000001)"
    ]
    statistics = json.loads(artifact.file("statistics.json").read_text())
    assert statistics["left_out"][:1] == [{"source": "files", "why": "suffix not read", "number": 1, "names": ["x.png"]}]


def test_deep_json_and_long_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "fine", "n": ' + "1" * 5000 + '}\n{"text": "deep", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: JSON nested deeper than can be read"):
        read(tmp_path, "a.jsonl")
    write(tmp_path / "a.jsonl", '{"text": "fine", "n": ' + "1" * 5000 + "}\n")
    assert list(read(tmp_path, "a.jsonl")[0].values()) == ["fine"]


# --- addresses


@pytest.fixture
def serve() -> Iterator[Any]:
    """serve({path: (headers, body)}) -> address."""
    servers = []

    def start(answers: dict[str, tuple[dict[str, str], bytes]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers, body = answers[self.path]
                self.send_response(200)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetched(folder: Path, *urls: str) -> tuple[list[str], Skipped]:
    source = UrlsSource(UrlsConfig.model_validate({"urls": [{"url": url} for url in urls], "retries": 0}))
    source.fetch(folder, lambda *_: None)
    return [d.text for d in source.documents(folder)], source.skipped


def test_a_gzip_encoding_of_the_transfer_is_undone(tmp_path: Path, serve: Any) -> None:
    import hashlib

    encoded = gzip.compress(ROWS)
    address = serve(
        {"/a.jsonl": ({"Content-Encoding": "gzip"}, encoded), "/b.jsonl": ({"Content-Encoding": "br"}, b"x"), "/c.jsonl": ({"Content-Encoding": "gzip"}, b"x")}
    )
    assert fetched(tmp_path / "a", f"{address}/a.jsonl")[0] == ["one", "two"]
    for i, (body, size) in enumerate(((ROWS, len(ROWS)), (encoded, len(encoded)))):  # the sum may be of the file or of what is sent
        item = Item(f"{address}/a.jsonl", "a", size=size, sha256=hashlib.sha256(body).hexdigest())
        (path,) = Downloader(retries=0).fetch([item], tmp_path / str(i), lambda *_: None)
        assert path.read_bytes() == body
    with pytest.raises(DataError, match="sent it br-encoded although identity was asked for"):
        fetched(tmp_path / "b", f"{address}/b.jsonl")
    with pytest.raises(DataError, match="calls it gzip-encoded, which it is not"):
        fetched(tmp_path / "c", f"{address}/c.jsonl")


def test_addresses_without_suffix_are_read_by_content(tmp_path: Path, serve: Any) -> None:
    for name in ("train.jsonl", "._train.jsonl", "__MACOSX/._x.txt"):
        write(tmp_path / "in" / name, ROWS if name == "train.jsonl" else b"\x00\x05\x16\x07")
    with tarfile.open(tmp_path / "a", "w:xz") as archive:
        archive.add(tmp_path / "in", "in")
    with zipfile.ZipFile(tmp_path / "b", "w") as packed:
        packed.writestr("x.txt", "zip")
    address = serve({"/download?id=5": ({}, ROWS), "/tar": ({}, (tmp_path / "a").read_bytes()), "/zip": ({}, (tmp_path / "b").read_bytes())})
    texts, skipped = fetched(tmp_path / "raw", f"{address}/download?id=5", f"{address}/tar", f"{address}/zip")
    assert texts == ["one", "two", "one", "two", "zip"]
    assert skipped.names == {"macOS companion file": ["in/._train.jsonl", "in/__MACOSX/._x.txt"]}


def test_a_proxy_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(DataError, match="the proxy in ALL_PROXY cannot be used"):
        fetched(tmp_path, "http://127.0.0.1:9/a.txt")
