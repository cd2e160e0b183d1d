"""Downloads that resume, are verified, and are never half there.

A file grows as `<name>.part`, with what the server said about it (`<name>.part.json`: ETag, encoding), is checked for size and hash,
and only then renamed to its name. A connection that is cut is taken up again by a Range request, guarded by If-Range so
that a file which changed meanwhile starts anew. 429 and 5xx answers are waited out as Retry-After says, else with
growing, jittered pauses. Shared by the sources `urls` and `huggingface`.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import hashlib
import json
import os
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from feebcore.data.addresses import expanded
from feebcore.errors import DataError
from feebcore.files import explain, sync_folder
from feebcore.protocols import ProgressFn
from feebcore.proxies import unusable_proxies

if TYPE_CHECKING:
    import httpx

LONGEST_PAUSE = 120.0  # seconds
GZIP = ("gzip", "x-gzip")
MAX_RATIO = 1000  # unpacked to packed


@dataclass(frozen=True)
class Item:
    """One file to fetch. url: may name environment variables, which no message shows. path: where, relative to the folder. size in bytes, sha256, git_sha1 (of a git blob): what
    it must be, where known."""

    url: str
    path: str
    size: int | None = None
    sha256: str = ""
    git_sha1: str = ""


class _Again(Exception):
    """This try failed in a way that another may not. pause: seconds the server asked for."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class Downloader:
    """Fetches items one after another. retries: failures in a row without a byte of progress before DataError.

    headers are sent to the first host only (httpx drops Authorization on a redirect elsewhere) and never logged.
    sleep, and the first pause in seconds, can be replaced by tests.
    """

    def __init__(
        self,
        retries: int = 8,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
        first_pause: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.retries, self.timeout, self.first_pause = retries, timeout, first_pause
        self._headers = dict(headers or {})
        self._sleep = sleep
        self._opened: httpx.Client | None = None

    def fetch(self, items: Sequence[Item], folder: Path, progress: ProgressFn) -> list[Path]:
        """Bring every item into `folder`; those already there are left alone. progress counts bytes (total 0: unknown)."""
        total = sum(item.size or 0 for item in items) if all(item.size is not None for item in items) else 0
        done, paths = 0, []
        for item in items:
            path = safe_join(folder, item.path)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                start = done
                self._fetch_one(item, path, lambda n, start=start: progress(start + n, total))  # type: ignore[misc]
            done += path.stat().st_size
            progress(done, total or done)
            paths.append(path)
        return paths

    def get_json(self, url: str) -> Any:
        """A JSON document, with the same patience."""
        import httpx

        def once() -> Any:
            try:
                answer = self._client().get(url, headers=self._headers)
            except httpx.RequestError as error:
                raise _Again(_why(error)) from error
            self._check_status(answer, url)
            try:
                return answer.json()
            except ValueError:
                raise _Again("the answer is not JSON") from None

        return self._patiently(once, url, lambda: 0)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _fetch_one(self, item: Item, path: Path, progress: Callable[[int], None]) -> None:
        part = path.with_name(path.name + ".part")
        wrong = ""
        for _ in range(2):  # wrong content is fetched once more, from its first byte
            self._patiently(lambda: self._transfer(item, part, progress), item.url, lambda: _size(part))
            wrong = _decoded(item, part) or _mismatch(item, part)
            if not wrong:
                os.replace(part, path)
                sync_folder(path.parent)
                _forget(part)
                return
            part.unlink()
            _forget(part)
        raise DataError(f"{item.url}: {wrong}, twice; check the expected value in the recipe, or whether the file was replaced")

    def _transfer(self, item: Item, part: Path, progress: Callable[[int], None]) -> None:
        """One request that brings `part` to its end, or raises _Again with what it got kept."""
        import httpx

        have, note = _size(part), _remembered(part)
        if item.size is not None and have >= item.size and "encoding" not in note:
            if have == item.size:
                return
            part.unlink()
            have = 0
        headers = self._headers | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := note.get("etag"):
                headers["If-Range"] = etag
        try:
            with self._client().stream("GET", expanded(item.url), headers=headers) as answer:
                if answer.status_code == 416:  # nothing is left after `have`, or the file shrank
                    if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                        return
                    part.unlink(missing_ok=True)
                    raise _Again("the server has another length now")
                self._check_status(answer, item.url)
                if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    part.unlink(missing_ok=True)
                    raise _Again("the server answered another range than was asked for")
                mode = "ab" if answer.status_code == 206 else "wb"
                have = have if mode == "ab" else 0
                encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
                if encoding not in ("identity", "", *GZIP):
                    raise DataError(
                        f"{item.url}: the server sent it {encoding}-encoded although identity was asked for; get the file yourself and use source files"
                    )
                _remember(part, answer.headers.get("ETag", ""), encoding in GZIP)
                length = answer.headers.get("Content-Length")
                expected = have + int(length) if length and length.isdigit() else None if encoding in GZIP else item.size
                with open(part, mode) as stream:
                    for block in answer.iter_raw():  # as it comes: a size here would hold back, and lose, the last part
                        stream.write(block)
                        have += len(block)
                        progress(have)
                    stream.flush()
                    os.fsync(stream.fileno())
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:  # no other try goes elsewhere
            raise DataError(f"{item.url}: it leads to no file over http or https ({_why(error)}); check the address") from error
        except httpx.RequestError as error:
            raise _Again(_why(error)) from error
        except httpx.InvalidURL:
            raise DataError(f"{item.url}: no usable address") from None
        except OSError as error:
            raise explain(error, part) from error
        if expected is not None and have < expected:
            raise _Again(f"the connection ended after {have} of {expected} bytes")

    def _patiently(self, once: Callable[[], Any], url: str, reached: Callable[[], int]) -> Any:
        failures, before = 0, reached()
        while True:
            try:
                return once()
            except _Again as again:
                now = reached()
                failures = 1 if now > before else failures + 1
                before = now
                if failures > self.retries:
                    raise DataError(f"{url}: gave up after {failures} failures in a row; the last: {again}. What was fetched is kept; run again") from again
                backoff = min(LONGEST_PAUSE, self.first_pause * 2 ** (failures - 1)) * (0.5 + random.random())
                self._sleep(min(LONGEST_PAUSE, again.pause) if again.pause is not None else backoff)

    def _check_status(self, answer: httpx.Response, url: str) -> None:
        code = answer.status_code
        if code in (200, 206):
            return
        if code == 429 or code >= 500 or code == 408:
            raise _Again(f"the server answered {code} {answer.reason_phrase}", _asked_pause(answer.headers))
        what = {401: "set HF_TOKEN if the data needs an account", 403: "is access granted to this account?", 404: "check the address and the revision"}
        raise DataError(f"{url}: the server answered {code} {answer.reason_phrase}; {what.get(code, 'check the address')}")

    def _client(self) -> httpx.Client:
        if self._opened is None:
            import httpx

            if hidden := unusable_proxies():
                raise DataError(
                    f"the proxy in {', '.join(hidden)} cannot be used: for SOCKS `pip install socksio`, else write http://host:port, or unset the variable"
                )
            self._opened = httpx.Client(follow_redirects=True, timeout=self.timeout, headers={"User-Agent": "feeb"})
        return self._opened


def safe_join(folder: Path, name: str) -> Path:
    """`folder / name`, DataError when that would lie outside the folder."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or ":" in relative.parts[0] or "\0" in name:
        raise DataError(f"the path {name!r} would leave the download folder; this source is refused")
    return folder.joinpath(*relative.parts)


def _decoded(item: Item, part: Path) -> str:
    """Undo the gzip encoding of the transfer, unless the bytes as sent are those that the item announces. Returns what is wrong, '' if nothing."""
    if "encoding" not in _remembered(part) or ((item.sha256 or item.git_sha1) and not _mismatch(item, part)):
        return ""
    plain, allowed = part.with_name(part.name + ".plain"), max(1 << 20, _size(part) * MAX_RATIO)
    try:
        with gzip.open(part) as encoded, open(plain, "wb") as out:
            while block := encoded.read(1 << 20):
                allowed -= len(block)
                if allowed < 0:
                    return f"its gzip encoding unpacks to more than {MAX_RATIO} times its size"
                out.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"the server calls it gzip-encoded, which it is not ({error})"
    _forget(part)
    os.replace(plain, part)
    return ""


def _mismatch(item: Item, path: Path) -> str:
    """What is wrong with a fetched file; empty when it is as it must be."""
    size = path.stat().st_size
    if item.size is not None and size != item.size:
        return f"it has {size} bytes, {item.size} were announced"
    for kind, expected, prefix in (("sha256", item.sha256, b""), ("sha1", item.git_sha1, f"blob {size}\0".encode())):
        if expected:
            digest = hashlib.new(kind, prefix)
            with open(path, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != expected:
                return f"its {kind} is {digest.hexdigest()}, {expected} was expected"
    return ""


def _asked_pause(headers: httpx.Headers) -> float | None:
    """Seconds in Retry-After (number or date), or in the Hub's `RateLimit: "api";r=0;t=55`."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    if text:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    for field in headers.get("RateLimit", "").split(";"):
        name, _, value = field.strip().partition("=")
        if name == "t" and value.isdigit():
            return float(value)
    return None


def _why(error: Exception) -> str:
    return f"{type(error).__name__}{': ' + str(error) if str(error) else ''}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, etag: str, gzipped: bool) -> None:
    """Keep a strong ETag for If-Range (a weak one cannot guard a range), and whether the server sends the file in gzip."""
    note = ({"etag": etag} if etag and not etag.startswith("W/") else {}) | ({"encoding": "gzip"} if gzipped else {})
    if note:
        _note(part).write_text(json.dumps(note))
    else:
        _note(part).unlink(missing_ok=True)


def _remembered(part: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_note(part).read_text())
        return note if isinstance(note, dict) else {}
    return {}


def _forget(part: Path) -> None:
    _note(part).unlink(missing_ok=True)
