"""RetinaNet from training to files: losses, scores, boxes, starting weights, a run that was stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import load_file

import regard
from charts import without_charts
from refusals import refused
from regard.data.batches.detection import collate
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.samples import Sample
from regard.errors import CheckpointError, ConfigError
from regard.evaluation.detection import criterion_of
from regard.losses import AnchorCriterion
from regard.models.build import build, create
from regard.models.catalog import preset
from regard.models.retinanet import RetinaNet
from regard.recipes import recipe_for
from regard.runs.detection_task import augmentation_of
from regard.runs.retinanet import RetinaNetJob
from regard.runs.settings import resolve
from regard.structures.boxes import encode_boxes, xyxy_to_cxcywh
from regard.structures.outputs import DensePredictions, DetectionOutput
from regard.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("blank_charts")

WORDS = (
    "workers=0", "batch_size=4", "short_side=32", "max_size=48", "model.channels=32", "model.image_size=32",
    "evaluate_every=1", "warmup_steps=2", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=8, val=4, size=32, min_objects=0), folder)
    return folder


def train(data, output, *words, model="retinanet_aa_tiny", **arguments):
    return regard.train(model, data, output=output, overrides=(*WORDS, *words), quiet=True, **arguments)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    with without_charts():
        return train(data, tmp_path_factory.mktemp("runs") / "a", epochs=2)


class Oracle(RetinaNet):
    """Finds what is there, several times: it is given the samples in the order of the data set."""

    def __init__(self, samples, categories):
        super().__init__(create("retinanet_tiny").config)
        self.card = build(create("retinanet_tiny", num_classes=3).config, "oracle", categories, (32, 64)).card
        self.samples = iter(samples)

    def forward(self, images, targets=None):
        output = super().forward(images)
        dense, logits, boxes = output.dense, torch.full_like(output.logits, -9.0), output.boxes.clone()
        for row, size in enumerate(images.sizes):
            sample = next(self.samples)
            scale = torch.tensor([sample.size[1], sample.size[0]] * 2)
            for number, (label, box) in enumerate(zip(sample.labels, sample.boxes, strict=True)):
                for copy in range(3):
                    logits[row, 3 * number + copy, label] = 5 - copy
                    boxes[row, 3 * number + copy] = xyxy_to_cxcywh(box / scale) + 0.002 * copy
            assert size == (32, 32)
        return output._replace(logits=logits, boxes=boxes, dense=dense)


def test_who_finds_everything_has_full_marks(data):
    """Each object once: what is found twice would cost precision."""
    dataset = open_detection(data, "val")
    found = regard.evaluate(Oracle(list(dataset), dataset.categories), data, workers=0, batch_size=1)
    assert found.stats["AP"] == 1.0


def test_a_run_has_losses_scores_and_pictures(run, data, tmp_path):
    written = json.loads((run.folder / "metrics.json").read_text())
    assert set(written["losses"]) == {"loss", "loss_ce", "loss_bbox"}
    assert written["losses"]["loss"] == pytest.approx(written["losses"]["loss_ce"] + written["losses"]["loss_bbox"])
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/loss" in row]
    assert logged and all({"train/loss_ce", "train/loss_bbox"} <= set(row) for row in logged)
    assert not any("train/loss_last_layer" in row for row in rows)
    pictures = {path.name for path in (run.folder / "pictures").iterdir()}
    assert {"train_batch.jpg", "predictions_step_4.jpg", "attention_step_4.jpg", "dataset.png"} <= pictures
    again = regard.evaluate(run.folder, data, output=tmp_path, batch_size=4, workers=0, device="cpu")
    assert again.stats == written["stats"]


def test_predictions_of_a_run(run, data):
    image = sorted((data / "val").glob("*"))[0]
    net = run.load()
    assert isinstance(net, RetinaNet) and [c.name for c in net.card.categories] == ["circle", "square", "triangle"]
    with torch.no_grad():
        net.head.classification_head.cls_logits.bias += 4  # it has learned for four steps only
    for options in ({}, {"multi_label": True}, {"flip": True, "tile_size": 24}):
        found = regard.predict(net, image, threshold=0.2, **options)
        assert len(found.boxes) and found.boxes.min() >= 0 and found.boxes.max() <= 32
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and found.scores.min() > 0.2
    nothing = regard.predict(net, image, threshold=1.0)
    assert len(nothing.boxes) == 0 and nothing.rejected.score > 0.2


def test_a_stopped_run_reaches_the_same_weights(run, data, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    step = Trainer._step

    def until_the_third(self, batches, share):
        if self.progress.step == 3:
            raise Killed
        return step(self, batches, share)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", until_the_third)
        with pytest.raises(Killed):
            train(data, tmp_path / "b", epochs=2)
    resumed = train(None, tmp_path / "b", model=None, resume=True)
    for part in ("model", "ema"):
        files = (r.folder / "checkpoints/step_4" / f"{part}.safetensors" for r in (resumed, run))
        ours, theirs = map(load_file, files)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_explains_it(run, data):
    image = sorted((data / "val").glob("*"))[0]
    layers = regard.explain(run.folder, image, "layers", point=(4, 28))
    assert [saliency.weights.shape for saliency in layers.maps] == [(8, 8), (4, 4)]
    assert all(abs(float(saliency.weights.sum()) - 1) < 1e-5 for saliency in layers.maps)
    assert len(regard.explain(run.folder, image, "heads").maps) == 8  # four heads, with positions and without
    relevance = regard.explain(run.folder, image, "relevance")
    assert all((saliency.weights >= 0).all() for saliency in relevance.maps)
    plain = create("retinanet_tiny")
    with refused(ConfigError, "retinanet_tiny", "no attention", "retinanet_aa_resnet50", code="C09"):
        regard.explain(plain, image)
    with refused(ConfigError, "threshold", code="C09"):
        regard.explain(run.folder, image, threshold=0.3)
    with refused(ConfigError, "no queries", code="C09"):
        regard.explanations.explain.explain_queries(plain, data / "val")


def test_the_published_recipe():
    """Section 4.3 as far as it is known: 150 epochs, 64 images a step on eight processes, rate 0.08, decay 1e-4."""
    recipe = recipe_for("retinanet_aa_resnet50")
    assert recipe == recipe_for("retinanet_aa_resnet50", "paper")
    assert (recipe.epochs, 8 * recipe.batch_size, recipe.lr, recipe.lr_backbone) == (150, 64, 0.08, 0.08)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.start_from) == ("sgd", 0.9, 1e-4, "none")
    assert [recipe.epochs * share for share in recipe.milestones] == pytest.approx([120, 140])
    assert recipe.model.backbone_norm == "batch" and recipe.model.image_size == recipe.max_size == 640
    assert isinstance(criterion_of(recipe), AnchorCriterion)
    augmentation, g = augmentation_of(recipe), torch.Generator().manual_seed(0)
    sample = Sample(torch.zeros(3, 480, 640, dtype=torch.uint8), torch.tensor([[0.0, 0, 639, 479]]), torch.tensor([0]))
    seen = [augmentation(sample, g) for _ in range(8)]
    assert all(one.size == (640, 640) for one in seen)
    widths = [(one.boxes[0, 2] - one.boxes[0, 0]).item() for one in seen]
    assert 511 <= min(widths) < 600 < max(widths) <= 640


@pytest.mark.parametrize(
    ("model", "recipe", "names", "code"),
    [("retinanet_resnet50", "small", ["retinanet_tiny"], "C09"), ("retinanet_tiny", "fast", ["'fast'"], "C01")],
)
def test_recipes_that_do_not_fit(model, recipe, names, code):
    with refused(ConfigError, *names, code=code):
        recipe_for(model, recipe)


@pytest.mark.parametrize("word", ["num_queries=20", "no_object_weight=0.2", "fit_queries=true", "model.masks=true"])
def test_settings_of_a_detr_are_none(word):
    with refused(ConfigError, word.partition("=")[0], code="C01"):
        resolve("retinanet_tiny", "shapes", None, None, False, None, None, [word])


def starting_model(data, start, *words, model="retinanet_aa_tiny"):
    settings = resolve(model, data, None, None, False, None, None, [*WORDS, f"start_from={start}", *words])
    job = RetinaNetJob(settings)
    notes = job.fetch_weights()
    net, more = job.starting_model()
    return net, [*notes, *more]


def test_starting_from_a_run_with_some_of_the_classes(run, tmp_path):
    write_shapes(ShapesConfig(train=4, val=2, size=32, classes=4), tmp_path / "four")
    net, notes = starting_model(tmp_path / "four", run.folder)
    assert "4 classes, 3 of them known" in notes[-1]
    source = run.load()
    ours, theirs = (n.head.classification_head.cls_logits.weight.view(9, -1, 32, 3, 3) for n in (net, source))
    places = [[c.name for c in net.card.categories].index(c.name) for c in source.card.categories]
    assert torch.equal(ours[:, places], theirs)
    for name, tensor in source.state_dict().items():
        if "cls_logits" not in name and not name.endswith("num_batches_tracked"):
            assert torch.equal(net.state_dict()[name], tensor), name


def test_starting_from_what_does_not_fit(run, data):
    with refused(CheckpointError, "retinanet_tiny", code="K07"):
        starting_model(data, run.folder, model="retinanet_tiny")
    with refused(CheckpointError, "anchor_size", code="K07"):
        starting_model(data, run.folder, "model.anchor_size=8")
    with refused(ConfigError, "retinanet_tiny", code="K01"):
        starting_model(data, "retinanet_tiny")
    with refused(CheckpointError, "DETR", code="K07"):
        regard.train("detr_tiny", data, output=run.folder.parent / "no", overrides=[f"start_from={run.folder}"])


def test_the_backbone_starts_from_a_classifiers_file(data, tmp_path):
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    words = ("model.backbone=resnet18", "model.feature_maps=3")
    net, notes = starting_model(data, tmp_path / "resnet18.pth", *words, model="retinanet_tiny")
    assert "resnet18.pth" in notes[0]
    assert torch.equal(net.backbone.body.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)


def test_a_losss_gradient_moves_boxes_to_objects():
    """Offsets of the anchors that learn an object, after steps along the gradient, are those of the object."""
    anchors = torch.tensor([[20.0, 20, 20, 20], [60, 60, 20, 20]])
    boxes = torch.tensor([[0.3, 0.2, 0.25, 0.2]])
    offsets = torch.zeros(1, 2, 4, requires_grad=True)
    dense = DensePredictions(anchors, offsets, (2,), ((80, 80),))
    output = DetectionOutput(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), dense=dense)
    optimizer = torch.optim.SGD([offsets], lr=1e-3)
    for _ in range(500):
        loss = AnchorCriterion(3)(output, [{"labels": torch.tensor([1]), "boxes": boxes}])["loss_bbox"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(offsets[0, 0], encode_boxes(boxes[0] * 80, anchors[0]), atol=2e-3, rtol=0)
    assert (offsets[0, 1] == 0).all()


@pytest.mark.parametrize("name", ["retinanet_tiny", "retinanet_aa_tiny"])
def test_it_learns_some_images_by_heart(name, tmp_path):
    write_shapes(ShapesConfig(train=1, val=4, size=64), tmp_path / "data")
    dataset = open_detection(tmp_path / "data", "val")
    batch = collate(list(dataset))
    torch.manual_seed(0)
    net = build(replace(preset(name), num_classes=3), name, dataset.categories, (64, 64)).train()
    criterion, images = AnchorCriterion(3), batch.images.normalized()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        criterion.total(criterion(net(images), batch.targets)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    scores = regard.evaluate(net.eval(), tmp_path / "data", workers=0, quiet=True)
    assert scores.stats["AP50"] > 0.9 and scores.stats["AP"] > 0.5
