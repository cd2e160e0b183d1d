"""A loopback HTTP server that misbehaves on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FlakyServer:
    """files: path -> content. plan: path -> misdeeds, one per request, in order: 'cut:N' closes after N bytes,
    'wrong' sends other bytes, an int is a status ('429:2' with Retry-After 2, '302:/other' with Location), 'norange' ignores Range, 'ok'."""

    files: dict[str, bytes] = field(default_factory=dict)
    plan: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    etag: str = '"one"'
    url: str = ""

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


@contextmanager
def serve() -> Iterator[FlakyServer]:
    state = FlakyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path
            state.requests.append((path, dict(self.headers)))
            todo = state.plan.get(path) or state.plan.get(path.partition("?")[0]) or []
            deed, _, value = (todo.pop(0) if todo else "ok").partition(":")
            body = state.files.get(path, state.files.get(path.partition("?")[0]))
            if deed.isdigit() or body is None:
                self.send_response(int(deed) if deed.isdigit() else 404)
                if value:
                    self.send_header("Location" if deed == "302" else "Retry-After", value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if deed == "wrong":
                body = bytes(255 - b for b in body)
            begin, status = 0, 200
            asked = self.headers.get("Range", "")
            if asked and deed != "norange" and self.headers.get("If-Range", state.etag) == state.etag:
                begin, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
                if begin >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            rest = body[begin:]
            self.wfile.write(rest[: int(value)] if deed == "cut" else rest)
            if deed == "cut":
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
