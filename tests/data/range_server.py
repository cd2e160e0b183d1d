"""A web server on the loopback interface that answers Range requests, as object stores do."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranges(SimpleHTTPRequestHandler):
    """A web server that answers `Range: bytes=a-b` and `bytes=-n`, which Python's own does not."""

    answers_ranges = True

    def do_GET(self) -> None:
        asked, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if asked is None or not path.is_file() or not self.answers_ranges:
            super().do_GET()
            return
        data = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin = int(first) if first else max(0, len(data) - int(last))
        piece = data[begin : int(last) + 1] if first and last else data[begin:]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)

    def log_message(self, *unused: object) -> None:
        pass


class WithoutRanges(Ranges):
    answers_ranges = False


@contextlib.contextmanager
def served(folder: Path, handler: type[Ranges] = Ranges) -> Iterator[str]:
    """The address at which `folder` is to be had."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
