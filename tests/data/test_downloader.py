"""Downloads against a real server that cuts connections, lies and asks for patience."""

import hashlib
import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import FlakyServer, serve

from feeb_data.sources.huggingface import HuggingfaceConfig
from feeb_data.sources.huggingface.huggingface import HuggingfaceSource
from feeb_data.sources.urls import UrlsConfig
from feeb_data.sources.urls.urls import UrlsSource
from feebcore.data.archives import extract
from feebcore.data.downloader import Downloader, Item, safe_join
from feebcore.errors import DataError, Interrupted

BODY = os.urandom(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with serve() as running:
        running.files["/f.bin"] = BODY
        yield running


def nothing(done: float, total: float) -> None:
    pass


def fetch(server: FlakyServer, folder: Path, retries: int = 4, **item: object) -> tuple[Path, list[float]]:
    pauses: list[float] = []
    with Downloader(retries=retries, timeout=5, first_pause=0.01, sleep=pauses.append) as downloader:
        (path,) = downloader.fetch([Item(f"{server.url}/f.bin", "f.bin", **item)], folder, nothing)  # type: ignore[arg-type]
    return path, pauses


def test_cut_connections_are_taken_up_where_they_ended(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["cut:100000", "cut:50000"]
    path, pauses = fetch(server, tmp_path, sha256=SHA)
    assert path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert len(pauses) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.bin"]


def test_a_later_run_resumes_and_a_finished_file_is_left_alone(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["cut:100000"]
    with pytest.raises(DataError, match="gave up after 1 failures"):
        fetch(server, tmp_path, retries=0)
    assert (tmp_path / "f.bin.part").stat().st_size == 100_000
    assert fetch(server, tmp_path, sha256=SHA)[0].read_bytes() == BODY
    assert server.ranges()[-1] == "bytes=100000-"
    fetch(server, tmp_path)
    assert len(server.requests) == 2


def test_a_file_that_changed_meanwhile_starts_anew(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["cut:1000"]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    server.etag, server.files["/f.bin"] = '"two"', BODY[::-1]
    assert fetch(server, tmp_path)[0].read_bytes() == BODY[::-1]


def test_a_server_without_ranges_is_read_from_the_start(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["cut:1000", "norange"]
    assert fetch(server, tmp_path, sha256=SHA)[0].read_bytes() == BODY


def test_a_part_that_is_whole_already_is_only_checked(server: FlakyServer, tmp_path: Path) -> None:
    (tmp_path / "f.bin.part").write_bytes(BODY)
    assert fetch(server, tmp_path, sha256=SHA)[0].read_bytes() == BODY


def test_wrong_bytes_are_fetched_once_more_then_refused(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["wrong"]
    assert fetch(server, tmp_path, sha256=SHA)[0].read_bytes() == BODY
    (tmp_path / "f.bin").unlink()
    server.plan["/f.bin"] = ["wrong", "wrong"]
    with pytest.raises(DataError, match=rf"its sha256 is [0-9a-f]{{64}}, {SHA} was expected, twice"):
        fetch(server, tmp_path, sha256=SHA)
    assert not list(tmp_path.iterdir())


def test_a_short_file_is_refused_by_its_announced_size(server: FlakyServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="300001"):
        fetch(server, tmp_path, retries=1, size=len(BODY) + 1)


def test_429_waits_as_long_as_it_is_told_and_errors_back_off(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["429:7", "503", "500", "429:0"]
    path, pauses = fetch(server, tmp_path)
    assert path.read_bytes() == BODY
    assert pauses[0] == 7.0
    assert pauses[3] == 0.0
    assert 0 < pauses[1] < 0.05
    assert 0 < pauses[2] < 0.1


def test_patience_ends_and_a_missing_file_is_not_retried(server: FlakyServer, tmp_path: Path) -> None:
    server.plan["/f.bin"] = ["503"] * 9
    with pytest.raises(DataError, match=r"gave up after 5 failures in a row; the last: the server answered 503.*run again"):
        fetch(server, tmp_path)
    del server.files["/f.bin"]
    server.plan.clear()
    before = len(server.requests)
    with pytest.raises(DataError, match=r"answered 404.*check the address"):
        fetch(server, tmp_path)
    assert len(server.requests) == before + 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a", "/f.bin"])
def test_a_redirect_that_leads_nowhere_is_not_tried_again(server: FlakyServer, tmp_path: Path, target: str) -> None:
    server.plan["/f.bin"] = [f"302:{target}"] * 100
    with pytest.raises(DataError, match=r"/f\.bin: it leads to no file over http or https \(.*check the address"):
        fetch(server, tmp_path)
    assert len(server.requests) == (21 if target == "/f.bin" else 1)
    assert not list(tmp_path.iterdir())


def test_no_server_at_all_says_so(tmp_path: Path) -> None:
    with Downloader(retries=1, timeout=1, first_pause=0.001) as downloader, pytest.raises(DataError, match="ConnectError"):
        downloader.fetch([Item("http://127.0.0.1:9/x", "x")], tmp_path, nothing)


def test_stopping_keeps_what_is_there(server: FlakyServer, tmp_path: Path) -> None:
    server.files["/f.bin"] = BODY * 10

    def stop(done: float, total: float) -> None:
        raise Interrupted("asked to")

    with Downloader() as downloader, pytest.raises(Interrupted):
        downloader.fetch([Item(f"{server.url}/f.bin", "f.bin")], tmp_path, stop)
    assert 0 < (tmp_path / "f.bin.part").stat().st_size < len(BODY) * 10
    assert fetch(server, tmp_path)[0].read_bytes() == BODY * 10
    assert server.ranges()[-1]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\..\\..\\x", "C:/x", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="refused"):
        safe_join(tmp_path, name)


# --- source urls ------------------------------------------------------------------------------------------------


def zip_of(members: dict[str, bytes], link: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def tar_of(members: dict[str, bytes], link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


def test_urls_reads_text_rows_and_archives(server: FlakyServer, tmp_path: Path) -> None:
    server.files |= {
        "/a.txt": b"plain",
        "/b.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "/c.zip": zip_of({"d/z.txt": b"zipped", "d/no.bin": b"\x00"}),
        "/d.tgz": tar_of({"t.txt": b"tarred"}),
    }
    urls = [{"url": server.url + name} for name in ("/a.txt", "/b.jsonl", "/c.zip", "/d.tgz")]
    source = UrlsSource(UrlsConfig(urls=urls, source_name="web"))  # type: ignore[arg-type]
    for _ in range(2):  # a second fetch finds everything
        source.fetch(tmp_path, nothing)
    found = [(d.key, d.text) for d in source.documents(tmp_path)]
    assert found == [
        ("00000-a.txt", "plain"),
        ("00001-b.jsonl:000000000", "one"),
        ("00001-b.jsonl:000000001", "two"),
        ("00002-c.zip/d/z.txt", "zipped"),
        ("00003-d.tgz/t.txt", "tarred"),
    ]
    assert len(server.requests) == 4


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize(("members", "link"), [({"../evil.txt": b"x"}, ""), ({"/evil.txt": b"x"}, ""), ({"a.txt": b"x"}, "link.txt")])
def test_archives_cannot_leave_their_folder(tmp_path: Path, make: object, members: dict[str, bytes], link: str) -> None:
    suffix = ".zip" if make is zip_of else ".tar.gz"
    archive = tmp_path / f"a{suffix}"
    archive.write_bytes(make(members, link))  # type: ignore[operator]
    with pytest.raises(DataError, match="refused"):
        extract(archive, tmp_path / "inside" / "out")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "inside" / "out").exists()


def test_a_bomb_and_a_broken_archive_are_refused(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.txt", b"0" * 60_000_000)
    (tmp_path / "a.zip").write_bytes(bomb.getvalue())
    with pytest.raises(DataError, match="times its size"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(tmp_path / "b.zip", tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_one_sentence(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a.txt", os.urandom(500).hex())
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60:160] = b"\xff" * 100
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked \(.*\); get it again"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_name_that_the_disk_cannot_hold_is_one_sentence(tmp_path: Path, make: object) -> None:
    (tmp_path / "a.zip").write_bytes(make({"a" * 300: b"x"}, ""))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked \(File name too long\); .* unpack it yourself"):
        extract(tmp_path / "a.zip", tmp_path / "out")


# --- source huggingface -----------------------------------------------------------------------------------------

COMMIT = "a" * 40


def hub(server: FlakyServer, revision: str = COMMIT, commit: str = COMMIT, lfs_sha: str = "") -> None:
    rows = b'{"text": "first"}\n{"text": "second"}\n'
    git = hashlib.sha1(f"blob {len(rows)}\0".encode() + rows).hexdigest()
    server.files[f"/api/datasets/me/stories/revision/{revision}"] = json.dumps(
        {
            "sha": commit,
            "siblings": [
                {"rfilename": "data/a.jsonl", "size": len(rows), "blobId": git},
                {
                    "rfilename": "big.txt",
                    "size": len(BODY.hex()),
                    "lfs": {"size": len(BODY.hex()), "sha256": lfs_sha or hashlib.sha256(BODY.hex().encode()).hexdigest()},
                },
                {"rfilename": "README.md", "size": 3, "blobId": "0" * 40},
            ],
        }
    ).encode()
    server.files[f"/datasets/me/stories/resolve/{commit}/data/a.jsonl"] = rows
    server.files[f"/datasets/me/stories/resolve/{commit}/big.txt"] = BODY.hex().encode()


def hub_source(server: FlakyServer, revision: str = COMMIT, **options: object) -> HuggingfaceSource:
    return HuggingfaceSource(HuggingfaceConfig(repo="me/stories", revision=revision, files=["*.jsonl", "*.txt"], endpoint=server.url, **options))  # type: ignore[arg-type]


def test_huggingface_downloads_one_commit_verified_and_resumed(server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub(server)
    server.plan[f"/datasets/me/stories/resolve/{COMMIT}/big.txt"] = ["cut:5000", "429:0"]
    server.plan[f"/datasets/me/stories/resolve/{COMMIT}/data/a.jsonl"] = ["wrong"]
    server.plan[f"/api/datasets/me/stories/revision/{COMMIT}"] = ["503"]
    source = hub_source(server)
    source.fetch(tmp_path, nothing)
    assert [d.text for d in source.documents(tmp_path)] == [BODY.hex(), "first", "second"]
    assert "bytes=5000-" in server.ranges()
    assert source.provenance()["commit"] == COMMIT
    assert {h.get("Authorization") for _, h in server.requests} == {"Bearer hf_secret"}
    assert not any(b"hf_secret" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_the_token_does_not_go_to_a_host_that_only_the_recipe_names(server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub(server)
    hub_source(server).fetch(tmp_path, nothing)
    assert {h.get("Authorization") for _, h in server.requests} == {None}


def test_a_branch_is_resolved_once_and_recorded(server: FlakyServer, tmp_path: Path) -> None:
    hub(server, revision="main")
    hub_source(server, "main").fetch(tmp_path, nothing)
    hub(server, revision="main", commit="b" * 40)
    source = hub_source(server, "main")
    source.fetch(tmp_path, nothing)
    list(source.documents(tmp_path))
    assert source.provenance()["commit"] == COMMIT


def test_huggingface_refuses_wrong_content_commits_and_patterns(server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub(server, lfs_sha="0" * 64)
    with pytest.raises(DataError, match="sha256 is"):
        hub_source(server).fetch(tmp_path / "a", nothing)
    hub(server, commit="b" * 40)
    with pytest.raises(DataError, match="asked for commit"):
        hub_source(server).fetch(tmp_path / "b", nothing)
    hub(server)
    config = HuggingfaceConfig(repo="me/stories", revision=COMMIT, files=["*.csv"], endpoint=server.url)
    with pytest.raises(DataError, match=r"no file of me/stories matches \['\*\.csv'\]; it has: README.md"):
        HuggingfaceSource(config).fetch(tmp_path / "c", nothing)
    with pytest.raises(ValueError, match="shortened commit hash"):
        HuggingfaceConfig(repo="me/stories", revision="abcdef12")
    with pytest.raises(ValueError, match="revision"):
        HuggingfaceConfig(repo="me/stories")  # type: ignore[call-arg]
