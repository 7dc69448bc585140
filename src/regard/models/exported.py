"""Networks that were exported and run elsewhere, such as ONNX files in ONNX Runtime: `regard.load("model.onnx")`.

They take and return what the models do that they were exported from, for prediction and evaluation: they have no
parameters, no gradients and no layers to look into. They compute on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from regard.errors import ConfigError
from regard.models.configs import ClassifierConfig, DetectorConfig, ModelConfig
from regard.models.configs.detr import DETRConfig
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DensePredictions, DetectionOutput

Config = TypeVar("Config", bound=ModelConfig)
Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # inputs by name -> outputs by name, on the CPU


class ExportedNetwork(nn.Module, Generic[Config]):
    """What detectors and classifiers share.

    Args:
        run: the network.
        inputs: names of its inputs.
        config: of the model that was exported.
        card: its metadata.
    """

    def __init__(self, run: Run, inputs: Collection[str], config: Config, card: ModelCard) -> None:
        super().__init__()
        self.run = run
        self.inputs = inputs
        self.config = config
        self.card = card
        self.eval()


class ExportedDetector(ExportedNetwork[DetectorConfig]):
    """A detector: `pixels` (B, 3, H, W) and, if it knows padding, `padding` (B, H, W) bool -> `logits`, `boxes`, ..."""

    def forward(
        self,
        images: ImageBatch | Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        *,
        masks: bool | None = None,
    ) -> DetectionOutput:
        """Detect objects; arguments and result as in `DETR.forward`, without auxiliary outputs.

        The file computes the masks of all queries, whatever `masks` says.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(list(images))
        pixels = batch.pixels.cpu().float()
        if "padding" not in self.inputs:
            return self._without_padding(pixels, batch.sizes)
        padding = batch.padding_mask()
        if padding is None:
            padding = torch.zeros(len(batch), *pixels.shape[-2:], dtype=torch.bool)
        found = self.run({"pixels": pixels, "padding": padding.cpu()})
        dense = None
        if "levels" in found:  # neither anchors nor offsets are outputs: only losses need them
            nothing = pixels.new_empty(0, 4)
            dense = DensePredictions(nothing, nothing, tuple(found["levels"].tolist()), batch.sizes)
        duplicate_iou = self.config.duplicate_iou if isinstance(self.config, DETRConfig) else 1.0
        return DetectionOutput(
            found["logits"], found["boxes"], masks=found.get("masks"), duplicate_iou=duplicate_iou, dense=dense
        )

    def masks(self, output: DetectionOutput, image: Tensor, query: Tensor) -> Tensor:
        """Return the mask logits (M, H, W) of M queries of an output; see `DETR.masks`."""
        if output.masks is None:
            raise ConfigError("the model has no mask head", remedy="train one with model.masks=true", code="C09")
        return output.masks[image, query]

    def _without_padding(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> DetectionOutput:
        """Run a network that knows no padding (`DETRDemo`): images one by one, if their sizes differ."""
        one_size = all(size == tuple(pixels.shape[-2:]) for size in sizes)
        parts = [pixels] if one_size else [p[None, :, :h, :w] for p, (h, w) in zip(pixels, sizes, strict=True)]
        found = [self.run({"pixels": part}) for part in parts]
        logits, boxes = (torch.cat([one[name] for one in found]) for name in ("logits", "boxes"))
        return DetectionOutput(logits, boxes)


class ExportedClassifier(ExportedNetwork[ClassifierConfig]):
    """A classifier: `pixels` (B, 3, H, W) -> `logits` (B, C)."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, C)."""
        return self.run({"pixels": images.cpu().float()})["logits"]


def exported_network(
    run: Run, inputs: Collection[str], config: ModelConfig, card: ModelCard
) -> ExportedDetector | ExportedClassifier:
    """Return the network of its kind; arguments as for `ExportedNetwork`."""
    if isinstance(config, ClassifierConfig):
        return ExportedClassifier(run, inputs, config, card)
    return ExportedDetector(run, inputs, config, card)
