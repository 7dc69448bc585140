"""What goes wrong with a request, as an answer: a status and one line, without paths and tracebacks."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from regard.errors import RegardError, escape

# Codes of errors that have none of `regard.errors.CODES`, by status.
CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "timeout", 413: "too_large", 415: "unsupported_type", 421: "unknown_host", 422: "unprocessable",
    431: "headers_too_large", 500: "internal", 501: "not_implemented", 503: "busy", 504: "deadline",
}  # fmt: skip


class Problem(Exception):
    """A request that is refused or failed.

    Args:
        status: of the answer.
        message: one line for the client.
        code: a code of Regard, such as I04; else that of the status.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = escape(message)
        self.code = code or CODES.get(status, "error")
        self.headers = dict(headers or {})

    def body(self, request_id: str | None = None) -> dict[str, object]:
        """Return the answer: `{"error": {"code", "message", "request_id"}}`."""
        error = {"code": self.code, "message": self.message}
        return {"error": error if request_id is None else {**error, "request_id": request_id}}

    def response(self, request_id: str | None = None) -> Response:
        """Return the answer as a response."""
        content = json.dumps(self.body(request_id), ensure_ascii=False)
        return Response(content, self.status, self.headers, media_type="application/json")


class ClientLeft(Exception):
    """The client has closed the connection: there is nobody to answer."""


def busy(seconds: int) -> Problem:
    """Return the refusal of a server that is full. seconds: when to try again."""
    return Problem(503, "the server is busy: try again later", headers={"Retry-After": str(seconds)})


def of_error(error: RegardError, status: int) -> Problem:
    """Return an error of Regard as a problem, without the place of the error."""
    line = " — ".join(part for part in (error.what, error.remedy) if part)
    return Problem(status, line, error.code)
