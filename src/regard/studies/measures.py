"""Numbers of a finished run that its metrics.json does not have.

Each function takes the run's folder, the data as in its settings, and the folder of another run or None, and returns
numbers by name. Torch is imported when one is called.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

HEADS = ("class", "distillation")


def choices(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """First choices on the validation images, as shares 0..1 (DeiT, tables 3 and 4).

    `error` of the model; with two heads also `class_top1` and `distillation_top1` of each alone, and `heads_differ`,
    how often they differ. With `other`, a run on the same data, how often its first choice differs: `differ` from the
    model, `class_differ` and `distillation_differ` from its heads.
    """
    found, truth = _first_choices(run, data)
    numbers = {"error": _share_that_differs(found["all"], truth)}
    for head in HEADS:
        if head in found:
            numbers[f"{head}_top1"] = 1 - _share_that_differs(found[head], truth)
    if HEADS[1] in found:
        numbers["heads_differ"] = _share_that_differs(found["class"], found["distillation"])
    if other is not None:
        theirs = _first_choices(other, data)[0]["all"]
        names = {"all": "differ", **{head: f"{head}_differ" for head in HEADS}}
        numbers |= {names[head]: _share_that_differs(labels, theirs) for head, labels in found.items()}
    return numbers


def token_similarity(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """Cosine of the class and the distillation token, -1..1 (DeiT, section 4).

    `learned`: of the two as they enter the network; `last`: after its last layer, mean over the validation images.

    Raises:
        ConfigError: the run has no distillation token (C09).
    """
    from torch.nn.functional import cosine_similarity

    from regard.data.class_images.dataset import open_classification
    from regard.evaluation.classification import predict_logits
    from regard.models.vit import VisionTransformer
    from regard.training.distributed import Processes
    from regard.weights.load import load_on

    net, device = load_on(str(run), "auto")
    if not isinstance(net, VisionTransformer) or net.dist_token is None:
        raise ConfigError("a model without distillation token", where=run, code="C09")
    found: list[Tensor] = []

    def keep(module: Module, given: tuple[Tensor, ...], tokens: Tensor) -> None:
        found.append(cosine_similarity(tokens[:, 0].double(), tokens[:, 1].double()).cpu())

    with net.norm.register_forward_hook(keep):
        dataset = open_classification(data, "val")
        predict_logits(net, dataset, batch_size=64, workers=0, processes=Processes(0, 1, device))
    learned = cosine_similarity(net.cls_token.double(), net.dist_token.double(), dim=-1)
    count = sum(map(len, found))
    return {"learned": learned.item(), "last": sum(part.sum().item() for part in found) / count}


def _first_choices(run: Path, data: str) -> tuple[dict[str, Tensor], Tensor]:
    """First choices of a classifier (N,) as `all`, and of its heads if it has two; and the true labels (N,)."""
    import torch

    from regard.data.class_images.dataset import open_classification
    from regard.evaluation.classification import model_labels, predict_logits
    from regard.models.build import Detector
    from regard.models.vit import VisionTransformer
    from regard.training.distributed import Processes
    from regard.weights.load import load_on

    net, device = load_on(str(run), "auto")
    if isinstance(net, Detector):
        raise ConfigError("a detector, not a classifier", where=run, code="C09")
    dataset = open_classification(data, "val")
    found = {}

    def choose(name: str) -> None:
        logits = predict_logits(net, dataset, batch_size=64, workers=0, processes=Processes(0, 1, device))
        found[name] = logits.argmax(1)

    choose("all")
    if isinstance(net, VisionTransformer) and net.config.distilled:
        net.config = replace(net.config, fuse="class")
        choose("class")
        net.config = replace(net.config, fuse="distillation")
        choose("distillation")
    return found, torch.tensor(model_labels(net.card.categories, dataset))[dataset.labels]


def _share_that_differs(one: Tensor, other: Tensor) -> float:
    return (one != other).double().mean().item()
