"""Shards: the same images packed or not, each read from its place, nothing unpacked twice."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from class_data import LABELS, members, pixels, png, write_shard, write_shards
from refusals import refused
from regard.data.class_images import shards
from regard.data.class_images.dataset import open_classification
from regard.errors import DataError, ImageError, MachineError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
def test_images_and_labels(tmp_path, ending):
    root = write_shards(tmp_path / "data", ending)
    train, val = open_classification(root), open_classification(root, "val")
    assert tuple(category.name for category in train.categories) == LABELS
    assert (train.labels.tolist(), val.labels.tolist()) == ([k % 3 for k in range(9)], [k % 3 for k in range(9, 13)])
    for index in (8, 0, 4, 5):
        assert torch.equal(train[index].image, torch.from_numpy(pixels(index)).permute(2, 0, 1))
    assert train[5].path == f"{root}/train-0001{ending}:cow/0005.png"
    again = pickle.loads(pickle.dumps(train))
    assert torch.equal(again[7].image, train[7].image)


def test_fingerprint_is_that_of_the_images(tmp_path):
    plain, packed = (open_classification(write_shards(tmp_path / e, e)) for e in (".tar", ".tar.gz"))
    assert plain.fingerprint() == packed.fingerprint()


def test_nothing_is_unpacked_or_listed_twice(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data")
    expected = open_classification(root)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(gzip, "open", refuse)
    monkeypatch.setattr(tarfile, "open", refuse)
    data = open_classification(root)
    assert data.fingerprint() == expected.fingerprint()
    assert torch.equal(data[6].image, torch.from_numpy(pixels(6)).permute(2, 0, 1))


def test_a_changed_shard_is_listed_again(tmp_path):
    root = write_shards(tmp_path / "data")
    assert len(open_classification(root)) == 9
    write_shard(root / "train-0001.tar.gz", members(range(5, 12)))
    os.utime(root / "train-0001.tar.gz", ns=(1, 1))
    assert len(open_classification(root)) == 12


def test_a_shard_changed_to_the_same_size_is_listed_again(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    size = (root / "train-0001.tar").stat().st_size
    assert open_classification(root).labels.tolist()[5:] == [2, 0, 1, 2]
    write_shard(root / "train-0001.tar", members(range(6, 10)))
    os.utime(root / "train-0001.tar", ns=(1, 1))
    assert (root / "train-0001.tar").stat().st_size == size
    assert open_classification(root).labels.tolist()[5:] == [0, 1, 2, 0]


@pytest.mark.parametrize("spoil", ["tar", "json"])
def test_a_lost_or_spoilt_cache_is_made_again(tmp_path, home, spoil):
    root = write_shards(tmp_path / "data")
    before = open_classification(root).fingerprint()
    for path in (home / "data/shards").glob(f"*.{spoil}"):
        path.unlink() if spoil == "tar" else path.write_text("[")
    data = open_classification(root)
    assert data.fingerprint() == before
    assert data[0].image.shape == (3, 6, 8)


def test_no_leftovers(tmp_path, home):
    open_classification(write_shards(tmp_path / "data"))
    assert sorted(path.suffix for path in (home / "data/shards").iterdir()) == [".json"] * 2 + [".tar"] * 2
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "labels.txt", "test-0000.tar.gz", "train-0000.tar.gz", "train-0001.tar.gz",
    ]  # fmt: skip


def test_folders_are_classes_where_there_are_no_labels(tmp_path):
    write_shard(tmp_path / "train.tar", {"./dog/a.b.png": png(0), "./cat/1.png": png(1), "./cat/._1.png": b"x"})
    data = open_classification(tmp_path)
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert data.labels.tolist() == [1, 0]


def test_numbers_are_names_where_there_is_no_labels_file(tmp_path):
    content = {f"{i}.{kind}": data for i in (10, 9) for kind, data in (("png", png(i)), ("cls", str(i).encode()))}
    write_shard(tmp_path / "data-train-000001.tar", content)
    data = open_classification(tmp_path)
    assert [category.name for category in data.categories] == ["9", "10"]
    assert data.labels.tolist() == [1, 0]


def test_long_names(tmp_path):
    name = "/".join(["folder" * 20] * 2 + ["cat", "x.png"])
    write_shard(tmp_path / "train.tar", {name: png(3), "dog/1.png": png(1)})
    assert open_classification(tmp_path)[0].path.endswith(name)


def test_shards_are_in_natural_order(tmp_path):
    for number in (10, 9):
        write_shard(tmp_path / f"train-{number}.tar", members(range(number, number + 3)))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    data = open_classification(tmp_path)
    assert [Path(data[i].path).stem for i in range(6)] == ["0009", "0010", "0011", "0010", "0011", "0012"]


@pytest.mark.parametrize(
    ("content", "labels", "code", "line"),
    [
        ({"1.png": png(1)}, None, "A48", "train-0000.tar:1.png"),
        ({"1.png": png(1), "1.cls": b"3"}, "a\nb\nc", "A49", "'3', expected 0 to 2"),
        ({"1.png": png(1), "1.cls": b"-1"}, "a\nb\nc", "A49", "'-1'"),
        ({"d/1.png": png(1)}, "a\nb\nc", "A49", "'d'"),
        ({"b/1.png": png(1), "b/1.cls": b"0"}, "a\nb\nc", "A48", "'b'"),
        ({"b/1.png": png(1)}, "a\nb\na", "A25", "labels.txt:3"),
        ({"b/1.png": png(1)}, "a\n\nb", "A25", "labels.txt:2"),
        ({"a/1.png": png(1)}, None, "A45", "'a'"),
        ({"a/1.txt": b""}, None, "A45", "no classes"),
    ],
)
def test_wrong_labels_are_one_line(tmp_path, content, labels, code, line):
    write_shard(tmp_path / "train-0000.tar", content)
    if labels:
        (tmp_path / "labels.txt").write_text(labels)
    with refused(DataError, line, code=code):
        open_classification(tmp_path)


def test_a_damaged_shard_is_one_line(tmp_path):
    root = write_shards(tmp_path / "data")
    path = root / "train-0000.tar.gz"
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[:-4], b"", b"<html>", whole[:200] + b"\x55" * 50 + whole[250:]]
    for data in damaged:
        path.write_bytes(data)
        with refused(DataError, path):
            open_classification(root)
    path.write_bytes(whole)
    assert len(open_classification(root)) == 9


def test_a_cut_plain_shard_is_one_line(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    path = root / "train-0000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with refused(DataError, path):
        open_classification(root)


@pytest.mark.parametrize(("twice", "refuses"), [("1.png", True), ("1.cls", True), ("notes.json", False)])
def test_a_name_twice_in_a_shard(tmp_path, twice, refuses):
    """Each image would get the class that stands last; what is not read may be there as often as it likes."""
    content = {"1.png": png(1), "1.cls": b"cat", "2.png": png(2), "2.cls": b"dog", "notes.json": b"{}"}
    path = write_shard(tmp_path / "train.tar", content)
    with tarfile.open(path, "a") as file:
        member = tarfile.TarInfo(f"./{twice}")
        member.size = len(content[twice])
        file.addfile(member, io.BytesIO(content[twice]))
    if refuses:
        with refused(DataError, f"train.tar:{twice}", "two files", "each name once", code="A48"):
            open_classification(tmp_path)
    else:
        assert len(open_classification(tmp_path)) == 2


def test_the_same_name_in_two_shards(tmp_path):
    """Shards have their own names, as those that other programs write count from 0 in each."""
    for number, label in enumerate((b"cat", b"dog")):
        write_shard(tmp_path / f"train-{number}.tar", {"1.png": png(number), "1.cls": label})
    data = open_classification(tmp_path)
    assert [data.categories[label].name for label in data.labels] == ["cat", "dog"]


def test_an_unreadable_image_names_shard_and_member(tmp_path):
    write_shard(tmp_path / "train.tar", {"cat/1.png": png(1)[:-20], "dog/2.png": png(2)})
    data = open_classification(tmp_path)
    with refused(ImageError, "train.tar:cat/1.png", code="I09"):
        data[0]
    (tmp_path / "train.tar").unlink()
    with refused(ImageError, "train.tar", code="I29"):
        data[1]


def test_no_room_to_unpack(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    root = write_shards(tmp_path / "data")
    monkeypatch.setattr(shards.shutil, "copyfileobj", full)
    with refused(MachineError, "No space left", "train-0000.tar.gz"):
        open_classification(root)


def test_hard_links_are_images_too(tmp_path):
    """tar stores the second of two links to a file as the name of the first."""
    folder = tmp_path / "images"
    for name, number in (("ape/1.png", 1), ("bear/2.png", 2)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    os.link(folder / "bear/2.png", folder / "bear/3.png")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train-0000.tar", "w") as file:
        for name in ("ape/1.png", "bear/2.png", "bear/3.png"):
            file.add(folder / name, name)
        assert file.getmembers()[2].islnk()
    data = open_classification(tmp_path / "data")
    assert data.counts() == [1, 2]
    assert torch.equal(data[2].image, torch.from_numpy(pixels(2)).permute(2, 0, 1))


def test_keys_end_at_the_first_dot(tmp_path):
    content = {"x/01.left.png": png(1), "x/01.right.png": png(2), "x/01.cls": b"ape"}
    content |= {"x/02.png": png(3), "x/02.cls": b"b"}
    write_shard(tmp_path / "data" / "train-0000.tar", content)
    data = open_classification(tmp_path / "data")
    assert [category.name for category in data.categories] == ["ape", "b"] and data.counts() == [2, 1]
