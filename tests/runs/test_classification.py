"""Whole runs of a very small classifier: files, scores, prediction, and going on."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

import regard
from color_data import COLORS, write_colors
from command_line import digest
from command_line import run as command
from refusals import refused
from regard.config import apply_overrides
from regard.data.class_images.imagenet import wordnet_ids
from regard.errors import CheckpointError, ConfigError, DataError
from regard.models.build import build
from regard.recipes import recipe_for
from regard.runs.classification import ClassificationJob, augmentation_of, mixing_of
from regard.runs.settings import resolve
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.weights.classifiers import imagenet_categories

pytestmark = pytest.mark.usefixtures("blank_charts")

SMALL = (
    "workers=0", "batch_size=6", "model.layers=[1,1,1]", "model.widths=[8,8,8]", "evaluate_every=1", "device=cpu",
    "augmentation=cifar", "lr=0.02",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors", train=12)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    return regard.train("resnet20", data, epochs=6, output=folder, overrides=SMALL, quiet=True)


def test_it_learns_and_leaves_its_files(run):
    assert run.scores["top1"] >= 0.9
    names = {path.name for path in run.folder.iterdir()}
    assert {"checkpoints", "config.yaml", "environment.json", "metrics.csv", "metrics.json", "metrics.jsonl"} <= names
    pictures = {path.name for path in (run.folder / "pictures").iterdir()}
    assert {"train_batch.jpg", "dataset.png", "curves.png", "confusion_matrix.png", "calibration.png"} <= pictures
    written = json.loads((run.folder / "metrics.json").read_text())
    assert written["stats"]["top1"] == run.scores["top1"]
    assert [row["name"] for row in written["per_class"]] == sorted(COLORS)


def test_scores_can_be_had_again_from_the_run_alone(run, data, tmp_path):
    written = json.loads((run.folder / "metrics.json").read_text())
    for batch_size in (None, 5):
        again = regard.evaluate(run.folder, data, output=tmp_path, batch_size=batch_size, workers=0, device="cpu")
        assert again.stats["top1"] == written["stats"]["top1"]
        assert again.stats["nll"] == pytest.approx(written["stats"]["nll"], rel=1e-4)
    assert (tmp_path / "pictures" / "confusion_matrix.png").is_file()


def test_the_same_verbs_on_the_command_line(capsys, run, data, tmp_path):
    told = command(
        capsys, "evaluate", run.folder, "--data", data, "--workers", "0", "--output", tmp_path / "e"
    ).worked()
    assert "top1" in told and "green" in told
    told = command(
        capsys, "predict", run.folder, data / "val", "--output", tmp_path / "p", "--json", tmp_path / "p.json",
        "--top", "2",
    ).worked()  # fmt: skip
    rows = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == 12 == len(told.splitlines()) and all(len(row["classes"]) == 2 for row in rows)
    right = sum(row["classes"][0]["label"] in row["file_name"].split("/") for row in rows)
    assert right / 12 == run.scores["top1"]
    for row in rows:
        first, second = (entry["score"] for entry in row["classes"])
        assert 1 >= first >= second >= 0
    pictures = list((tmp_path / "p").rglob("*.jpg"))
    assert len(pictures) == 12 and Image.open(pictures[0]).size[0] >= 20
    command(capsys, "predict", run.folder, data / "val", "--top", "0").refused(2, "C03", "top=0")


def test_prediction_is_the_networks_own(run, data):
    """Softmax of the logits, whatever way and in whatever company the image comes."""
    model = regard.load(run.folder)
    path = data / "val" / "red" / "1.png"
    alone = regard.predict(model, path)
    together = regard.predict(model, [path, Image.open(path)], batch_size=2)
    assert alone.name == "red" and alone.probabilities.sum().item() == pytest.approx(1)
    for other in together:
        torch.testing.assert_close(other.probabilities, alone.probabilities, rtol=1e-4, atol=1e-6)


def test_going_on_gives_the_uninterrupted_run(data, tmp_path):
    # A schedule that ends later starts in the same way only where it is constant.
    words = (*SMALL, "schedule=step", "milestones=1", "warmup_share=0")
    first = regard.train("resnet20", data, epochs=2, output=tmp_path / "b", overrides=words, quiet=True)
    regard.train(output=first.folder, resume=True, epochs=4, quiet=True)
    whole = regard.train("resnet20", data, epochs=4, output=tmp_path / "c", overrides=words, quiet=True)
    mine, theirs = (read_checkpoint(newest_checkpoint(r.folder / "checkpoints")).tensors for r in (first, whole))
    assert all(torch.equal(mine["model"][name], theirs["model"][name]) for name in mine["model"])


def test_a_file_of_a_convolutional_network_is_started_from(data, tmp_path):
    """It does not tell what it is: it is taken for the model that is trained."""
    torch.save({"model": regard.create("resnet20", num_classes=4).state_dict()}, tmp_path / "mine.pth")
    words = (*SMALL, f"start_from={tmp_path / 'mine.pth'}")
    job = ClassificationJob(replace(apply_overrides(recipe_for("resnet20"), words), data=str(data)))
    assert job.fetch_weights() == [] and job.source.card.name == "resnet20"


def test_a_warm_up_longer_than_the_run_is_told(data, tmp_path, capsys):
    """The steps are those of the training loop: at least one an epoch, where a batch has more images than the data."""
    words = (*SMALL, "warmup_steps=10000", "batch_size=4096", "workers=0")
    regard.train("resnet20", data, epochs=2, output=tmp_path / "run", overrides=words)
    text = capsys.readouterr()
    assert "warmup_steps=10000 of 2 steps" in " ".join((text.out + text.err).split())


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("deit_tiny_distilled_patch16_224", "deit"), ("deit3_small_patch16_224", "deit3"), ("resnet50", "imagenet"),
     ("vit_small_patch16_224", "augreg"), ("deit_base_patch16_384", "resolution")],
)  # fmt: skip
def test_on_imagenet_itself_the_published_recipe_is_the_models_own(name, recipe, tmp_path):
    def resolved(given):
        return resolve(name, tmp_path, None, None, False, given, None, ())

    assert resolved(None) == replace(recipe_for(name), data=str(tmp_path))
    for wnid in wordnet_ids():
        (tmp_path / "train" / wnid).mkdir(parents=True)
    assert resolved(None) == replace(recipe_for(name, recipe), data=str(tmp_path))
    assert resolved("finetune") == replace(recipe_for(name, "finetune"), data=str(tmp_path))


def test_recipes_that_start_from_weights_which_nobody_released(data, tmp_path):
    with refused(ConfigError, "vit_tiny_patch16_224", "start_from=RUN", code="K01"):
        regard.train("vit_tiny_patch16_224", data, recipe="transfer", output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_another(run, data, tmp_path):
    """Known classes keep their rows; the new one is learnt."""
    other = write_colors(tmp_path / "data", train=8, names=("blue", "green", "pink"))
    words = (*SMALL, f"start_from={run.folder}", "lr=1e-9", "weight_decay=0", "label_smoothing=0")
    started = regard.train("resnet20", other, epochs=1, output=tmp_path / "d", overrides=words, quiet=True)
    new, old = started.load(), run.load()
    for label, name in enumerate(("blue", "green")):
        torch.testing.assert_close(new.fc.weight[label], old.fc.weight[label], rtol=1e-4, atol=1e-4)
        assert new.card.categories[label].name == old.card.categories[label].name == name


def test_imagenets_classes_are_known_by_all_their_names(tmp_path, monkeypatch):
    """A model of words starts one for folders of WordNet ids: no row of its head is lost."""
    ids, words = wordnet_ids(), imagenet_categories()
    data = write_colors(tmp_path / "data", train=1, val=1, names=tuple(ids[number] for number in (400, 1, 30)))
    recipe = recipe_for("deit_nano_patch4_32")
    source = build(replace(recipe.model, num_classes=1000), "deit_nano_patch4_32", words)
    monkeypatch.setattr("regard.runs.classification.load_to_train", lambda _: source)
    job = ClassificationJob(replace(recipe, data=str(data), start_from="released"))
    job.fetch_weights()
    net, notes = job.starting_model()
    assert "3 classes, 3 of them known" in notes[0]
    rows = [ids.index(category.name) for category in net.card.categories]
    assert sorted(rows) == [1, 30, 400] and torch.equal(net.head.weight, source.head.weight[rows])


def test_a_warm_up_that_does_not_end_is_told(data):
    recipe = replace(recipe_for("deit_nano_patch4_32", "deit"), data=str(data))
    for epochs, schedule, told in ((5, "deit", True), (6, "deit", False), (5, "cosine", False)):
        job = ClassificationJob(replace(recipe, epochs=epochs, schedule=schedule))
        assert any("warms up for 5 epochs" in note for note in job.starting_model()[1]) == told


def test_kinds_are_not_mixed(run, data, tmp_path):
    detection = ("shapes:train=4,val=2,size=32",)
    with refused(ConfigError, "resnet20", run.folder, "model.backbone=resnet20", code="K07"):
        regard.train(
            "detr_tiny", *detection, output=tmp_path / "e", quiet=True,
            overrides=("workers=0", "device=cpu", f"start_from={run.folder}"),
        )  # fmt: skip
    detector = regard.train(
        "detr_tiny", *detection, epochs=1, output=tmp_path / "f", overrides=("workers=0", "device=cpu"), quiet=True
    )
    with refused(CheckpointError, detector.folder, "resnet20", code="K07"):
        regard.train("resnet20", data, output=tmp_path / "e", overrides=(f"start_from={detector.folder}",), quiet=True)
    with refused(ConfigError, "recipe", "'paper'", code="C01"):
        recipe_for("resnet20", "paper")


def test_a_classifier_becomes_the_backbone_of_a_detector(tmp_path, monkeypatch):
    net = regard.create("aa_resnet20")
    monkeypatch.setattr("regard.runs.detection.load_to_train", lambda _: net)
    words = (
        "workers=0", "device=cpu", "model.backbone=aa_resnet20", "model.backbone_norm=frozen", "lr=1e-9",
        "lr_backbone=0", "start_from=runs/mine",
    )  # fmt: skip
    detector = regard.train(
        "detr_tiny", "shapes:train=4,val=2,size=32", epochs=1, output=tmp_path / "e", overrides=words, quiet=True
    ).load()
    for name, tensor in net.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(detector.backbone.body.state_dict()[name], tensor)


def test_fewer_images(data, tmp_path):
    before = digest(data)
    words = (*SMALL, "train_images=7")
    result = regard.train("resnet20", data, epochs=1, output=tmp_path / "f", overrides=words, quiet=True)
    assert digest(data) == before
    rows = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 2  # of 6 images each; all 36 need 6 steps
    for count in (2, 37):
        with refused(DataError, f"{count} images", "expected 3", "36"):
            regard.train(
                "resnet20", data, output=tmp_path / "g", overrides=(*SMALL, f"train_images={count}"), quiet=True
            )


def test_without_released_weights_training_goes_on_and_says_so(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    words = ("workers=0", "batch_size=6", "device=cpu", "model.image_size=32", "model.layers=[1,1,1,1]")
    result = regard.train("resnet18", data, epochs=1, output=tmp_path / "h", overrides=words)
    assert "warning: no weights of resnet18" in capsys.readouterr().err
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["start_from"] == "none"


# Recipes


@pytest.mark.parametrize("word", ["label_smoothing=0.1", "teacher=resnet50"])
def test_what_does_not_go_with_a_yes_or_no_for_each_class(word):
    with refused(ConfigError, "loss=sigmoid", code="C09"):
        resolve("deit3_small_patch16_224", "digits", None, None, False, "deit3", None, [word])


def test_deit3_in_small(data, tmp_path):
    """Its optimizer, loss and augmentation learn colours."""
    words = (
        "workers=0", "batch_size=6", "device=cpu", "model.embed_dim=24", "model.num_heads=2", "model.patch_size=8",
        "model.image_size=32", "model.depth=2", "model.layer_scale=0.5", "model.initial=fan_in", "lr=0.03",
        "schedule=cosine", "repeated_augmentation=1", "cutmix=0", "mixup=0.2", "evaluate_every=8",
    )  # fmt: skip
    name = "deit3_small_patch16_224"
    result = regard.train(name, data, recipe="deit3", epochs=8, output=tmp_path / "r", overrides=words, quiet=True)
    assert result.scores["top1"] > 0.6


def test_augmentation_by_name():
    def steps(name):
        return [type(step).__name__ for step in augmentation_of(recipe_for("resnet20", name)).steps]

    assert "RandomFlip" in steps("cifar") and "RandomFlip" not in steps("small")
    assert mixing_of(recipe_for("resnet20")) is None
    mixed = mixing_of(apply_overrides(recipe_for("resnet20"), ["mixup=0.8", "cutmix=1.0", "model.num_classes=7"]))
    assert (mixed.mixup_alpha, mixed.cutmix_alpha, mixed.num_classes) == (0.8, 1.0, 7)


@pytest.mark.parametrize("word", ["magnitude=11", "erasing=-0.1", "label_smoothing=1", "crop_pct=0", "mixup=-1"])
def test_numbers_out_of_range(word):
    with refused(ConfigError, word.split("=")[0], code="C03"):
        resolve("resnet20", "digits", None, None, False, None, None, [word])
