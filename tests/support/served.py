"""A server in a thread of the test's process, on a free port of the loopback, and clients down to the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from regard.models.build import Model
from regard.serving.metrics import Metrics
from regard.serving.options import ServingOptions
from regard.serving.served import ServedModel
from regard.serving.server import Server, listen, make_server


@dataclass(frozen=True)
class Reply:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        return self.json()["error"]


@dataclass(frozen=True)
class Running:
    """A server that runs. port: where."""

    server: Server
    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def post(self, path: str, body: bytes, kind: str | None = "image/jpeg") -> Reply:
        return self.ask("POST", path, body, {} if kind is None else {"Content-Type": kind})

    def raw(self, data: bytes, *, seconds: float = 30) -> bytes:
        """Send bytes, and return all that comes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            return received

    def model(self, name: str) -> ServedModel:
        return self.server.service.models[name]

    def metric(self, line: str) -> float:
        """The value of a line of /metrics; 0 if it is not there."""
        text = self.ask("GET", "/metrics").body.decode()
        return float(next((one.rsplit(" ", 1)[1] for one in text.splitlines() if one.startswith(line)), 0))


@contextlib.contextmanager
def running(nets: Mapping[str, Model], **options: Any) -> Iterator[Running]:
    """Serve models until the end of this block, which drains as SIGTERM does."""
    chosen, metrics = ServingOptions(port=0, **options), Metrics()
    listening = listen(chosen)
    server = make_server([ServedModel(name, net, chosen, metrics) for name, net in nets.items()], chosen, metrics)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Running(server, listening.getsockname()[1])
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        listening.close()
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def form(*images: bytes, name: str = "a.jpg") -> tuple[bytes, str]:
    """A multipart body with a file for each image, and its content type."""
    parts = [
        b'--XX\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n%s\r\n" % (name.encode(), image)
        for image in images
    ]
    return b"".join(parts) + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST request with a body."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
