"""EfficientNet-Lite0 against timm's network with the same tensors."""

import pytest
import torch

import regard
from regard.models.backbone import create_backbone
from regard.models.configs.efficientnet import EfficientNetConfig
from regard.models.efficientnet import EfficientNet
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

timm = pytest.importorskip("timm")


def normalised(pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


@pytest.fixture(scope="module")
def net():
    """Random weights, and statistics of batch norm that are not those of a new network."""
    torch.manual_seed(0)
    model = EfficientNet(EfficientNetConfig(num_classes=7))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (65, 97), (33, 40)])
def test_logits_are_those_of_timm(net, size):
    """Even and odd sizes: TensorFlow's padding depends on them."""
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    theirs.load_state_dict(net.state_dict())
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(normalised(pixels)), theirs(2 * pixels - 1), atol=1e-5, rtol=1e-5)


def test_maps_are_those_of_timm(net):
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict({k: v for k, v in net.state_dict().items() if k in theirs.state_dict()})
    pixels = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = net.features(normalised(pixels))
        for mine, other in zip(maps, theirs(2 * pixels - 1), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert [(m.shape[1], 96 // m.shape[2]) for m in maps] == [(24, 4), (40, 8), (112, 16), (320, 32)]


def test_a_frozen_backbone_trains_its_coarse_stages_alone():
    backbone = create_backbone("efficientnet_lite0")
    trained = {name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"3", "4", "5", "6"} and not [
        m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)
    ]
    assert not any("conv_head" in name or "classifier" in name for name, _ in backbone.named_parameters())
    assert all(p.requires_grad for p in create_backbone("efficientnet_lite0", norm="batch").parameters())


def test_a_detector_takes_it_as_its_backbone():
    net = regard.create("detr_lite", num_classes=3).eval()
    with torch.no_grad():
        output = net([torch.zeros(3, 65, 96), torch.zeros(3, 64, 50)])
    assert output.logits.shape == (2, 40, 3) and output.proposals is None
