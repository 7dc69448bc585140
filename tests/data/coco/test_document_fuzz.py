"""Documents made at random, and damaged: read fast as by Python's parser, or left to it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regard.data.coco import document
from regard.data.coco.columns import OUTLINE
from regard.data.coco.document import Table
from regard.data.coco.json_file import parse_json
from regard.data.report import Report
from regard.errors import DataError

TEXTS = [
    "",
    "a.jpg",
    "ä 😀",
    'in "quotes"',
    "\\",
    "a: b",
    "<table images>",
    "[{]}",
    '}, {"id"',
    '"images"',
    "images: [{",
]
WITH_KEYS = ['"annotations": [ {', '}, {"id": 1', '": ']  # which are counted as keys: left to the plain parser
STYLES: list[dict[str, Any]] = [
    {},
    {"separators": (",", ":")},
    {"indent": 2},
    {"indent": 0, "separators": (" , ", " : ")},
]
DAMAGE = [
    b"NaN", b"-Infinity", b"1e400", b"1e-400", b"9" * 30, b"9" * 5000, b"-0", b"2.0", b"true", b"null", b"01", b'"',
    b"\\", b"\\ud800", b"\\u0069", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"  :", b"\xef\xbb\xbf", b"\xff",
    b"\xed\xa0\x80", b"\x00", b'"id": 1, ', b'"images": [{}], ', b'"annotations": [{"id": 1}], ', b"{}", b"[]", b"{}, ",
    b'"images": "<table \\u0069mages>", ', b'"annotations": "<table annotations>", ', b"}, {",
]  # fmt: skip


def text(draw: random.Random) -> str:
    return draw.choice(TEXTS if draw.random() < 0.99 else WITH_KEYS)


def value(draw: random.Random, depth: int = 0) -> Any:
    """A value of an unknown key."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 6:
        return [None, True, text(draw), draw.randrange(-9, 2**70), draw.uniform(-1e9, 1e9), 0.1][kind]
    names = ["id", "images", "annotations", "a", text(draw)]
    inside = [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return inside if kind == 6 else {draw.choice(names): part for part in inside}


def outline(draw: random.Random) -> Any:
    if draw.random() < 0.2:
        return {"size": [4, 6], "counts": draw.choice([[0, 24], "0P2", []])}
    return [[draw.choice([1, 2.5, 1e3]) for _ in range(draw.randrange(9))] for _ in range(draw.randrange(3))]


def row(draw: random.Random, table: str, others: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"id": draw.choice([draw.randrange(99), 2**53 + 1])}
    if table == "images":
        made |= {"file_name": text(draw), "height": 40, "width": 60}
    else:
        made |= {"image_id": 1, "category_id": 2, "bbox": [draw.choice([1, 2.5, 2**60 + 1]) for _ in range(4)]}
        made |= {"area": draw.choice([None, 7, 0.3]), "iscrowd": 0, OUTLINE: outline(draw)}
    made |= {key: value(draw) for key in others}
    keys = list(made)
    if draw.random() < 0.2:
        draw.shuffle(keys)
    return {key: made[key] for key in keys if draw.random() > 0.02}


def made_document(draw: random.Random) -> dict[str, Any]:
    parts: dict[str, Any] = {"info": value(draw), "licenses": [], "categories": [{"id": 2, "name": text(draw)}]}
    for table in ("images", "annotations"):
        others = draw.sample(["license", "url", "attributes", "ä", text(draw)], draw.randrange(3))
        parts[table] = [row(draw, table, others) for _ in range(draw.choice([0, 1, 2, 9, 30]))]
    if draw.random() < 0.1:
        parts["info"] = {draw.choice(["images", "annotations"]): parts["images"][:2]}
    keys = list(parts)
    draw.shuffle(keys)
    return {key: parts[key] for key in keys if draw.random() > 0.05}


def damaged(draw: random.Random, data: bytes) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at, length = draw.randrange(len(data) + 1), draw.choice([0, 0, 1, 1, 2, 40])
        if draw.random() < 0.5:  # where a key or a value starts
            at = max(data.find(draw.choice([b'"', b"{", b", ", b"]"]), at), 0)
        elsewhere = draw.randrange(len(data) + 1)
        new = [b"", draw.randbytes(1), data[elsewhere : elsewhere + 30], *(draw.choice(DAMAGE) for _ in range(3))]
        data = data[:at] + draw.choice(new) + data[at + length :]
    return data


def check(data: bytes) -> bool:
    """Check that the fast way gives what the plain one does. Returns whether it was taken."""
    fast = document._tables(data)
    if fast is None:
        return False
    report = Report(Path("a.json"))
    try:
        plain = parse_json(data, report.path, report)
    except DataError as error:
        raise AssertionError(f"the plain parser reports {error}") from error
    assert not report.issues
    assert list(fast) == list(plain)
    for name, rows in plain.items():
        found = fast[name]
        assert repr(list(found) if isinstance(found, Table) else found) == repr(rows)
        if isinstance(found, Table):
            for key, column in found.columns.items():
                expected = [each[key] for each in rows]
                if isinstance(column, list):
                    assert column == expected
                else:
                    assert np.array_equal(column, np.array(expected, column.dtype), equal_nan=column.dtype.kind == "f")
            if found.outlines is not None:
                polygons = [p for each in rows if isinstance(each.get(OUTLINE), list) for p in each[OUTLINE]]
                assert found.outlines.numbers.tolist() == [float(number) for polygon in polygons for number in polygon]
                assert found.outlines.lengths.tolist() == [len(polygon) for polygon in polygons]
                runs = {k: each[OUTLINE] for k, each in enumerate(rows) if isinstance(each.get(OUTLINE), dict)}
                assert found.outlines.run_lengths == runs
    return True


@pytest.mark.parametrize("seed", range(4))
def test_random_documents_are_read_as_by_the_plain_parser(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_PIECE", 400)
    draw = random.Random(seed)
    taken, taken_damaged = 0, 0
    for _ in range(150):
        style = draw.choice(STYLES)
        data = json.dumps(made_document(draw), ensure_ascii=draw.random() < 0.5, **style).encode()
        taken += check(data)
        taken_damaged += sum(check(damaged(draw, data)) for _ in range(4))
    assert taken > 30
    assert taken_damaged > 30


@pytest.mark.parametrize(
    "data",
    [
        b'{"info": {"images": [{"id": 1}]}, "images": "<table \\u0069mages>"}',
        b'{"info": {"images": [{"id": 1}]}, "images": "<table images>"}',
        b'{"info": {"images": [{"id": 1}]}, "images": []}',
        b'{"a\\"images": [{"id": 1}], "images": [{"id": 2}]}',
        b'{"images": [{"id": 1}], "images": [{"id": 2}]}',
        b'{"images": [{"id": 1, "annotations": [{"id": 2}]}], "annotations": [{"id": 3}]}',
        b'{"images": [{"id": 1, "url": ' + b"9" * 5000 + b"}]}",
        b'{"images": [{"id": 1, "url": "\xff"}]}',
        b'{"images": [{"id": 1, "url": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
        b'{"images": [{"id": 1}]',
        b'{"images": [{"id": 1}]} x',
        b'{"images": [{"id": 1},]}',
        b'{"images": [{"id": 1} {"id": 2}]}',
        b'{"images": [{"id": 1}, 7]}',
        b'[{"images": [{"id": 1}]}]',
        '{"images": [{"id": 1}]}'.encode("utf-16"),
        '{"images": [{"id": 1}]}'.encode("utf-16-le"),
        b'\xef\xbb\xbf{"images": [{"id": 1}]}',
    ],
)
def test_what_is_not_ordinary_is_left_to_the_plain_parser(data: bytes) -> None:
    assert document._tables(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"info": "\\"images\\" [ {", "images": [{"id": 1}]}',
        b'{"info": "images: [{", "images" :\r[\t{"id": 1}\n]\n}\n',
        b'{"images": [{"id": 1}], "annotations": []}',
        b'{"images": [{"id": 1}, {"id": 2, "file_name": "}, {\\"id\\""}]}',
        b'{"images": [{}]}',
    ],
)
def test_ordinary_documents_are_read_fast(data: bytes) -> None:
    assert check(data)
    assert isinstance(document._tables(data)["images"], Table)
