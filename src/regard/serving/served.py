"""A model that is served: its network, its thread, and what clients are told of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regard.data.images import decode_image
from regard.explanations.detr import feature_stride
from regard.explanations.kinds import kinds_of, layers_of, tokens_of
from regard.models.build import Detector, Model, predicts_masks
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.models.detr import DETR
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, Prepared, make_ready
from regard.prediction.thresholds import default_threshold, makes_segments
from regard.serving.metrics import Metrics
from regard.serving.options import ServingOptions
from regard.serving.worker import Worker

MASK_BYTES = 10**9  # of the masks of all queries of one image, at the size of the image
ATTENTION_BYTES = 2 * 1024**3  # of the weights of all encoder layers, which an explanation keeps
STUCK = 4  # times the deadline of a request, after which a computation counts as stuck


class ServedModel:
    """A model with its thread.

    Args:
        name: by which clients choose it.
        net: the model, on its device.
        options: of the server.
        metrics: of the server.
    """

    def __init__(self, name: str, net: Model, options: ServingOptions, metrics: Metrics) -> None:
        self.name = name
        self.net = net
        self.ready = make_ready(net, PredictionOptions(), device="auto", keep_pixels=False)
        self.max_pixels = options.max_pixels
        batch_size = options.batch_size
        queries = _queries(net)
        if queries and predicts_masks(net) and not makes_segments(net):  # a mask at the size of the image for each
            self.max_pixels = min(self.max_pixels, MASK_BYTES // queries)
            batch_size = 1
        # Explanations put hooks into the network. Where predictions use the same network they take turns.
        self.turn = threading.Lock() if self.ready.net is net else contextlib.nullcontext()
        self.stride = feature_stride(net) if isinstance(net, DETR) else 0

        def observe(images: int, seconds: float) -> None:
            metrics.batches.labels(name).observe(images)
            metrics.computing.labels(name).observe(seconds)

        self.worker: Worker[tuple[Prepared, PredictionOptions], Prediction] = Worker(
            f"model {name}", self._compute, batch_size=batch_size, capacity=options.queue,
            patience=STUCK * options.timeout, observe=observe,
        )  # fmt: skip
        metrics.admitted.labels(name).set_function(lambda: self.worker.admitted)
        metrics.restarts.labels(name).set_function(lambda: self.worker.restarts)

    def warm_up(self) -> None:
        """Compute one image, so that the first request does not wait for what is prepared once."""
        self._compute([(self.ready.read(torch.zeros(3, 64, 64, dtype=torch.uint8)), PredictionOptions())])

    def prepare(self, data: bytes, place: str) -> Prepared:
        """Decode an image and resize it as the model sees it.

        Args:
            data: the bytes of an image file.
            place: name of the image in errors.

        Raises:
            ImageError: it cannot be decoded, or is too large.
        """
        return self.ready.read(self.decode(data, place))._replace(kept=None)  # nothing is drawn

    def decode(self, data: bytes, place: str) -> Tensor:
        """Decode an image to (3, H, W) uint8; see `prepare`."""
        return decode_image(data, name=place, max_pixels=self.max_pixels)

    def _compute(self, items: Sequence[tuple[Prepared, PredictionOptions]]) -> Sequence[Prediction]:
        """Predict for images of one size and one set of options."""
        images, options = [image for image, _ in items], items[0][1]
        threshold = self.ready.threshold if options.threshold is None else options.threshold
        ready = replace(self.ready, options=options, threshold=threshold)
        with self.turn, torch.no_grad(), evaluation_mode(ready.net):
            return list(ready.results(images, 1))

    @property
    def task(self) -> str:
        """`detection`, `segmentation` or `classification`: the kind of results."""
        if makes_segments(self.net):
            return "segmentation"
        return "detection" if isinstance(self.net, Detector) else "classification"

    def attention_bytes(self, size: tuple[int, int]) -> int:
        """Return the bytes of the encoder's weights for an image of `size` (height, width) as the model sees it."""
        if not isinstance(self.net, DETR):
            return 0
        tokens = -(-size[0] // self.stride) * -(-size[1] // self.stride)
        return 4 * self.net.config.encoder_layers * self.net.config.num_heads * tokens**2

    @cached_property
    def description(self) -> dict[str, Any]:
        """What clients are told of the model, for JSON."""
        net, card = self.net, self.net.card
        is_detector = isinstance(net, Detector)
        sides = {"short_side": card.short_side, "max_size": card.max_size}
        return {
            "name": self.name,
            "architecture": card.name,
            "task": self.task,
            "classes": [
                {"label_id": label, "label": category.name, "id": category.id, "is_thing": category.is_thing}
                for label, category in enumerate(card.categories)
            ],
            "threshold": default_threshold(net) if is_detector else None,
            "input": sides if is_detector else {"side": card.short_side, "crop_pct": card.crop_pct},
            "masks": predicts_masks(net),
            "multi_label": isinstance(net, Detector) and not makes_segments(net) and net.config.sigmoid,
            "queries": _queries(net),
            "parameters": sum(parameter.numel() for parameter in net.parameters()) or None,
            "explanations": [{"what": kind, "options": list(options)} for kind, options in kinds_of(net).items()],
            "attention": {source: [layer._asdict() for layer in layers] for source, layers in layers_of(net).items()},
            "tokens": tokens_of(net),
            "max_pixels": self.max_pixels,
        }


def _queries(net: Model) -> int | None:
    return net.config.num_queries if isinstance(net.config, DETRConfig | DETRDemoConfig) else None
