"""The network as an exported file holds it: tensors in, tensors out, and sizes that are free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regard.models.build import Detector, Model
from regard.models.detr import DETR
from regard.models.detr_demo import DETRDemo
from regard.models.vit import VisionTransformer
from regard.structures.image_batch import ImageBatch


class Graph(NamedTuple):
    """A network to trace.

    network: takes the inputs in their order and returns the outputs in theirs.
    inputs: name -> an example. All are traced with free sizes.
    free: name of an input -> the names of its free dimensions, by number.
    outputs: names.
    """

    network: nn.Module
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


def graph_of(net: Model) -> Graph:
    """Return the network of a model, which is in evaluation mode, on the CPU and in float32.

    Inputs: `pixels` (B, 3, H, W) normalised float32; of detectors also `padding` (B, H, W) bool, True at padding.
    Outputs: `logits` (B, Q, C) or (B, C); of detectors `boxes` (B, Q, 4) cxcywh as fractions 0..1 of the unpadded
    image; with masks `masks` (B, Q, h, w) logits; of dense detectors `levels` (L,) int64, anchors of each level.
    """
    height, width = _example_size(net)
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    inputs, free = {"pixels": pixels}, {"pixels": {0: "batch", 2: "height", 3: "width"}}
    if not isinstance(net, Detector):
        return Graph(net, inputs, free, ("logits",))
    if isinstance(net, DETRDemo):
        return Graph(_Unpadded(net), inputs, free, ("logits", "boxes"))
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, :, -width // 4 :] = True
    inputs["padding"], free["padding"] = padding, {0: "batch", 1: "height", 2: "width"}
    if not isinstance(net, DETR):
        return Graph(_Dense(net), inputs, free, ("logits", "boxes", "levels"))
    if net.config.masks:
        return Graph(_WithMasks(net), inputs, free, ("logits", "boxes", "masks"))
    return Graph(_Padded(net), inputs, free, ("logits", "boxes"))


def _example_size(net: Model) -> tuple[int, int]:
    """Return a height and width to trace with: unequal, and no size that a model treats in its own way."""
    if isinstance(net, VisionTransformer):
        side, patch = net.config.image_size, net.config.patch_size
        return side + patch, side + 2 * patch
    return 96, 160


@dataclass(frozen=True)
class _TracedBatch(ImageBatch):
    """A batch whose padding is a tensor; a graph knows no `sizes`."""

    padding: Tensor

    @property
    def is_padded(self) -> bool:
        return True

    def padding_mask(self) -> Tensor:
        return self.padding

    def scale(self) -> Tensor:
        seen = ~self.padding
        height, width = seen.any(2).sum(1), seen.any(1).sum(1)
        return torch.stack((width, height, width, height), dim=1).float()


class _Padded(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        output = self.net(_TracedBatch(pixels, (), padding))
        return output.logits, output.boxes


class _WithMasks(_Padded):
    net: DETR

    def forward(self, pixels: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        output = self.net(_TracedBatch(pixels, (), padding), masks=False)
        queries = output.logits.shape[1]
        image = torch.arange(pixels.shape[0])[:, None].expand(-1, queries).flatten()
        query = torch.arange(queries).repeat(pixels.shape[0])
        masks = self.net.masks_at_once(output, image, query)
        return output.logits, output.boxes, masks.unflatten(0, (-1, queries))


class _Dense(_Padded):
    def forward(self, pixels: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        output = self.net(_TracedBatch(pixels, (), padding))
        return output.logits, output.boxes, torch.stack([torch.tensor(count) for count in output.dense.levels])


class _Unpadded(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output = self.net(ImageBatch(pixels, ()))
        return output.logits, output.boxes
