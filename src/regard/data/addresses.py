"""Images behind http and https addresses, fetched to memory."""

from __future__ import annotations

import os
import time
import urllib.request as web
from http.client import HTTPException, HTTPResponse
from pathlib import PurePosixPath
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

from regard.errors import ImageError, cause

MAX_BYTES = 64 << 20  # of one image
TIMEOUT = 20.0  # seconds without a byte
MAX_SECONDS = 120.0  # for one image


def is_address(source: object) -> bool:
    """Return whether a source of images is an http or https address. A `Path` never is."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_offline() -> bool:
    """Return whether `REGARD_OFFLINE` forbids the network."""
    return os.environ.get("REGARD_OFFLINE", "0") not in ("", "0")


def file_name_of(address: str) -> str:
    """Return the last part of the path of an address; the name of the server, or `image`, if that is no file name."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "image"  # The address is refused when it is fetched.
    name = PurePosixPath(unquote(parts.path)).name
    usable = name not in ("", "..") and name.isprintable() and "\\" not in name
    return name if usable else parts.hostname or "image"


def fetch_image(address: str) -> bytes:
    """Return the bytes behind an address, at most `MAX_BYTES`, without writing a file.

    Redirections are followed, to http and https only. `REGARD_OFFLINE=1` forbids the network.

    Raises:
        ImageError: the address cannot be fetched, or holds more bytes than an image is allowed to (I33).
    """
    if is_offline():
        remedy = "unset REGARD_OFFLINE, or name a file"
        raise ImageError("REGARD_OFFLINE forbids the download", where=address, remedy=remedy, code="I33")
    try:
        request = web.Request(_quoted(address), headers={"User-Agent": "regard"})
        with _opener().open(request, timeout=TIMEOUT) as response:
            return _received(response, address)
    except HTTPError as error:
        error.close()
        what = f"the server replied {error.code} {error.reason}"
        raise ImageError(what, where=address, remedy="check the address", code="I33") from error
    except (OSError, HTTPException, ValueError) as error:
        remedy = "check the address and the network, or name a file"
        raise ImageError(f"cannot be fetched ({cause(error)})", where=address, remedy=remedy, code="I33") from error


def _quoted(address: str) -> str:
    """Return an address with the letters of its path and query escaped; the connection encodes the server's name."""
    parts = urlsplit(address)
    path, query = (quote(text, safe="%/:=&?~+!$,;'@()*[]") for text in (parts.path, parts.query))
    return parts._replace(path=path, query=query, fragment="").geturl()


def _opener() -> web.OpenerDirector:
    """Return an opener for http and https alone: the usual one follows redirections to ftp too."""
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler, web.UnknownHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPDefaultErrorHandler,
        web.HTTPRedirectHandler, web.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _received(response: HTTPResponse, address: str) -> bytes:
    """Read a response to its end; give up if it is too large or too slow."""
    data = bytearray()
    end = time.monotonic() + MAX_SECONDS
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > MAX_BYTES:
            what = f"more than {MAX_BYTES >> 20} MB, too large for an image"
            raise ImageError(what, where=address, remedy="download it and name the file", code="I33")
        if time.monotonic() > end:
            what = f"not complete after {MAX_SECONDS:.0f} seconds"
            raise ImageError(what, where=address, remedy="download it and name the file", code="I33")
    return bytes(data)
