"""Classes of files of other projects are named by a file or a list."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

import regard
from command_line import run
from refusals import refused
from regard.errors import CheckpointError, DataError
from regard.models.detr import DETR
from regard.weights.detr import official_name
from run_files import SMALL


def names_of(net) -> list[str]:
    return [category.name for category in net.card.categories]


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    """A file as the authors' training writes it, of a detector with three labels."""
    torch.manual_seed(0)
    net = DETR(replace(SMALL, backbone="resnet18", num_heads=8))
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({"model": {official_name(key): tensor for key, tensor in net.state_dict().items()}}, path)
    return path


@pytest.fixture
def resnet(tmp_path):
    torch.save(regard.create("resnet20", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    return tmp_path / "resnet.pth"


def written(folder, text: str):
    (folder / "names.txt").write_bytes(text.encode())
    return folder / "names.txt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndog\nowl\n", ["cat", "dog", "owl"]),
        ("\ufeffcat\r\ndog \r\nHühnchen\r\n\r\n", ["cat", "dog", "Hühnchen"]),
        ("cat\ndog", ["unused 0", "cat", "dog"]),  # ids from 1
        ("N/A\ncat\ndog", ["unused 0", "cat", "dog"]),
        ("N/A\ncat\nN/A\n", ["unused 0", "cat", "unused 2"]),
        ("cat\n\nowl\n", ["cat", "unused 1", "owl"]),
    ],
)
def test_names_of_a_detector(detr, tmp_path, text, expected):
    assert names_of(regard.load(detr, classes=written(tmp_path, text))) == expected


def test_a_list(detr, resnet):
    assert names_of(regard.load(detr, classes=["cat", "dog"])) == ["unused 0", "cat", "dog"]
    assert names_of(regard.load(resnet, model="resnet20", classes=("a", "b", "c"))) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["cat\n", "a\nb\nc\nd\n", ""])
def test_another_number_of_names(detr, tmp_path, text):
    path = written(tmp_path, text)
    with refused(CheckpointError, path, f"{len(text.split())} class name", "expected 3", code="K08"):
        regard.load(detr, classes=path)


def test_a_classifier_has_no_unused_label(resnet, tmp_path):
    path = written(tmp_path, "cat\ndog\n")
    with refused(CheckpointError, path, "2 class names", "expected 3", code="K08"):
        regard.load(resnet, model="resnet20", classes=path)


def test_wrong_files(detr, tmp_path):
    with refused(DataError, "'cat'", "names.txt", code="A25"):
        regard.load(detr, classes=written(tmp_path, "cat\ndog\ncat\n"))
    with refused(CheckpointError, "none.txt", code="K01"):
        regard.load(detr, classes=tmp_path / "none.txt")
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with refused(CheckpointError, "image.txt", code="K01"):
        regard.load(detr, classes=tmp_path / "image.txt")


def test_predict_takes_names(detr, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    path = written(tmp_path, "cat\ndog\nowl\n")
    words = ("predict", str(detr), str(tmp_path / "a.png"), "--json", str(tmp_path / "found.json"), "--threshold", "0")
    run(capsys, *words, "--classes", str(path))
    assert any(name in (tmp_path / "found.json").read_text() for name in ("cat", "dog", "owl"))
    run(capsys, *words, "--classes", str(written(tmp_path, "cat\n"))).refused(4, "K08", "names.txt", "1 class name,")
