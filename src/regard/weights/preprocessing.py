"""Read how images are prepared from the JSON files of timm and transformers. What cannot be followed is refused.

timm writes `pretrained_cfg` in `config.json`, transformers writes `preprocessor_config.json`. Neither need state every
value; the others are those of timm, or of the image processor that transformers' file names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import nextafter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from regard.errors import ArchitectureError, CheckpointError
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

Numbers = tuple[float, ...]

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE: dict[object, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

_COMMON: dict[str, Any] = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": _HALF, "image_std": _HALF, "resample": 3, "size": 224, "crop_size": 224,
}  # fmt: skip
_CLIP = {"do_center_crop": True, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD}

# Defaults of transformers' image processors.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {**_COMMON, "resample": 2},
    "DeiT": {**_COMMON, "do_center_crop": True, "size": 256},
    "Beit": _COMMON,
    "Siglip": _COMMON,
    "CLIP": {**_COMMON, **_CLIP, "size": {"shortest_edge": 224}},
    "Bit": {**_COMMON, **_CLIP, "size": {"shortest_edge": 224}},
}
_SHORT_EDGE = ("CLIP", "Bit")  # what a bare number means as their `size`

# Keys that do not change the pixels of a classifier's RGB image, beside those above and `_...`.
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_convert_rgb",
    "do_reduce_labels", "return_tensors", "data_format", "input_data_format", "device", "default_to_square",
    "model_input_names", "disable_grouping",
}  # fmt: skip


class Preprocessing(NamedTuple):
    """How an image is prepared for a classifier.

    Attributes:
        mean, std: of red, green and blue, for pixel values 0..1.
        size: side of the square input in pixels, or None if the file does not tell; and the key that tells.
        crop_pct, squash, interpolation, crop_rounding: as in `ModelCard`.
    """

    mean: Numbers
    std: Numbers
    size: tuple[int | None, str]
    crop_pct: float | None
    squash: bool
    interpolation: Literal["bicubic", "bilinear"]
    crop_rounding: Literal["nearest", "down"]


def of_timm(settings: Mapping[str, Any], where: Path) -> Preprocessing:
    """Return what a `pretrained_cfg` of timm says about images.

    Raises:
        CheckpointError: a value out of range (K06), or one that is not followed (K07). The key is named.
    """
    size = settings.get("input_size")
    if size is not None and not (isinstance(size, list) and len(size) == 3 and size[0] == 3 and size[1] == size[2]):
        raise _refusal("input_size", size, where, "[3, side, side]")
    for key, of_training in (("test_input_size", "input_size"), ("test_crop_pct", "crop_pct")):
        if settings.get(key) not in (None, settings.get(of_training)):
            raise _refusal(key, settings[key], where, f"the value of {of_training}")
    interpolation, mode = settings.get("interpolation") or "bicubic", settings.get("crop_mode") or "center"
    followed = next((name for name in _RESAMPLE.values() if name == interpolation), None)
    if followed is None:
        raise _refusal("interpolation", interpolation, where, "bicubic or bilinear")
    if mode not in ("center", "squash"):
        raise _refusal("crop_mode", mode, where, "center or squash")
    settings = {key: value for key, value in settings.items() if value is not None}
    crop = settings.get("crop_pct", 0.875)
    if not _is_number(crop) or not 0.05 <= crop <= 1:
        raise _refusal("crop_pct", crop, where, "0.05 to 1")
    mean = _numbers("mean", settings.get("mean", IMAGENET_MEAN), where)
    std = _numbers("std", settings.get("std", IMAGENET_STD), where, least=1e-6)
    side = None if size is None else _side("input_size", size[1], where)
    return Preprocessing(mean, std, (side, "input_size"), float(crop), mode == "squash", followed, "nearest")


def of_transformers(settings: Mapping[str, Any], where: Path) -> Preprocessing:
    """Return what a `preprocessor_config.json` of transformers says.

    Raises:
        CheckpointError: a value out of range (K06), or one that is not followed (K07). The key is named.
    """
    kind = _kind(settings, where)
    given = {**_PROCESSORS[kind], **{key: value for key, value in settings.items() if value is not None}}
    for key, value in given.items():
        if key not in _COMMON and key not in _HARMLESS and not key.startswith("_") and value is not False:
            raise _refusal(key, value, where, "no such key")
        if key in _COMMON and key.startswith("do_") and type(value) is not bool:
            raise _refusal(key, value, where, "true or false")
    if not given["do_resize"]:
        raise _refusal("do_resize", False, where, "true")
    if type(given["resample"]) is not int or given["resample"] not in _RESAMPLE:
        raise _refusal("resample", given["resample"], where, "2 (bilinear) or 3 (bicubic)")
    mean, std = _normalisation(given, where)
    size, crop_pct, squash = _sizes(given, kind in _SHORT_EDGE, where)
    key = "crop_size" if given["do_center_crop"] else "size"
    return Preprocessing(mean, std, (size, key), crop_pct, squash, _RESAMPLE[given["resample"]], "down")


def _kind(settings: Mapping[str, Any], where: Path) -> str:
    """Return the image processor, a key of `_PROCESSORS`; ViT's if the file does not name it."""
    key = "image_processor_type" if "image_processor_type" in settings else "feature_extractor_type"
    name = settings.get(key) or "ViTImageProcessor"
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name) if isinstance(name, str) else ""
    if kind not in _PROCESSORS:
        raise _refusal(key, name, where, ", ".join(f"{known}ImageProcessor" for known in _PROCESSORS))
    return kind


def _normalisation(given: Mapping[str, Any], where: Path) -> tuple[Numbers, Numbers]:
    """Return mean and deviation for pixels 0..1 that have the effect of rescaling and normalising."""
    factor = given["rescale_factor"] if given["do_rescale"] else 1.0
    if not _is_number(factor) or not 1e-9 <= factor <= 1e9:
        raise _refusal("rescale_factor", factor, where, "a positive number")
    mean: Numbers = (0.0,) * 3
    std: Numbers = (1.0,) * 3
    if given["do_normalize"]:
        mean = _numbers("image_mean", given["image_mean"], where)
        std = _numbers("image_std", given["image_std"], where, least=1e-6)
    white = 255 * factor  # (255 r x - mean) / std = (x - mean / 255 r) / (std / 255 r)
    return tuple(value / white for value in mean), tuple(value / white for value in std)


def _sizes(given: Mapping[str, Any], by_short_edge: bool, where: Path) -> tuple[int, float | None, bool]:
    """Return the side of the input, the crop over the resized side, and whether the resize squashes the image."""
    size = given["size"]
    if isinstance(size, dict):
        short = size.get("shortest_edge")
        stated = {key for key, value in size.items() if value is not None}
        if stated not in ({"shortest_edge"}, {"height", "width"}) or size.get("height") != size.get("width"):
            raise _refusal("size", size, where, "equal height and width, or shortest_edge")
        side = _side("size", size["height"] if short is None else short, where)
    else:
        side = _side("size", size, where)
    keeps_shape = "shortest_edge" in size if isinstance(size, dict) else by_short_edge
    if not given["do_center_crop"]:
        if keeps_shape:
            raise _refusal("do_center_crop", False, where, "true, as size keeps the shape of the image")
        return side, None, False
    crop = given["crop_size"]
    if isinstance(crop, dict):
        if crop.get("height") != crop.get("width"):
            raise _refusal("crop_size", crop, where, "equal height and width")
        crop = crop.get("height")
    crop = _side("crop_size", crop, where)
    if not 0.05 <= crop / side <= 1:
        raise _refusal("crop_size", crop, where, f"at most size, {side}, and at least a twentieth of it")
    return crop, _ratio(crop, side), not keeps_shape


def _ratio(crop: int, side: int) -> float:
    """Return crop / side, so that floor(crop / ratio) is `side` in floating point too."""
    ratio = crop / side
    while int(crop / ratio) < side:
        ratio = nextafter(ratio, 0)
    return ratio


def _side(key: str, value: object, where: Path) -> int:
    if type(value) is not int or not 1 <= value <= 100_000:
        raise _refusal(key, value, where, "a number of pixels")
    return value


def _numbers(key: str, values: Any, where: Path, least: float = -1e6) -> Numbers:
    """Return three numbers; one number stands for all three channels."""
    values = [values] * 3 if _is_number(values) else values
    right = isinstance(values, (list, tuple)) and len(values) == 3
    if not right or not all(_is_number(value) and value >= least for value in values):
        what = f"{key} {values!r:.60}, expected three numbers" + (" above 0" if least > 0 else "")
        raise CheckpointError(what, where=where, remedy="download it again", code="K06")
    return tuple(map(float, values))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _refusal(key: str, value: object, where: Path, expected: str) -> CheckpointError:
    what = f"{key} is {value!r:.80}, which is not followed here; expected {expected}"
    remedy = "correct the file if it is wrong; else load the weights file from a folder without it"
    return ArchitectureError(what, where=where, remedy=remedy, code="K07")
