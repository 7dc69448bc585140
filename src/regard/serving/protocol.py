"""uvicorn's HTTP/1.1 with deadlines and limits for connections: slow and broken clients cost little, and not for long.

uvicorn has no deadline for the headers of a request, answers all that is malformed with 400, and puts no limit on open
connections.
"""

from __future__ import annotations

import asyncio
import http
import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from regard.serving.problems import Problem

HEADER_SECONDS = 10.0  # for all headers of a request, from the connection or the first byte on
MAX_CONNECTIONS = 512


class Protocol(H11Protocol):
    """One connection."""

    header_seconds = HEADER_SECONDS
    max_connections = MAX_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline of the first request; refuse the connection if there are too many."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(Problem(503, "too many connections: try again later", headers={"Retry-After": "1"}))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; start the deadline with its first bytes, end it with the last header."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        super().connection_lost(exc)
        self._forget()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request, with the status that h11 gives it: uvicorn calls this where it catches that."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(Problem(status, f"malformed request: {str(error)[:200] if error else msg}"))

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()  # the application has deadlines of its own
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.header_seconds, self._overdue)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(Problem(408, "the headers of the request did not arrive in time"))

    def _refuse(self, problem: Problem) -> None:
        """Answer if the connection is in a state for it, and close it."""
        body = json.dumps(problem.body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers += problem.headers.items()
        reason = http.HTTPStatus(problem.status).phrase
        try:
            for event in (h11.Response(status_code=problem.status, headers=headers, reason=reason),
                          h11.Data(data=body), h11.EndOfMessage()):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun
            pass
        if self.cycle is not None and not self.cycle.response_complete:  # a part of its body is malformed
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
