"""Load the weights of classifiers from files of other projects; start training from a trained classifier."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from regard.errors import ArchitectureError, counted
from regard.models.build import build
from regard.models.catalog import preset
from regard.models.classifiers import HEADS, Classifier
from regard.models.configs import ClassifierConfig
from regard.models.configs.vit import ViTConfig
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category
from regard.weights.headless import mark_headless
from regard.weights.packages import efficientnet_tensors, is_efficientnet
from regard.weights.state_dict import load_exactly
from regard.weights.vit import fit_vit, is_vit, read_vit

# Settings that may differ between a trained network and one that starts from it: they do not change the tensors, or
# the tensors are adapted.
IGNORED_SETTINGS = frozenset(
    {
        "num_classes", "image_size", "dropout", "drop_path", "drop_path_rule", "layer_scale", "distilled", "fuse",
        "resize", "initial",
    }
)  # fmt: skip


def load_classifier(
    tensors: Mapping[str, Tensor],
    name: str | None = None,
    *,
    num_heads: int | None = None,
    to_train: bool = False,
    where: str | Path,
) -> Classifier:
    """Return a classifier with the tensors of a file, in evaluation mode.

    The number of classes comes from the tensors; 1000 classes are assumed to be those of ImageNet.

    Args:
        tensors: name -> tensor, with torchvision's names for convolutional networks, and the names of the DeiT authors,
            timm or Hugging Face for vision transformers.
        name: name of the model; may be None for a vision transformer (see `read_vit`).
        num_heads: attention heads of a vision transformer, if known.
        to_train: accept a file whose class layer was removed. The card then has no categories.
        where: the file, for errors.

    Raises:
        CheckpointError: the tensors do not fit the model (K07, K08, K09), or two have the same name (K10).
    """
    config = None if name is None else preset(name)
    if name is None or isinstance(config, ViTConfig) or is_vit(tensors):
        name, config, tensors, notes, headless = read_vit(tensors, name, num_heads=num_heads, where=where)
        for note in notes:
            warnings.warn(f"{where}: {note}", stacklevel=5)
    else:
        assert isinstance(config, ClassifierConfig)
        tensors = efficientnet_tensors(tensors) if is_efficientnet(tensors) else tensors
        heads = [tensor for key, tensor in tensors.items() if _is_head(key) and key.endswith(".weight")]
        headless = not heads
        config = replace(config, num_classes=1 if headless else len(heads[-1]))
    net = build(config, name, imagenet_categories() if config.num_classes == 1000 else None)
    if headless:
        if not any(key in tensors for key in net.state_dict()):
            raise ArchitectureError(f"no weights of {name}: no classifying layer", where=where, code="K07")
        tensors = {**{key: tensor for key, tensor in net.state_dict().items() if _is_head(key)}, **tensors}
    load_exactly(net, tensors, where=where)
    if headless:
        mark_headless(net, to_train, where)
    return net.eval()


def imagenet_categories() -> tuple[Category, ...]:
    """Return the 1000 classes of ImageNet in the usual order, with torchvision's names."""
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(Category(i, name) for i, name in enumerate(names))


@torch.no_grad()
def transfer_classifier(source: Classifier, net: Classifier) -> str:
    """Copy the weights of a trained classifier to a new one with other classes.

    The rows of the classification layer are copied for classes of the same name; the other rows keep their random
    values. Two vision transformers may differ in image size and distillation token (`fit_vit`).

    Args:
        source: the trained classifier.
        net: the new classifier; changed in place.

    Returns:
        What was copied, in one line for the user.

    Raises:
        CheckpointError: the two are different models (K07).
    """
    ours, theirs = net.state_dict(), source.state_dict()
    notes: list[str] = []
    remedy = "start from the same model; its classes and its image size may differ"
    if isinstance(source, VisionTransformer) and isinstance(net, VisionTransformer):
        theirs, notes = fit_vit(theirs, source.config, net.config)
        remedy += ", and its distillation"
    else:
        tables = [key for key in ours if key.endswith("_table") and key in theirs]
        theirs = {**theirs, **{key: _resized_table(theirs[key], len(ours[key])) for key in tables}}
    mismatches = _differences(source, net)
    mismatches += [k for k in ours if k not in theirs or not _fits(k, ours[k], theirs[k])]
    mismatches += [k for k in theirs if k not in ours]
    if mismatches:
        what = f"{source.card.name} does not fit {net.card.name}: {', '.join(mismatches)}"[:300]
        raise ArchitectureError(what, remedy=remedy, code="K07")
    rows = {category.name: row for row, category in enumerate(source.card.categories)}
    pairs = [(i, rows[c.name]) for i, c in enumerate(net.card.categories) if c.name in rows]
    for key, tensor in ours.items():
        if not _is_head(key):
            tensor.copy_(theirs[key])
        elif pairs:
            mine, other = zip(*pairs, strict=True)
            tensor[list(mine)] = theirs[key][list(other)]
    count = counted(len(net.card.categories), "class", "classes")
    known = f"{len(pairs)} of them known by name"
    known = known if source.card.categories else "whose layer starts at random: the file has none"
    said = [f"started from {source.card.name}", f"{count}, {known}", *notes]
    return "; ".join(said)


def _differences(source: Classifier, net: Classifier) -> list[str]:
    """Describe the settings that differ and that change the output; tensors need not show them."""
    if type(source) is not type(net):
        return [f"{type(source).__name__}, not {type(net).__name__}"]
    theirs, ours = dataclasses.asdict(source.config), dataclasses.asdict(net.config)
    return [
        f"{key} {theirs[key]}, not {ours[key]}"
        for key in ours
        if key not in IGNORED_SETTINGS and ours[key] != theirs[key]
    ]


def _resized_table(table: Tensor, length: int) -> Tensor:
    """Resize relative position embeddings as `RelativePosition2d` does: (2 L - 1, d) -> (length, d)."""
    reach, farthest = length // 2, len(table) // 2
    return table[torch.arange(-reach, reach + 1).clamp(-farthest, farthest) + farthest]


def _is_head(key: str) -> bool:
    return key.partition(".")[0] in HEADS


def _fits(key: str, ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape[1:] == theirs.shape[1:] if _is_head(key) else ours.shape == theirs.shape
