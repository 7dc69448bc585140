"""Round trips lose nothing; the source stays as it is; what YOLO cannot hold is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from command_line import digest, run
from detection_files import draw_pictures, write_voc
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes

DATA = Path(__file__).parents[4] / "shared/data"


def objects(data: CocoDataset) -> dict[str, list]:
    """Image name -> class, box and crowd of its objects."""
    rows: dict[int, list] = {image: [] for image in data.image_ids}
    names = {category.id: category.name for category in data.categories}
    for row in data.to_coco()["annotations"]:
        rows[row["image_id"]].append((names[row["category_id"]], *np.round(row["bbox"], 4).tolist(), row["iscrowd"]))
    return {Path(name).name: sorted(rows[k]) for k, name in zip(data.image_ids, data.names, strict=True)}


def both(root: Path) -> list[CocoDataset]:
    return [open_detection(root, split) for split in ("train", "val")]


def test_voc_to_coco_to_yolo_to_coco(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Without a validation split: the split of the source is kept."""
    write_voc(draw_pictures(tmp_path / "a", 20), tmp_path / "voc/images", tmp_path / "voc/annotations")
    before = digest(tmp_path / "voc")
    steps = [("voc", "coco", "c1"), ("c1", "yolo", "y"), ("y", "coco", "c2")]
    for source, to, output in steps:
        text = run(capsys, "data", "convert", tmp_path / source, "--to", to, "--output", tmp_path / output).worked()
        assert "cannot hold" not in text
    assert digest(tmp_path / "voc") == before
    wanted = [objects(data) for data in both(tmp_path / "voc")]
    for name in ("c1", "y", "c2"):
        found = both(tmp_path / name)
        assert [objects(data) for data in found] == wanted
        assert [category.name for category in found[0].categories] == ["cat", "dog"]
        assert found[1][0].image.equal(both(tmp_path / "voc")[1][0].image)


@pytest.mark.parametrize("name", ["raccoon", "nuclei", "coco_sample"])
def test_real_data(name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the shared data are not here")
    for source, to, output in ((DATA / name, "yolo", "y"), (tmp_path / "y", "coco", "c")):
        run(capsys, "data", "convert", source, "--to", to, "--output", tmp_path / output).worked()
    for truth, found in zip(both(DATA / name), both(tmp_path / "c"), strict=True):
        own = truth.annotations.objects
        kept = ~own.is_crowd
        assert [len(data) for data in (truth, found)] == [len(truth)] * 2
        labels = found.annotations.objects
        assert own.labels[kept].tolist() == labels.labels.tolist()
        assert np.abs(own.boxes_xywh[kept] - labels.boxes_xywh).max() < 0.5
        first = np.flatnonzero(kept)
        for row in range(0, len(first), 7):  # the outlines are those of the source
            before, after = own.segmentation(int(first[row])), labels.segmentation(row)
            if isinstance(before, list):
                assert after is not None and all(
                    np.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True)
                )


def test_coco_keeps_every_field(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_shapes(ShapesConfig(train=2, val=1, size=32), source)
    file = source / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["info"] = {"year": 2026}
    document["annotations"][0]["track"] = 7
    document["categories"][0]["supercategory"] = "thing"
    file.write_text(json.dumps(document))
    run(capsys, "data", "convert", source, "--to", "coco", "--output", tmp_path / "out").worked()
    assert json.loads((tmp_path / "out/annotations/instances_train.json").read_text()) == document


def test_what_yolo_cannot_hold_is_counted(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = ["a.png", "a.jpg"]
    for split in ("train", "val"):
        (source / split).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (20, 10)).save(source / split / name)
        mask = np.zeros((10, 20), dtype=np.uint8, order="F")
        mask[2:5, 3:9] = 1
        runs = {"size": [10, 20], "counts": coco_mask.encode(mask)["counts"].decode()}
        base = {"category_id": 4, "area": 18, "image_id": 0, "iscrowd": 0}
        rows = [
            {**base, "id": 1, "bbox": [3, 2, 6, 3], "segmentation": runs},
            {**base, "id": 2, "bbox": [0, 0, 20, 10], "segmentation": runs, "iscrowd": 1},
            {**base, "id": 3, "bbox": [1, 1, 9, 7], "segmentation": [[1, 1, 8, 1, 8, 8]], "image_id": 1},
        ]
        images = [{"id": k, "file_name": name, "width": 20, "height": 10} for k, name in enumerate(names)]
        document = {"images": images, "annotations": rows, "categories": [{"id": 4, "name": "x"}]}
        (source / "annotations").mkdir(exist_ok=True)
        (source / f"annotations/{split}.json").write_text(json.dumps(document))
    text = run(capsys, "data", "convert", source, "--to", "yolo", "--output", tmp_path / "y").worked()
    (line,) = [line for line in text.splitlines() if "cannot hold" in line]
    assert all(part in line for part in ("2 crowds", "2 masks", "2 boxes", "2 images renamed"))
    assert sorted(path.stem for path in (tmp_path / "y/labels/train").iterdir()) == ["a", "a-2"]
    data = open_detection(tmp_path / "y", "train")
    assert [data.annotations.objects.boxes_xywh[k].tolist() for k in (0, 1)] == [[1, 1, 7, 7], [3, 2, 6, 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation: int, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Annotations of the stored pixels become those of the displayed ones where the EXIF rotation swaps the sides."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[2:6, 4:20] = 255
    for split in ("train", "val"):
        (tmp_path / "s" / split).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "s" / split / "a.png", exif=exif)
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 2, 16, 4], "area": 64, "iscrowd": 0}
        images = [{"id": 1, "file_name": "a.png", "width": 32, "height": 16}]
        (tmp_path / "s/annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": [row], "categories": [{"id": 1, "name": "x"}]}
        (tmp_path / f"s/annotations/{split}.json").write_text(json.dumps(document))
    run(capsys, "data", "convert", tmp_path / "s", "--to", "yolo", "--output", tmp_path / "y").worked()
    sample = open_detection(tmp_path / "y", "train")[0]
    if orientation >= 5:  # below, image and boxes are used as displayed, in both formats
        left, top, right, bottom = (round(value) for value in sample.boxes[0].tolist())
        white = sample.image[0] == 255
        assert white[top:bottom, left:right].all() and white.sum() == (right - left) * (bottom - top)
    else:
        assert np.allclose(sample.boxes[0].tolist(), [4, 2, 20, 6])


def test_outputs_that_are_refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_shapes(ShapesConfig(train=2, val=1, size=32), source)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("mine")
    before = digest(tmp_path)
    for output, code in ((tmp_path / "used", "C11"), (source / "yolo", "C09"), (source, "C11"), (tmp_path, "C11")):
        run(capsys, "data", "convert", source, "--to", "yolo", "--output", output).refused(2, code, output)
    assert digest(tmp_path) == before
    (source / "train" / next((source / "train").iterdir()).name).unlink()
    run(capsys, "data", "convert", source, "--to", "yolo", "--output", tmp_path / "new").refused(3, "A31")
    assert not (tmp_path / "new").exists()
