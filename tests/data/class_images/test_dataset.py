"""Class folders as people have them: labels, splits, and one clear line for what cannot be learnt from."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from class_data import pixels, write_tree
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.errors import DataError, ImageError


def images(split: str, classes: tuple[str, ...], count: int = 3) -> dict[str, int]:
    return {f"{split}/{name}/{i}.png": 100 * k + i for k, name in enumerate(classes) for i in range(count)}


def split_tree(root: Path, val: str = "val") -> Path:
    return write_tree(root, images("train", ("cat", "dog")) | images(val, ("cat", "dog"), 2))


def flat_tree(root: Path, count: int = 20) -> Path:
    return write_tree(root, images(".", ("ant", "bee"), count))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_splits_of_class_folders(tmp_path, name):
    split_tree(tmp_path, name)
    train, val = open_classification(tmp_path), open_classification(tmp_path, "val")
    assert [category.name for category in train.categories] == ["cat", "dog"]
    assert (len(train), train.counts(), train.labels.tolist()) == (6, [3, 3], [0, 0, 0, 1, 1, 1])
    assert (len(val), val.categories) == (4, train.categories)
    sample = val[3]
    assert sample.path == str(tmp_path / name / "dog/1.png")
    assert sample.label == 1
    assert torch.equal(sample.image, torch.from_numpy(pixels(101)).permute(2, 0, 1))
    assert not train.report.issues


def test_labels_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    write_tree(tmp_path, images("train", ("n02", "Zebra", "ant", "n01", "éclair"), 2))
    peer = ImageFolder(tmp_path / "train")
    ours = open_classification(tmp_path)
    assert [category.name for category in ours.categories] == peer.classes
    assert {ours[i].path: ours[i].label for i in range(len(ours))} == dict(peer.samples)


def test_classes_are_in_natural_order(tmp_path):
    names = ("0", "1", "2", "9", "10", "10b", "a2", "a10", "²")
    write_tree(tmp_path, images("train", names[::-1], 1))
    assert tuple(category.name for category in open_classification(tmp_path).categories) == names


def test_leftovers_of_file_managers_are_no_classes(tmp_path):
    split_tree(tmp_path)
    for name in (
        ".DS_Store",
        "Thumbs.db",
        ".hidden/0.png",
        "__MACOSX/0.png",
        "notes.txt",
        "cat/Thumbs.db",
        "dog/._0.png",
    ):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"not an image")
    assert open_classification(tmp_path).counts() == [3, 3]


def test_images_below_class_folders_are_found(tmp_path):
    write_tree(split_tree(tmp_path), {"train/cat/2024/05/x.png": 7})
    assert open_classification(tmp_path).counts() == [4, 3]


def test_a_flat_folder_is_split_by_hash(tmp_path):
    flat_tree(tmp_path)
    train, val = open_classification(tmp_path), open_classification(tmp_path, "val")
    assert (train.counts(), val.counts()) == ([16, 16], [4, 4])
    names = [{Path(data[i].path).relative_to(tmp_path).as_posix() for i in range(len(data))} for data in (train, val)]
    assert not names[0] & names[1]
    bees = sorted(f"bee/{i}.png" for i in range(20))
    expected = sorted(bees, key=lambda name: hashlib.sha256(f"0/{name}".encode()).hexdigest())[:4]
    assert {name for name in names[1] if name.startswith("bee")} == set(expected)
    assert "20% of the images of each class" in str(train.report)
    assert str(val.report) == str(train.report)
    assert len(str(train.report).splitlines()) == 1


def test_a_new_image_moves_at_most_one_other_across(tmp_path):
    flat_tree(tmp_path)

    def val() -> set[str]:
        data = open_classification(tmp_path, "val")
        return {data[i].path for i in range(len(data))}

    before = val()
    write_tree(tmp_path, {"ant/new.png": 1})
    assert len(before - val()) <= 1


def test_a_class_of_one_image_is_for_training(tmp_path):
    write_tree(tmp_path, {"a/0.png": 0, "b/0.png": 1, "b/1.png": 2})
    assert open_classification(tmp_path).counts() == [1, 1]
    val = open_classification(tmp_path, "val")
    assert val.counts() == [0, 1]
    assert [issue.code for issue in val.report.issues] == ["A48", "A46"]
    assert "1 of 2 classes" in val.report.issues[1].what


def test_a_class_without_validation_images_is_reported(tmp_path):
    shutil.rmtree(split_tree(tmp_path) / "val/cat")
    (tmp_path / "val/cat").mkdir()
    val = open_classification(tmp_path, "val")
    assert (val.counts(), [issue.code for issue in val.report.issues]) == ([0, 2], ["A46"])
    assert val[0].label == 1


def test_validation_images_alone_have_their_own_classes(tmp_path):
    shutil.rmtree(split_tree(tmp_path) / "train")
    assert open_classification(tmp_path, "val").counts() == [2, 2]
    with refused(DataError, "train", "val (val)", tmp_path):
        open_classification(tmp_path)


def test_sends_to_workers(tmp_path):
    data = pickle.loads(pickle.dumps(open_classification(split_tree(tmp_path))))
    assert torch.equal(data[4].image, torch.from_numpy(pixels(101)).permute(2, 0, 1))


def test_fingerprint_changes_with_names_sizes_and_labels(tmp_path):
    split_tree(tmp_path)
    prints = [open_classification(tmp_path).fingerprint()]
    assert (
        open_classification(tmp_path).fingerprint() == prints[0] != open_classification(tmp_path, "val").fingerprint()
    )
    (tmp_path / "train/dog/0.png").rename(tmp_path / "train/cat/9.png")
    prints.append(open_classification(tmp_path).fingerprint())
    with (tmp_path / "train/dog/1.png").open("ab") as file:
        file.write(b"\0")
    prints.append(open_classification(tmp_path).fingerprint())
    (tmp_path / "train/dog").rename(tmp_path / "train/wolf")
    prints.append(open_classification(tmp_path).fingerprint())
    assert len(set(prints)) == 4


def test_an_unreadable_image_is_one_line(tmp_path):
    split_tree(tmp_path)
    (tmp_path / "train/cat/1.png").write_bytes(b"")
    data = open_classification(tmp_path)
    with refused(ImageError, "cat/1.png", code="I01"):
        data[1]
    (tmp_path / "train/cat/1.png").unlink()
    with refused(ImageError, "cat/1.png", code="I29"):
        data.fingerprint()


def one_class(root: Path) -> None:
    write_tree(root, images("train", ("cat",)))


def one_flat_class(root: Path) -> None:
    write_tree(root, images(".", ("cat",)))


def empty_class(root: Path) -> None:
    (split_tree(root) / "train/eel").mkdir()


def new_class(root: Path) -> None:
    write_tree(split_tree(root), {"val/eel/0.png": 3})


def no_images(root: Path) -> None:
    (root / "val/cat").mkdir(parents=True)
    write_tree(root, images("train", ("cat", "dog")))


def detection(root: Path) -> None:
    write_tree(root, {"train2017/0.png": 0, "val2017/1.png": 1, "annotations/instances_train2017.json": 2})


def images_alone(root: Path) -> None:
    write_tree(root, {"0.png": 0, "1.png": 1})


def images_by_split(root: Path) -> None:
    write_tree(root, {"train/0.png": 0, "val/1.png": 1})


@pytest.mark.parametrize("count", [2, 7, 12, 25])
def test_some_images(tmp_path, count):
    """Evenly from all classes, always the same, and more of them hold those of fewer."""
    write_tree(tmp_path, images("train", ("cat", "dog"), 10) | images("train", ("eel",), 5))
    whole = open_classification(tmp_path)
    if count == 2:
        with refused(DataError, "2 images", "3 (", "25"):
            whole.subset(count)
        return
    part = whole.subset(count)
    assert (len(part), part.categories) == (count, whole.categories)
    assert part.counts() == {7: [3, 2, 2], 12: [4, 4, 4], 25: [10, 10, 5]}[count]
    paths = [part[i].path for i in range(count)]
    assert paths == sorted(set(paths)) == [open_classification(tmp_path).subset(count)[i].path for i in range(count)]
    assert {part[i].path.split("/")[-2]: part[i].label for i in range(count)} == {"cat": 0, "dog": 1, "eel": 2}
    fewer = whole.subset(count - 1)
    assert {fewer[i].path for i in range(count - 1)} < set(paths)
    assert part.fingerprint() != fewer.fingerprint()
    assert torch.equal(pickle.loads(pickle.dumps(part))[0].image, part[0].image)


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "split", "code", "line"),
    [
        (one_class, "train", "A45", "'cat'"),
        (one_flat_class, "train", "A45", "'cat'"),
        (empty_class, "train", "A48", "class folder without an image"),
        (new_class, "val", "A48", "'eel'"),
        (no_images, "val", "A48", "no image in the split"),
        (detection, "train", "A48", "this looks like COCO"),
        (images_alone, "train", "A48", "0.png, 1.png"),
        (images_by_split, "train", "A48", "train/, val/"),
        (nothing, "train", "A48", "nothing"),
    ],
)
def test_data_that_cannot_be_learned_are_one_line(tmp_path, make, split, code, line):
    make(tmp_path)
    with refused(DataError, line, tmp_path, code=code):
        open_classification(tmp_path, split)


def test_a_class_called_train_is_a_class(tmp_path):
    write_tree(tmp_path, images(".", ("bus", "train"), 5))
    assert open_classification(tmp_path).counts() == [4, 4]


def test_wrong_arguments(tmp_path):
    with refused(DataError, tmp_path / "absent"):
        open_classification(tmp_path / "absent")
    (tmp_path / "file").touch()
    with refused(DataError, tmp_path / "file"):
        open_classification(tmp_path / "file")
    with refused(DataError, "'dev'", "train or val"):
        open_classification(tmp_path, "dev")  # type: ignore[arg-type]
