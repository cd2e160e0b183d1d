"""Secrets in addresses reach no file of a workspace."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from feebcore.artifacts import Workspace
from feebcore.data.addresses import expanded, with_host, without_secrets
from feebcore.errors import DataError, RecipeError
from feebcore.recipe import load
from feebcore.run.build import run_all

SECRET = "s3cr3t0123456789"
BAD = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Goog-Signature",
    "token",
    "sig",
    "Signature",
    "api_key",
    "key",
    "access_token",
    "AWSAccessKeyId",
    "auth",
    "jwt",
]
GOOD = [
    "https://host/a.jsonl",
    "https://host/a?id=5&download=true&keyword=cat&design=1",
    "https://host/a?token=${TOKEN}",
    "https://host/${TOKEN}/a",
    "s3://bucket/tokens.zarr",
]


@pytest.mark.parametrize("name", BAD)
def test_a_secret_parameter_is_refused_and_not_shown(name: str) -> None:
    for url in (
        f"https://host/a.jsonl?x=1&{name}={SECRET}",
        f"https://host/a#{name.lower()}={SECRET}",
        f"https://host/a?%s={SECRET}" % name.replace("e", "%65"),
    ):
        with pytest.raises(ValueError, match="may not hold a secret such as") as caught:
            without_secrets(url)
        assert SECRET not in str(caught.value)
        assert "${TOKEN}" in str(caught.value)


@pytest.mark.parametrize("url", GOOD)
def test_other_parameters_and_references_are_fine(url: str) -> None:
    assert without_secrets(url) == url


def test_a_user_and_password_are_refused_unless_referred_to() -> None:
    for url in (f"https://me:{SECRET}@host/a", f"s3://{SECRET}@bucket/a"):
        with pytest.raises(ValueError, match="user name or password") as caught:
            without_secrets(url)
        assert SECRET not in str(caught.value)
    assert without_secrets("https://${LOGIN}@host/a")


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///a", "ftp://host/a", "file:///a", "//host/a", "a.txt", "", "http://host:99999/a", "http://host:x/a", "http://[b/a", "http://a b/c"],
)
def test_what_is_no_address_of_a_file_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no address on the web, which is https://host/path"):
        with_host(url)


@pytest.mark.parametrize("url", ["HTTP://host/a", "https://host:443/a?b=c", "https://${HOST}:${PORT}/a", "http://[::1]/a"])
def test_addresses_of_files_are_fine(url: str) -> None:
    assert with_host(url) == url


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    with pytest.raises(DataError, match="the environment has no variable TOKEN"):
        expanded("https://host/a?token=${TOKEN}")
    monkeypatch.setenv("TOKEN", SECRET)
    assert expanded("https://host/a?token=${TOKEN}") == f"https://host/a?token={SECRET}"


@pytest.fixture
def guarded() -> Iterator[str]:
    """An address that gives a file to whoever knows the secret, and 403 to others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(30)).encode()
            self.send_response(200 if self.path.endswith(SECRET) else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/a.jsonl"
    server.shutdown()
    server.server_close()


def recipe(folder: Path, url: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(json.dumps({"name": "r", "stages": ["download"], "download": {"sources": [{"name": "urls", "urls": [{"url": url}], "retries": 0}]}}))
    return path


def test_no_file_of_a_workspace_holds_the_secret(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="may not hold a secret such as token") as refused:
        load(recipe(tmp_path, f"{guarded}?token={SECRET}"))
    assert SECRET not in str(refused.value)
    monkeypatch.setenv("TOKEN", "wrong")
    with pytest.raises(DataError, match=r"token=\$\{TOKEN\}: the server answered 403") as forbidden:
        run_all(load(recipe(tmp_path, f"{guarded}?token=${{TOKEN}}")), Workspace(tmp_path / "w"))
    assert "wrong" not in str(forbidden.value)
    monkeypatch.setenv("TOKEN", SECRET)
    artifact = run_all(load(recipe(tmp_path, f"{guarded}?token=${{TOKEN}}")), Workspace(tmp_path / "w"))["download"]
    assert artifact.manifest["metrics"]["documents"] == 30
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert any(b"${TOKEN}" in path.read_bytes() for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
