"""The static files of the page, read once: a request can name one of them, and nothing else on the disk."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent / "page"
# Nothing from other hosts, no code in the page itself, nobody may put it in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageFile(NamedTuple):
    """A file of the page: its bytes and its media type."""

    content: bytes
    media_type: str


def page_files(folder: Path = PAGE) -> Mapping[str, PageFile]:
    """Return the files below a folder by their paths in it, such as `index.html` and `icons/eye.svg`."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind = "text/javascript" if path.suffix in (".js", ".mjs") else kind
            kind = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
            files[path.relative_to(folder).as_posix()] = PageFile(path.read_bytes(), kind)
    return files
