"""Eight-bit ONNX files: the convolutions alone, calibrated on images like those that the model will see.

Measured on a trained `detr_tiny`: with matrix products quantised too it loses twice the AP and gains no time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from regard.errors import CheckpointError, ConfigError, DataError
from regard.exporting.check import inputs_of
from regard.exporting.images import prepared
from regard.models.build import Model

LEAST_IMAGES, IMAGES = 64, 128  # that calibrate: at least, and at most
LEAST_CONVOLUTIONS = 2


def check_convolutions(model: Model) -> None:
    """Check that a model has convolutions to quantise.

    Raises:
        ConfigError: it is a vision transformer (C09).
    """
    if sum(isinstance(module, nn.Conv2d) for module in model.modules()) < LEAST_CONVOLUTIONS:
        what = f"int8 is for convolutions, and {model.card.name} has none but its patches"
        raise ConfigError(what, where="--int8", remedy="leave it out", code="C09")


def quantize(source: Path, target: Path, model: Model, images: Sequence[Tensor], data: str) -> None:
    """Write an int8 version of an ONNX file. Ranges of activations are the extremes over `images`.

    Args:
        model: what the file holds.
        images: (3, H, W) uint8, at least `LEAST_IMAGES`.
        data: where they come from, for the error.

    Raises:
        DataError: too few images (A48).
    """
    if len(images) < LEAST_IMAGES:
        what = f"{len(images)} training images, and int8 is calibrated on {LEAST_IMAGES} or more"
        raise DataError(what, where=data, remedy="add images, or leave --int8 out", code="A48")
    import onnx
    from onnxruntime.quantization import QuantFormat, quantize_static

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            source, Path(folder, "int8.onnx"), _Reader(model, images), quant_format=QuantFormat.QDQ,
            per_channel=True, op_types_to_quantize=["Conv"],
        )  # fmt: skip
        made, metadata = onnx.load(Path(folder, "int8.onnx")), onnx.load(source).metadata_props
    del made.metadata_props[:]
    made.metadata_props.extend(metadata)
    onnx.save(made, target)


def require_score(name: str, before: float, after: float, max_drop: float) -> None:
    """Refuse an int8 file that scores too low.

    Args:
        name: of the score.
        before, after: score of the model and of the file, in points of 100.
        max_drop: in points.

    Raises:
        CheckpointError: the score falls by more (K21).
    """
    drop = before - after
    if drop > max_drop:
        what = f"int8 loses {drop:.1f} points of {name} ({before:.1f} to {after:.1f}), allowed {max_drop:g}"
        remedy = "no file was written; leave --int8 out, use images like those to predict for, or raise --max-drop"
        raise CheckpointError(what, where="--int8", remedy=remedy, code="K21")


class _Reader:
    """The images one by one, as ONNX Runtime asks for them."""

    def __init__(self, model: Model, images: Sequence[Tensor]) -> None:
        self.left = iter([(model, image) for image in images])

    def get_next(self) -> dict[str, object] | None:
        item = next(self.left, None)
        if item is None:
            return None
        model, image = item
        return {name: value.numpy() for name, value in inputs_of(model, prepared(model, image)).items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of ONNX Runtime's quantiser, which prints and logs at the root."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
