"""Backbones: the maps are torchvision's and timm's, frozen means frozen, and wrong names are answered."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from detr_cases import SMALL, reference_image
from refusals import refused
from regard.errors import ConfigError, MachineError
from regard.models.backbone import create_backbone
from regard.models.build import create
from regard.models.catalog import preset
from regard.models.detr import DETR
from regard.models.frozen_norm import FrozenBatchNorm
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD
from regard.weights.detr import imagenet_weights, load_backbone

OTHERS = ("mobilenet_v3_small", "convnext_tiny", "regnet_y_400mf", "mnasnet0_5")
TIMM = ("timm/mobilenetv3_small_050", "timm/resnet10t")


def classifier(name: str) -> nn.Module:
    """The whole classifier with random weights and statistics of batch norm."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        timm = pytest.importorskip("timm")
        net = timm.create_model(name.removeprefix("timm/"), features_only=True)
    else:
        net = torchvision.models.get_model(name, weights=None)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    return net.eval()


class TestResNets:
    @pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
    @torch.no_grad()
    def test_maps_are_torchvisions(self, name: str, dilation: bool) -> None:
        torch.manual_seed(0)
        whole = torchvision.models.get_model(
            name, weights=None, replace_stride_with_dilation=[False, False, dilation]
        ).eval()
        backbone = create_backbone(name, dilation=dilation).eval()
        load_backbone(backbone, whole.state_dict(), where=name)
        pixels = reference_image(1, 96, 64)[None]
        maps = backbone(pixels)
        stem = whole.maxpool(whole.relu(whole.bn1(whole.conv1(pixels))))
        for found, stage in zip(maps, (whole.layer1, whole.layer2, whole.layer3, whole.layer4), strict=True):
            stem = stage(stem)
            torch.testing.assert_close(found, stem, atol=1e-4, rtol=1e-4)
        last = 16 if dilation else 32
        assert [96 // m.shape[2] for m in maps] == [4, 8, 16, last] and [64 // m.shape[3] for m in maps][3] == last
        assert maps[-1].shape[1] == backbone.num_channels == (512 if name == "resnet18" else 2048)

    def test_frozen_stem_and_norms(self) -> None:
        backbone = create_backbone("resnet18").train()
        frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
        assert frozen == {n for n, _ in backbone.named_parameters() if ".conv1." in n[:11] or ".layer1." in n}
        assert not [name for name, _ in backbone.named_parameters() if ".bn" in name]
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        backbone(torch.randn(2, 3, 64, 64))
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    def test_batch_norm_is_trained_on_request(self) -> None:
        backbone = create_backbone("resnet18", norm="batch").train()
        assert all(p.requires_grad for p in backbone.parameters())
        before = backbone.body.bn1.running_mean.clone()
        backbone(torch.randn(2, 3, 64, 64))
        assert not torch.equal(before, backbone.body.bn1.running_mean)


class TestClassifiers:
    @pytest.mark.parametrize("norm", ["frozen", "batch"])
    @pytest.mark.parametrize("name", ["aa_resnet18", "aa_resnet20", "aa_wide_resnet16_2", "aa_mnasnet0_75"])
    def test_maps_are_the_classifiers(self, name: str, norm: str) -> None:
        torch.manual_seed(0)
        whole = create(name).eval()
        backbone = create_backbone(name, norm=norm)
        load_backbone(backbone, whole.state_dict(), where=name)
        pixels = reference_image(1, 40, 56)[None]
        with torch.no_grad():
            maps, expected = backbone.eval()(pixels), whole.features(pixels)
        assert len(maps) == len(expected) and maps[-1].shape[1] == backbone.num_channels
        torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)
        assert not [n for n, _ in backbone.named_parameters() if n.startswith(("body.fc", "body.classifier"))]
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert bool(norms) == (norm == "batch")

    def test_a_detector_on_it(self) -> None:
        config = dataclasses.replace(SMALL, backbone="aa_resnet20", backbone_norm="batch")
        output = DETR(config)(reference_image(1, 40, 56)[None])
        output.boxes.sum().backward()
        assert output.boxes.shape == (1, SMALL.num_queries, 4)

    def test_no_weights_have_been_released(self) -> None:
        with refused(MachineError, "aa_resnet50", "start_from=RUN"):
            imagenet_weights("aa_resnet50")


class TestOthers:
    @pytest.mark.parametrize("name", [*OTHERS, *TIMM])
    @torch.no_grad()
    def test_weights_of_the_classifier_give_its_features_frozen_or_not(self, name: str) -> None:
        whole = classifier(name)
        pixels = reference_image(1, 64, 96)[None]
        backbones = [create_backbone(name, norm=norm) for norm in ("frozen", "batch")]
        for backbone in backbones:
            load_backbone(backbone, whole.state_dict(), where=name)
        frozen, trained = (backbone.eval()(pixels)[-1] for backbone in backbones)
        if name.startswith("timm/"):
            expected = whole(pixels)[-1]
        elif hasattr(whole, "trunk_output"):
            expected = whole.trunk_output(whole.stem(pixels))
        else:
            expected = (whole.features if hasattr(whole, "features") else whole.layers)(pixels)
        torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(frozen, expected, atol=1e-4, rtol=1e-3)
        assert frozen.shape[1] == backbones[0].num_channels
        assert not [m for m in backbones[0].modules() if isinstance(m, nn.BatchNorm2d)]

    @pytest.mark.parametrize("name", ["mobilenetv1_100", "resnet10t", "tf_efficientnet_lite0", "dpn68"])
    @torch.no_grad()
    def test_images_are_normalised_as_for_the_weights_of_timm(self, name: str) -> None:
        """By mean and deviation 0.5, ImageNet's, or others; images come with ImageNet's."""
        timm = pytest.importorskip("timm")
        whole = classifier(f"timm/{name}")
        backbone = create_backbone(f"timm/{name}").eval()
        load_backbone(backbone, whole.state_dict(), where=name)
        raw = torch.rand(2, 3, 64, 96)
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        ours, theirs = (
            (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
            for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), (config["mean"], config["std"]))
        )
        found, expected = backbone(ours)[-1], whole(theirs)[-1]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        assert (backbone.normalization is None) == (name == "resnet10t")

    @pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/mobilenetv3_small_050"])
    def test_detr_learns_on_them(self, name: str) -> None:
        if name.startswith("timm/"):
            pytest.importorskip("timm")
        net = DETR(dataclasses.replace(SMALL, backbone=name))
        output = net([reference_image(1, 64, 96), reference_image(2, 96, 64)])
        assert output.logits.shape == (2, 5, 5)
        output.logits.square().sum().backward()
        assert all(p.grad is not None for p in net.backbone.parameters() if p.requires_grad)

    @torch.no_grad()
    def test_small(self) -> None:
        backbone = create_backbone("small").eval()
        *finer, only = backbone(torch.randn(2, 3, 40, 64))
        assert [tuple(m.shape[1:]) for m in finer] == [(24, 20, 32), (48, 10, 16)]
        assert only.shape == (2, backbone.num_channels, 5, 8)
        assert all(p.requires_grad for p in backbone.parameters())
        assert [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]  # whatever `norm` says
        assert preset("detr_tiny").backbone_norm == "batch"


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "names"),
        [
            ("resnet51", ("'resnet51'", "'resnet50'")),
            ("swin_t", ("swin_t", "resnet50")),
            ("googlenet", ("googlenet", "resnet50")),
            ("timm/resnet51q_not", ("'resnet51q_not'", "timm.list_models()")),
            ("timm/swin_tiny_patch4_window7_224", ("channels last", "resnet50")),
            ("timm/vit_tiny_patch16_224", ("one size", "resnet50")),
        ],
    )
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_names(self, name: str, names: tuple[str, ...]) -> None:
        if name.startswith("timm/"):
            pytest.importorskip("timm")
        with refused(ConfigError, *names):
            create_backbone(name)

    def test_models_of_timm_without_maps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create_model(*_: object, **__: object) -> nn.Module:
            raise RuntimeError("features_only not implemented")

        monkeypatch.setattr(pytest.importorskip("timm"), "create_model", create_model)
        with refused(ConfigError, "timm/resnet18"):
            create_backbone("timm/resnet18")

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
    def test_dilation_needs_bottlenecks(self, name: str) -> None:
        with refused(ConfigError, name, "resnet50", "dilation=false"):
            create_backbone(name, dilation=True)

    def test_without_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with refused(MachineError, "timm/resnet18", "pip install timm"):
            create_backbone("timm/resnet18")


def test_frozen_norms_keep_half_precision():
    """torchvision's returns float32 for half precision, and all that follows is computed in float32."""
    ours, theirs = FrozenBatchNorm(6), FrozenBatchNorm2d(6)
    values = {"weight": torch.rand(6) + 0.5, "bias": torch.randn(6), "running_mean": torch.randn(6)}
    for norm in (ours, theirs):
        norm.load_state_dict({**values, "running_var": torch.linspace(0.01, 9, 6)})
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(ours(x), theirs(x))
    for dtype, off in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        half = x.to(dtype).requires_grad_()
        found, wanted = ours(half), theirs(half)
        assert found.dtype == dtype and wanted.dtype == torch.float32
        torch.testing.assert_close(found.float(), wanted, rtol=off, atol=1e-6)  # rounded once
        (gradient,) = torch.autograd.grad(found.float().sum(), half)
        (expected,) = torch.autograd.grad(wanted.sum(), half)
        torch.testing.assert_close(gradient, expected, rtol=2 * off, atol=1e-6)
