"""Files of torchvision's RetinaNet: today's names and those of its first versions, plain and fine-tuned."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.ops.misc import FrozenBatchNorm2d

import regard
from refusals import refused
from regard.errors import CheckpointError
from regard.models.backbone import freeze_batch_norm
from regard.models.build import create
from regard.models.retinanet import RetinaNet
from regard.weights.backbone import classifier_file

RELEASED = "retinanet_resnet50_fpn_coco-eeacb38b.pth"


@pytest.fixture(scope="module")
def theirs():
    """torchvision's model with statistics of batch norm, some of which are small beside its epsilon."""
    torch.manual_seed(0)
    net = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(1e-4, 1)
    return freeze_batch_norm(net).eval()


@pytest.fixture
def image():
    return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))


def logits_of(theirs, image):
    with torch.no_grad():
        return theirs.head(list(theirs.backbone(image[None]).values()))["cls_logits"]


def old_name(name: str) -> str:
    """As in versions before 0.14: `head.regression_head.conv.2.weight` for what is now `conv.1.0.weight`."""
    prefix, conv, rest = name.partition("_head.conv.")
    if not conv:
        return name
    number, _, part = rest.split(".")
    return f"{prefix}{conv}{2 * int(number)}.{part}"


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torchvision(theirs, image, tmp_path, old):
    tensors = {old_name(name) if old else name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save(tensors, tmp_path / "mine.pth")
    net = regard.load(tmp_path / "mine.pth")
    assert isinstance(net, RetinaNet) and not net.training
    assert (net.card.name, net.config.backbone_norm, len(net.card.categories)) == ("retinanet_resnet50", "frozen", 91)
    assert net.card.categories[18].name == "dog"
    with torch.no_grad():
        torch.testing.assert_close(net([image]).logits, logits_of(theirs, image), atol=1e-5, rtol=1e-5)


def test_the_released_file_knows_no_epsilon(theirs, image, tmp_path):
    """torchvision's builder sets the epsilon of every batch norm to 0 once it has loaded this file."""
    torch.save(theirs.state_dict(), tmp_path / RELEASED)
    net = regard.load(tmp_path / RELEASED)
    norms = [module for module in theirs.modules() if isinstance(module, FrozenBatchNorm2d)]
    with_epsilon = logits_of(theirs, image)
    for norm in norms:
        norm.eps = 0.0
    expected = logits_of(theirs, image)
    for norm in norms:
        norm.eps = 1e-5
    with torch.no_grad():
        found = net([image]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - with_epsilon).abs().max() > 10 * (found - expected).abs().max()


def test_a_state_dict_of_ours(tmp_path, image):
    torch.manual_seed(0)
    net = create("retinanet_aa_tiny", num_classes=4).eval()
    torch.save(net.state_dict(), tmp_path / "ours.pth")
    again = regard.load(tmp_path / "ours.pth", model="retinanet_aa_tiny")
    assert again.config == net.config
    with torch.no_grad():
        assert torch.equal(again([image]).logits, net([image]).logits)
    with refused(CheckpointError, "ours.pth", code="K07"):
        regard.load(tmp_path / "ours.pth")  # tensors do not tell what the settings were
    with refused(CheckpointError, "ours.pth", code="K07"):
        regard.load(tmp_path / "ours.pth", model="retinanet_resnet50")


def test_a_file_of_another_model(theirs, tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "classifier.pth")
    with refused(CheckpointError, "classifier.pth", code="K07"):
        regard.load(tmp_path / "classifier.pth", model="retinanet_resnet50")
    assert classifier_file(str(tmp_path / "classifier.pth")) == tmp_path / "classifier.pth"
    torch.save(theirs.state_dict(), tmp_path / "detector.pth")
    assert classifier_file(str(tmp_path / "detector.pth")) is None
    with refused(CheckpointError, "detector.pth", code="K07"):
        regard.load(tmp_path / "detector.pth", model="detr_resnet50")
