"""Evaluating a classifier with all options, from the command line and Python; generated folders replace ImageNet."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import regard
from class_data import write_tree
from color_data import COLORS, color_image, write_colors
from command_line import run as command
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.class_images.imagenet import wordnet_ids
from regard.errors import ConfigError, DataError
from regard.evaluation.options import ClassificationEvaluationOptions, DetectionEvaluationOptions
from regard.models.build import build
from regard.models.configs.vit import ViTConfig
from regard.structures.categories import Category, ModelCard
from regard.training.checkpoint_writer import save_checkpoint
from regard.weights.classifiers import imagenet_categories
from regard.weights.model_state import model_state

pytestmark = pytest.mark.usefixtures("blank_charts")

NUMBERS = (1, 30, 400)  # ImageNet's classes that stand for the colours
TISSUE = 999


class Model(nn.Module):
    """1000 classes: those of `NUMBERS` by the brightest channel. It takes most things for a tissue, number 999."""

    def __init__(self, categories=None) -> None:
        super().__init__()
        self.card = ModelCard("colors", tuple(categories or imagenet_categories()), 16, 16)
        self.fc = nn.Linear(3, 1000)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.weight[list(NUMBERS)] = 5 * torch.eye(3)
            self.fc.bias.zero_()
            self.fc.bias[TISSUE] = 99.0

    def forward(self, images):
        return self.fc(images.mean(dim=(2, 3)))


def write_as(root, names, count=5, pattern="{:03}.png"):
    """Folders of the colours, called `names`; no splits."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            file = root / name / pattern.format(number + count * label)
            Image.fromarray(color_image(label, number)).save(file)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of a transformer that has learnt nothing, of the colours and of two more."""
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, depth=1, num_classes=5)
    net = build(config, "vit", [Category(i, name) for i, name in enumerate(("pink", *COLORS, "grey"))])
    folder = tmp_path_factory.mktemp("runs") / "run"
    state = {"model_state": model_state(net), "progress": {"best_step": 1, "scores": {"top1": 0.1}}}
    save_checkpoint(folder / "checkpoints", 1, {"model": net.state_dict()}, json.loads(json.dumps(state)))
    return folder


def evaluated(source, data, output=None, **options):
    return regard.evaluate(source, data, output=output, workers=0, options=ClassificationEvaluationOptions(**options))


# On the command line


def test_all_that_can_be_asked(capsys, checkpoint, data, tmp_path):
    told = command(
        capsys, "evaluate", checkpoint, "--data", data, "--output", tmp_path, "--workers", "0", "--batch-size", "4",
        "--device", "cpu", "--probe", "--throughput",
    ).worked()  # fmt: skip
    for text in ("nearest neighbours", "linear probe", "images/s", "the data's 3 classes counts, of 5 known"):
        assert text in told
    assert "4 images of 16 x 16 at once, on cpu" in told and "of 24 images" in told
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["stats"]["knn_top1"] > 0.9 and written["stats"]["linear_top1"] > 0.9
    assert written["stats"]["images_per_second"] > 0 and "real_top1" not in written["stats"]
    assert (written["classes"], len(written["per_class"]), len(written["notes"])) == (3, 3, 3)


def test_nothing_more_than_is_asked(capsys, checkpoint, data, tmp_path):
    words = ("evaluate", checkpoint, "--data", data, "--output", tmp_path, "--workers", "0", "--device", "cpu")
    assert "probe" not in command(capsys, *words).worked()
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert set(written["stats"]) == {"top1", "mean_accuracy", "f1", "nll", "ece"}


def test_labels_of_real(capsys, tmp_path, monkeypatch):
    """Of images 1 to 15 one has no labels, and those of the first colour have those of another, but for one."""
    folder = tmp_path / "data"
    write_as(folder / "val", [wordnet_ids()[number] for number in NUMBERS], pattern="ILSVRC2012_val_{:08}.png")
    for path in sorted(folder.rglob("*.png"), reverse=True):  # they count from 1
        number = int(path.stem[-8:]) + 1
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08}.png"))
    labels = [[30], [30], [], [7, 30], [30, 1]] + [[30]] * 5 + [[400, 2]] * 5
    (tmp_path / "real.json").write_text(json.dumps(labels))
    net = Model()
    net.fc.bias.data.zero_()
    monkeypatch.setattr("regard.weights.load.load", lambda _: net)
    told = command(
        capsys, "evaluate", "resnet18", "--data", folder, "--real", tmp_path / "real.json", "--device", "cpu",
        "--workers", "0", "--output", tmp_path / "out",
    ).worked()  # fmt: skip
    assert "14 of 15 images have labels" in told and "ReaL 78.6" in told
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["stats"]["real_top1"] == 11 / 14 and written["stats"]["top1"] == 1.0
    command(
        capsys, "evaluate", "resnet18", "--data", folder, "--real", tmp_path / "no.json", "--device", "cpu"
    ).refused(3, None, "no such file", "no.json")  # fmt: skip


def test_a_probe_lists_each_split_once(checkpoint, data, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "regard.evaluation.classification.open_classification",
        lambda data, split, **options: opened.append(split) or open_classification(data, split, **options),
    )
    assert evaluated(checkpoint, data, probe=True).stats["knn_top1"] > 0.9
    assert sorted(opened) == ["train", "val"]


# Classes


@pytest.mark.parametrize("ours", ["names", "ids", "numbers"])
def test_folders_of_imagenet_subsets(ours, tmp_path):
    """Folders by WordNet id, as of ImageNet-A: all images, among the classes that are there."""
    ids = wordnet_ids()
    categories = {
        "names": imagenet_categories(),
        "ids": [Category(i, name) for i, name in enumerate(ids)],
        "numbers": [Category(i, str(i)) for i in range(1000)],
    }[ours]
    write_as(tmp_path, [ids[number] for number in NUMBERS])
    scores = evaluated(Model(categories), tmp_path, all_images=True)
    assert scores.stats["top1"] == 1.0 and scores.images == 15
    assert [score.name for score in scores.per_class] == [categories[number].name for number in NUMBERS]
    assert scores.notes == ("the best of the data's 3 classes counts, of 1,000 known",)
    fifth = evaluated(Model(categories), tmp_path)
    assert fifth.images == 3 and "20% of the images of each class" in fifth.notes[0]


def test_folders_by_number(tmp_path):
    """All of 0 to 999, as of ImageNet-V2: no class is left out, whatever the order of folders as text."""
    names = [str(number) for number in NUMBERS]
    for number in range(1000):
        (tmp_path / "val" / str(number)).mkdir(parents=True)
        if number not in NUMBERS:
            continue
        for i in range(2):
            image = Image.fromarray(color_image(NUMBERS.index(number), i))
            image.save(tmp_path / "val" / str(number) / f"{i}.png")
    net = Model()
    assert evaluated(net, tmp_path).stats["top1"] == 0.0  # all are taken for a tissue
    net.fc.bias.data.zero_()
    scores = evaluated(net, tmp_path)
    assert scores.stats["top1"] == 1.0 and not scores.notes and len(scores.per_class) == 1000
    assert [score.category_id for score in scores.per_class if score.images] == [int(name) for name in names]


def test_a_few_numbers_are_not_imagenets(tmp_path):
    write_as(tmp_path, ["0", "1", "2"])
    with refused(DataError, "3 of 3", "0, 1, 2", code="K20"):
        evaluated(Model(), tmp_path)


# What does not go together


def test_what_is_refused(capsys, data, tmp_path, checkpoint):
    flat = write_as(tmp_path / "flat", COLORS)
    with refused(ConfigError, "probe", "all_images", code="C09"):
        evaluated(checkpoint, flat, all_images=True, probe=True, output=tmp_path / "o")
    with refused(ConfigError, "all_images", "train, val", code="C09"):
        evaluated(checkpoint, data, all_images=True, output=tmp_path / "o")
    real = tmp_path / "real.json"
    real.write_text("[[1]]")
    with refused(ConfigError, "1000 classes", " 5 ", "real", code="C09"):
        evaluated(checkpoint, data, real=real, output=tmp_path / "o")
    write_as(tmp_path / "imagenet" / "val", [wordnet_ids()[number] for number in NUMBERS])
    with refused(DataError, "ILSVRC2012_val_"):
        evaluated(Model(), tmp_path / "imagenet", real=real)
    with refused(DataError, "train", "val (val)", tmp_path / "imagenet"):
        evaluated(Model(), tmp_path / "imagenet", probe=True)
    with refused(ConfigError, "throughput", "detr_tiny", code="C09"):
        evaluated(regard.create("detr_tiny"), "shapes", throughput=True)
    with refused(ConfigError, "submission", code="C09"):
        submission = DetectionEvaluationOptions(submission=tmp_path / "o" / "s.json")
        regard.evaluate(checkpoint, data, options=submission)
    words = ("evaluate", checkpoint, "--data", data, "--probe", "--submission", tmp_path / "o" / "s.json")
    command(capsys, *words).refused(2, "C09", "--probe", "--submission")
    assert not list((tmp_path / "o").rglob("*"))


def test_an_empty_class_of_a_test_set_is_no_error(tmp_path, checkpoint):
    folder = write_tree(tmp_path / "data", {"red/0.png": 0, "green/0.png": 1, "green/1.png": 2})
    (folder / "blue").mkdir()
    scores = evaluated(checkpoint, folder, all_images=True, output=tmp_path / "o")
    assert {score.name: score.images for score in scores.per_class} == {"blue": 0, "green": 2, "red": 1}
