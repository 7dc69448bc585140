"""`regard data check`: one list of everything, for all formats; and what bad labels do to scores."""

import json
import shutil
import warnings

import numpy as np
import pytest

from class_data import png
from coco_files import change, noise, write_pair, write_split
from color_data import write_colors
from command_line import digest, run
from detection_files import draw_pictures, write_csv, write_voc, write_yolo
from regard.data import check_images
from regard.data.check import check_folder
from regard.data.class_images.dataset import is_classification
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.report import WORDS
from regard.metrics.detection import CocoDetections, evaluate_detections
from regard.structures.categories import Category


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
    assert text.count(" A48: ") == 1, text


def test_one_image_in_two_places(capsys, colors):
    """Found by its pixels: the second is another file format."""
    from PIL import Image

    (colors / "train/green/3.png").write_bytes((colors / "train/red/0.png").read_bytes())
    Image.open(colors / "train/blue/1.png").save(colors / "val/blue/9.bmp")
    before = digest(colors)
    lines = run(capsys, "data", "check", colors).worked().splitlines()
    red, green, blue = (f"{colors}/{name}" for name in ("train/red/0.png", "train/green/3.png", "train/blue/1.png"))
    warnings = [line for line in lines if line.startswith("warning A48")]
    assert warnings in (
        [f"warning A48: 1 image is in two classes — {a} = {b}"] for a, b in ((red, green), (green, red))
    )
    both = f"warning I30: 1 validation image is among the training images too — {blue} = {colors}/val/blue/9.bmp"
    assert both in lines and digest(colors) == before


def test_broken_images_are_all_named(capsys, colors):
    for name in ("train/red/1.png", "val/green/0.png"):
        (colors / name).write_bytes((colors / name).read_bytes()[:-30])
    before = digest(colors)
    finished = run(capsys, "data", "check", colors)
    finished.refused(3, None, "1 kind of fault stops a training", colors)
    (broken,) = (line for line in finished.out.splitlines() if line.startswith("error I09"))
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
    (classes,) = (line for line in finished.out.splitlines() if line.startswith("error A48"))
    assert str(colors / "val/pink/0.png") in classes and str(colors / "val/grey/0.png") in classes
    assert f"error I01: empty file — {colors / 'val/grey/1.png'}" in finished.out


def test_kinds_of_data(capsys, colors, tmp_path):
    write_shapes(ShapesConfig(train=2, val=1, size=32), tmp_path / "coco")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(0))
    kinds = {name: is_classification(tmp_path / name) for name in ("colors", "coco", "flat", "absent")}
    assert kinds == {"colors": True, "coco": False, "flat": False, "absent": False}
    run(capsys, "data", "check", tmp_path / "flat").refused(3, "A64", "no detection data", "0.png")
    run(capsys, "data", "check", tmp_path / "absent").refused(3, None, "no such folder")


# Everything in one list


def test_all_faults_of_both_splits(capsys, tmp_path):
    """Nine faults in two files and two broken images; each is named once, the errors come first."""
    write_pair(tmp_path, count=4)

    def spoil(document):
        rows = document["annotations"]
        rows[0]["bbox"] = [1, 2, 3]
        rows[1]["category_id"] = 7
        rows[2]["bbox"][2] = -4
        rows[3]["image_id"] = "1"
        rows[4]["segmentation"] = [[1, 1, 1e8, 1, 5, 5]]
        rows[5]["iscrowd"] = 5
        rows[6]["bbox"] = [60, 60, 30, 30]
        document["images"][1]["file_name"] = "../1.png"
        document["images"][2]["file_name"] = "none.png"

    change(tmp_path / "annotations/instances_train.json", spoil)
    change(tmp_path / "annotations/instances_val.json", lambda document: document["images"][0].update(id=2))
    for name in ("train/3.png", "val/3.png"):
        (tmp_path / name).write_bytes(b"")
    before = digest(tmp_path)
    finished = run(capsys, "data", "check", tmp_path, "--json", tmp_path.parent / f"{tmp_path.name}.json")
    finished.refused(3, None, tmp_path)
    lines = finished.out.splitlines()
    errors = {line[6:9] for line in lines if line.startswith("error ")}
    assert errors == {"A17", "A20", "A14", "A30", "A38", "A34", "A32", "A31", "A29", "I01"}
    kinds = [line.split()[0] for line in lines if line.split()[0] in WORDS.values()]
    assert kinds == sorted(kinds, key=list(WORDS.values()).index) and "fixed" in kinds
    (empty,) = (line for line in lines if line.startswith("error I01: "))
    assert str(tmp_path / "train/3.png") in empty and str(tmp_path / "val/3.png") in empty
    written = json.loads((tmp_path.parent / f"{tmp_path.name}.json").read_text())
    assert {issue["code"] for issue in written["issues"] if issue["severity"] == "error"} == errors
    assert written["stops_training"] and digest(tmp_path) == before


def test_what_cannot_be_checked_is_told(tmp_path):
    """The other split is checked; a note says what was not."""
    write_pair(tmp_path)
    (tmp_path / "annotations/instances_train.json").write_text("{")
    (tmp_path / "val/1.png").write_bytes(b"")
    findings = check_folder(tmp_path)
    assert {issue.code for issue in findings.issues if issue.severity == "error"} == {"A02", "I01"}
    assert any(issue.severity == "note" and "objects and images of train" in issue.what for issue in findings.issues)
    assert [line.split(":")[0] for line in findings.splits] == ["val"]


def test_wrong_categories_are_not_blamed_on_objects(tmp_path):
    write_pair(tmp_path)
    change(tmp_path / "annotations/instances_train.json", lambda document: document["categories"][0].update(id="1"))
    errors = [issue.code for issue in check_folder(tmp_path).issues if issue.severity == "error"]
    assert errors == ["A22"]


@pytest.mark.parametrize("form", ["coco", "file", "classes", "yolo", "voc", "csv"])
def test_validation_alone(form, tmp_path):
    """Data to evaluate on are sound without a training split; so is a file alone."""
    if form in ("coco", "file"):
        write_pair(tmp_path)
        shutil.rmtree(tmp_path / "train")
        (tmp_path / "annotations/instances_train.json").unlink()
        path = tmp_path if form == "coco" else tmp_path / "annotations/instances_val.json"
    elif form == "classes":
        shutil.rmtree(write_colors(tmp_path) / "train")
        path = tmp_path
    else:
        pictures = draw_pictures(tmp_path / "drawn", 4)
        path = tmp_path / "data"
        if form == "yolo":
            write_yolo(pictures, path / "images/val", path / "labels/val", ["cat", "dog"])
            (path / "classes.txt").write_text("cat\ndog")
        elif form == "voc":
            write_voc(pictures, path / "val/images", path / "val/annotations")
        else:
            write_csv(pictures, path / "val", path / "val.csv")
    findings = check_folder(path)
    if form == "file":  # beside the folder `val`, where the images of a file alone are not looked for
        assert {issue.code for issue in findings.issues} <= {"A31", "A61"}
        return
    assert not findings.stops_training and [line.split(":")[0] for line in findings.splits] == ["val"], [*findings]


@pytest.mark.parametrize("form", ["yolo", "voc", "csv"])
def test_all_wrong_lines_of_other_formats(form, tmp_path):
    """Two wrong objects in files of two images; both places are named, and no remedy loses labels."""
    pictures = draw_pictures(tmp_path / "drawn", 6)
    train, val = pictures[:3], pictures[3:]
    root = tmp_path / "data"
    if form == "yolo":
        for split, of_split in (("train", train), ("val", val)):
            write_yolo(of_split, root / f"images/{split}", root / f"labels/{split}", ["cat", "dog"])
        (root / "classes.txt").write_text("cat\ndog")
        files = [root / f"labels/train/{picture.file.stem}.txt" for picture in train[:2]]
        for file in files:
            file.write_text("9 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n" + file.read_text())
        expected = {"A20", "A62"}
    elif form == "voc":
        for split, of_split in (("train", train), ("val", val)):
            write_voc(of_split, root / split / "images", root / split / "annotations")
        files = [root / f"train/annotations/{picture.file.stem}.xml" for picture in train[:2]]
        for file in files:
            file.write_text(file.read_text().replace("</annotation>", "<object><name>x</name></object></annotation>"))
        expected = {"A17"}
    else:
        for split, of_split in (("train", train), ("val", val)):
            write_csv(of_split, root / split, root / f"{split}.csv")
        file = root / "train.csv"
        text = file.read_text()
        file.write_text(f"{text}\n{train[0].file.name},30,30,cat,a,1,2,3\n{train[0].file.name},30,30,cat,9,1,2,3")
        files = [f"{file}:{text.count(chr(10)) + 2}", f"{file}:{text.count(chr(10)) + 3}"]
        expected = {"A17", "A14"}
    findings = check_folder(root)
    assert {issue.code for issue in findings.issues if issue.severity == "error"} == expected, [*findings]
    assert all(any(str(file) in line for line in findings) for file in files)
    assert not any("remove the folder" in line for line in findings)
    assert any(line.startswith("val: 3 images") for line in findings.splits)


# Layouts with images below a split are no classes


@pytest.mark.parametrize(
    ("file", "folder"),
    [("labels.json", "data"), ("annotations.json", "images"), ("annotations.json", "."), ("labels.json", "images")],
)
@pytest.mark.parametrize("beside", [None, "thumbs", "masks"])
def test_images_below_a_split(file, folder, beside, tmp_path):
    for number, split in enumerate(("train", "val")):
        images = {f"{k}.png": noise(10 * number + k) for k in (1, 2)}
        objects = [(name, label, [5, 5, 9.0 * label, 9]) for name in images for label in (1, 2)]
        write_split(tmp_path / split / folder, tmp_path / split / file, images, objects)
        if beside:
            (tmp_path / split / beside).mkdir()
            noise(77).save(tmp_path / split / beside / "1.png")
    findings = check_folder(tmp_path)
    assert findings.splits == [f"{split}: 2 images, 4 objects, 2 classes" for split in ("train", "val")]
    assert not findings.stops_training


# A category that groups others


@pytest.mark.parametrize("with_objects", ["train", "val", "both", "neither"])
def test_a_parent_category_with_objects_in_one_split(with_objects, tmp_path):
    """Both files list it: it is a class wherever one of them has objects of it, and none otherwise."""
    categories = [
        {"id": 0, "name": "vehicle", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "vehicle"},
    ]
    for number, split in enumerate(("train", "valid")):
        images = {f"{k}.png": noise(10 * number + k) for k in (1, 2)}
        labels = (0, 1) if with_objects in ("both", split[:3], split) else (1, 1)
        objects = [(name, label, [5.0, 5, 20, 20]) for name, label in zip(images, labels, strict=True)]
        write_split(tmp_path / split, tmp_path / split / "_annotations.coco.json", images, objects, categories)
    names = ["vehicle", "car"] if with_objects != "neither" else ["car"]
    train = open_detection(tmp_path, "train")
    val = open_detection(tmp_path, "val", categories=train.categories)
    assert [[category.name for category in data.categories] for data in (train, val)] == [names, names]
    assert [category["name"] for category in val.to_coco()["categories"]] == names
    findings = check_folder(tmp_path)
    assert not findings.stops_training
    assert ("A46" in {issue.code for issue in findings.issues}) == (with_objects in ("train", "val"))


def test_validation_data_without_the_parent_of_a_checkpoint(tmp_path):
    """A folder to evaluate on lists the category; the checkpoint has it as a class."""
    categories = [
        {"id": 0, "name": "vehicle", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "vehicle"},
    ]
    images = {"1.png": noise(1)}
    objects = [("1.png", 1, [5.0, 5, 20, 20])]
    write_split(tmp_path / "val", tmp_path / "val/_annotations.coco.json", images, objects, categories)
    of_checkpoint = (Category(1, "car"), Category(5, "vehicle"))
    data = open_detection(tmp_path, "val", categories=of_checkpoint)
    assert [category.name for category in data.categories] == ["car", "vehicle"] and data[0].labels.tolist() == [0]


# Scores


REPAIRS = {
    "A11": lambda row: row.update(bbox=[40, 40, 60, 60]),
    "A27": lambda row: row.update(id=0),
    "A28": lambda row: row.update(id=2),
    "A34": lambda row: row.pop("iscrowd"),
    "A36": lambda row: row.update(area=9e5),
    "A12": lambda row: row.update(bbox=[90, 90, 5, 5]),
    "A15": lambda row: row.update(bbox=[9, 9, 0, 5]),
}


@pytest.mark.parametrize("code", REPAIRS)
def test_no_bad_label_raises_a_score(code, tmp_path):
    """Finding all of the truth is AP 1, finding nothing of it 0, and finding the others scores as in sound data.

    No detection can match a box without area. It stays in the truth as missed: leaving it out would reward bad labels.
    """
    file = write_pair(tmp_path, count=6) / "annotations/instances_val.json"
    others = open_detection(tmp_path, "val").to_coco()
    score_of_others = evaluate_detections(others, as_found(others["annotations"][1:])).stats["AP"]
    change(file, lambda document: REPAIRS[code](document["annotations"][0]))
    truth = open_detection(tmp_path, "val").to_coco()
    rows = truth["annotations"]
    assert len(rows) == 12
    score = evaluate_detections(truth, as_found(rows)).stats["AP"]
    assert score == pytest.approx(1, abs=1e-12) or (code == "A15" and score < 1)
    wrong = [{**row, "bbox": [45, 2, 3, 3]} for row in rows]
    assert evaluate_detections(truth, as_found(wrong)).stats["AP"] == 0
    rest = evaluate_detections(truth, as_found(rows[1:])).stats["AP"]
    assert rest == pytest.approx(score_of_others, abs=1e-12) and rest < 1


@pytest.mark.parametrize("image_base", [0, 1, 10**12])
@pytest.mark.parametrize("category_ids", [(0, 1), (1, 2), (7, 90)])
@pytest.mark.parametrize("annotation_base", [0, 1, 10**12])
def test_the_truth_scores_one_for_any_ids(image_base, category_ids, annotation_base, tmp_path):
    def renumber(document):
        for row in document["images"]:
            row["id"] += image_base - 1
        for row, number in zip(document["categories"], category_ids, strict=True):
            row["id"] = number
        for k, row in enumerate(document["annotations"]):
            row["id"] = annotation_base + k
            row["image_id"] += image_base - 1
            row["category_id"] = category_ids[row["category_id"] - 1]

    write_pair(tmp_path)
    change(tmp_path / "annotations/instances_val.json", renumber)
    truth = open_detection(tmp_path, "val").to_coco()
    assert evaluate_detections(truth, as_found(truth["annotations"])).stats["AP"] == pytest.approx(1, abs=1e-12)


def as_found(rows):
    """Objects as detections of equal score."""
    images, labels = (np.array([row[key] for row in rows]) for key in ("image_id", "category_id"))
    return CocoDetections(images, labels, np.array([row["bbox"] for row in rows], float), np.full(len(rows), 0.9))


def test_panoptic_data_without_a_validation_split_are_split_by_content(tmp_path):
    write_shapes(ShapesConfig(size=32, train=6, val=2), tmp_path / "s")
    for name in ("panoptic_val.json", "instances_val.json", "instances_train.json"):
        (tmp_path / "s/annotations" / name).unlink()
    found = check_folder(tmp_path / "s")
    assert not found.stops_training and [issue.code for issue in found.issues] == ["A61"]
    assert [text.partition(":")[0] for text in found.splits] == ["panoptic train", "panoptic val"]


def test_faults_of_all_rows_are_told_once(tmp_path):
    draw_pictures(tmp_path / "images", 2)
    rows = "\n".join(f"photo.0-{k}.png,cat,9,9,3,3" for k in range(2))
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n" + rows)
    assert {issue.code for issue in check_folder(tmp_path).issues if issue.severity == "error"} == {"A14"}


def test_warnings_of_libraries_are_no_faults_of_the_data(tmp_path, monkeypatch):
    real = check_images._file_digest
    monkeypatch.setattr(
        check_images, "_file_digest", lambda path: warnings.warn("old function", stacklevel=1) or real(path)
    )
    write_shapes(ShapesConfig(size=32, train=3, val=2), tmp_path / "s")
    assert not [issue for issue in check_folder(tmp_path / "s").issues if "old function" in issue.what]
