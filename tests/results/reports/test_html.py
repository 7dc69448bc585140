"""Pieces of HTML: everything of a user's is text, pictures are embedded."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from regard.results.reports.html import MAX_PHOTO, Html, element, embedded, figure, section, table
from regard.results.reports.page import page
from strict_html import StrictHtml

HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "a & b &lt; c", "'; --", "</title></style>",
    "null\0 and \x1b[31m and \ud800 and \u202e", "猫 🐈",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_users_stays_text(text, tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    made = page(text, [element("h1", text), table([[text, text]], [text, ""]), figure(path, text, text)])
    read = StrictHtml(made)
    made.encode("utf-8")
    known = text if text.isprintable() else text.encode("unicode_escape").decode()
    if text.isprintable():
        assert read.texts == [known] * 6
    assert read.images[0]["alt"].count("<") == text.count("<") and set(read.images[0]) == {
        "src",
        "alt",
        "width",
        "height",
    }


def test_attributes_and_nothing():
    assert element("td", 3, css='a"b').code == '<td class="a&quot;b">3</td>'
    assert element("p", None, Html("<br>"), 0.5).code == "<p><br>0.5</p>"
    assert section("empty", None, None) is None and table([]) is None


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_pictures(tmp_path):
    small = tmp_path / "small.jpg"
    Image.new("RGB", (30, 20), "red").save(small)
    address, size = embedded(small)
    assert size == (30, 20) and base64.b64decode(address.partition(",")[2]) == small.read_bytes()
    chart = tmp_path / "chart.png"
    Image.new("RGB", (1500, 300), "white").save(chart, dpi=(150, 150))
    assert embedded(chart)[1] == (960, 192)
    assert 'class="chart"' in figure(chart, "a chart").code and "class" not in figure(small, "a photo").code
    large = tmp_path / "large.jpg"
    noise(1800).save(large, quality=95)
    assert large.stat().st_size > MAX_PHOTO
    address, size = embedded(large)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        assert image.size == (1400, 1400) and size == (1800, 1800)
    assert len(address) < large.stat().st_size
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert embedded(tmp_path / "broken.jpg") is None and figure(tmp_path / "missing.png", "x") is None


@pytest.mark.parametrize(
    "wrong",
    ["<p>a", "<p>a</b></p>", "<p><img src='http://a.b/c.png' alt='x'></p>", "<script></script>", "<td>1</td>",
     "<p onclick='x'>a</p>"],
)  # fmt: skip
def test_the_strict_reader_finds_faults(wrong):
    StrictHtml(page("t", [element("h1", "t"), element("p", "right")]))
    with pytest.raises(AssertionError):
        StrictHtml(page("t", [element("h1", "t"), Html(wrong)]))
