"""`regard.explain`: where a model looks, as maps over the image. One model family, one file.

The models keep their fused attention, which stores no weights: they are recomputed from queries and keys.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from regard.attention import AugmentedConv2d
from regard.data.image_folders import list_images
from regard.data.images import to_image
from regard.data.samples import ClassSample, Sample
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError
from regard.explanations.augmented import explain_augmented
from regard.explanations.detr import explain_detr
from regard.explanations.explanation import Explanation as Explanation
from regard.explanations.explanation import SaliencyMap as SaliencyMap
from regard.explanations.options import ExplanationOptions
from regard.explanations.query_places import QueryPlaces as QueryPlaces
from regard.explanations.query_places import query_places
from regard.explanations.stack import AttentionStack as AttentionStack
from regard.explanations.stack import augmented_stack, detr_stack, vit_stack
from regard.explanations.vit import explain_vit
from regard.models.build import Model, QueryDetector
from regard.models.detr import DETR
from regard.models.detr_demo import DETRDemo
from regard.models.engine import Optimized
from regard.models.evaluation_mode import evaluation_mode
from regard.models.retinanet import RetinaNet
from regard.models.vit import VisionTransformer
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import predict_each
from regard.prediction.thresholds import default_threshold
from regard.results.classification import Classification
from regard.results.result import Rejected
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.weights.load import load_on
from regard.weights.onnx_file import refuse_onnx


@torch.inference_mode(False)  # relevance needs gradients, wherever it is asked for
@torch.enable_grad()
def explain(
    model: Model | nn.Module | str | Path,
    image: Any,
    what: str | None = None,
    *,
    point: tuple[float, float] | None = None,
    layer: int | None = None,
    head: int | None = None,
    threshold: float | None = None,
    query: int | None = None,
    image_size: int = 224,
    device: str = "auto",
) -> Explanation:
    """Explain where a model looks in an image, by `explain_detr`, `explain_vit` or `explain_augmented`.

    | model | `what`, the first if None |
    | --- | --- |
    | DETR | `decoder`, `heads`, `encoder`, `layers`, `relevance` |
    | ViT, DeiT | `rollout`, `heads`, `tokens`, `patch`, `relevance` |
    | attention-augmented networks, also as the backbone of RetinaNet | `layers`, `heads`, `relevance` |

    Args:
        model: as for `regard.predict`, or a network of your own that `regard.augment` changed.
        image: one image, as for `regard.predict`.
        what: kind of explanation.
        point: x, y in pixels of the image, for kinds that start from a place.
        layer: number from 0; negative ones count from the end. The last layer if None.
        head: number from 0; negative ones count from the end. The mean of all heads if None.
        threshold: minimum score of a detection, 0..1; if None as for `regard.predict`.
        query: the query of a DETR to explain, whatever its score, as in `Detections.queries`.
        image_size: side of the square input of your own network, as given to `regard.augment`.
        device: as for `regard.predict`.

    Raises:
        ConfigError: there is no such kind, layer, head or point, the kind does not use an option, or the model has no
            attention (C01, C03, C09).
        DataError: the image cannot be read.
    """
    _check(model, threshold, image_size)
    net, where = load_on(getattr(model, "_orig_mod", model), device)  # a compiled model hides its layers
    pixels = to_image(image)
    options = ExplanationOptions(point=point, layer=layer, head=head, threshold=threshold, query=query)
    path, rejected = str(image) if isinstance(image, (str, Path)) else None, None
    # Under the caller's autocast, rows of attention would sum to 1 only within 1e-3.
    with evaluation_mode(net), torch.autocast(where.type, enabled=False):
        if isinstance(net, DETR):
            kind, maps, columns = _explain_detector(net, pixels, where, what, options)
            rejected = None if maps else _rejected(net, pixels, threshold)
        elif isinstance(net, DETRDemo):
            raise ConfigError(f"{net.card.name} cannot be explained", remedy="take detr_resnet50", code="C09")
        elif threshold is not None:
            raise ConfigError("threshold is for the detections of a DETR", remedy="leave it out", code="C09")
        elif query is not None:
            raise ConfigError("query is for the queries of a DETR", remedy="leave it out", code="C09")
        elif isinstance(net, RetinaNet):
            kind, maps, columns = _explain_retinanet(net, pixels, where, what, options)
        else:
            card = getattr(net, "card", None) or ModelCard("the network", (), short_side=image_size, crop_pct=0.875)
            kind, maps, columns = _explain_classifier(net, card, pixels, where, what, options)
    return Explanation(kind, tuple(maps), columns, _picture(pixels), path, rejected)


def _check(model: Any, threshold: float | None, image_size: int) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold}, expected 0 to 1", code="C03")
    if image_size < 1:
        raise ConfigError(f"image_size={image_size}, expected at least 1", code="C03")
    refuse_onnx(model, "explained")
    if isinstance(model, Optimized):
        remedy = "explain the model that it was made of"
        raise ConfigError("an optimised model keeps no attention weights", where="explain", remedy=remedy, code="C09")


def _explain_detector(
    net: DETR, pixels: Tensor, device: torch.device, what: str | None, options: ExplanationOptions
) -> tuple[str, list[SaliencyMap], int]:
    batch = _for_detector(net.card, pixels, device)
    kind = "decoder" if what is None else what
    minimum = default_threshold(net) if options.threshold is None else options.threshold
    size = pixels.shape[-2], pixels.shape[-1]
    maps, columns = explain_detr(net, batch, size, kind, replace(options, threshold=minimum))
    return kind, maps, columns


def _explain_retinanet(
    net: RetinaNet, pixels: Tensor, device: torch.device, what: str | None, options: ExplanationOptions
) -> tuple[str, list[SaliencyMap], int]:
    """Explain the attention in the backbone of a RetinaNet."""
    if not any(isinstance(module, AugmentedConv2d) for module in net.modules()):
        remedy = "take retinanet_aa_resnet50 or another of: regard models 'retinanet_aa*'"
        raise ConfigError(f"{net.card.name} has no attention: its backbone is a CNN", remedy=remedy, code="C09")
    images = _for_detector(net.card, pixels, device).pixels
    extent = (0.0, 0.0, float(pixels.shape[-1]), float(pixels.shape[-2]))
    point, layer, head = options.point, options.layer, options.head
    kind = "layers" if what is None else what
    maps, columns = explain_augmented(net, net.card, images, extent, kind, point=point, layer=layer, head=head)
    return kind, maps, columns


def _rejected(net: DETR, pixels: Tensor, threshold: float | None) -> Rejected | None:
    """Return the best detection of an image if none is above the threshold."""
    result = next(predict_each(net, [pixels], options=PredictionOptions(threshold=threshold)))
    return None if isinstance(result, Classification) else result.rejected


def _explain_classifier(
    net: nn.Module, card: ModelCard, pixels: Tensor, device: torch.device, what: str | None, options: ExplanationOptions
) -> tuple[str, list[SaliencyMap], int]:
    batch, extent = _for_classifier(card, pixels)
    images = batch.to(device).pixels
    point, layer, head = options.point, options.layer, options.head
    if isinstance(net, VisionTransformer):
        kind = "rollout" if what is None else what
        maps, columns = explain_vit(net, images, extent, kind, point=point, layer=layer, head=head)
    else:
        kind = "layers" if what is None else what
        maps, columns = explain_augmented(net, card, images, extent, kind, point=point, layer=layer, head=head)
    return kind, maps, columns


@torch.inference_mode(False)
def explain_stack(
    model: Model | str | Path,
    image: Any,
    *,
    query: int | None = None,
    point: tuple[float, float] | None = None,
    token: int = 0,
    device: str = "auto",
) -> AttentionStack:
    """Return the attention of one place of an image in all layers and heads, in one forward pass.

    | model | place |
    | --- | --- |
    | DETR | `query`, in the decoder; `point`, in the encoder |
    | ViT, DeiT | `point`, a patch; else `token`, 0 the class token, 1 the distillation token |
    | attention-augmented networks, also as the backbone of RetinaNet | `point`, the middle if None |

    Arguments and errors are those of `explain`.
    """
    _check(model, None, 1)
    net, where = load_on(model, device)
    pixels = to_image(image)
    size = pixels.shape[-2], pixels.shape[-1]
    if query is not None and not isinstance(net, DETR):
        raise ConfigError("query is for the queries of a DETR", remedy="leave it out", code="C09")
    if token and not isinstance(net, VisionTransformer):
        raise ConfigError("token is for vision transformers", remedy="leave it out", code="C09")
    with evaluation_mode(net), torch.autocast(where.type, enabled=False):
        if isinstance(net, DETR):
            return detr_stack(net, _for_detector(net.card, pixels, where), size, query=query, point=point)
        if isinstance(net, DETRDemo):
            raise ConfigError(f"{net.card.name} cannot be explained", remedy="take detr_resnet50", code="C09")
        if isinstance(net, RetinaNet):
            extent = (0.0, 0.0, float(size[1]), float(size[0]))
            return augmented_stack(net, _for_detector(net.card, pixels, where).pixels, extent, point=point)
        batch, extent = _for_classifier(net.card, pixels)
        seen = batch.to(where).pixels
        if isinstance(net, VisionTransformer):
            return vit_stack(net, seen, extent, token=token, point=point)
        return augmented_stack(net, seen, extent, point=point)


def explain_queries(model: Model | str | Path, folder: str | Path, *, device: str = "auto") -> QueryPlaces:
    """Show where each query of a detector finds objects, over a folder of images. (DETR, figure 7.)

    Raises:
        ConfigError: the model has no queries (C09), or the folder no images.
        DataError: an image that cannot be read.
    """
    refuse_onnx(model, "explained")
    net, _ = load_on(model, device)
    if not isinstance(net, QueryDetector):
        remedy = "take a DETR, or name one image"
        name = net.card.name if hasattr(net, "card") else type(net).__name__
        raise ConfigError(f"{name} has no queries to show over a folder", remedy=remedy, code="C09")
    return query_places(net, list_images(folder))


def _for_detector(card: ModelCard, pixels: Tensor, device: torch.device) -> ImageBatch:
    """Return the normalised input of a detector."""
    resized = EvaluationResize(card.short_side, card.max_size)(Sample(pixels)).image
    return ImageBatch.from_images([resized]).to(device).normalized()


def _for_classifier(card: ModelCard, pixels: Tensor) -> tuple[ImageBatch, tuple[float, float, float, float]]:
    """Return the normalised input of a classifier, and the part of the original image that it shows."""
    resize = Evaluation.of(card)
    seen = resize(ClassSample(pixels, label=0)).image
    return ImageBatch.from_images([seen]).normalized(), resize.extent(pixels.shape[-2], pixels.shape[-1])


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
