"""Stored logits equal the teacher's for the views that training sees, even if storing them was interrupted."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import regard
from charts import without_charts
from color_data import write_colors
from command_line import digest
from command_line import run as command
from refusals import refused
from regard.config import apply_overrides
from regard.distillation.options import StorageOptions
from regard.distillation.stored_logits import StoredLogits
from regard.errors import CheckpointError, ConfigError
from regard.recipes import recipe_for
from regard.runs.classification import ClassificationJob, augmentation_of, cache_logits
from regard.training.data_loader import Augmented
from regard.training.distributed import Processes
from regard.training.rows import read_rows

pytestmark = pytest.mark.usefixtures("blank_charts")

STUDENT = (
    "workers=0", "batch_size=6", "evaluate_every=9", "device=cpu", "augmentation=cifar", "model.embed_dim=24",
    "model.depth=2", "model.patch_size=8", "lr=0.01", "distillation=soft", "reduction=batchmean", "log_every=1",
)  # fmt: skip
NAME = "deit_nano_distilled_patch4_32"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors", train=12)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    words = ("workers=0", "batch_size=6", "device=cpu", "model.layers=[1,1,1]", "model.widths=[8,8,8]", "lr=0.02")
    output = tmp_path_factory.mktemp("runs") / "t"
    with without_charts():
        return regard.train("resnet20", data, epochs=2, output=output, overrides=words, quiet=True).folder


def student(data, teacher, *words):
    values = (f"data={data}", f"teacher={teacher}", *STUDENT, *words)
    return apply_overrides(recipe_for(NAME), values)


OPTIONS = StorageOptions(views=3, dtype="float32", batch_size=10)


def store(settings, folder, **changes):
    return list(cache_logits(settings, folder, replace(OPTIONS, **changes)))


@pytest.fixture(scope="module")
def stored(data, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logits") / "a"
    shares = store(student(data, teacher), folder)
    assert shares[-1] == 1.0 and shares == sorted(shares)
    return folder


def test_they_are_the_teachers_for_each_view(data, teacher, stored):
    settings = student(data, teacher)
    job = ClassificationJob(settings)
    views = Augmented(job.train_data, augmentation_of(settings), settings.seed)
    logits = StoredLogits(stored)
    assert logits.views == 3
    for place in ((0, 0), (1, 5), (2, 35)):
        pixels = regard.structures.image_batch.ImageBatch.from_images([views[place].image]).normalized().pixels
        torch.testing.assert_close(logits[place], job.teacher(pixels)[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits[0, 0], logits[1, 0])
    assert torch.equal(pickle.loads(pickle.dumps(logits))[1, 5], logits[1, 5])


def losses(run):
    return [row["train/loss"] for row in read_rows(run.folder / "metrics.jsonl") if "train/loss" in row]


def test_twenty_steps_have_the_losses_of_the_living_teacher(data, teacher, stored, tmp_path):
    """Three epochs of six steps see the three views; the fourth comes back to the first."""
    runs = [
        regard.train(NAME, data, epochs=4, teacher=t, output=tmp_path / name, overrides=STUDENT, quiet=True)
        for name, t in (("live", teacher), ("stored", stored))
    ]
    live, replayed = (losses(run) for run in runs)
    assert len(live) >= 20
    assert replayed[:18] == pytest.approx(live[:18], rel=1e-5)
    assert replayed[18:] != pytest.approx(live[18:], rel=1e-5)


def test_training_comes_back_to_the_first_view(data, stored):
    job = ClassificationJob(student(data, stored))
    task = job.task(Processes(0, 1, torch.device("cpu")), None)
    first, again = task.data[0, 7], task.data[3, 7]
    assert torch.equal(first.image, again.image) and torch.equal(first.teacher_logits, again.teacher_logits)
    assert not torch.equal(first.image, task.data[1, 7].image)


def test_half_precision_is_half_the_size(data, teacher, stored, tmp_path):
    store(student(data, teacher), tmp_path / "half", dtype="float16")
    half, full = (np.load(folder / "answers.npy") for folder in (tmp_path / "half", stored))
    assert half.nbytes * 2 == full.nbytes and half.dtype == np.float16
    np.testing.assert_allclose(half, full, rtol=2e-3, atol=1e-3)


def test_the_likeliest_classes_keep_their_probabilities(data, teacher, stored, tmp_path):
    """The others share what is left; the choice is the teacher's, and a student trains on it."""
    settings = student(data, teacher)
    folder = tmp_path / "top"
    store(settings, folder, top=1)
    some, all_of_them = StoredLogits(folder), StoredLogits(stored)
    for place in ((0, 0), (1, 5), (2, 35)):
        ours, full = some[place].double().softmax(0), all_of_them[place].double().softmax(0)
        best = int(full.argmax())
        expected = [full[c].item() if c == best else (1 - full[best].item()) / 2 for c in range(3)]
        assert ours.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    run = regard.train(NAME, data, epochs=1, teacher=folder, output=tmp_path / "s", overrides=STUDENT, quiet=True)
    assert len(losses(run)) == 6
    with refused(ConfigError, "top=3", code="C03"):
        store(settings, tmp_path / "c", views=1, top=3)
    with refused(ConfigError, "top", folder, code="C11"):
        store(settings, folder)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_storing_goes_on_where_it_was_stopped(data, teacher, stored, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("regard.distillation.stored_logits.FLUSH_EVERY", 2)
    settings, folder = student(data, teacher), tmp_path / "b"
    shares = cache_logits(settings, folder, OPTIONS)
    for _ in range(stop_after):
        next(shares)
    shares.close()
    about = json.loads((folder / "answers.json").read_text())
    assert about["done"] == {1: 0, 3: 20}[stop_after]
    with refused(CheckpointError, f"{about['done']} of 108", code="K02"):
        StoredLogits(folder)
    store(settings, folder)
    assert digest(folder) == digest(stored)


@pytest.mark.parametrize(
    "word",
    ["seed=3", "magnitude=5", "augmentation=shift", "model.image_size=40"],
)
def test_other_settings_have_other_logits(data, teacher, stored, word):
    with refused(ConfigError, word.split("=")[0].removeprefix("model."), code="C07"):
        ClassificationJob(student(data, stored, word))
    before = digest(stored)
    with pytest.raises(ConfigError) as caught:
        store(student(data, teacher, word), stored)
    assert caught.value.code == "C11"
    assert digest(stored) == before


def test_a_teacher_that_was_trained_on_has_other_logits(data, teacher, stored, monkeypatch):
    """Under the same name: nothing is resumed, and nothing reported as done."""
    before = digest(stored)
    store(student(data, teacher), stored)
    monkeypatch.setattr("regard.distillation.teachers.Teacher.fingerprint", lambda self: "other weights")
    with refused(ConfigError, "teacher_weights", code="C11"):
        store(student(data, teacher), stored)
    assert digest(stored) == before


def test_other_data_have_other_logits(stored, tmp_path):
    other = write_colors(tmp_path / "other", train=11)
    with refused(ConfigError, "data ", code="C07"):
        ClassificationJob(student(other, stored))


def test_mixed_images_have_no_stored_logits(data, stored):
    with refused(ConfigError, "mixup=0 cutmix=0", code="C09"):
        ClassificationJob(student(data, stored, "mixup=0.8"))


def test_on_the_command_line(capsys, data, teacher, stored, tmp_path):
    words = ["distill", "cache", NAME, "--data", data, "--teacher", teacher, "--views", "3", "--dtype", "float32"]
    command(capsys, *words, "--output", tmp_path / "c", *STUDENT).worked()
    # Batches of another size sum in another order.
    found, expected = (np.load(folder / "answers.npy") for folder in (tmp_path / "c", stored))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    command(capsys, *words, "--output", tmp_path / "full", *STUDENT).refused(2, "C11", "not empty")
    words[8] = "0"
    command(capsys, *words, "--output", tmp_path / "d", *STUDENT).refused(2, "C03", "views=0")
    command(capsys, "distill", "cache", "detr_tiny", "--data", data, "--teacher", teacher, "--output", "x").refused(
        2, "C01", "teacher"
    )


def test_a_damaged_folder(stored, data, teacher, tmp_path):
    settings = student(data, stored)
    for text in ("{", "{}", json.dumps({"views": 3, "images": 36, "done": 108})):
        (tmp_path / "answers.json").write_text(text)
        with pytest.raises(CheckpointError) as caught:
            ClassificationJob(replace(settings, teacher=str(tmp_path)))
        assert caught.value.code == "K02"
    whole, about = (stored / "answers.npy").read_bytes(), json.loads((stored / "answers.json").read_text())
    other = io.BytesIO()
    np.save(other, np.zeros((3, 35, 3), np.float32))
    for content in (None, b"", whole[:-1], other.getvalue()):
        folder = tmp_path / "a"
        folder.mkdir(exist_ok=True)
        (folder / "answers.npy").unlink(missing_ok=True)
        if content is not None:
            (folder / "answers.npy").write_bytes(content)
        for done in (108, 20):  # to train on, and to resume
            (folder / "answers.json").write_text(json.dumps({**about, "done": done}))
            with pytest.raises(CheckpointError) as caught:
                if done == 108:
                    ClassificationJob(replace(settings, teacher=str(folder)))
                store(student(data, teacher), folder)
            assert caught.value.code == "K02" and "answers.npy" in caught.value.line
