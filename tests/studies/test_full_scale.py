"""The commands of the papers' own scale: words that `regard train` takes, and one step of each on made-up data.

`uv run pytest -m slow tests/studies/test_full_scale.py` takes the steps: half an hour on two cores, 12 GiB of memory.
"""

import json
import re
import resource
import shlex
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from class_data import write_tree
from command_line import run
from regard.data.class_images.imagenet import wordnet_ids
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.models.catalog import WEIGHTS
from regard.recipes import DetectorRecipe
from regard.runs.run import Run
from regard.studies.catalog import STUDIES
from regard.studies.options import StudyOptions
from regard.studies.table import full_commands
from regard.training.loop import Trainer

FULL = [name for name, study in STUDIES.items() if any(row.full for row in study.rows)]
MOST_OBJECTS = 63  # in an image of COCO
THINGS, STUFF = 80, 53
# Smaller, on the same path. The last word wins.
SMALLER = ("batch_size=2", "workers=0", "device=cpu")
SMALLER_IMAGES = ("short_side=256", "max_size=384")
MEMORY = 12 * 2**20  # KiB


def commands(name):
    """Words after `regard train` of each command, those with the same settings once; and their outputs."""
    found = {}
    for line in full_commands(name, STUDIES[name], StudyOptions(seeds=1)):
        words = shlex.split(line)
        assert words[:2] == ["regard", "train"] and words[-2] == "--output"
        found.setdefault(tuple(words[2:-2]), words[-1])
    return found


@pytest.mark.parametrize("name", FULL)
def test_words_are_those_of_published_recipes(name, capsys, tmp_path, monkeypatch):
    """Also in a folder that is not known to be COCO or ImageNet, where the data would choose other settings."""
    monkeypatch.chdir(tmp_path)
    for folder in ("coco", "imagenet", "cifar10", "cifar100"):
        Path(folder).mkdir()
    seen = []
    monkeypatch.setattr("regard.runs.run.run_training", lambda *given: seen.append(given) or Run(Path("run"), {}))
    for words in commands(name):
        run(capsys, "train", *words).worked()
        settings, _, _, _, given, *_ = seen[-1]
        assert given is None, f"the data choose the settings of {words}"
        assert settings.epochs >= 20 and settings.minutes is None
        assert isinstance(settings, DetectorRecipe) == (Path(settings.data).name == "coco")
    assert len(seen) == len(commands(name))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A folder with `coco`, `imagenet`, `cifar10` and `cifar100`: few images, the number of classes of each."""
    folder = tmp_path_factory.mktemp("data")
    for name, labels in (("imagenet", wordnet_ids()), ("cifar10", range(10)), ("cifar100", range(100))):
        for split in ("train", "val"):
            write_tree(folder / name / split, {f"{label}/{split}.png": k for k, label in enumerate(labels)})
    write_coco(folder / "coco")
    return folder


def write_coco(folder):
    """Generated scenes under the names of COCO's files, with as many classes, one image as full as COCO's fullest."""
    write_shapes(ShapesConfig(size=256, train=2, val=2, min_objects=2, seed=3), folder)
    for split in ("train", "val"):
        (folder / split).rename(folder / f"{split}2017")
        (folder / f"annotations/panoptic_{split}").rename(folder / f"annotations/panoptic_{split}2017")
        for kind, count in (("instances", THINGS), ("panoptic", THINGS + STUFF)):
            file = folder / f"annotations/{kind}_{split}.json"
            content = json.loads(file.read_text())
            more = range(1000, 1000 + count - len(content["categories"]))
            thing = {"isthing": 1} if kind == "panoptic" else {}
            content["categories"] += [{"id": number, "name": f"class {number}", **thing} for number in more]
            if kind == "instances":
                rows = content["annotations"]
                first = [row for row in rows if row["image_id"] == content["images"][0]["id"]]
                missing = MOST_OBJECTS - len(first)
                rows += [{**first[0], "id": 10_000 + number} for number in range(missing)]
            file.rename(folder / f"annotations/{kind}_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A folder with random weights under the names of released files."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    for file, net in (
        (WEIGHTS["resnet50"].file_name, torchvision.models.resnet50()),
        (WEIGHTS["resnet101"].file_name, torchvision.models.resnet101()),
        (WEIGHTS["deit_base_patch16_224"].file_name, timm.create_model("deit_base_patch16_224")),
        ("regnety_160-a5fe301d.pth", timm.create_model("regnety_160")),
    ):
        torch.save(net.state_dict(), folder / "weights" / file)
    return folder


@pytest.fixture
def one_step(monkeypatch, released):
    """Trainings take one step, keep its weights where asked, and neither evaluate nor report. Returns their losses."""
    losses = []

    def fit(self):
        logs = self._step(self.task.batches(0), 0.0)
        self.progress.step = 1
        losses.append(logs["loss"].item())
        assert all(torch.isfinite(p).all() for p in self.model.parameters())
        if (self.run / "keep").exists():
            self._save()
        return self.progress

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr("regard.runs.run._finish", lambda *_: {})
    monkeypatch.setenv("REGARD_HOME", str(released))
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setattr("regard.weights.download._sha256", lambda path: re.search(r"-([0-9a-f]+)\.pth$", path.name)[1])
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
@pytest.mark.usefixtures("blank_charts")
def test_one_step_of_every_row(name, capsys, tmp_path, monkeypatch, datasets, one_step):
    monkeypatch.chdir(tmp_path)
    for data in datasets.iterdir():
        Path(data.name).symlink_to(data)
    found = commands(name)
    needed = {value for words in found for _, _, value in (word.partition("=") for word in words)}
    for words, output in found.items():
        monkeypatch.setattr("regard.runs.run._make_run_folder", lambda folder, _: make_folder(folder, needed))
        smaller = SMALLER + (SMALLER_IMAGES if "coco/" in words else ())
        told = run(capsys, "train", *words, *smaller, "--output", output, "--quiet")
        assert told.code == 0 and "warning" not in told.err.lower(), (words, told.err)
        assert len(one_step) and torch.isfinite(torch.tensor(one_step[-1])), words
    assert len(one_step) == len(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY


def make_folder(folder, needed):
    """Make the folder of a run, with a sign in it if another command starts from it."""
    folder.mkdir(parents=True)
    if str(folder) in needed:
        (folder / "keep").touch()
