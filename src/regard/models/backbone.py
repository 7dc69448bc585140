"""Backbones: images in, feature maps of several strides out. Any CNN of torchvision or timm by its name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from regard.attention import AugmentedConv2d, attention_channels
from regard.errors import ConfigError, MachineError, install_command
from regard.models.classifiers import HEADS, build_classifier
from regard.models.configs import CLASSIFIER_PRESETS, SMALL_BACKBONES
from regard.models.configs.resnet import ResNetConfig
from regard.models.efficientnet import EfficientNet
from regard.models.frozen_norm import FrozenBatchNorm, convolve, join_norms
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD, renormalized

_CNN = "use a CNN, such as resnet50"

# ResNets whose stages DETR and its mask head read one by one; their parameters keep torchvision's names.
RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip


def create_backbone(
    name: str, *, dilation: bool = False, norm: str = "frozen", image_size: int | None = None
) -> Backbone:
    """A backbone by name, with random weights: `backbone(pixels (B, 3, H, W)) -> list of (B, C_i, h_i, w_i)`.

    The list runs from fine to coarse; `backbone.num_channels` is C of the last map.

    Args:
        name: a torchvision ResNet or other CNN (`resnet50`, `convnext_tiny`, ...), one of our classifiers
            (`aa_resnet50`), `timm/NAME` for any timm model with feature maps (B, C, h, w) of images of any size (it
            sees them normalised as its released weights expect), `small` for ours for images of 32 to 256 pixels, or
            `aa_small` with attention in it.
        dilation: dilated last stage (the DC5 models of DETR): twice the resolution. Bottleneck ResNets only.
        norm: `frozen` keeps batch norm as loaded, in ResNets the stem and stage 1 too (models/backbone.py of the
            authors), and in EfficientNets all stages up to stride 8; `batch` trains all. `small` is always trained.
        image_size: longer side of the images for whose maps tables of relative positions are made; if None that of
            the classifier, and 64 pixels for `aa_small`. Other sizes work too.
    """
    if name in SMALL_BACKBONES:
        return SmallBackbone(augmented=name == "aa_small", image_size=image_size or 64)
    if dilation and name not in RESNETS[2:]:
        raise ConfigError(
            f"dilation needs a ResNet with bottleneck blocks, not {name}",
            where="backbone",
            remedy="use resnet50 or larger, or dilation=false",
        )
    if name in RESNETS:
        return ResNetBackbone(name, dilation=dilation, norm=norm)
    if name in CLASSIFIER_PRESETS:
        return ClassifierBackbone(name, norm=norm, image_size=image_size)
    return OtherBackbone(name, norm=norm)


# Ratios of key and value channels and heads of the attention in `aa_small`: those of the small ResNets for CIFAR.
SMALL_ATTENTION = (0.25, 0.25, 4)


class Backbone(nn.Module):
    """Base of all backbones.

    num_channels: of the last map.
    body: the network.
    normalization: mean and deviation of red, green and blue, 0..1, of the images that the network was trained on, if
        they are not ImageNet's. The backbone converts its images; checkpoints store the numbers.
    """

    num_channels: int
    body: Any
    normalization: tuple[Sequence[float], Sequence[float]] | None = None


class ResNetBackbone(Backbone):
    """torchvision's ResNet without its classifier. Gives the maps of stages 1 to 4, strides 4, 8, 16 and 32."""

    def __init__(self, name: str, *, dilation: bool, norm: str) -> None:
        super().__init__()
        resnet = torchvision.models.get_model(
            name,
            weights=None,
            norm_layer=FrozenBatchNorm if norm == "frozen" else nn.BatchNorm2d,
            replace_stride_with_dilation=[False, False, dilation],
        )
        self.num_channels = resnet.fc.in_features
        del resnet.fc, resnet.avgpool
        self.body = resnet
        if norm == "frozen":
            join_norms(resnet)
            for part in (resnet.conv1, resnet.layer1):
                part.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        body = self.body
        x = body.maxpool(body.relu(convolve(body.conv1, body.bn1, pixels)))
        maps = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class SmallBackbone(Backbone):
    """A small residual network for images of 32 to 256 pixels: maps of strides 2, 4 and 8, batch norm, all trained.

    Args:
        widths: channels of the three maps.
        augmented: whether attention augments the first convolution of both residual blocks, as in ResNets.
        image_size: side of the images for whose maps its tables of relative positions are made, in pixels.
    """

    def __init__(
        self, widths: tuple[int, int, int] = (24, 48, 96), *, augmented: bool = False, image_size: int = 64
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.num_channels = c
        sides = [-(-image_size // stride) if augmented else None for stride in (4, 8)]
        self.body = nn.Sequential(
            _conv(3, a, stride=2),
            _conv(a, b, stride=2),
            _Residual(b, sides[0]),
            _conv(b, c, stride=2),
            _Residual(c, sides[1]),
        ).to(memory_format=torch.channels_last)  # a quarter faster on CPU

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x, maps = pixels.contiguous(memory_format=torch.channels_last), []
        for part in self.body:
            x = part(x)
            maps.append(x)
        return [maps[0], maps[2], maps[4]]


class ClassifierBackbone(Backbone):
    """One of our classifiers without its last layer; gives the maps of its stages."""

    def __init__(self, name: str, *, norm: str, image_size: int | None = None) -> None:
        super().__init__()
        config = CLASSIFIER_PRESETS[name]
        # Only a ResNet makes tables for the maps of other images: those of others are made for their own size.
        if isinstance(config, ResNetConfig) and image_size is not None:
            config = replace(config, image_size=image_size)
        self.body = build_classifier(config)
        self.num_channels = self.body.num_channels
        for head in (*HEADS, *getattr(self.body, "head_parts", ())):
            if hasattr(self.body, head):
                delattr(self.body, head)
        if norm == "frozen":
            self.body = freeze_batch_norm(self.body)
            if isinstance(self.body, EfficientNet):
                self.body.freeze_early_stages()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.body.features(pixels)


class OtherBackbone(Backbone):
    """The convolutional part of another torchvision or timm classifier; gives its last feature map."""

    def __init__(self, name: str, *, norm: str) -> None:
        super().__init__()
        if name.startswith("timm/"):
            self.body = _timm_features(name.removeprefix("timm/"), norm)
            self.num_channels = self.body.feature_info.channels()[-1]
            self.normalization = _timm_normalization(name.removeprefix("timm/"))
            return
        self.body = _torchvision_features(name)
        if norm == "frozen":
            self.body = freeze_batch_norm(self.body)
        with torch.no_grad():
            self.num_channels = self.eval()(torch.zeros(1, 3, 64, 64))[-1].shape[1]
        self.train()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = self.body(pixels if self.normalization is None else renormalized(pixels, *self.normalization))
        return list(maps) if isinstance(maps, (list, tuple)) else [maps]


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with every batch norm of torch replaced by one that keeps its statistics, scale and shift."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm(module.num_features, eps=module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


def _torchvision_features(name: str) -> nn.Module:
    import difflib

    known = [m for m in torchvision.models.list_models(module=torchvision.models) if "vit" not in m]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "names: torchvision's CNNs, or timm/NAME"
        raise ConfigError(f"unknown backbone {name!r}", where="backbone", remedy=hint)
    model = torchvision.models.get_model(name, weights=None)
    # The ways in which torchvision's CNNs hold their convolutional part, whose tensors keep their names.
    for parts in (("features",), ("layers",), ("stem", "trunk_output")):
        if all(hasattr(model, part) for part in parts) and "swin" not in name:
            return nn.Sequential(OrderedDict((part, getattr(model, part)) for part in parts))
    raise ConfigError(f"{name} has no feature map that DETR can read", where="backbone", remedy=_CNN)


def _timm_features(name: str, norm: str) -> nn.Module:
    try:
        import timm
        from timm.utils.model import freeze_batch_norm_2d
    except ImportError as error:
        raise MachineError(f"backbone timm/{name} needs timm", remedy=install_command("timm")) from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}", where="backbone", remedy="see timm.list_models()")
    try:
        model = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(f"timm/{name} has no feature maps", where="backbone", remedy=_CNN) from error
    channels_first = str(getattr(model, "output_fmt", "NCHW")).endswith("NCHW")
    settings = timm.get_pretrained_cfg(name)
    if not channels_first or (settings is not None and settings.fixed_input_size):
        fault = "takes images of one size only" if channels_first else "gives feature maps with their channels last"
        raise ConfigError(f"timm/{name} {fault}", where="backbone", remedy=_CNN)
    # timm's own function, because some of its batch norms hold the activation as well.
    return freeze_batch_norm_2d(model) if norm == "frozen" else model


def _timm_normalization(name: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the mean and deviation of timm's released weights of a network, None if they are ImageNet's."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    if settings is None or len(settings.mean) != 3:
        return None
    theirs = (tuple(settings.mean), tuple(settings.std))
    return None if theirs == (IMAGENET_MEAN, IMAGENET_STD) else theirs


def _conv(in_channels: int, out_channels: int, stride: int = 1, relu: bool = True) -> nn.Module:
    return Conv2dNormActivation(
        in_channels,
        out_channels,
        stride=stride,
        activation_layer=nn.ReLU if relu else None,
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions with a bypass. `side`: of the map whose attention augments the first one; None for none."""

    def __init__(self, width: int, side: int | None = None) -> None:
        super().__init__()
        first = _conv(width, width)
        if side is not None:
            assert isinstance(first, nn.Sequential)
            keys, values = attention_channels(width, *SMALL_ATTENTION)
            first[0] = AugmentedConv2d(
                width, width, key_channels=keys, value_channels=values, num_heads=SMALL_ATTENTION[2],
                map_size=(side, side), bias=False,
            )  # fmt: skip
        self.convs = nn.Sequential(first, _conv(width, width, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.convs(x)).relu()
