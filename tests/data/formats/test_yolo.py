"""YOLO: what `data.yaml` may say, and lines that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection_files import draw_pictures, write_yolo
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.formats.find import has_detection
from regard.data.formats.yolo_labels import join_loops, read_labels, split_loops
from regard.errors import DataError, ImageError

NAMES = ["cat", "dog"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split, seed in (("train", 0), ("val", 1)):
        write_yolo(draw_pictures(tmp_path / split, 4, seed=seed), root / f"images/{split}", root / f"labels/{split}",
                   NAMES)  # fmt: skip
    return root


def settings(root: Path, text: str, name: str = "data.yaml") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text.replace("ROOT", str(root)) + "\nnames: [cat, dog]\n")
    return root


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train: images/train\nval: images/val", "data.yaml"),
        ("path: ROOT\ntrain: images/train\nval: images/val", "pets.yml"),
        ("path: ../pets\ntrain: images/train\nval: images/val", "dataset.yaml"),
        ("path: /content/pets\ntrain: images/train\nval: images/val", "data.yaml"),
        ("train: /content/pets/images/train\nval: /content/pets/images/val", "data.yaml"),
        ("train: ../pets/images/train\nval: ../pets/images/val", "data.yaml"),
        ("train: [images/train]\nval: [ROOT/images/val]", "data.yaml"),
        ("train: train.txt\nval: val.txt", "data.yaml"),
        ("train: gone\nval: also/gone", "data.yaml"),
        ("train: images/train\nval: images/val", "labels/data.yaml"),
        ("path: pets\ntrain: images/train\nval: images/val", "../pets.yaml"),
    ],
)
def test_paths(root: Path, text: str, name: str) -> None:
    for split in ("train", "val"):
        files = sorted((root / "images" / split).iterdir())
        (root / f"{split}.txt").write_text("\n".join(f"./images/{split}/{file.name}" for file in files))
    settings(root, text, name)
    for split, seed in (("train", 0), ("val", 1)):
        data = open_detection(root, split)
        assert [Path(path).name for path in data.names] == [f"photo.{seed}-{k}.png" for k in range(4)]
        assert [category.name for category in data.categories] == NAMES
        assert len(data[0].labels) == 2 and Path(data[0].path).is_file()


def test_a_list_of_folders_also_of_other_places(root: Path, tmp_path: Path) -> None:
    write_yolo(draw_pictures(tmp_path / "more", 3, seed=2), tmp_path / "x/images", tmp_path / "x/labels", NAMES)
    settings(root, f"train: [images/train, {tmp_path}/x/images]\nval: images/val")
    data = open_detection(root, "train")
    assert len(data) == 7 and sum(len(data[k].labels) for k in range(7)) == data.annotations.objects.is_target.sum()


def test_names_as_numbered_list(root: Path) -> None:
    for first in ("0", '"0"'):
        (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n  1: dog\n  {first}: cat\n")
        assert [category.name for category in open_detection(root, "train").categories] == NAMES


@pytest.mark.parametrize(
    ("text", "code", "line", "says"),
    [
        ("names: {0: cat, 2: dog}", "A62", 1, "without 1"),
        ("names: {1: cat, 2: dog}", "A62", 1, "without 0"),
        ("names: {cat: 0, dog: 1}", "A62", 1, "cat, dog"),
        ("names: cat", "A62", 1, "'cat'"),
        ("names:", "A62", 1, "names: [cat, dog]"),
        ("nc: 3\nnames: [cat, dog]", "A62", 1, "nc is 3"),
        ("names: [cat, no]", "A25", 1, "False"),
        ("names: []", "A62", 1, "names"),
        ("names: [cat, cat]", "A25", 1, "'cat'"),
        ("names: [cat, dog]\nval: 3", "A62", 2, "val is 3"),
        ("names: [cat, dog", "A62", 2, ""),
    ],
)
def test_wrong_settings(root: Path, text: str, code: str, line: int, says: str) -> None:
    (root / "data.yaml").write_text(text + "\n")
    with refused(DataError, code, f"data.yaml:{line}", says):
        open_detection(root, "train")


def test_missing_validation_images_are_named(tmp_path: Path) -> None:
    write_yolo(draw_pictures(tmp_path / "a", 3), tmp_path / "d/images/train", tmp_path / "d/labels/train", NAMES)
    settings(tmp_path / "d", "train: images/train\nval: images/holdout")
    with refused(DataError, "images/holdout", "data.yaml:2", code="A64"):
        open_detection(tmp_path / "d", "val")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\nval: images/val", "names: [cat, dog]"),
        ("train: images/train\nnc: 1", "names: [cat]"),
        ("nc: 3", "nc is 3"),
        ("train: images/train\nNames: [cat, dog]", "Names"),
        ("comment: only the name of the file says what it is", "names: [cat, dog]"),
    ],
)
def test_settings_without_names_are_told_as_the_settings_they_are(root: Path, text: str, says: str) -> None:
    """Also with labels beside their images, which are no YOLO data without names."""
    (root / "data.yaml").write_text(text + "\n")
    with refused(DataError, root / "data.yaml", says, code="A62"):
        open_detection(root, "train")
    assert has_detection(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert [category.name for category in open_detection(root, "train").categories] == NAMES
    (root / "classes.txt").unlink()
    for file in root.glob("labels/*/*.txt"):
        file.replace(root / "images" / file.parent.name / file.name)
    if "only the name" not in text:
        with refused(DataError, root / "data.yaml", code="A62"):
            open_detection(root, "train")


def test_labels_without_names_of_classes(root: Path) -> None:
    with refused(DataError, root / "classes.txt", code="A62"):
        open_detection(root, "train")
    assert has_detection(root)


LINES = {
    "columns": ("0 0.5 0.5 0.2", "A62", "4 columns"),
    "score": ("0 0.5 0.5 0.2 0.2 0.9", "A62", "score"),
    "half a point": ("0 0.5 0.5 0.2 0.2 0.9 0.1 0.3", "A62", "8 columns"),
    "text": ("cat 0.5 0.5 0.2 0.2", "A62", "'cat'"),
    "commas": ("0,0.5,0.5,0.2,0.2", "A62", "0,0.5"),
    "NaN": ("0 nan 0.5 0.2 0.2", "A16", "nan"),
    "infinity": ("0 0.5 0.5 inf 0.2", "A16", "inf"),
    "above 1": ("0 0.5 0.5 0.2 1.5", "A19", "1.5"),
    "pixels": ("0 12 20 5 5", "A19", "12"),
    "negative": ("0 0.5 0.5 -0.005 0.2", "A14", "-0.005"),
    "class": ("2 0.5 0.5 0.2 0.2", "A20", "0 to 1"),
    "negative class": ("-1 0.5 0.5 0.2 0.2", "A20", "-1"),
    "half a class": ("0.5 0.5 0.5 0.2 0.2", "A20", "0.5"),
}


@pytest.mark.parametrize("name", LINES)
def test_wrong_lines(root: Path, name: str) -> None:
    settings(root, "train: images/train\nval: images/val")
    text, code, says = LINES[name]
    file = root / "labels/train/photo.0-1.txt"
    file.write_text(f"0 0.5 0.5 0.2 0.2\n\n{text}\n")
    with refused(DataError, code, says, f"{file}:3"):
        open_detection(root, "train")


def test_issues_of_the_checks_name_lines(root: Path) -> None:
    settings(root, "train: images/train\nval: images/val")
    file = root / "labels/train/photo.0-1.txt"
    file.write_text("0 0.5 0.5 0.2 0.2\n1 0.95 0.5 0.3 0.5\n0 0.5 0.5 0 0\n")
    (file.parent / "photo.0-2.txt").unlink()
    (file.parent / "lost.txt").write_text("")
    issues = {issue.code: issue.where for issue in open_detection(root, "val").annotations.report.issues}
    assert not issues
    from regard.data.formats.find import read_split  # more boxes without area than a training may have

    issues = {issue.code: issue.where for issue in read_split(root, "train").annotations.report.issues}
    assert issues["A11"] == f"{file}:2" and issues["A15"] == f"{file}:3"
    assert issues["A62"].endswith("images/train/photo.0-2.png") and issues["A30"] == str(file.parent / "lost.txt")


def test_no_label_at_all(root: Path) -> None:
    settings(root, "train: images/train\nval: images/val")
    for file in (root / "labels/train").iterdir():
        file.unlink()
    with refused(DataError, root / "labels/train", "photo.0-0.txt", code="A64"):
        open_detection(root, "train")


def test_images_that_cannot_be_opened_are_all_named(root: Path) -> None:
    settings(root, "train: images/train\nval: images/val")
    for number in (1, 3):
        (root / f"images/train/photo.0-{number}.png").write_bytes(b"")
    with refused(ImageError, "photo.0-1.png", "photo.0-3.png", code="I01"):
        open_detection(root, "train")


def test_missing_images_of_a_list(root: Path) -> None:
    settings(root, "train: train.txt\nval: images/val")
    (root / "train.txt").write_text("images/train/photo.0-0.png\nimages/train/gone.png\n")
    with refused(DataError, "gone.png", f"{root}/train.txt:2", code="A31"):
        open_detection(root, "train")


def test_outlines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.8\n")
    (found,) = read_labels(tmp_path / "a.txt", (100, 200), NAMES)
    assert found.polygons == ((20, 20, 100, 20, 100, 80),) and found.box_xywh == (20, 20, 80, 60)
    assert found.area == 80 * 60 / 2


def test_poses_give_their_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5 0.1 0.2 0.5 0.2\n")
    (found,) = read_labels(tmp_path / "a.txt", (100, 200), NAMES, keypoint_values=4)
    assert found.box_xywh == (50, 25, 100, 50) and not found.polygons
    with refused(DataError, "9 columns", "expected 11", code="A62"):
        read_labels(tmp_path / "a.txt", (100, 200), NAMES, keypoint_values=6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_polygons_of_one_object_are_joined_and_split(count: int) -> None:
    rng = np.random.default_rng(count)
    polygons = [rng.random(2 * rng.integers(3, 9)).tolist() for _ in range(count)]
    joined = join_loops(polygons)
    assert split_loops(joined) == tuple(map(tuple, polygons))
    closed = [[*polygon, *polygon[:2]] for polygon in polygons]
    assert split_loops(join_loops(closed)) == tuple(map(tuple, closed))
    touching = [*closed[0], *polygons[-1], *polygons[-1][:2], *polygons[0][:2]]
    assert split_loops(touching) == (tuple(touching),)


def test_coordinates_are_those_of_the_displayed_image(tmp_path: Path) -> None:
    """EXIF orientation 6: the file has 40x20 pixels and is shown as 20x40."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / f"images/{split}").mkdir(parents=True)
        (tmp_path / f"labels/{split}").mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / f"images/{split}/a.jpg", exif=exif)
        (tmp_path / f"labels/{split}/a.txt").write_text("0 0.5 0.25 1 0.5\n")
    (tmp_path / "obj.names").write_text("cat\n")
    sample = open_detection(tmp_path, "train")[0]
    assert sample.image.shape[-2:] == (40, 20) and sample.boxes.tolist() == [[0, 0, 20, 20]]


def test_a_path_through_a_link_finds_its_own_images(root: Path, tmp_path: Path) -> None:
    """`link/../pets` is the folder beside the link's target, not the one beside the link."""
    (tmp_path / "disk").mkdir()
    root.rename(tmp_path / "disk/pets")
    write_yolo(draw_pictures(tmp_path / "x", 4, seed=7), root / "images/train", root / "labels/train", NAMES)
    (tmp_path / "disk/other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk/other")
    settings(tmp_path / "disk/pets", "train: images/train\nval: images/val")
    data = open_detection(tmp_path / "link/../pets", "train")
    assert data.names[0] == "images/train/photo.0-0.png" and Path(data[0].path).resolve().is_relative_to(
        tmp_path / "disk"
    )


def test_a_line_too_long_for_a_path_is_missing(root: Path) -> None:
    """As other programs write lists: the boxes behind the path."""
    settings(root, "train: train.txt\nval: images/val")
    (root / "train.txt").write_text("images/train/photo.0-0.png " + "100,100,200,200,0 " * 40 + "\n")
    with refused(DataError, "photo.0-0.png", f"{root}/train.txt:1", code="A31"):
        open_detection(root, "train")
