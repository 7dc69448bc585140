"""A server of files on this machine, with an index page for each folder, that can be told to fail."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Answers GET and HEAD, with ranges.

    Args:
        root: the folder.
        ranges: whether ranges are answered; without them the whole file is sent.

    Attributes:
        fails: how many GET requests of a path are still answered with 503.
        cuts: how many ranges of a path are still cut in half.
        asked: each GET request: its path and range.
    """

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(root)))
        self.ranges = ranges
        self.fails: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are sent one after the other
    server: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        path = Path(self.translate_path(self.path))
        if self.server.fails[self.path] > 0:
            self.server.fails[self.path] -= 1
            self.send_error(503)
        elif asked is None or not self.server.ranges or not path.is_file():
            super().do_GET()
        else:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
            assert found is not None, asked
            data = path.read_bytes()[int(found[1]) : int(found[2]) + 1]
            if self.server.cuts[self.path] > 0:
                self.server.cuts[self.path] -= 1
                data = data[: len(data) // 2]
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)


@contextmanager
def serving(root: Path, ranges: bool = True) -> Iterator[FileServer]:
    """A server of the files in a folder."""
    server = FileServer(root, ranges)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
