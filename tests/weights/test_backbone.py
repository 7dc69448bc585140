"""The backbone of a detector starts from any classifier's file, of timm or torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import regard
from refusals import refused
from regard.errors import CheckpointError, ConfigError
from regard.models.backbone import create_backbone
from regard.models.configs.detr import DETRConfig
from regard.structures.image_batch import renormalized
from regard.weights.backbone import fit_backbone
from regard.weights.detr import load_backbone
from regard.weights.state_dict import read_weights


def randomized(net):
    """A network whose batch norms have statistics too, so that a tensor in a wrong place shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor)
                scale = key.endswith(("var", "weight")) and tensor.ndim == 1
                tensor.copy_(noise + 0.5 if scale else noise * 0.1 - 0.05)
    return net.eval()


def started(name: str, tensors, norm: str = "batch"):
    backbone = create_backbone(name, norm=norm)
    load_backbone(backbone, fit_backbone(DETRConfig(backbone=name, backbone_norm=norm), tensors, "x"), where="x")
    return backbone.eval()


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv3_small_050", "efficientnet_lite0", "convnext_atto", "regnetx_002", "dpn48b",
     "ghostnet_050", "legacy_xception"],
)  # fmt: skip
def test_feature_maps_are_those_of_timm(tmp_path, name):
    """timm joins parts of names, wraps the network or leaves them; the file is that of the whole classifier."""
    timm = pytest.importorskip("timm")
    whole = randomized(timm.create_model(name))
    torch.save(whole.state_dict(), tmp_path / "mine.pth")
    file = {"file": str(tmp_path / "mine.pth")}
    theirs = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=file).eval()
    pixels, config = torch.randn(1, 3, 96, 64), theirs.pretrained_cfg
    with torch.no_grad():
        expected = theirs(renormalized(pixels, config["mean"], config["std"]))
        for norm in ("frozen", "batch"):
            maps = started(f"timm/{name}", whole.state_dict(), norm)(pixels)
            assert len(maps) == len(expected) and maps[-1].std() > 0
            for found, wanted in zip(maps, expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resnet18():
    return randomized(torchvision.models.resnet18(num_classes=5))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_prefixes_and_forms(resnet18, tmp_path, prefix, form):
    whole = resnet18
    tensors = {f"{prefix}{key}": tensor.clone() for key, tensor in whole.state_dict().items()}
    path = tmp_path / f"resnet18.{form}"
    save_file(tensors, path) if form == "safetensors" else torch.save({"state_dict": tensors}, path)
    backbone = started("resnet18", read_weights(path).tensors)
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = whole.maxpool(whole.relu(whole.bn1(whole.conv1(pixels))))
        x = whole.layer4(whole.layer3(whole.layer2(whole.layer1(x))))
        torch.testing.assert_close(backbone(pixels)[-1], x)


def test_other_networks_of_torchvision():
    whole = randomized(torchvision.models.mobilenet_v3_small(num_classes=3))
    backbone = started("mobilenet_v3_small", whole.state_dict())
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(backbone(pixels)[-1], whole.features(pixels))


def test_files_that_do_not_fit():
    tensors = dict(torchvision.models.resnet18().state_dict())
    with refused(CheckpointError, "mine.pth", "resnet50", "missing", "conv3", code="K07"):
        fit_backbone(DETRConfig(backbone="resnet50"), tensors, "mine.pth")
    with refused(CheckpointError, "not in the backbone", "extra.weight", code="K07"):
        fit_backbone(DETRConfig(backbone="resnet18"), {**tensors, "extra.weight": torch.ones(2)}, "mine.pth")
    with refused(CheckpointError, "of another shape", "conv1.weight", code="K07"):
        fit_backbone(DETRConfig(backbone="resnet18"), {**tensors, "conv1.weight": torch.ones(64, 1, 7, 7)}, "mine.pth")
    del tensors["layer4.1.bn2.bias"]
    with refused(CheckpointError, "1 missing (layer4.1.bn2.bias)", code="K07"):
        fit_backbone(DETRConfig(backbone="resnet18"), tensors, "mine.pth")
    with refused(ConfigError, "resnet81"):
        fit_backbone(DETRConfig(backbone="resnet81"), tensors, "mine.pth")


@pytest.mark.usefixtures("blank_charts")
@pytest.mark.parametrize(("backbone", "form"), [("resnet18", "pth"), ("timm/resnet10t", "safetensors")])
def test_a_detector_starts_from_a_file(tmp_path, backbone, form):
    if backbone.startswith("timm/"):
        whole = pytest.importorskip("timm").create_model(backbone.removeprefix("timm/"), num_classes=7)
    else:
        whole = torchvision.models.get_model(backbone, num_classes=7)
    path = tmp_path / f"mine.{form}"
    save_file(whole.state_dict(), path) if form == "safetensors" else torch.save(whole.state_dict(), path)
    words = (
        "workers=0", "device=cpu", f"model.backbone={backbone}", "model.backbone_norm=frozen", "lr=1e-9",
        "lr_backbone=0", f"start_from={path}", "ema=0",
    )  # fmt: skip
    run = regard.train(
        "detr_tiny", "shapes:train=4,val=2,size=32", epochs=1, output=tmp_path / "run", overrides=words, quiet=True
    )
    state = whole.state_dict()
    for key, tensor in run.load().backbone.body.state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=1e-6)
