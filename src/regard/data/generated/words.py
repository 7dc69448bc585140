"""Classification data that need no download, named by a word: `digits` and `shapes`. Cached as class folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from regard.data.class_images.folders import split_by_hash
from regard.data.generated.cache import cached_folder
from regard.data.generated.shapes import SHAPES, ShapesConfig, parse_shapes, render_scene
from regard.errors import ConfigError, MachineError, install_command

DIGITS_VERSION = 1  # raise it when other images are written
DIGITS_SIZE = 32


def generated_folder(word: str) -> Path:
    """Return the folder of `digits`, or of `shapes` or `shapes_hard` with or without options.

    It is written at the first call to the cache folder.

    Raises:
        ConfigError: a wrong option.
        MachineError: scikit-learn is not installed, which has the digits.
    """
    if word == "digits":
        return cached_folder(f"digits-{DIGITS_SIZE}px-v{DIGITS_VERSION}", write_digits)
    if word.startswith("digits"):
        raise ConfigError(f"unknown data {word!r:.60}", remedy="write digits, which has no options", code="C01")
    config = _single(parse_shapes(word))
    name = f"single-shapes-{config.size}px-{config.fingerprint}"
    return cached_folder(name, lambda folder: write_single_shapes(config, folder))


def write_digits(folder: Path) -> None:
    """Write the 1797 digits of scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak 1998) as `train/7/0123.png`.

    Real scans of 8 x 8 pixels in 17 grey levels, white on black, enlarged to 32 x 32 RGB (bicubic). A fifth of each
    class, chosen by the hash of the names, is for validation.

    Raises:
        MachineError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        remedy = f"install it with: {install_command('scikit-learn')}"
        raise MachineError("the digits need scikit-learn", remedy=remedy) from error
    digits = load_digits()
    for label in range(10):
        names = {f"{label}/{i:04d}.png": i for i in np.flatnonzero(digits.target == label).tolist()}
        for split, chosen in zip(("train", "val"), split_by_hash(list(names)), strict=True):
            (folder / split / str(label)).mkdir(parents=True)
            for name in chosen:
                grey = (digits.images[names[name]] * (255 / 16)).round().astype(np.uint8)
                image = Image.fromarray(grey).resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC)
                image.convert("RGB").save(folder / split / name)


def write_single_shapes(config: ShapesConfig, folder: Path) -> None:
    """Write images of one shape each, drawn like those of the detection data, as `train/circle/000001.png`.

    Raises:
        ConfigError: an image without a visible shape, or a class without an image (C03).
    """
    config = _single(config)
    for number, (split, count) in enumerate((("train", config.train), ("val", config.val))):
        for name in SHAPES[: config.classes]:
            (folder / split / name).mkdir(parents=True)
        counts = [0] * config.classes
        for i in range(count):
            scene = render_scene(config, (config.seed, number, i))
            if not scene.labels:
                what = f"no visible shape with min_scale={config.min_scale}"
                raise ConfigError(what, where="shapes", remedy="raise min_scale", code="C03")
            counts[scene.labels[0]] += 1
            path = folder / split / SHAPES[scene.labels[0]] / f"{i + 1:06d}.png"
            Image.fromarray(scene.image).save(path, compress_level=1)
        if split == "train" and not all(counts):
            what = f"train={count} leaves the class {SHAPES[counts.index(0)]} without an image"
            raise ConfigError(what, where="shapes", remedy="raise train or lower classes", code="C03")


def _single(config: ShapesConfig) -> ShapesConfig:
    """Return the options with one object in each image."""
    return replace(config, min_objects=1, max_objects=1)
