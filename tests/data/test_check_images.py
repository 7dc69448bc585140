"""Images that EXIF turns, and the same image more than once."""

import shutil

import numpy as np
import pytest
from PIL import Image

from class_data import photo
from coco_files import change, noise, write_pair, write_split
from color_data import write_colors
from detection_files import Picture, draw_pictures, write_csv, write_voc, write_yolo
from regard.data.check import check_folder
from regard.data.coco.dataset import open_detection
from regard.data.formats.convert import convert


def marked(orientation, height, width=60, *, k=0):
    """An image whose stored pixels are bright in the box [4, 2, 20, 10], with an EXIF orientation."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[2:12, 4:24] = 255
    pixels[-1, -1] = k
    image = Image.fromarray(pixels)
    image.getexif()[0x112] = orientation
    return image


def write_marked(root, kinds):
    """The same images in both splits (they differ in a pixel); sizes and boxes are those of the stored pixels."""
    for number, split in enumerate(("train", "val")):
        images = {f"{k}.png": marked(*kind, k=10 * number + k) for k, kind in enumerate(kinds, start=1)}
        objects = [(name, 1, [4, 2, 20, 10]) for name in images]
        categories = [{"id": 1, "name": "x"}]
        write_split(root / split, root / f"annotations/instances_{split}.json", images, objects, categories)
    return root


def hits(root):
    """The part of each box that is bright."""
    data = open_detection(root, "train")
    found = []
    for k in range(len(data)):
        x0, y0, x1, y1 = data[k].boxes[0].int().tolist()
        found.append(float(data[k].image[:, y0:y1, x0:x1].float().mean()) / 255)
    return found


def said(root):
    return {(issue.severity, issue.count) for issue in check_folder(root).issues if issue.code == "I22"}


@pytest.mark.filterwarnings("ignore:fix")
@pytest.mark.parametrize("proof", [5, 6, 7, 8])
def test_others_follow_the_images_that_prove_it(proof, tmp_path):
    """Boxes were drawn on stored pixels, as one image on its side proves: every box is on its object, all formats."""
    kinds = [(proof, 40), *((k, 40) for k in (1, 2, 3, 4)), *((k, 60) for k in (2, 5, 6, 7, 8))]
    write_marked(tmp_path / "d", kinds)
    assert hits(tmp_path / "d") == [1.0] * 10
    assert said(tmp_path / "d") == {("fix", 1), ("fix", 8)}
    convert(tmp_path / "d", "yolo", tmp_path / "yolo")
    assert [round(part, 2) for part in hits(tmp_path / "yolo")] == [1.0] * 10


@pytest.mark.filterwarnings("ignore:fix")
@pytest.mark.parametrize("form", ["VOC", "CSV"])
def test_sizes_stated_in_other_formats_prove_it_too(form, tmp_path):
    for number, split in enumerate(("train", "val")):
        pictures = []
        for k, kind in enumerate([(6, 40), (3, 40), (2, 40), (8, 60)], start=1):
            image = marked(*kind, k=10 * number + k)
            image.save(tmp_path / f"{k}.png", exif=image.getexif())
            pictures.append(Picture(tmp_path / f"{k}.png", image.size, [("x", (4, 2, 20, 10))]))
        if form == "VOC":
            write_voc(pictures, tmp_path / "d" / split, tmp_path / "d" / split)
        else:
            write_csv(pictures, tmp_path / "d" / split, tmp_path / f"d/{split}.csv")
    assert hits(tmp_path / "d") == [1.0] * 4
    assert said(tmp_path / "d") == {("fix", 1), ("fix", 3)}


def test_what_nothing_proves_is_told(tmp_path):
    write_marked(tmp_path, [(3, 40), (1, 40), (6, 60)])
    assert said(tmp_path) == {("warn", 2)}


def test_displayed_sizes_prove_the_opposite(tmp_path):
    """One image on its side is annotated as displayed: the others are used as displayed, and nothing is said."""
    write_marked(tmp_path, [(6, 40), (3, 40)])
    for split in ("train", "val"):
        file = tmp_path / f"annotations/instances_{split}.json"
        change(file, lambda document: document["images"][0].update(width=40, height=60))
    assert said(tmp_path) == set()
    data = open_detection(tmp_path, "train")
    assert float(data[1].image[:, 2:12, 4:24].float().mean()) < 1  # turned upside down


def test_proofs_that_disagree_are_told(tmp_path):
    write_marked(tmp_path, [(6, 40), (8, 40), (3, 40)])
    for split in ("train", "val"):
        file = tmp_path / f"annotations/instances_{split}.json"
        change(file, lambda document: document["images"][0].update(width=40, height=60))
    assert ("warn", 1) in said(tmp_path) and ("fix", 1) in said(tmp_path)


def twice(root):
    return {(issue.code, issue.count) for issue in check_folder(root).issues if issue.code in ("A29", "I30", "A48")}


@pytest.mark.parametrize("spelling", ["0.png", "./0.png"])
def test_a_file_under_two_ids(spelling, tmp_path):
    """In either split, whatever the spelling; how often is counted."""
    write_pair(tmp_path, count=4)
    assert twice(tmp_path) == set()
    for split, copies in (("train", 1), ("val", 2)):
        file = tmp_path / f"annotations/instances_{split}.json"
        for k in range(copies):
            change(file, lambda document, k=k: document["images"][k + 1].update(file_name=spelling))
    assert twice(tmp_path) == {("A29", 3)}
    assert not check_folder(tmp_path).stops_training


def test_a_file_twice_in_a_list_of_yolo_is_one_image(tmp_path):
    """The image and its objects count once, whatever the spelling of its path."""
    counts = []
    for split in ("train", "val"):
        pictures = draw_pictures(tmp_path / "a", 3, seed=len(split))
        write_yolo(pictures, tmp_path / "d/images" / split, tmp_path / "d/labels" / split, ["cat", "dog"])
        names = [f"./images/{split}/{picture.file.name}" for picture in pictures]
        (tmp_path / f"d/{split}.txt").write_text("\n".join([*names, names[0], names[1].removeprefix("./")]))
        counts.append(sum(len(picture.objects) for picture in pictures))
    (tmp_path / "d/data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    assert check_folder(tmp_path / "d").splits == [
        f"{split}: 3 images, {count} objects, 2 classes" for split, count in zip(("train", "val"), counts, strict=True)
    ]


def test_a_copy_of_a_file_in_its_split(tmp_path):
    write_pair(tmp_path, count=3)
    shutil.copyfile(tmp_path / "train/0.png", tmp_path / "train/2.png")
    assert twice(tmp_path) == {("I30", 1)}


def test_a_copy_of_a_class_image(tmp_path):
    write_colors(tmp_path)
    shutil.copyfile(tmp_path / "val/red/0.png", tmp_path / "val/red/x.png")
    assert twice(tmp_path) == {("I30", 1)}


def test_almost_the_same_image_in_both_splits(tmp_path):
    write_pair(tmp_path, count=3)
    picture = Image.fromarray(photo(64, 64).permute(1, 2, 0).numpy())
    picture.save(tmp_path / "train/0.png")
    picture.save(tmp_path / "val/1.png", format="JPEG", quality=70)
    (issue,) = check_folder(tmp_path).issues
    assert (issue.code, issue.count) == ("I30", 1) and issue.where == f"{tmp_path}/train/0.png ~ {tmp_path}/val/1.png"


def test_images_of_a_few_pixels(tmp_path):
    write_colors(tmp_path)
    noise(1, 7, 40).save(tmp_path / "train/red/x.png")
    issues = [issue for issue in check_folder(tmp_path).issues if issue.code == "I24"]
    assert [(issue.severity, issue.count) for issue in issues] == [("warn", 1)]
