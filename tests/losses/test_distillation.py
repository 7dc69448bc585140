"""The loss of a student against the authors' numbers, a hand calculation and the formula."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from refusals import refused
from regard.errors import ConfigError
from regard.losses import DistillationLoss
from regard.models import DistilledLogits

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "distillation_losses.json").read_text())


def drawn(seed, batch, classes):
    """Class head, distillation head, teacher, labels: as the golden file was made."""
    generator = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(batch, classes, generator=generator) for _ in range(3)]
    return logits, torch.randint(0, classes, (batch,), generator=generator)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['kind']}-{case['seed']}")
def test_the_authors_numbers(case):
    (first, second, teacher), labels = drawn(case["seed"], case["batch"], case["classes"])
    if case["soft_labels"]:
        one_hot = F.one_hot(labels, case["classes"]).float()
        labels = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    student = DistilledLogits(first.requires_grad_(), second.requires_grad_())
    loss = DistillationLoss(case["kind"], case["alpha"], case["tau"])(student, teacher, labels)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert first.grad.norm().item() == pytest.approx(case["class_grad_norm"], rel=1e-5)
    assert second.grad.norm().item() == pytest.approx(case["distill_grad_norm"], rel=1e-5)


@pytest.mark.parametrize(("tau", "numel", "batchmean"), [(1.0, 0.0654060, 0.1308120), (3.0, 0.0741884, 0.1483767)])
def test_a_case_by_hand(tau, numel, batchmean):
    """Teacher 3 to 1, an undecided student."""
    student = DistilledLogits(torch.zeros(1, 2), torch.zeros(1, 2))
    teacher, labels = torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])
    for reduction, expected in (("numel", numel), ("batchmean", batchmean)):
        loss = DistillationLoss("soft", alpha=1.0, tau=tau, reduction=reduction)(student, teacher, labels)
        assert loss.item() == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("tau", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_the_formula(alpha, tau, batch, classes):
    (first, second, teacher), labels = drawn(7, batch, classes)
    first, second, teacher = first.double(), second.double(), teacher.double()
    student = DistilledLogits(first, second)
    rows = range(batch)
    truth = -sum(first[i].log_softmax(0)[labels[i]] for i in rows) / batch
    p = (teacher / tau).softmax(1)
    divergence = (p * (p.log() - (second / tau).log_softmax(1))).sum() * tau**2
    hard = -sum(second[i].log_softmax(0)[teacher[i].argmax()] for i in rows) / batch
    for kind, reduction, taught in (
        ("soft", "numel", divergence / (batch * classes)), ("soft", "batchmean", divergence / batch),
        ("hard", "numel", hard), ("none", "numel", truth),
    ):  # fmt: skip
        loss = DistillationLoss(kind, alpha, tau, reduction)(student, teacher, labels)
        expected = (1 - alpha) * truth + alpha * taught
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_only_labels_are_smoothed():
    (first, second, teacher), labels = drawn(1, 4, 5)
    student = DistilledLogits(first, second)
    loss = DistillationLoss("hard", label_smoothing=0.1)(student, teacher, labels)
    smooth = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    expected = -(smooth * first.log_softmax(1)).sum(1).mean() / 2 + F.cross_entropy(second, teacher.argmax(1)) / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss, DistillationLoss("hard")(student, teacher, smooth))


def test_the_teacher_learns_nothing_and_half_precision_is_raised():
    (first, second, teacher), labels = drawn(1, 4, 5)
    teacher = teacher.requires_grad_()
    student = DistilledLogits(first.bfloat16().requires_grad_(), second.bfloat16().requires_grad_())
    for kind in ("soft", "hard"):
        loss = DistillationLoss(kind)(student, teacher, labels)
        assert loss.dtype == torch.float32
        loss.backward()
    assert teacher.grad is None and student.class_logits.grad is not None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [({"kind": "softly"}, "C01"), ({"reduction": "mean"}, "C01"), ({"alpha": 1.1}, "C03"), ({"tau": 0.0}, "C03")],
)
def test_wrong_settings(arguments, code):
    with pytest.raises(ConfigError) as caught:
        DistillationLoss(**arguments)
    assert caught.value.code == code


def test_a_teacher_of_other_classes():
    (first, second, _), labels = drawn(1, 4, 5)
    with refused(ConfigError, "(4, 1000)", "(4, 5)", "teacher", code="C07"):
        DistillationLoss("hard")(DistilledLogits(first, second), torch.zeros(4, 1000), labels)


def test_a_forgotten_teacher_is_no_plain_training():
    (first, second, _), labels = drawn(1, 4, 5)
    student = DistilledLogits(first, second)
    for kind in ("soft", "hard"):
        with refused(ConfigError, kind, "teacher", code="C09"):
            DistillationLoss(kind)(student, None, labels)
    torch.testing.assert_close(DistillationLoss("none")(student, None, labels), F.cross_entropy(first, labels))


def test_classes_that_a_teacher_excludes_do_not_count():
    """A logit of minus infinity: as one so low that its probability is 0."""
    (first, second, teacher), labels = drawn(0, 4, 5)
    low = teacher.clone()
    teacher[:, 2], low[:, 2] = -torch.inf, -1e4
    loss = DistillationLoss("soft", tau=2.0)
    second.requires_grad_()
    found = loss(DistilledLogits(first, second), teacher, labels)
    found.backward()
    torch.testing.assert_close(found, loss(DistilledLogits(first, second), low, labels))
    assert second.grad.isfinite().all()
