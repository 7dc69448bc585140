"""Classification data that need no download: handwritten digits, and single shapes. Kept as class folders."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from regard.data.class_images.folders import split_by_hash
from regard.data.generated.shapes import SHAPES, ShapesConfig, cache_folder, parse_shapes, render_scene
from regard.errors import ConfigError, MachineError

WORDS = ("digits", "shapes")
DIGITS_VERSION = 1  # to be raised when other images are written
DIGITS_SIZE = 32


def generated_folder(word: str) -> Path:
    """The folder of `digits` or `shapes[:key=value,...]`, below the user's cache folder; written at the first call."""
    if word == "digits":
        return _kept(f"digits-{DIGITS_SIZE}px-v{DIGITS_VERSION}", write_digits)
    if word.startswith("digits"):
        raise ConfigError(f"unknown data {word!r:.60}", remedy="digits has no options", code="C01")
    config = _single(parse_shapes(word))
    return _kept(f"single-shapes-{config.size}px-{config.fingerprint}", lambda folder: write_shapes(config, folder))


def write_digits(folder: Path) -> None:
    """The 1797 digits of scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak 1998): `train/7/0123.png`, `val/...`.

    Real scans, 8 x 8 in 17 levels of grey, white on black, here enlarged to 32 x 32 RGB (bicubic). A fifth of each
    class, by the hash of the names, is for validation.

    Raises:
        MachineError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        remedy = "install it with: pip install 'regard[digits]'"
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


def write_shapes(config: ShapesConfig, folder: Path) -> None:
    """Images of one shape each on a landscape, drawn as those of the detection data: `train/circle/000001.png`."""
    config = _single(config)
    for number, (split, count) in enumerate((("train", config.train), ("val", config.val))):
        for name in SHAPES[: config.classes]:
            (folder / split / name).mkdir(parents=True)
        counts = [0] * config.classes
        for i in range(count):
            scene = render_scene(config, (config.seed, number, i))
            if not scene.labels:
                raise ConfigError(f"no shape of min_scale={config.min_scale} can be seen", where="shapes", code="C03")
            counts[scene.labels[0]] += 1
            place = folder / split / SHAPES[scene.labels[0]] / f"{i + 1:06d}.png"
            Image.fromarray(scene.image).save(place, compress_level=1)
        if split == "train" and not all(counts):
            what = f"{count} images leave {SHAPES[counts.index(0)]} without any"
            raise ConfigError(what, where="shapes", remedy="raise train or lower classes", code="C03")


def _single(config: ShapesConfig) -> ShapesConfig:
    """The options with one object an image, whatever they say of numbers."""
    return replace(config, min_objects=1, max_objects=1)


def _kept(name: str, write: Callable[[Path], None]) -> Path:
    folder = cache_folder() / "data" / name
    if not folder.exists():
        temporary = folder.with_name(f"{name}.tmp-{uuid.uuid4().hex}")
        try:
            write(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
