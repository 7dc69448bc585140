"""RetinaNet on our ResNets: torchvision's own model on the plain one, a trainable one on the augmented."""

import pytest
import torch
import torchvision

from refusals import refused
from regard.attention import AugmentedConv2d
from regard.errors import ConfigError
from regard.models.retinanet import KNOWN, retinanet


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)


def test_the_plain_one_is_torchvisions(theirs):
    """Its weights fit, and its detections and losses are the same."""
    ours = retinanet("resnet50", num_classes=5)
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(3, 40, 60), torch.rand(3, 50, 30)]
    for model in (ours, theirs):
        # Sizes for a test; torchvision's norm layers are frozen only where pretrained weights are named.
        model.transform.min_size, model.transform.max_size = (64,), 96
        model.score_thresh = 0.0
        model.eval()
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            assert len(mine["boxes"]) > 0
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("name", "augmented"), [("aa_resnet34", 13), ("aa_resnet50", 13)])
def test_the_augmented_one_learns(name, augmented):
    torch.manual_seed(0)
    model = retinanet(name, num_classes=3).train()
    model.transform.min_size, model.transform.max_size = (64,), 96
    layers = [layer for layer in model.modules() if isinstance(layer, AugmentedConv2d)]
    assert len(layers) == augmented and all(p.requires_grad for p in model.parameters())
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    # 640 pixels are 80 cells at stride 8, of which attention sees half; 40 and 20 after that.
    assert [len(layer.relative.width_table) for layer in layers] == [79] * 4 + [79] * 6 + [39] * 3
    losses = model([torch.rand(3, 64, 80)], [target])
    sum(losses.values()).backward()
    assert set(losses) == {"classification", "bbox_regression"}
    unused = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("backbone.body.fc")]
    assert not unused


def test_wrong_names():
    assert {"resnet50", "aa_resnet50", "aa_resnet101"} <= set(KNOWN) and "resnet20" not in KNOWN
    with refused(ConfigError, "'aa_resnet5'", "'aa_resnet50'", code="C01"):
        retinanet("aa_resnet5")
