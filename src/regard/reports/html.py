"""Pieces of HTML: elements, tables and embedded pictures. All text is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from pathlib import Path

from regard.errors import escape

LONGEST = 1400  # pixels of an embedded picture
SMALL = 60_000  # bytes of a picture that is embedded as it is
CHART_COLORS = 128


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


def figure(path: Path, alt: str, caption: Content = None, *, kind: str = "wide") -> Html | None:
    """Return a picture, embedded, with a caption; None if there is no such file or it is no picture."""
    address = embedded(path)
    if address is None:
        return None
    image = Html(f'<img src="{address}" alt="{_escaped(alt)}">')
    words = [] if caption is None else [element("figcaption", caption)]
    return element("figure", image, *words, css=kind)


def embedded(path: Path) -> str | None:
    """Return a picture file as a `data:` address, shrunk if it is large; None if it cannot be read."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = str(image.format).lower()
            if kind in ("png", "jpeg") and len(content) <= SMALL and max(image.size) <= LONGEST:
                return _address(kind, content)
            picture = image.convert("RGB")
    except OSError:
        return None
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    if kind == "png":  # a chart: few colours
        picture.quantize(CHART_COLORS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        return _address("png", packed.getvalue())
    picture.save(packed, "JPEG", quality=78)
    return _address("jpeg", packed.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _code(content: Content) -> str:
    if isinstance(content, Html):
        return content.code
    return "" if content is None else _escaped(str(content))


def _escaped(text: str) -> str:
    return escape_html(escape(text), quote=True)
