"""What a model looks at in a few images, as one small picture: a training draws it at every evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from regard.drawing.boxes import grid
from regard.errors import ConfigError
from regard.explanations.explain import explain
from regard.explanations.explanation import draw_saliency
from regard.models.build import Model, QueryDetector
from regard.models.vit import VisionTransformer

EXPLAINED = 4  # images
SECONDS = 1.0  # after which no further image is begun: a training on a slow machine has better things to do
SIDE = 240  # longer side of an image in the picture, in pixels


def draw_overview(model: Model, images: Sequence[Tensor], path: Path) -> bool:
    """Draw one map over each image: of the best detection, of the class token, or of the last attention layer.

    Once `SECONDS` have passed no further image is begun: the picture then has the first ones only.

    DETR: cross-attention of the query with the highest score in the last decoder layer, mean of heads, and its
    box. ViT and DeiT: rollout of the class token. Attention-augmented networks: relevance of the last attention layer
    for the predicted class, or the best score of a RetinaNet.

    Args:
        model: as for `explain`.
        images: (3, H, W) uint8, of any sizes.
        path: picture file, in a folder that exists.

    Returns:
        Whether there is a picture: a model without attention has none.
    """
    others = "rollout" if isinstance(model, VisionTransformer) else "relevance"
    kind = "decoder" if isinstance(model, QueryDetector) else others
    drawn: list[Image.Image] = []
    titles: list[str] = []
    start = time.monotonic()
    for image in images:
        if drawn and time.monotonic() - start > SECONDS:
            break
        try:
            explanation = explain(model, image, kind, threshold=0.0 if kind == "decoder" else None)
        except ConfigError:  # a network without attention, or one whose attention cannot be read
            return False
        if not explanation.maps:
            return False
        saliency = explanation.maps[-1 if kind == "relevance" else 0]
        drawn.append(draw_saliency(saliency, explanation.image))
        titles.append(saliency.title)
    grid(drawn, len(drawn), captions=titles, longest=SIDE).save(path, quality=75)
    return True
