"""Models with random weights to export, and batches that no export was traced with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from regard.exporting.graph import graph_of
from regard.exporting.metadata import metadata_of
from regard.exporting.writers import trace, write_onnx
from regard.models.build import Detector, Model
from regard.models.detr_demo import DETRDemo
from regard.models.vit import VisionTransformer
from regard.structures.image_batch import ImageBatch


def randomized(net: Model, seed: int = 0) -> Model:
    """The model with random statistics of its norms, biases and boxes: fresh ones hide differences behind zeros.

    Batch norms have half of their weight, or the numbers would grow from block to block of a deep network until float32
    keeps none of their digits.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point() and (value.ndim == 1 or name.endswith("bbox_embed.layers.2.weight")):
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.weight.mul_(0.5)
    return net.eval()


def write(net: Model, path: Path) -> Path:
    """An ONNX file of the model, without any check."""
    graph = graph_of(net)
    write_onnx(trace(graph), graph, path, metadata_of(net))
    return path


def batches(net: Model) -> Iterator[ImageBatch]:
    """Batches of 1, 2 and 5 images of sizes that no export is traced with, padded and not."""
    generator = torch.Generator().manual_seed(1)

    def images(*sizes: tuple[int, int]) -> ImageBatch:
        return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])

    if isinstance(net, VisionTransformer):
        side, patch = net.config.image_size, net.config.patch_size
        for count, size in ((1, (side, side)), (5, (side, side)), (2, (side - patch, side + 3 * patch))):
            yield images(*[size] * count)
        return
    for count, size in ((1, (64, 64)), (2, (100, 77)), (5, (65, 128))):
        yield images(*[size] * count)
    if isinstance(net, Detector) and not isinstance(net, DETRDemo):
        yield images((64, 96), (80, 70))
        yield images((90, 101), (64, 64), (65, 90), (80, 70), (33, 47))


def all_close(found: Tensor, expected: Tensor) -> bool:
    """Within 1e-4, of the value where that is above 1."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
