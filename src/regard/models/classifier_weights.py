"""Weights of classifiers: other people's files, and a trained model as the start of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from regard.categories import Category
from regard.errors import CheckpointError
from regard.models.catalog import build, preset
from regard.models.classifiers import HEADS, Classifier, ClassifierConfig
from regard.models.files import load_exactly, read_weights


def load_classifier_file(path: str | Path, name: str) -> Classifier:
    """A classifier from a file with its tensors, in evaluation mode.

    The number of classes is read off the tensors; 1000 of them are taken for ImageNet's.

    Args:
        path: `.pth` or `.safetensors`. Plain networks have torchvision's names of tensors.
        name: of the model.

    Raises:
        CheckpointError: not such a file, or it does not fit.
    """
    config = preset(name)
    assert isinstance(config, ClassifierConfig)
    tensors = read_weights(path).tensors
    heads = [tensor for key, tensor in tensors.items() if _is_head(key) and key.endswith(".weight")]
    if not heads:
        raise CheckpointError(f"no weights of {name}: no classifying layer", where=path, code="K07")
    config = replace(config, num_classes=len(heads[-1]))
    net = build(config, name, imagenet_categories() if config.num_classes == 1000 else None)
    load_exactly(net, tensors, where=path)
    return net.eval()


def imagenet_categories() -> tuple[Category, ...]:
    """The 1000 classes of ImageNet in the order that everybody counts them, by torchvision's names."""
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(Category(i, name) for i, name in enumerate(names))


@torch.no_grad()
def transfer_classifier(source: Classifier, net: Classifier) -> str:
    """Copy a trained classifier to a new one with other classes, and say what was done.

    The classifying layer is copied row by row for classes of the same name; others start at random.

    Raises:
        CheckpointError: the two are different models.
    """
    ours, theirs = net.state_dict(), source.state_dict()
    misfits = [k for k in ours if k not in theirs or not _fits(k, ours[k], theirs[k])]
    misfits += [k for k in theirs if k not in ours]
    if misfits:
        what = f"{source.card.name} does not fit {net.card.name}: {', '.join(misfits)}"[:300]
        raise CheckpointError(what, remedy="start from the same model at the same image size", code="K07")
    rows = {category.name: row for row, category in enumerate(source.card.categories)}
    pairs = [(i, rows[c.name]) for i, c in enumerate(net.card.categories) if c.name in rows]
    for key, tensor in ours.items():
        if not _is_head(key):
            tensor.copy_(theirs[key])
        elif pairs:
            mine, other = zip(*pairs, strict=True)
            tensor[list(mine)] = theirs[key][list(other)]
    count = len(net.card.categories)
    return f"started from {source.card.name}; {count} classes, {len(pairs)} of them known by name"


def _is_head(key: str) -> bool:
    return key.partition(".")[0] in HEADS


def _fits(key: str, ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape[1:] == theirs.shape[1:] if _is_head(key) else ours.shape == theirs.shape
