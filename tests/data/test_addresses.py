"""Images behind addresses: fetched to memory, with limits, and every failure is one line."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from regard.data import addresses
from regard.data.addresses import fetch_image, file_name_of, is_address
from regard.data.sources import read_source
from regard.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {"/cat.png": png(), "/a%20b.png": png(), "/page": b"<!doctype html><html></html>"}
        if self.path in ("/moved", "/ftp", "/file"):
            self.send_response(302)
            target = {"/moved": "/cat.png", "/ftp": "ftp://127.0.0.1/cat.png", "/file": "file:///etc/passwd"}
            self.send_header("Location", target[self.path])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"\0" * 65536)
            except OSError:
                pass
        elif self.path in pages:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[self.path])
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("REGARD_OFFLINE", raising=False)


@pytest.mark.parametrize("page", ["/cat.png", "/moved", "/a b.png"])
def test_an_image(server, page):
    assert np.array_equal(read_source(server + page).permute(1, 2, 0).numpy(), PIXELS)


def test_what_is_no_image(server):
    with refused(ImageError, "404", "/missing", code="I33"):
        fetch_image(f"{server}/missing")
    with refused(ImageError, "/page", code="I03"):
        read_source(f"{server}/page")
    for page in ("ftp", "file"):
        with refused(ImageError, f"/{page}", code="I33"):
            fetch_image(f"{server}/{page}")


def test_limits(server, monkeypatch):
    monkeypatch.setattr(addresses, "MAX_BYTES", 1 << 20)
    with refused(ImageError, "1 MB", code="I33"):
        fetch_image(f"{server}/endless")
    monkeypatch.setattr(addresses, "MAX_BYTES", 1 << 40)
    monkeypatch.setattr(addresses, "MAX_SECONDS", 0.05)
    with refused(ImageError, "not complete", code="I33"):
        fetch_image(f"{server}/endless")


def test_no_network(server, monkeypatch):
    for address in ("http://127.0.0.1:9/cat.png", "http://[broken", "https://", "http://a:b/c.png"):
        with refused(ImageError, address, code="I33"):
            fetch_image(address)
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with refused(ImageError, "REGARD_OFFLINE", code="I33"):
        fetch_image(f"{server}/cat.png")


def test_a_server_can_forbid_addresses(server):
    with refused(ImageError, "not allowed", code="I33"):
        read_source(f"{server}/cat.png", allow_urls=False)


def test_names():
    assert is_address("HTTPS://a.b/c.png") and not is_address("ftp://a.b/c.png") and not is_address("cat.png")
    assert file_name_of("https://a.b/c/cat.png?size=3#x") == "cat.png"
    assert file_name_of("https://a.b/") == "a.b"
    assert file_name_of("https://a.b/my%20cat.png") == "my cat.png"
    assert [file_name_of(f"https://a.b/{name}") for name in ("c/..", "%2e%2e", "..%5Cx.png")] == ["a.b"] * 3
    assert file_name_of("http://[::1/cat.jpg") == "image"


def test_an_address_that_is_none_is_refused():
    with refused(ImageError, "http://[::1/cat.jpg", code="I33"):
        fetch_image("http://[::1/cat.jpg")
