"""Every family of models on a device against the CPU: outputs and gradients in each precision."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regard.benchmarks.gpu.session import Session
from regard.models.build import Detector, build
from regard.models.configs import CONFIGS, DetectorConfig
from regard.models.configs.detr import DETRConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.configs.vit import ViTConfig
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput, DistilledLogits
from regard.structures.precision import inference_precision

_SMALL = DETRConfig(
    num_classes=20, backbone="resnet18", embed_dim=64, num_heads=4, encoder_layers=2, decoder_layers=2,
    feedforward_dim=128, num_queries=20, dropout=0.0,
)  # fmt: skip
_DETECTORS: dict[str, DetectorConfig] = {
    "detr": _SMALL,
    "detr_prenorm_learned_groups": replace(_SMALL, norm_first=True, position_encoding="learned", query_groups=2),
    "detr_anchors": replace(_SMALL, anchors=True, sigmoid=True, query_groups=2),
    "detr_masks": replace(_SMALL, masks=True),
    "retinanet": RetinaNetConfig(num_classes=20, backbone="resnet18", channels=64),
}
_CLASSIFIERS = {
    "deit_tiny_patch16_224": 64, "deit_tiny_distilled_patch16_224": 64, "deit3_small_patch16_224": 64, "resnet18": 64,
    "aa_resnet20": 32, "aa_wide_resnet16_2": 32, "aa_mnasnet0_75": 64, "efficientnet_lite0": 64, "san10_pairwise": 64,
    "san10_patchwise": 64,
}  # fmt: skip
FAMILIES = (*_DETECTORS, *_CLASSIFIERS)

# Largest difference to float32 on the CPU that is no fault: of outputs as a share of the largest number, and of all
# gradients together as a share of their norm, as gradients of activations near 0 flip. In bf16 about three times what
# a CPU shows; TF32 and fp16 have three bits more.
BOUNDS = {"fp32": (1e-4, 1e-2), "tf32": (2e-2, 0.1), "bf16": (0.1, 0.4), "fp16": (2e-2, 0.1)}


class Difference(NamedTuple):
    """How far a device is from float32 on the CPU, as in `BOUNDS`."""

    outputs: float
    gradients: float

    def is_within(self, precision: str) -> bool:
        return self.outputs <= BOUNDS[precision][0] and self.gradients <= BOUNDS[precision][1]


def compare(name: str, precision: str, device: torch.device) -> Difference:
    """Run a network of a family forward and backward on both.

    Args:
        name: one of `FAMILIES`.
        precision: as `inference_precision` takes it.
    """
    net, images = _example(name)
    wanted, wanted_gradients = _run(net, images, "fp32", torch.device("cpu"))
    found, gradients = _run(copy.deepcopy(net).to(device), images, precision, device)
    pairs = list(zip(found, wanted, strict=True))
    outputs = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
    change = torch.cat([(a - b).flatten() for a, b in zip(gradients, wanted_gradients, strict=True)])
    length = torch.cat([b.flatten() for b in wanted_gradients]).norm()
    return Difference(outputs, float(change.norm() / length))


def same_as_cpu(session: Session) -> None:
    """Compare all families in all precisions."""
    for name in FAMILIES:
        found = {precision: compare(name, precision, session.device) for precision in session.precisions}
        wrong = [precision for precision, difference in found.items() if not difference.is_within(precision)]
        numbers = {p: f"{difference.outputs:.1e} / {difference.gradients:.1e}" for p, difference in found.items()}
        session.row("same_as_cpu", family=name, **numbers, beyond_bounds=", ".join(wrong))


def _example(name: str) -> tuple[nn.Module, ImageBatch]:
    """Return a network in evaluation mode and two normalised images for it, of two sizes for detectors."""
    torch.manual_seed(0)
    if name in _DETECTORS:
        net: nn.Module = build(_DETECTORS[name], name)
        images = ImageBatch.from_images([torch.randn(3, 96, 128), torch.randn(3, 128, 96)])
    else:
        config, side = replace(CONFIGS[name], num_classes=10), _CLASSIFIERS[name]
        if isinstance(config, ViTConfig):
            config = replace(config, image_size=side)
        net = build(config, name)
        images = ImageBatch(torch.randn(2, 3, side, side), ((side, side),) * 2)
    for parameter in net.parameters():  # of layers that begin at zero, so that they count
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net.eval(), images


def _run(net: nn.Module, images: ImageBatch, precision: str, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    net.zero_grad()
    with inference_precision(precision, device):
        output = net(images.to(device)) if isinstance(net, Detector) else net(images.to(device).pixels)
    tensors = [tensor.float() for tensor in _tensors(output)]
    torch.stack([tensor.square().mean() for tensor in tensors]).sum().backward()
    gradients = [p.grad.float().cpu() for p in net.parameters() if p.grad is not None]
    return [tensor.detach().cpu() for tensor in tensors], gradients


def _tensors(output: DetectionOutput | DistilledLogits | Tensor) -> list[Tensor]:
    if isinstance(output, DetectionOutput):
        boxes = output.boxes if output.dense is None else output.dense.offsets
        return [output.logits, boxes, *([] if output.masks is None else [output.masks])]
    return [*output] if isinstance(output, DistilledLogits) else [output]
