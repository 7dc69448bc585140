"""A strict reader of HTML: balanced tags, known elements, ids once, nothing from other hosts, no scripts."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
# Content model: which parents an element may have; any if not listed.
PARENTS = {
    "li": {"ul", "ol"}, "tr": {"thead", "tbody"}, "td": {"tr"}, "th": {"tr"}, "thead": {"table"}, "tbody": {"table"},
    "figcaption": {"figure"}, "head": {"html"}, "body": {"html"}, "title": {"head"}, "style": {"head"},
}  # fmt: skip
FORBIDDEN = {"script", "iframe", "object", "embed", "link", "base", "form"}


class StrictHtml(HTMLParser):
    """Raises AssertionError at the first fault. texts: all text; images: attributes of each picture."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str]] = []
        self.tags: list[str] = []
        assert page.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(page)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"
        assert self.tags.count("h1") == self.tags.count("title") == self.tags.count("body") == 1

    def handle_starttag(self, tag, attrs):
        assert tag not in FORBIDDEN, tag
        if tag in PARENTS:
            assert self.stack and self.stack[-1] in PARENTS[tag], f"{tag} in {self.stack[-1:]}"
        if self.stack and self.stack[-1] == "p":
            assert tag in ("code", "b", "span", "br", "a"), f"{tag} in a paragraph"
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {names}"
        for name, value in attrs:
            assert value is not None and not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                assert value.startswith("data:image/"), value[:80]
        if tag == "img":
            self.images.append(dict(attrs))
            assert dict(attrs)["alt"]
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert tag not in VOID and self.stack and self.stack[-1] == tag, f"</{tag}> in {self.stack}"
        self.stack.pop()

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "style":
            assert "url(" not in data and "@import" not in data
            return
        assert self.stack or not data.strip(), f"text outside of the page: {data[:40]!r}"
        if data.strip():
            assert self.stack[-1] not in ("table", "thead", "tbody", "tr", "ul", "html", "head"), data
            self.texts.append(data.strip())

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:40]}")
