"""What `regard.evaluate` can do beyond the scores that every model of a family gets. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluationOptions:
    """Options for a detector.

    Args:
        submission: file to write the predictions to in COCO's result format, with the data set's image and category
            ids: masks if the model has them, else boxes. For a panoptic model COCO's panoptic format, with a folder
            of PNG files next to the file.
    """

    submission: str | Path | None = None


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluationOptions:
    """Options for a classifier.

    Args:
        probe: also measure its features, the inputs of the classification layer: `knn_top1`, the vote of the nearest
            training images, and `linear_top1`, a linear classifier fitted to the training images.
        throughput: also measure `images_per_second` of the model alone, in batches of `batch_size`.
        real: `real.json` of ReaL (Beyer et al. 2020), to also measure `real_top1` on ImageNet's validation images.
        all_images: evaluate on all images of class folders without train and val, such as ImageNet-A, not only on the
            fifth that is kept for validation.
    """

    probe: bool = False
    throughput: bool = False
    real: str | Path | None = None
    all_images: bool = False
