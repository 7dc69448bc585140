"""`regard data check` on classification data; on COCO folders it is tested with the command line and bad input."""

import shutil

import pytest

from class_data import png
from color_data import write_colors
from command_line import digest, run
from regard.data.class_images.dataset import is_classification
from regard.data.generated.shapes import ShapesConfig, write_shapes


@pytest.fixture
def colors(tmp_path):
    return write_colors(tmp_path / "colors", train=3, val=2)


def test_sound_data(capsys, colors):
    before = digest(colors)
    assert run(capsys, "data", "check", colors).worked().splitlines() == [
        "train: 9 images, 3 classes", "val: 6 images, 3 classes", "every image can be read",
    ]  # fmt: skip
    assert digest(colors) == before


def test_the_split_is_reported_once(capsys, tmp_path):
    write_colors(tmp_path, train=5, val=0)
    text = run(capsys, "data", "check", tmp_path / "train").worked()
    assert text.count("[A48]") == 1, text


def test_one_image_in_two_places(capsys, colors):
    """Found by its pixels: the second is another file format."""
    from PIL import Image

    (colors / "train/green/3.png").write_bytes((colors / "train/red/0.png").read_bytes())
    Image.open(colors / "train/blue/1.png").save(colors / "val/blue/9.bmp")
    before = digest(colors)
    lines = run(capsys, "data", "check", colors).worked().splitlines()
    red, green, blue = (f"{colors}/{name}" for name in ("train/red/0.png", "train/green/3.png", "train/blue/1.png"))
    warnings = [line for line in lines if line.startswith("warn[A48]")]
    assert warnings in (
        [f"warn[A48]: 1 images are in two classes — {a} = {b}"] for a, b in ((red, green), (green, red))
    )
    both = f"warn[I30]: 1 validation images are training images too — {blue} = {colors}/val/blue/9.bmp"
    assert both in lines and digest(colors) == before


def test_broken_images_are_all_named(capsys, colors):
    for name in ("train/red/1.png", "val/green/0.png"):
        (colors / name).write_bytes((colors / name).read_bytes()[:-30])
    before = digest(colors)
    finished = run(capsys, "data", "check", colors)
    finished.refused(3, None, "1 kind of fault stops a training", colors)
    (broken,) = (line for line in finished.out.splitlines() if line.startswith("error[I09]"))
    assert str(colors / "train/red/1.png") in broken and str(colors / "val/green/0.png") in broken
    words = ["train", "resnet20", "--data", colors, "--quiet", "--output", colors.parent / "run", "workers=0"]
    run(capsys, *words, "device=cpu").refused(3, "I09", f"find all such images: regard data check {colors}")
    assert digest(colors) == before


def test_wrong_classes_do_not_stop_the_check(capsys, colors):
    """Both classes and the broken image are named."""
    for name in ("pink", "grey"):
        shutil.copytree(colors / "val/red", colors / "val" / name)
    (colors / "val/grey/1.png").write_bytes(b"")
    finished = run(capsys, "data", "check", colors)
    finished.refused(3, None, colors)
    (classes,) = (line for line in finished.out.splitlines() if line.startswith("error[A48]"))
    assert str(colors / "val/pink/0.png") in classes and str(colors / "val/grey/0.png") in classes
    assert f"error[I01]: empty file — {colors / 'val/grey/1.png'}" in finished.out


def test_kinds_of_data(capsys, colors, tmp_path):
    write_shapes(ShapesConfig(train=2, val=1, size=32), tmp_path / "coco")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(0))
    kinds = {name: is_classification(tmp_path / name) for name in ("colors", "coco", "flat", "absent")}
    assert kinds == {"colors": True, "coco": False, "flat": False, "absent": False}
    run(capsys, "data", "check", tmp_path / "flat").refused(3, "A64", "no detection data", "0.png")
    run(capsys, "data", "check", tmp_path / "absent").refused(3, None, "no such folder")
