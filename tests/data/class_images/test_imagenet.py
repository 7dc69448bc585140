"""The names of ImageNet's classes and the labels of ReaL, against timm's tables."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from refusals import refused
from regard.data.class_images.imagenet import imagenet_classes, read_real_labels, real_labels_of, wordnet_ids
from regard.errors import DataError
from regard.structures.categories import Category
from regard.weights.classifiers import imagenet_categories

NAMES = [category.name for category in imagenet_categories()]


def named(*names):
    return [Category(i, name) for i, name in enumerate(names)]


def timms(name: str) -> Path:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    return Path(spec.origin).parent / "data" / "_info" / name


def test_ids_are_the_fields():
    ids = wordnet_ids()
    assert len(set(ids)) == 1000 and list(ids) == sorted(ids)
    assert list(ids) == timms("imagenet_synsets.txt").read_text().split()
    assert (NAMES[ids.index("n01440764")], NAMES[ids.index("n15075141")]) == ("tench", "toilet tissue")


@pytest.mark.parametrize("subset", ["a", "r"])
def test_classes_of_published_subsets(subset):
    """Folders of ImageNet-A and -R give the classes that are published for them."""
    ids = timms(f"imagenet_{subset}_synsets.txt").read_text().split()
    expected = [int(line) for line in timms(f"imagenet_{subset}_indices.txt").read_text().split()]
    assert imagenet_classes(named(*ids), NAMES) == expected and len(expected) == 200


def test_names_of_classes():
    assert imagenet_classes(named("n01443537", "n01440764"), NAMES) == [1, 0]
    assert imagenet_classes(named("toilet tissue", "tench"), NAMES) == [999, 0]
    backwards = [f"{number:03}" for number in range(999, -1, -1)]
    assert imagenet_classes(named(*backwards), NAMES) == list(range(999, -1, -1))
    # A few numbers may be anything, and so may a thousand others.
    assert imagenet_classes(named(*map(str, range(10))), NAMES) is None
    assert imagenet_classes(named(*map(str, range(1, 1001))), NAMES) is None
    assert imagenet_classes(named("tench", "n01443537"), NAMES) is None
    assert imagenet_classes(named("n00000001"), NAMES) is None


def test_real_labels_go_to_their_images(tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[], [970, 795], [230]]")
    labels = read_real_labels(path)
    paths = ["n1/ILSVRC2012_val_00000003.JPEG", "x/ILSVRC2012_val_00000002_n02.png", "ILSVRC2012_val_00000001.JPEG"]
    assert real_labels_of(paths, labels, path) == [[230], [970, 795], []]
    for name, says in (
        ("ILSVRC2012_val_00000001/3.png", ["ILSVRC2012_val_"]),
        ("ILSVRC2012_val_000000021.png", ["ILSVRC2012_val_"]),
        ("ILSVRC2012_val_00000004.png", ["image 4", "real.json", "3 images"]),
        ("ILSVRC2012_val_00000000.png", ["image 0", "3 images"]),
    ):
        with refused(DataError, *says) as caught:
            real_labels_of([name], labels, path)
        assert caught.value.where == name


def test_the_published_file_is_read():
    labels = read_real_labels(timms("imagenet_real_labels.json"))
    assert len(labels) == 50_000 and sum(map(bool, labels)) == 46_837  # as in the paper, section 3


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ('{"a": [1]}', "", "dict"), ("[]", "", "an empty list"), ("[1, 2]", "/0", "found 1"),
        ("[[1], [2, 1000]]", "/1/1", "label 1000, expected 0 to 999"), ("[[true]]", "/0/0", "label True"),
        ("[[1.0]]", "/0/0", "label 1.0"), ("[[-1]]", "/0/0", "label -1"), ('[["3"]]', "/0/0", "label '3'"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text, place, what):
    path = tmp_path / "real.json"
    path.write_text(text)
    with refused(DataError, what, code="A49") as caught:
        read_real_labels(path)
    assert caught.value.where == (f"{path}:{place}" if place else str(path))
    assert "real.json" in caught.value.remedy


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[1], [2]])[:-3])
    with refused(DataError, path, code="A02"):
        read_real_labels(path)
