"""A detector that finds every segment, with scores that are known."""

import torch

from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.structures.boxes import xyxy_to_cxcywh
from regard.structures.categories import ModelCard
from regard.structures.outputs import DetectionOutput


class Finder(DETR):
    """Finds every segment with a score of 0.22, and a wrong one with 0.12 on the upper half of the image."""

    def __init__(self, samples, categories):
        super().__init__(
            DETRConfig(backbone="small", masks=True, sigmoid=True, num_queries=20, num_classes=len(categories))
        )
        self.card = ModelCard("finder", categories, short_side=32, max_size=32, panoptic=True)
        self.samples = iter(samples)

    def forward(self, images, targets=None, *, masks=None):
        self.now = [next(self.samples) for _ in images.sizes]
        logits = torch.full((len(self.now), 20, self.config.num_classes), -9.0)
        boxes = torch.full((len(self.now), 20, 4), 0.5)
        for row, sample in enumerate(self.now):
            for query, label in enumerate(sample.labels.tolist()):
                logits[row, query, label] = torch.tensor(0.22).logit()
            logits[row, 19, 0] = torch.tensor(0.12).logit()
            boxes[row, : len(sample.boxes)] = xyxy_to_cxcywh(sample.boxes) / 32
        return DetectionOutput(logits, boxes)

    def masks(self, output, image, query):
        found = torch.full((len(image), 32, 32), -5.0)
        for row, (i, q) in enumerate(zip(image.tolist(), query.tolist(), strict=True)):
            if q == 19:
                found[row, :16] = 10  # surer than the others: 0.12 times 1 is more than 0.22 times 0.52
            elif q < len(self.now[i].labels):
                found[row][self.now[i].masks[q]] = 0.1
        return found
