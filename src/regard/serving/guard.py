"""What holds for each request before the application sees it, and for each answer: who may ask, and the record."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regard.errors import ConfigError, escape
from regard.serving.bodies import too_large
from regard.serving.metrics import Metrics
from regard.serving.options import ServingOptions
from regard.serving.problems import Problem

OPEN = ("/healthz", "/readyz")  # without a token: for what watches over the server
HEADER_BYTES = 32 * 1024  # of all headers together: h11 has a limit for those that come in several pieces alone
LINGER_BYTES, LINGER_SECONDS = 64 * 1024**2, 2.0  # of a body that is read only so that its client hears the answer
LEFT = 499  # status in log and metrics of a request whose client left
log = logging.getLogger("regard.serving")


def read_tokens(path: Path | None) -> list[bytes]:
    """Return the tokens of a file, one a line; none without a file.

    Raises:
        ConfigError: there is no token in it (C02), or it cannot be read (K01).
    """
    if path is None:
        return []
    try:
        tokens = [line.strip().encode() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}"
        raise ConfigError(what, where=path, remedy="name a text file with a token on each line", code="K01") from error
    if not tokens:
        remedy = "write one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ConfigError("no token in the file", where=path, remedy=remedy, code="C02")
    return tokens


class Guard:
    """Checks host, origin, token, framing and room of requests; gives answers a number, safe headers and a log line.

    Args:
        app: the application.
        options: of the server.
        metrics: of the server.
        paths: addresses that have figures of their own.
        check_room: called with path and query of a request; raises Problem if its model has no room. A refusal here
            takes a fraction of the time that the application would take, so that a flood of requests leaves the
            processor to those that are accepted.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServingOptions,
        metrics: Metrics,
        paths: Collection[str],
        check_room: Callable[[str, bytes], None],
    ) -> None:
        self.app = app
        self.check_room = check_room
        self.max_bytes = options.max_bytes
        self.hosts = {"localhost", *(name.lower() for name in options.allow_host)}
        self.tokens = read_tokens(options.token_file)
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        exchange = _Exchange(scope, headers, receive, send, self)
        scope["regard_id"] = exchange.number
        try:
            self._check(scope["path"], headers)
            self.check_room(scope["path"], scope["query_string"])
            await self.app(scope, exchange.receive, exchange.send)
        except Problem as problem:
            await problem.response(exchange.number)(scope, exchange.receive, exchange.send)
        except Exception as error:  # the application has answered with 500
            log.error("request %s failed", exchange.number, exc_info=error)
        finally:
            self._record(scope, exchange, time.monotonic() - started)

    def _check(self, path: str, headers: Headers) -> None:
        """Check what the headers alone tell.

        Raises:
            Problem: the request is refused.
        """
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            raise Problem(431, f"headers of more than {HEADER_BYTES // 1024} kB", headers={"Connection": "close"})
        host = _host_of(headers.get("host", ""))
        if host and host not in self.hosts and not _is_address(host):
            raise Problem(421, f"this server is not called {host[:100]!r} — start it with --allow-host {host[:100]}")
        origin = headers.get("origin")
        if origin is not None and (urlsplit(origin).hostname or "").lower() != host:
            raise Problem(403, "a page of another host asks, which this server does not answer")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Problem(400, "both Transfer-Encoding and Content-Length", headers={"Connection": "close"})
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "compressed body — send the image file as it is")
        if self.tokens and path.startswith(("/v1", "/metrics", "/openapi.json")) and not self._knows(headers):
            what = "the header 'Authorization: Bearer TOKEN' is missing or wrong"
            raise Problem(401, what, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Problem(400, "Content-Length is not a number", headers={"Connection": "close"})
        if int(length) > self.max_bytes:
            raise too_large(self.max_bytes)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = [hmac.compare_digest(given.strip().encode(), token) for token in self.tokens]  # each takes the same time
        return scheme.lower() == "bearer" and any(same)

    def _record(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        path = scope["path"]
        label = path if path in self.paths else "other"
        status = exchange.status or LEFT
        self.metrics.requests.labels(label, status).inc()
        self.metrics.seconds.labels(label).observe(seconds)
        client = scope["client"][0] if scope.get("client") else "-"
        method = scope["method"][:16]
        line = f"{client} {method} {path[:200]} {status} {1000 * seconds:.1f} ms {exchange.number}"
        log.log(logging.DEBUG if path in OPEN else logging.INFO, "%s", escape(line))


class _Exchange:
    """One request and its answer: its number, how much of the body has arrived, the status that was sent."""

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, send: Send, guard: Guard) -> None:
        given = headers.get("x-request-id", "")
        self.number = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex[:16]
        self.is_page = not scope["path"].startswith("/v1")
        self.status = 0
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._has_all = not has_body
        self._asks_first = headers.get("expect", "").lower() == "100-continue"
        self._guard = guard
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """Receive a message, and note the end of the body."""
        message = await self._receive()
        self._asks_first = False
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._has_all = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message, the first one with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self._has_all:
                await self._linger()
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.number
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            headers.setdefault("Cache-Control", "no-cache" if self.is_page else "no-store")
            if not self._has_all or self._guard.draining:
                headers["Connection"] = "close"
        await self._send(message)

    async def _linger(self) -> None:
        """Read what is left of a refused body, within limits: a client that is cut off while it sends reads no answer.

        One that waits to be asked for the body is not asked.
        """
        if self._asks_first:
            return
        total = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._has_all and total < LINGER_BYTES:
                    total += len((await self.receive()).get("body", b""))


def _host_of(header: str) -> str:
    """Return the host of a Host header, in lower case, without port and brackets."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return header.lower()


def _is_address(host: str) -> bool:
    """Return whether a host is a numeric address, which no name service can point elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
