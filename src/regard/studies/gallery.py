"""A page of pictures: segments, and the attention of detectors and classifiers. It trains the models and draws all.

regard study gallery --page docs/gallery.md
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import regard
from regard.data.class_images.dataset import open_classification
from regard.data.generated.shapes import data_folder
from regard.data.image_folders import list_images
from regard.drawing.boxes import grid
from regard.errors import ConfigError
from regard.explanations.explain import explain, explain_queries
from regard.prediction.predict import predict_each
from regard.safe_files import replace_text
from regard.studies.folder import claim
from regard.studies.plan import Training
from regard.studies.trainings import Trainer, cores, environment_of
from regard.training.distributed import choose_device

DATA = "shapes:"
# What is trained, words of `regard train` each.
MODELS = {
    "panoptic": ["detr_tiny_panoptic", "--data", DATA, "epochs=7"],
    "encoder": ["detr_tiny", "--data", DATA, "model.encoder_layers=2", "epochs=6", "augmentation=flip"],
    "augmented": ["aa_resnet20", "--data", "digits", "epochs=8"],
    "deit": ["deit_nano_distilled_patch4_32", "--data", "digits"],
}
SCENES = (3, 5, 8, 11)  # validation images


@dataclass(frozen=True)
class Entry:
    """A picture of the page. draw: writes it to a path. command: draws a similar one."""

    name: str
    title: str
    text: str
    command: str
    draw: Callable[[Path], Any]


def train_models(output: Path) -> dict[str, Path]:
    """Train what is missing of `MODELS`; return the folder of each.

    Raises:
        SystemExit: a training failed and said why; with its exit code.
    """
    trainings = []
    for name, (model, _, data, *settings) in MODELS.items():
        trainings.append(Training(name, (model, *settings), data, name, 0))
    device = choose_device("auto").type
    tell = functools.partial(print, file=sys.stderr, flush=True)
    failures = Trainer(output, cores() if device == "cpu" else 1, environment_of(device), tell).train(trainings)
    if failures:
        raise SystemExit(failures[0].code)
    return {training.row: training.folder(output) for training in trainings}


def gallery(output: Path, page: Path | None) -> None:
    """Train the models, draw the page and its pictures, and print where it is.

    Args:
        output: folder of the runs; finished ones are used again.
        page: the Markdown file; pictures go to the folder of the same name next to it. `output/gallery.md` if None.

    Raises:
        ConfigError: `output` holds something else (C11), or the page has no suffix `.md`.
    """
    page = output / "gallery.md" if page is None else page
    if page.suffix != ".md":
        raise ConfigError("the page is a Markdown file", where=page, remedy="name it gallery.md", code="C11")
    claim(output, {"models": MODELS})
    data_folder(DATA)  # made once, before two trainings would make it
    runs = train_models(output)
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Gallery",
        "",
        "Drawn by `uv run regard study gallery --page docs/gallery.md`: small models, trained in minutes on two CPU",
        "cores. The command above each picture draws the same for your model and image.",
    ]
    for entry in entries(runs):
        entry.draw(pictures / f"{entry.name}.png")
        shown = f"![{entry.title}]({pictures.name}/{entry.name}.png)"
        lines += ["", f"## {entry.title}", "", entry.text, "", "```console", entry.command, "```", "", shown]
    replace_text(page, "\n".join(lines) + "\n")
    print(page)


def entries(runs: dict[str, Path]) -> list[Entry]:
    """Return the entries of the page for the runs of `MODELS`."""
    panoptic, encoder, augmented, deit = (regard.load(runs[name]) for name in MODELS)
    return [*_of_detectors(panoptic, encoder), *_of_classifiers(augmented, deit)]


def _of_detectors(panoptic: Any, encoder: Any) -> list[Entry]:
    folder = data_folder(DATA)
    files = list(list_images(folder / "val"))
    scenes = [files[number] for number in SCENES]
    scene = scenes[0]
    return [
        Entry(
            "heads",
            "Head by head",
            "Cross-attention of one detection in the last decoder layer (DETR, figure 6).",
            "uv run regard explain runs/panoptic scene.png --what heads --point 44 42",
            lambda path: explain(panoptic, scene, "heads", point=_thing(panoptic, scene)).save(path),
        ),
        Entry(
            "decoder",
            "Where the decoder looks",
            "The same for every detection, mean of the heads.",
            "uv run regard explain runs/panoptic scene.png",
            lambda path: explain(panoptic, scene).save(path),
        ),
        Entry(
            "relevance",
            "What counts for the class",
            "Attention weighted by the gradient of each detection's class, through all layers (Chefer et al. 2021).",
            "uv run regard explain runs/panoptic scene.png --what relevance",
            lambda path: explain(panoptic, scene, "relevance").save(path),
        ),
        Entry(
            "layers",
            "Layer by layer",
            "Boxes of the same queries after each decoder layer, over where they look together.",
            "uv run regard explain runs/panoptic scene.png --what layers",
            lambda path: explain(panoptic, scene, "layers").save(path),
        ),
        Entry(
            "encoder",
            "Where places of the image look",
            "Self-attention in the encoder from the centres of the detections (figure 3).",
            "uv run regard explain runs/encoder scene.png --what encoder",
            lambda path: explain(encoder, _fullest(encoder, files), "encoder").save(path),
        ),
        Entry(
            "queries",
            "Where each query finds its objects",
            "A dot for the middle of its box in each validation image: green for small boxes, orange for wide, blue for"
            " tall ones (figure 7). Some queries have specialised in sky and ground.",
            "uv run regard explain runs/panoptic shapes/val/",
            lambda path: explain_queries(panoptic, folder / "val").save(path),
        ),
        Entry(
            "panoptic",
            "Panoptic segmentation",
            "Every pixel belongs to a thing or to stuff. A mask head follows each query of DETR (section 4.4).",
            "uv run regard predict runs/panoptic photos/ --output drawn/ --json segments.json",
            lambda path: _segments(panoptic, scenes).save(path),
        ),
    ]


def _of_classifiers(augmented: Any, deit: Any) -> list[Entry]:
    digit = _digit(7)
    return [
        Entry(
            "rollout",
            "A transformer reads a digit",
            "Attention rolled out through all blocks of a small DeiT (Abnar and Zuidema 2020).",
            "uv run regard explain runs/deit digit.png",
            lambda path: explain(deit, digit).save(path),
        ),
        Entry(
            "tokens",
            "Class token and distillation token",
            "Block by block, mean of the heads.",
            "uv run regard explain runs/deit digit.png --what tokens",
            lambda path: explain(deit, digit, "tokens").save(path),
        ),
        Entry(
            "augmented",
            "Attention next to a convolution",
            "Each head of an attention-augmented ResNet from one pixel; below without the relative positions.",
            "uv run regard explain runs/augmented digit.png --what heads --layer 0",
            lambda path: explain(augmented, digit, "heads", layer=0).save(path),
        ),
    ]


def _segments(model: Any, scenes: Sequence[Path]) -> Image.Image:
    """Draw the predictions for some images side by side."""
    pictures = [result.plot() for result in predict_each(model, scenes)]
    originals = [Image.open(path).convert("RGB").resize(pictures[0].size, Image.Resampling.NEAREST) for path in scenes]
    return grid([*originals, *pictures], columns=len(scenes), longest=320)


def _fullest(model: Any, files: Sequence[Path]) -> Path:
    """Return the one of the first images with the most detections."""
    return max(files[:40], key=lambda file: len(explain(model, file, "encoder")))


def _thing(model: Any, scene: Path) -> tuple[float, float] | None:
    """Return the centre of the thing with the highest score in an image, or None."""
    for found in explain(model, scene).maps:
        assert found.boxes is not None
        if model.card.categories[found.labels[0]].is_thing:
            x0, y0, x1, y1 = found.boxes[0].tolist()
            return (x0 + x1) / 2, (y0 + y1) / 2
    return None


def _digit(number: int) -> Tensor:
    return open_classification("digits", "val")[number].image
