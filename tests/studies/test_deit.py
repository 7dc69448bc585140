"""Studies of DeiT: teachers of one's own choice, and measures of first choices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regard
from charts import without_charts
from command_line import run
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.transforms.classification import Evaluation
from regard.errors import RegardError
from regard.evaluation import evaluate
from regard.models.catalog import preset
from regard.recipes import recipe_for
from regard.structures.image_batch import ImageBatch
from regard.studies.deit import distillation_by
from regard.studies.measures import choices, token_similarity
from regard.studies.plan import plan_runs
from regard.studies.study import Scale


def plan(*of):
    study, settings = distillation_by(*of)
    return plan_runs(study, Scale(data="digits", epochs=4), 1, str, None, False), settings


def test_a_released_teacher_learns_the_classes_first():
    found, settings = plan("efficientnet_lite0", None, "digits")
    size = preset("efficientnet_lite0").image_size
    assert settings == {"teacher": "efficientnet_lite0", "size": size}
    teacher, *students = found.trainings[:3]
    assert {"start_from=efficientnet_lite0", f"model.image_size={size}", "finetune"} <= set(teacher.words)
    assert recipe_for("efficientnet_lite0", "finetune").model.image_size == size
    assert all({f"model.image_size={size}", "model.patch_size=16"} <= set(one.words) for one in students)
    taught = next(one for one in found.trainings if one.row == "hard")
    assert taught.before == (teacher.name,) and f"teacher=run:{teacher.name}" in taught.words


def test_other_teachers(tmp_path):
    found, settings = plan(None, 24, None)
    assert settings == {"teacher": "resnet20", "size": 24} and "model.patch_size=4" in found.trainings[1].words
    (tmp_path / "run").mkdir()
    found, _ = plan(str(tmp_path / "run"), None, "digits")
    assert not any("teacher:" in row for row in found.keys) and len(found.keys) == 7
    taught = next(one for one in found.trainings if one.row == "soft")
    assert f"teacher={tmp_path / 'run'}" in taught.words and not taught.before
    assert plan("timm/resnet18", 64, "digits")[0].keys
    refused(RegardError, lambda: distillation_by("detr_tiny", None, None), "C07", "detr_tiny")
    refused(RegardError, lambda: distillation_by("efficientnet_lite1", None, None), "K01", "efficientnet_lite0")


def test_a_study_keeps_its_teacher(capsys, training, monkeypatch):
    """Another teacher in the same folder would be another table."""
    monkeypatch.setattr("regard.studies.table._measured", lambda *_: {"class_top1": 0.5, "distillation_top1": 0.25})
    words = ["study", "distillation", "--epochs", "1", "--seeds", "1", "--teacher"]
    told = run(capsys, *words, "aa_resnet20").worked()
    assert "teacher: aa_resnet20" in told.replace("\n", " ")
    run(capsys, *words, "resnet32").refused(2, "C11", "teacher=aa_resnet20")
    run(capsys, *words[:-1]).refused(2, "C11", "teacher=aa_resnet20")
    assert json.loads(Path("runs/studies/distillation/study.json").read_text())["size"] == 32


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A distilled student of one epoch, and its teacher."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"train_images": 20, "workers": 0}
    with without_charts():
        teacher = regard.train(
            "resnet20", "digits", epochs=1, output=folder / "teacher", overrides=small, quiet=True
        ).folder
        student = regard.train(
            "deit_nano_distilled_patch4_32", "digits", epochs=1, output=folder / "student", teacher=teacher,
            overrides=small, quiet=True,
        ).folder  # fmt: skip
    return student, teacher


def test_choices_agree_with_evaluations(pair):
    student, teacher = pair
    found = choices(student, "digits", teacher)
    assert found["error"] == pytest.approx(1 - evaluate(student, "digits", workers=0, quiet=True).stats["top1"])
    for head in ("class", "distillation"):
        top1, differs = found[f"{head}_top1"], found[f"{head}_differ"]
        right = json.loads((teacher / "metrics.json").read_text())["stats"]["top1"]
        # A difference from the teacher is at least that of the numbers of right answers.
        assert 0 <= top1 <= 1 and abs(top1 - right) <= differs + 1e-9
    assert found["heads_differ"] <= found["class_differ"] + found["distillation_differ"] + 1e-9
    assert choices(teacher, "digits", teacher) == {"error": pytest.approx(1 - right), "differ": 0.0}


def test_similarity_of_tokens(pair):
    """By the layers themselves, image by image; of a network whose tokens are the same, 1."""
    student, teacher = pair
    found = token_similarity(student, "digits", None)
    net, dataset = regard.load(student), open_classification("digits", "val")
    evaluation = Evaluation.of(net.card)
    with torch.no_grad():
        images = torch.stack([evaluation(dataset[index]).image for index in range(len(dataset))])
        last = net.norm(net.tokens(ImageBatch.from_images(list(images)).normalized().pixels)[-1])
        cosines = [torch.dot(a, b) / a.norm() / b.norm() for a, b in last[:, :2].double()]
        one, two = net.cls_token.flatten().double(), net.dist_token.flatten().double()
    assert found["last"] == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-5)
    assert found["learned"] == pytest.approx((torch.dot(one, two) / one.norm() / two.norm()).item())
    refused(RegardError, lambda: token_similarity(teacher, "digits", None), "C09", "distillation token")


def test_measures_import_nothing_before_they_are_called():
    code = "import sys, regard.studies.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
