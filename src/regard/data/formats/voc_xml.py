"""Annotation files of Pascal VOC, read safely: no document types, no entities, nothing from outside the file.

Pixels are counted from 1 and both corners are inside the box (VOC development kit, `readme.txt`), so a box from xmin to
xmax is xmax - xmin + 1 wide and starts xmin - 1 pixels from the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from regard.errors import DataError

_MAX_BYTES = 16 * 1024**2
_MAX_DEPTH = 64


@dataclass
class Element:
    """An element of an XML file. line: where it starts. text: without that of its children."""

    name: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        """Return the first child of a name."""
        return next((child for child in self.children if child.name == name), None)

    def text_of(self, name: str) -> str:
        """Return the text of the first child of a name, empty if there is none."""
        child = self.child(name)
        return "" if child is None else child.text.strip()


@dataclass(frozen=True)
class VocObject:
    """An object. box_xywh: in pixels from the top left edge of the image. line: of its name."""

    line: int
    name: str
    box_xywh: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class VocImage:
    """The annotation of an image. size: stated (height, width) in pixels, None if the file does not state it."""

    file_name: str
    size: tuple[int, int] | None
    objects: list[VocObject]


def read_voc(path: Path, faults: list[DataError] | None = None) -> VocImage:
    """Read an annotation file.

    faults: gets the errors of the file and its objects, which are left out. None to raise the first.

    Raises:
        DataError: not such a file, or one with a document type (A63); a box that is not four numbers (A17, A16); the
            place is `FILE:LINE`.
    """
    try:
        root = parse_xml(path)
        if root.name != "annotation":
            what = f"an XML file with <{root.name:.40}>, expected <annotation>"
            raise DataError(what, where=f"{path}:{root.line}", remedy="is this a Pascal VOC file?", code="A63")
    except DataError as error:
        if faults is None:
            raise
        faults.append(error)
        return VocImage("", None, [])
    objects = []
    for child in root.children:
        try:
            if child.name == "object":
                objects.append(_object(child, path))
        except DataError as error:
            if faults is None:
                raise
            faults.append(error)
    return VocImage(root.text_of("filename"), _size(root.child("size")), objects)


def parse_xml(path: Path) -> Element:
    """Return the root element of an XML file.

    Raises:
        DataError: it cannot be read, is no XML, has a document type, is too large or too deep (A63).
    """

    def refuse(what: str, remedy: str) -> NoReturn:
        raise DataError(what, where=f"{path}:{parser.CurrentLineNumber}", remedy=remedy, code="A63")

    document = Element("", 0)
    open_elements = [document]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_elements) > _MAX_DEPTH:
            refuse("XML nested too deeply", "export it again")
        element = Element(name, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = lambda *declared: refuse("a document type, which is not read", "remove <!DOCTYPE>")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            what = f"{size:,} bytes of XML, more than the maximum of {_MAX_BYTES:,}"
            raise DataError(what, where=path, remedy="export it again", code="A63")
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        what = f"not valid XML: {expat.errors.messages[error.code]}"
        remedy = "the file may be cut off: export it again"
        raise DataError(what, where=f"{path}:{error.lineno}", remedy=remedy, code="A63") from error
    except (LookupError, ValueError) as error:  # an encoding that does not exist
        raise DataError(f"not readable XML: {error}", where=path, remedy="save it as UTF-8", code="A63") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(what, where=path, remedy="check its permissions", code="A63") from error
    return document.children[0]


def _size(element: Element | None) -> tuple[int, int] | None:
    """Return (height, width); None if they are missing or 0, which some tools write."""
    if element is None:
        return None
    texts = (element.text_of("height"), element.text_of("width"))
    numbers = tuple(int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0 for text in texts)
    return (numbers[0], numbers[1]) if all(numbers) else None


def _object(element: Element, path: Path) -> VocObject:
    where = f"{path}:{element.line}"
    name = element.text_of("name")
    if not name:
        raise DataError("an object without a name", where=where, remedy="add <name>", code="A63")
    box = element.child("bndbox")
    if box is None:
        remedy = "add <bndbox>, or remove the object"
        raise DataError(f"object {name!r:.40} has no box", where=where, remedy=remedy, code="A17")
    corners = [_number(box, side, path) for side in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = corners
    if right < left or bottom < top:
        what = f"the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) has a negative size"
        remedy = "write the top left corner as xmin and ymin"
        raise DataError(what, where=f"{path}:{box.line}", remedy=remedy, code="A14")
    name_line = element.child("name")
    line = element.line if name_line is None else name_line.line
    size = (right - left + 1, bottom - top + 1)
    return VocObject(line, name, (left - 1, top - 1, *size), element.text_of("difficult") == "1")


def _number(box: Element, side: str, path: Path) -> float:
    text = box.text_of(side)
    element = box.child(side)
    where = f"{path}:{box.line if element is None else element.line}"
    try:
        value = float(text)
    except ValueError as error:
        what = f"{side} is {text!r:.40}, expected a number" if element is not None else f"no {side}"
        raise DataError(what, where=where, remedy="write xmin, ymin, xmax and ymax in pixels", code="A17") from error
    if not math.isfinite(value):
        raise DataError(f"{side} is {value}", where=where, remedy="write a number of pixels", code="A16")
    return value
