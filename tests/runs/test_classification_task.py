"""The classification job: batches, loss, evaluation, and what is drawn of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from color_data import COLORS, ColorClassifier, write_colors
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.transforms.mixing import Mixing
from regard.errors import DataError
from regard.evaluation.classification import ClassifierEvaluation, evaluate_classifier
from regard.evaluation.classification_pictures import draw_class_batch, draw_class_predictions
from regard.models.configs.vit import ViTConfig
from regard.recipes.classification import ClassificationRecipe
from regard.runs.classification_task import ClassificationTask
from regard.structures.categories import Category
from regard.training.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors")


def task_of(folder: Path, pictures: Path | None = None, **changes) -> ClassificationTask:
    settings = ClassificationRecipe(
        name="mine", model=ViTConfig(image_size=16, patch_size=8, num_classes=3), augmentation="cifar", batch_size=5,
        workers=0, seed=3,
    )  # fmt: skip
    train, val = (open_classification(folder, split) for split in ("train", "val"))
    return ClassificationTask(replace(settings, **changes), train, val, ALONE, pictures)


def evaluated(model, dataset, **changes) -> ClassifierEvaluation:
    return evaluate_classifier(model, dataset, **{"batch_size": 5, "workers": 0, "processes": ALONE, **changes})


# Training


def test_batches_are_a_function_of_seed_and_number(folder):
    first = task_of(folder).batches(0)
    several = [next(first) for _ in range(12)]  # 24 images make 5 batches an epoch
    for start in (3, 7):
        later = next(task_of(folder).batches(start))
        assert later.number == start and torch.equal(later.images.pixels, several[start].images.pixels)
        assert torch.equal(later.labels, several[start].labels) and later.paths == several[start].paths
    epoch = [path for batch in several[:5] for path in batch.paths]
    assert len(epoch) == 24 == len(set(epoch))
    assert several[0].images.pixels.shape == (5, 3, 16, 16) and several[0].images.pixels.dtype == torch.uint8
    assert all(
        Path(p).parent.name == sorted(COLORS)[label] for p, label in zip(epoch, labels(several[:5]), strict=True)
    )


def labels(batches):
    return [label for batch in batches for label in batch.labels.tolist()]


def test_loss_is_cross_entropy(folder):
    model, task = ColorClassifier(), task_of(folder)
    batch = next(task.batches(0))
    loss, logs = task.loss(model, batch)
    probabilities = model(model.batches[0]).double().softmax(1)
    by_hand = [-probabilities[i, label].log().item() for i, label in enumerate(batch.labels.tolist())]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    right = (probabilities.argmax(1) == batch.labels).float().mean()
    assert logs["top1"].item() == pytest.approx(right.item())
    assert model.batches[0].abs().max() < 3 and loss.requires_grad


def test_label_smoothing(folder):
    model = ColorClassifier()
    plain, smoothed = (task_of(folder, label_smoothing=value) for value in (0.0, 0.3))
    batch = next(plain.batches(0))
    log_probabilities = model(batch.images.normalized().pixels).log_softmax(1)
    targets = torch.full((5, 3), 0.1)
    targets[torch.arange(5), batch.labels] += 0.7
    assert smoothed.loss(model, batch)[0].item() == pytest.approx(-(targets * log_probabilities).sum(1).mean().item())
    assert smoothed.loss(model, batch)[0].item() != pytest.approx(plain.loss(model, batch)[0].item())
    # The number to compare with that of an evaluation is of true labels.
    for task in (plain, smoothed):
        assert task.loss(model, batch)[1]["nll"].item() == pytest.approx(plain.loss(model, batch)[0].item())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_yes_or_no_for_every_class(folder, mixed):
    """The mean over images and classes; both classes of a mixed image are there in full (DeiT III)."""
    mixing = {"mixup": 0.8, "cutmix": 1.0} if mixed else {}
    model, task = ColorClassifier(), task_of(folder, loss="sigmoid", **mixing)
    batch = next(task.batches(0))
    loss, _ = task.loss(model, batch)
    probabilities = model(model.batches[0]).double().sigmoid().tolist()
    others = batch.labels.flip(0).tolist() if mixed else batch.labels.tolist()
    total = 0.0
    for row, label, other in zip(probabilities, batch.labels.tolist(), others, strict=True):
        for c, p in enumerate(row):
            total -= math.log(p if c in (label, other) else 1 - p)
    assert loss.item() == pytest.approx(total / (3 * len(others)), rel=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batches(folder, kind):
    alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, f"{kind}_alpha": 1.0}
    mixing = Mixing(num_classes=3, label_smoothing=0.0, seed=3, **alphas)
    model, task = ColorClassifier(), task_of(folder, **{kind: 1.0})
    batches = task.batches(0)
    batch = next(batch for batch in batches if mixing.draw(batch.number, 16, 16).share < 0.9)
    loss, logs = task.loss(model, batch)
    pixels, targets = mixing(batch.images.normalized().pixels, batch.labels, batch.number, 0)
    torch.testing.assert_close(model.batches[-1], pixels)
    by_hand = -(targets * model(pixels).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item()) and not logs
    assert loss.item() != pytest.approx(task_of(folder).loss(model, batch)[0].item())
    # Another batch of the run is mixed in another way.
    task.loss(model, replace(batch, number=batch.number + 1))
    assert not torch.equal(model.batches[-1], pixels)


def test_first_batch_is_drawn(folder, tmp_path):
    for mixup in (0.0, 0.8):
        task = task_of(folder, tmp_path, mixup=mixup)
        batches = task.batches(0)
        drawn = np.asarray(Image.open(tmp_path / "train_batch.jpg"))
        (tmp_path / "train_batch.jpg").unlink()
        assert drawn.std() > 20 and torch.equal(next(batches).images.pixels, next(task.batches(0)).images.pixels)
        (tmp_path / "train_batch.jpg").unlink()
        next(task.batches(1))
        assert not list(tmp_path.iterdir())


def test_one_step_lowers_the_loss(folder):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    task = task_of(folder)
    batch = next(task.batches(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before, _ = task.loss(model, batch)
    before.backward()
    optimizer.step()
    assert task.loss(model, batch)[0] < before


def test_an_unreadable_image_is_named(folder, tmp_path):
    broken = write_colors(tmp_path / "broken", train=2)
    (broken / "train" / "red" / "0.png").write_bytes(b"no image")
    task = task_of(broken, batch_size=6)
    with refused(DataError, "red/0.png", code="I03"):
        next(task.batches(0))
    dataset = open_classification(broken, "train")
    with refused(DataError, "red/0.png", code="I03"):
        evaluated(ColorClassifier(tuple(dataset.categories)), dataset)


# Evaluation


def test_evaluation_finds_classes_by_name(folder):
    dataset = open_classification(folder, "val")
    assert [c.name for c in dataset.categories] == sorted(COLORS)  # another order than the model's
    evaluation = evaluated(ColorClassifier(), dataset)
    assert evaluation.scores.stats["top1"] == 1.0 and evaluation.scores.images == 12
    assert [score.name for score in evaluation.scores.per_class] == list(COLORS)
    assert evaluation.losses == {"loss": evaluation.scores.stats["nll"]}
    wrong = tuple(Category(i, name) for i, name in enumerate(sorted(COLORS)))
    assert evaluated(ColorClassifier(wrong), dataset).scores.stats["top1"] == 1 / 3  # only green is where it was


def test_classes_that_the_model_does_not_know(folder, tmp_path):
    other = write_colors(tmp_path / "other", 2, 2, ("red", "green", "violet"))
    with refused(DataError, "1 of 3", "violet", code="K20"):
        evaluated(ColorClassifier(), open_classification(other, "val"))


def test_batches_and_processes_do_not_change_scores(folder):
    model, dataset = ColorClassifier(), open_classification(folder, "val")
    whole = evaluated(model, dataset).scores.to_dict()
    assert evaluated(model, dataset, batch_size=12).scores.to_dict() == whole

    found = {}
    for rank in range(5):
        seen: list[torch.Tensor] = []
        processes = Collected(rank, 5, torch.device("cpu"), seen)
        with pytest.raises(StopIteration):
            evaluated(model, dataset, processes=processes)
        found[rank] = seen[0]
    together = Collected(0, 5, torch.device("cpu"), [], [found[rank] for rank in range(5)])
    assert evaluated(model, dataset, processes=together).scores.to_dict() == whole


class Collected(Processes):
    """One of several processes that run one after the other: notes what it is to send, or is given it all."""

    def __init__(self, rank, world_size, device, seen, everything=None):
        super().__init__(rank, world_size, device)
        object.__setattr__(self, "seen", seen)
        object.__setattr__(self, "everything", everything)

    def gather(self, value):
        if self.everything is not None:
            return self.everything
        self.seen.append(value)
        raise StopIteration


def test_more_processes_than_images(folder, tmp_path):
    few = open_classification(write_colors(tmp_path / "few", 2, 1), "val")
    seen: list[torch.Tensor] = []
    with pytest.raises(StopIteration):
        evaluated(ColorClassifier(), few, processes=Collected(4, 5, torch.device("cpu"), seen))
    assert seen[0].shape == (0, 3)


def test_evaluation_leaves_the_model_as_it_was(folder, tmp_path):
    model = ColorClassifier().train()
    evaluated(model, open_classification(folder, "val"), picture=tmp_path / "p.jpg")
    assert model.training and Image.open(tmp_path / "p.jpg").width > 300
    assert not model(torch.zeros(1, 3, 4, 4)).is_inference()


def test_task_keeps_its_best_evaluation(folder, tmp_path):
    task = task_of(folder, tmp_path)
    model = ColorClassifier()
    for step, scale, best in ((5, -8.0, 0.0), (6, 8.0, 1.0), (7, -8.0, 1.0)):
        model.scale.data.fill_(scale)
        numbers = task.evaluate(model, step)
        assert numbers["top1"] == (scale > 0) and task.best_evaluation.scores.stats["top1"] == best
    assert set(numbers) == {"loss", "top1", "mean_accuracy", "f1", "nll", "ece"}
    assert {p.name for p in tmp_path.iterdir()} == {f"predictions_step_{n}.jpg" for n in (5, 6, 7)}


# Pictures


def test_batch_pictures_of_any_size():
    categories = tuple(Category(i, name) for i, name in enumerate(COLORS))
    for count, side in ((1, 4), (3, 32), (40, 224)):
        pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
        targets = torch.randint(3, (count,))
        sheet = draw_class_batch(pixels, targets, categories)
        assert sheet.width < 1500
        mixed = torch.nn.functional.one_hot(targets, 3) * 0.7 + 0.1
        assert draw_class_batch(pixels, mixed, categories).size == sheet.size


def test_right_and_wrong_have_frames_of_their_own():
    categories = tuple(Category(i, name) for i, name in enumerate(COLORS))
    images = [torch.full((3, 50, 40 + i), 128, dtype=torch.uint8) for i in range(2)]
    logits = torch.tensor([[0.0, 4, 0], [0, 4, 0]])
    right = np.asarray(draw_class_predictions(images, torch.tensor([1, 1]), logits, categories)).reshape(-1, 3)
    mixed = np.asarray(draw_class_predictions(images, torch.tensor([1, 2]), logits, categories)).reshape(-1, 3)
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert (right == blue).all(1).any() and not (right == orange).all(1).any()
    assert (mixed == blue).all(1).any() and (mixed == orange).all(1).any()
