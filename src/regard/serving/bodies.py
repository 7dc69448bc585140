"""Bodies of requests: read within limits of size, time and memory, and taken apart into images.

A body is the bytes of one image file, or multipart/form-data with a file for each image. Names and types that a client
gives to a file are not used: formats are recognised by content.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from regard.serving.problems import ClientLeft, Problem, busy

READ_SECONDS = 20.0  # for a whole body
BODIES = 16  # bodies of the largest size that are in memory at once
MULTIPART = b"multipart/form-data"


class Budget:
    """Memory for the bodies of all requests together. limit: in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Give a request its share, for this block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.used


class Share:
    """What one request has of a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.used = 0

    def take(self, count: int) -> None:
        """Take bytes. Raises Problem (503) if there are no more."""
        if self.budget.used + count > self.budget.limit:
            raise busy(1)
        self.budget.used += count
        self.used += count


def boundary_of(request: Request) -> bytes | None:
    """Return the boundary of a multipart body; None for a body that is an image.

    Raises:
        Problem: the body is declared as something else (415), or has no boundary (400).
    """
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    if kind == MULTIPART:
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 200:
            raise Problem(400, "multipart/form-data without a boundary")
        return boundary
    if kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        return None
    what = f"content type {given[:100]!r}, expected image/jpeg or another image, or multipart/form-data"
    raise Problem(415, f"{what} — with curl: --data-binary @photo.jpg -H 'Content-Type: image/jpeg'")


async def read_body(request: Request, share: Share, max_bytes: int) -> bytes:
    """Read a body.

    Raises:
        Problem: it is too large (413), too slow (408), or there is no memory for it (503).
        ClientLeft: the client left.
    """
    parts, total = [], 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                total += len(part)
                if total > max_bytes:
                    raise too_large(max_bytes)
                share.take(len(part))
                parts.append(part)
    except TimeoutError as late:
        raise Problem(408, f"the body did not arrive within {READ_SECONDS:g} seconds") from late
    except ClientDisconnect as left:
        raise ClientLeft from left
    return b"".join(parts)


def too_large(max_bytes: int) -> Problem:
    """Return the refusal of a body that is too large."""
    return Problem(413, f"body of more than {max_bytes / 1024**2:g} MB — send a smaller image, or fewer")


def count_images(body: bytes, boundary: bytes | None, max_images: int) -> int:
    """Return the number of images in a body, or a few more, without taking it apart.

    Raises:
        Problem: there are too many (413).
    """
    if boundary is None:
        return 1
    count = max(1, body.count(b"--" + boundary) - 1)
    if count > max_images:
        raise Problem(413, f"more than {max_images} images in a request — send several requests")
    return count


def images_in(body: bytes, boundary: bytes) -> list[bytes]:
    """Return the bytes of each image file in a multipart body.

    Raises:
        Problem: a body that is malformed, or has another part than a file (400).
    """
    images: list[list[bytes]] = []
    header, value, is_file, is_complete = bytearray(), bytearray(), False, False

    def begin_part() -> None:
        nonlocal is_file
        images.append([])
        is_file = False

    def end_header() -> None:
        nonlocal is_file
        if bytes(header).lower() == b"content-disposition":
            is_file = b"filename" in parse_options_header(bytes(value))[1]
        header.clear()
        value.clear()

    def end_headers() -> None:
        if not is_file:
            raise Problem(400, "a part of the body is not a file — options belong into the address: ?threshold=0.5")

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin_part,
                "on_header_field": lambda data, start, stop: header.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
                "on_header_end": end_header,
                "on_headers_finished": end_headers,
                "on_part_data": lambda data, start, stop: images[-1].append(data[start:stop]),
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"malformed multipart body: {str(error)[:200]}") from error
    if not is_complete:
        raise Problem(400, "the multipart body is cut off")
    if not images:
        raise Problem(400, "no image in the body — with curl: -F image=@photo.jpg")
    return [b"".join(parts) for parts in images]
