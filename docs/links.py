"""Links of the pages: to the source where the repository is read, to the pages of reference in the built site.

In the site each link must lead to a file of the site, and to an anchor that the page has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Links of the pages to the source, and the page of reference that is made from it.
REFERENCE = {
    "src/regard/training/config.py": "reference/settings.md",
    "src/regard/recipes": "reference/settings.md#recipes",
    "src/regard/data/generated/shapes.py": "reference/settings.md#generated-images",
    "src/regard/cli/commands.py": "reference/commands.md",
    "src/regard/__init__.py": "reference/api.md",
    "src/regard/attention": "reference/api.md#attention-layers",
    "src/regard/results": "reference/api.md#results",
    "src/regard/models/catalog.py": "reference/models.md",
    "src/regard/errors.py": "reference/errors.md",
}


def to_reference(text: str) -> str:
    """Return a page with its links to the source as links to the pages of reference, which only the site has.

    The pages stand one folder deeper in the repository than in the site.
    """

    def replaced(link: re.Match[str]) -> str:
        page = REFERENCE.get(link["file"])
        return link[0] if page is None else f"]({link['up']}{page})"

    return re.sub(r"\]\((?P<up>(\.\./)*)\.\./(?P<file>src/[\w/.]+)\)", replaced, text)


class Page(HTMLParser):
    """The targets of a page's links and pictures, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.targets.append(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield each link of a page that leads to no file of the site or to no anchor of a page."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for target in sorted(set(page.targets)):
            url = urlsplit(target)
            if url.scheme in ("http", "https", "data", "mailto"):
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not file.is_file() or (file in pages and unquote(url.fragment) not in pages[file].anchors):
                yield f"{path.relative_to(site.resolve())}: broken link {target}"
