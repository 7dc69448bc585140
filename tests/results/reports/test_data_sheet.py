"""`regard data show` on every kind of data."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from color_data import write_colors
from command_line import digest, run
from detection_files import draw_pictures, write_voc
from regard.data.generated.shapes import ShapesConfig, write_shapes


def test_objects(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The box of an object is drawn in its image."""
    pictures = draw_pictures(tmp_path / "a", 5)
    write_voc(pictures, tmp_path / "voc/images", tmp_path / "voc/annotations")
    before = digest(tmp_path / "voc")
    output = tmp_path / "out" / "sheet.png"
    assert run(capsys, "data", "show", tmp_path / "voc", "--output", output).worked() == f"{output}\n"
    with Image.open(output) as sheet:
        assert sheet.width > 1000 and sheet.height > 800
        colors = {color for _, color in sheet.convert("RGB").getcolors(1 << 24)}
    from regard.drawing.boxes import class_color

    assert class_color(0) in colors and class_color(1) in colors
    assert digest(tmp_path / "voc") == before
    run(capsys, "data", "show", tmp_path / "voc", "--output", output).refused(2, "C11", output)


@pytest.mark.parametrize("kind", ["outlines", "panoptic", "classes"])
def test_other_kinds(kind: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    if kind == "classes":
        write_colors(folder, train=3, val=2)
    else:
        write_shapes(ShapesConfig(train=3, val=1, size=48), folder)
        if kind == "panoptic":
            for file in (folder / "annotations").glob("instances_*"):
                file.unlink()
    monkeypatch.chdir(tmp_path)
    names = [run(capsys, "data", "show", folder).worked().strip() for _ in range(2)]
    assert names == ["mine-sheet.png", "mine-sheet-2.png"]
    with Image.open(names[0]) as sheet:
        assert min(sheet.size) > 300


def test_wrong_suffix_and_no_data(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    run(capsys, "data", "show", tmp_path / "gone").refused(3, None, "gone")
    (tmp_path / "empty").mkdir()
    run(capsys, "data", "show", tmp_path / "empty").refused(3, "A64", "found nothing")
