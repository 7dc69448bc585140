"""Pieces of HTML: elements, tables and embedded pictures. All text is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from pathlib import Path

from regard.errors import escape

LONGEST = 1400  # pixels of a picture that is shrunk
WIDE = 800  # pixels from which a chart scrolls on a phone: smaller, its text could not be read
MAX_CHART, MAX_PHOTO = 300_000, 80_000  # bytes of pictures that are embedded as they are


@dataclass(frozen=True)
class Html:
    """Text that is HTML already."""

    code: str


Content = Html | str | int | float | None


def element(tag: str, *content: Content, css: str | None = None, scope: str | None = None) -> Html:
    """Return an element with the attributes `class` (css) and `scope`. Text in `content` is escaped."""
    given = {"class": css, "scope": scope}
    written = "".join(f' {name}="{_escaped(value)}"' for name, value in given.items() if value is not None)
    return Html(f"<{tag}{written}>{''.join(map(_code, content))}</{tag}>")


def joined(parts: Iterable[Html]) -> Html:
    """Return parts one after the other."""
    return Html("\n".join(part.code for part in parts))


def section(title: str, *parts: Html | None) -> Html | None:
    """Return a section with a heading; None if it has no content."""
    known = [part for part in parts if part is not None]
    return element("section", element("h2", title), Html("\n"), joined(known)) if known else None


def table(rows: Sequence[Sequence[Content]], head: Sequence[str] = (), *, tall: bool = False) -> Html | None:
    """Return a table whose first column names the rows; None without rows. A `tall` one scrolls on a screen."""
    if not rows:
        return None
    top = [element("thead", element("tr", *(element("th", name, scope="col") for name in head)))] if head else []
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    numbers = "numbers" if head else "facts"
    kind = f"scroll {numbers} tall" if tall else f"scroll {numbers}"
    return element("div", element("table", *top, element("tbody", joined(body))), css=kind)


def figure(path: Path, alt: str, caption: Content = None) -> Html | None:
    """Return a picture, embedded, with a caption; None if there is no such file or it is no picture."""
    picture = embedded(path)
    if picture is None:
        return None
    address, (width, height) = picture
    image = Html(f'<img src="{address}" alt="{_escaped(alt)}" width="{width}" height="{height}">')
    words = [] if caption is None else [element("figcaption", caption)]
    is_wide_chart = path.suffix == ".png" and width > WIDE
    return element("figure", image, *words, css="chart" if is_wide_chart else None)


def embedded(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Return a picture file as a `data:` address and its (width, height) on a page; None if it cannot be read.

    Charts (PNG) have their size in print at 96 pixels an inch. Pictures of many bytes are shrunk.
    """
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = str(image.format).lower()
            scale = 96 / image.info.get("dpi", (96, 96))[0] if kind == "png" else 1.0
            size = round(image.width * scale), round(image.height * scale)
            most = MAX_CHART if kind == "png" else MAX_PHOTO
            if kind in ("png", "jpeg") and len(content) <= most:
                return _address(kind, content), size
            picture = image.convert("RGB")
    except OSError:
        return None
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=78)
    return _address("jpeg", packed.getvalue()), size


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _code(content: Content) -> str:
    if isinstance(content, Html):
        return content.code
    return "" if content is None else _escaped(str(content))


def _escaped(text: str) -> str:
    return escape_html(escape(text), quote=True)
