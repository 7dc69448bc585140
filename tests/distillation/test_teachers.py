"""Teachers: what they see, in which order they answer, and that they do not learn; students of them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import nn

import regard
from charts import without_charts
from color_data import COLORS, write_colors
from command_line import run as command
from refusals import refused
from regard.data.class_images.imagenet import wordnet_ids
from regard.distillation.teachers import RELEASED, Teacher, load_teacher
from regard.errors import CheckpointError, ConfigError, MachineError
from regard.models.build import build
from regard.models.catalog import preset
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.weights.classifiers import imagenet_categories

pytestmark = pytest.mark.usefixtures("blank_charts")

SMALL = ("workers=0", "batch_size=6", "evaluate_every=1", "device=cpu", "augmentation=cifar")
STUDENT = (*SMALL, "model.embed_dim=24", "model.depth=2", "model.patch_size=8", "lr=0.01")
TEACHER = (*SMALL, "model.layers=[1,1,1]", "model.widths=[8,8,8]", "lr=0.02")


class Means(nn.Module):
    """Logits are the mean of each channel of what it is given; dropout and batch norm show the mode."""

    def __init__(self, categories=None, side=32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.drop = nn.Dropout(0.5)
        self.seen = []
        self.card = ModelCard("means", categories or (), side, side)

    def forward(self, pixels):
        self.seen.append(pixels)
        return self.drop(self.norm(self.weight * pixels.mean(dim=(2, 3))))


def test_it_stays_in_evaluation_and_learns_nothing():
    teacher = Teacher(Means())
    before = teacher.model.norm.running_mean.clone()
    teacher.model.train()  # as a parent's train() would
    pixels = torch.randn(4, 3, 8, 8, requires_grad=True)
    first, second = teacher(pixels), teacher(pixels)
    assert torch.equal(first, second) and not first.requires_grad and first.dtype == torch.float32
    assert torch.equal(teacher.model.norm.running_mean, before)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_it_sees_its_own_normalisation_and_size():
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.1)
    teacher = Teacher(Means(), 16, mean, std)
    colors = torch.rand(2, 3, 1, 1).expand(2, 3, 8, 8)
    ours = torchvision.transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)(colors)
    teacher(ours)
    (seen,) = teacher.model.seen
    assert seen.shape == (2, 3, 16, 16)
    expected = torchvision.transforms.Normalize(mean, std)(colors[:, :, :1, :1]).expand(2, 3, 16, 16)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    same = Teacher(Means())
    same(ours)
    assert same.model.seen[0] is ours


def test_it_answers_in_the_students_order(tmp_path, monkeypatch):
    names = ("red", "blue", "green")
    net = Means(tuple(Category(i, name) for i, name in enumerate(names)))
    monkeypatch.setattr("regard.distillation.teachers.load", lambda _: net)
    wanted = tuple(Category(i, name) for i, name in enumerate(("blue", "green", "red")))
    pixels = torch.randn(2, 3, 32, 32)
    plain = Teacher(net)(pixels)
    torch.testing.assert_close(load_teacher("mine", wanted, 32)(pixels), plain[:, [1, 2, 0]])
    assert load_teacher("mine", net.card.categories, 32).order is None
    with refused(ConfigError, "'pink'", code="C07"):
        load_teacher("mine", (*wanted[:2], Category(2, "pink")), 32)
    with refused(ConfigError, "3 classes", "have 2", "regard train", code="C07"):
        load_teacher("mine", wanted[:2], 32)
    assert load_teacher("mine", wanted, 64).size == 32 and load_teacher("mine", wanted, 32).size == 0


def test_it_knows_imagenet_by_all_its_names(monkeypatch):
    """Folders of WordNet ids, models of words."""
    net = Means(imagenet_categories()[:3])
    monkeypatch.setattr("regard.distillation.teachers.load", lambda _: net)
    ids = wordnet_ids()
    folders = [Category(i, ids[number]) for i, number in enumerate((2, 0, 1))]
    assert load_teacher("mine", folders, 32).order == [2, 0, 1]
    with refused(ConfigError, f"'{ids[7]}'", code="C07"):
        load_teacher("mine", [*folders[:2], Category(2, ids[7])], 32)


def test_models_of_others(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    ten = [Category(i, str(i)) for i in range(1000)]
    teacher = load_teacher("timm/vit_tiny_patch16_224", ten, 96)
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.5,) * 3)  # not ImageNet's
    assert teacher.size == 224 and teacher.order is None  # it takes no other
    with refused(ConfigError, "1000 classes", code="C07"):
        load_teacher("timm/resnet10t", ten[:10], 32)
    with refused(ConfigError, "timm", "'resnet9000'", code="C01"):
        load_teacher("timm/resnet9000", ten, 32)
    for name in ("resnet9000", "fasterrcnn_resnet50_fpn"):
        with refused(ConfigError, "torchvision", f"'{name}'", code="C01"):
            load_teacher(f"torchvision/{name}", ten, 32)


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("resnet18", 0, 0.485), ("vit_b_16", 224, 0.485), ("maxvit_t", 224, 0.485), ("googlenet", 0, 0.5)],
)
def test_models_of_torchvision_see_what_they_were_trained_on(monkeypatch, name, size, mean):
    """Their normalisation and, where they take no other, their size; answers in the order of the folders."""
    monkeypatch.setattr("regard.distillation.teachers.download", lambda *_, **__: None)
    monkeypatch.setattr("regard.distillation.teachers.read_weights", lambda _: SimpleNamespace(tensors=None))
    monkeypatch.setattr("regard.distillation.teachers.load_exactly", lambda *_, **__: None)
    ids = wordnet_ids()
    teacher = load_teacher(f"torchvision/{name}", [Category(i, ids[-1 - i]) for i in range(1000)], 128)
    assert teacher.size == size and teacher.order == list(range(999, -1, -1))
    assert (teacher.mean[0], teacher.std[0]) == (mean, 0.5 if mean == 0.5 else IMAGENET_STD[0])
    seen = []
    teacher.model = torch.nn.Module()
    teacher.model.forward = lambda pixels: seen.append(pixels) or torch.zeros(1, 1000)
    teacher(torch.zeros(1, 3, 4, 4))  # ImageNet's mean
    assert seen[0][0, 0, 0, 0].item() == pytest.approx((IMAGENET_MEAN[0] - mean) / teacher.std[0], abs=1e-6)


def test_released_weights_that_cannot_be_had(monkeypatch, tmp_path):
    pytest.importorskip("timm")
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    for name in ("regnety_160", "torchvision/resnet18"):
        with pytest.raises(MachineError) as caught:
            load_teacher(name, [], 224)
        assert ".pth" in caught.value.line
    assert RELEASED["regnety_160"].endswith("regnety_160-a5fe301d.pth")


# Students


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors", train=12)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "t"
    with without_charts():
        return regard.train("resnet20", data, epochs=4, output=folder, overrides=TEACHER, quiet=True).folder


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", ["deit_nano_distilled_patch4_32", "deit_nano_patch4_32"])
def test_a_student_learns_from_a_run(data, teacher, tmp_path, name, kind):
    """With and without a token for it. The teacher stays out of the checkpoint."""
    words = (*STUDENT, f"distillation={kind}", "reduction=batchmean")
    run = regard.train(name, data, epochs=6, teacher=teacher, output=tmp_path / "s", overrides=words, quiet=True)
    assert run.scores["top1"] > 0.6
    values = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert values["teacher"] == str(teacher) and values["distillation"] == kind
    tensors = read_checkpoint(newest_checkpoint(run.folder / "checkpoints")).tensors["model"]
    alone = build(replace(preset(name), depth=2, embed_dim=24, patch_size=8), name)
    assert set(tensors) == set(alone.state_dict())
    result = regard.predict(run.folder, data / "val" / "red" / "0.png")
    assert math.isclose(result.probabilities.sum().item(), 1, rel_tol=1e-5) and len(result.categories) == len(COLORS)


def test_going_on_has_the_teacher_again(data, teacher, tmp_path):
    words = (*STUDENT, "schedule=step", "milestones=1", "warmup_share=0")
    name = "deit_nano_distilled_patch4_32"
    first = regard.train(name, data, epochs=1, teacher=teacher, output=tmp_path / "a", overrides=words, quiet=True)
    regard.train(output=first.folder, resume=True, epochs=2, quiet=True)
    whole = regard.train(name, data, epochs=2, teacher=teacher, output=tmp_path / "b", overrides=words, quiet=True)
    mine, theirs = (read_checkpoint(newest_checkpoint(r.folder / "checkpoints")).tensors for r in (first, whole))
    assert all(torch.equal(mine["model"][key], theirs["model"][key]) for key in mine["model"])


def test_a_student_at_a_higher_resolution_keeps_its_teacher(data, teacher, tmp_path):
    """The authors' code does not do it."""
    name = "deit_nano_distilled_patch4_32"
    first = regard.train(name, data, epochs=2, teacher=teacher, output=tmp_path / "a", overrides=STUDENT, quiet=True)
    words = (*STUDENT, "model.image_size=48", f"start_from={first.folder}", "lr=1e-5", "decay=matrices")
    finer = regard.train(
        name, data, epochs=1, teacher=teacher, recipe="resolution", output=tmp_path / "b", overrides=words, quiet=True
    )
    before, after = regard.load(first.folder), regard.load(finer.folder)
    assert before.pos_embed.shape[1] == 2 + 16 and after.pos_embed.shape[1] == 2 + 36
    torch.testing.assert_close(after.head_dist.weight, before.head_dist.weight, rtol=0, atol=1e-3)
    assert not torch.equal(after.head_dist.weight, before.head_dist.weight)  # it learnt


def test_without_a_teacher_the_second_head_learns_the_labels(capsys, data, tmp_path):
    words = ["train", "deit_nano_distilled_patch4_32", "--data", data, "--output", tmp_path / "n", "epochs=6", *STUDENT]
    finished = command(capsys, *words)
    finished.worked()
    assert "warning: a distilled model without a teacher" in finished.err
    net = regard.load(tmp_path / "n")
    assert net.head_dist.bias.abs().max() > 0
    images = torch.stack([torch.full((3, 32, 32), -0.5)] * 3)
    for label, channel in ((0, 2), (1, 1), (2, 0)):  # blue, green, red
        images[label, channel] = 2.0
    both = net.train()(images)
    for logits in both:
        assert F.cross_entropy(logits, torch.arange(3)).item() < math.log(3)


def test_a_detector_has_no_teacher(capsys, teacher, tmp_path):
    words = ["train", "detr_tiny", "--data", "shapes", "--teacher", teacher, "--output", tmp_path / "d"]
    command(capsys, *words).refused(2, "C01", "teacher")


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "torchvision/densenet121", "timm/resnet18"])
def test_weights_of_ones_own_teach(name, tmp_path):
    """A file of a network with the classes of the data, whatever library it comes from."""
    library, _, model = name.rpartition("/")
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model(model, num_classes=3)
    else:
        theirs = torchvision.models.get_model(model, weights=None, num_classes=3)
    torch.save({"model": theirs.eval().state_dict()}, tmp_path / "mine.pth")
    names = [Category(i, name) for i, name in enumerate(("red", "blue", "green"))]
    teacher = load_teacher(f"{name}={tmp_path / 'mine.pth'}", names, 64)
    pixels = torch.randn(2, 3, 64, 64)
    seen = pixels if not teacher.size else F.interpolate(pixels, (teacher.size,) * 2, mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(teacher(pixels), theirs(seen), rtol=1e-4, atol=1e-4)
    with refused(ConfigError, "3 classes", "have 2", code="C07"):
        load_teacher(f"{name}={tmp_path / 'mine.pth'}", names[:2], 64)


def test_files_that_cannot_teach(tmp_path):
    torch.save({"conv.weight": torch.ones(3, 3)}, tmp_path / "no.pth")
    with refused(CheckpointError, tmp_path / "no.pth", "torchvision/resnet18", code="K07"):
        load_teacher(f"torchvision/resnet18={tmp_path / 'no.pth'}", [Category(0, "red")], 64)
    with pytest.raises(CheckpointError) as caught:  # nothing tells what it is
        load_teacher(str(tmp_path / "no.pth"), [Category(0, "red")], 64)
    assert "name its model: resnet18=" in caught.value.line


def test_offline_is_offline(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with refused(MachineError, "REGARD_OFFLINE"):
        load_teacher("timm/resnet18", [Category(0, "red")], 64)


def test_the_fingerprint_is_of_the_weights():
    net = Means((Category(0, "red"),))
    before = Teacher(net).fingerprint()
    assert Teacher(net).fingerprint() == before
    with torch.no_grad():
        net.weight.add_(1)
    assert Teacher(net).fingerprint() != before
