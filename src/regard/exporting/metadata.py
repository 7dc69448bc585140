"""What an exported file says about its model: for `regard.load`, and for programs that know no Regard."""

from __future__ import annotations

import json

from regard import __version__
from regard.models.build import Detector, Model, predicts_masks
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD
from regard.weights.model_state import model_state
from regard.weights.onnx_file import STATE


def metadata_of(model: Model) -> dict[str, str]:
    """Return the metadata of an exported file, texts by name; all but `regard_version`, `model` and `task` are JSON.

    regard_version, model: version of Regard, name of the model.
    task: `classification`, `detection`, `segmentation` (boxes and masks) or `panoptic`.
    classes: names, in the order of the labels.
    short_side, max_size: as in `ModelCard`, pixels.
    mean, std: of red, green and blue, for pixel values 0..1; padding is 0 after the normalisation.
    scores: what turns logits into scores: `softmax`, for detectors with no-object as the last class, or `sigmoid`.
    threshold: minimum score of a detection that the run found best, or null.
    regard_state: all that `regard.load` needs.
    """
    card, task, scores = model.card, "classification", "softmax"
    if isinstance(model, Detector):
        task = "detection"
        if predicts_masks(model):
            task = "panoptic" if card.panoptic else "segmentation"
        scores = "sigmoid" if model.config.sigmoid else "softmax"
    values = {
        "classes": [category.name for category in card.categories],
        "short_side": card.short_side,
        "max_size": card.max_size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "scores": scores,
        "threshold": card.threshold,
        STATE: {**model_state(model), "threshold": card.threshold},
    }
    texts = {name: json.dumps(value) for name, value in values.items()}
    return {"regard_version": __version__, "model": card.name, "task": task, **texts}
