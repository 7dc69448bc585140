"""Load RetinaNets from torchvision's files; start training from a trained one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.errors import ArchitectureError, counted
from regard.models.build import build
from regard.models.catalog import preset
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.retinanet import ANCHORS, RetinaNet
from regard.weights.detr import RESNETS_BY_BLOCKS
from regard.weights.state_dict import load_exactly

CLASS_LAYER = "head.classification_head.cls_logits"
CLASS_TENSORS = (f"{CLASS_LAYER}.weight", f"{CLASS_LAYER}.bias")  # with a row for each class of each anchor
COUNTER = "num_batches_tracked"  # of batch norm that is trained

# torchvision evaluates this file, whose name ends in a part of its hash, with an epsilon of 0 in batch norm.
WITHOUT_EPSILON = "retinanet_resnet50_fpn_coco"


def is_retinanet(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds a RetinaNet, torchvision's or ours, by the names of its tensors."""
    return CLASS_TENSORS[0] in tensors


def load_retinanet(tensors: Mapping[str, Tensor], path: Path, *, model: str | None = None) -> RetinaNet:
    """Return a RetinaNet with the tensors of a file, in evaluation mode.

    A file of torchvision's `retinanet_resnet50_fpn`, also of its first versions, or the `state_dict` of ours.

    Args:
        tensors: name -> tensor.
        path: the file, for errors; its name tells torchvision's released weights.
        model: a name of `list_models()`; needed unless the backbone is a plain ResNet and all else as in the paper.

    Raises:
        CheckpointError: the tensors do not fit (K07).
    """
    tensors = {_our_name(name): tensor for name, tensor in tensors.items()}
    known = None if model is None else preset(model)
    if known is not None and not isinstance(known, RetinaNetConfig):
        what = f"weights of a RetinaNet, but {model} is none"
        raise ArchitectureError(what, where=path, remedy="name the model that the file belongs to", code="K07")
    config = known or RetinaNetConfig(backbone=_backbone_of(tensors, path))
    trained = any(name.endswith(COUNTER) for name in tensors)
    count = len(tensors[CLASS_TENSORS[0]]) // ANCHORS
    config = replace(config, num_classes=count, backbone_norm="batch" if trained else "frozen")
    net = build(config, model or f"retinanet_{config.backbone}")
    assert isinstance(net, RetinaNet)
    load_exactly(net, tensors, where=path)
    if path.name.startswith(WITHOUT_EPSILON):
        _take_epsilon_away(net)
    return net.eval()


@torch.no_grad()
def transfer_retinanet(source: RetinaNet, net: RetinaNet) -> str:
    """Copy the weights of a trained RetinaNet to a new one with other classes.

    Rows of the class layer are copied for classes of the same name; the others keep their random values.

    Args:
        source: the trained model.
        net: the new model; changed in place.

    Returns:
        What was copied, in one line for the user.

    Raises:
        CheckpointError: the two are different models (K07).
    """
    ours, theirs = net.state_dict(), source.state_dict()
    rows = {category.name: row for row, category in enumerate(source.card.categories)}
    pairs = [(row, rows[c.name]) for row, c in enumerate(net.card.categories) if c.name in rows]
    copied = [name for name in ours if name not in CLASS_TENSORS and not name.endswith(COUNTER)]
    differing = [name for name in copied if name not in theirs or ours[name].shape != theirs[name].shape]
    surplus = [name for name in theirs if name not in ours and not name.endswith(COUNTER)]
    if differing or surplus or source.config.anchor_size != net.config.anchor_size:
        names = ", ".join([*differing, *surplus] or ["model.anchor_size"])
        what = f"{source.card.name} does not fit {net.card.name}: {names}"[:300]
        raise ArchitectureError(what, remedy="start from the same model", code="K07")
    for name in copied:
        ours[name].copy_(theirs[name])
    for name in CLASS_TENSORS:  # the classes of the first anchor, of the second, ...
        new, old = (tensors[name].unflatten(0, (ANCHORS, -1)) for tensors in (ours, theirs))
        for our_row, their_row in pairs:
            new[:, our_row] = old[:, their_row]
    count = counted(len(net.card.categories), "class", "classes")
    return f"started from {source.card.name}; {count}, {len(pairs)} of them known by name"


def _our_name(name: str) -> str:
    """Return our name of one of torchvision's tensors, also of those before version 0.14."""
    name = re.sub(r"^backbone\.fpn\.", "fpn.", name)
    old = re.match(r"(head\.\w+\.conv\.)(\d+)\.(weight|bias)$", name)
    return name if old is None else f"{old[1]}{int(old[2]) // 2}.0.{old[3]}"


def _backbone_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    def count(stage: int) -> int:
        pattern = re.compile(rf"backbone\.body\.layer{stage}\.(\d+)\.")
        return len({match[1] for name in tensors if (match := pattern.match(name))})

    blocks = count(3), count(4), "backbone.body.layer1.0.conv3.weight" in tensors
    attends = any(name.endswith(".kqv.weight") for name in tensors)
    if blocks not in RESNETS_BY_BLOCKS or attends:
        what = "a RetinaNet whose backbone is none of torchvision's ResNets 18 to 152"
        remedy = "name its model, or the run's folder if it belongs to a run"
        raise ArchitectureError(what, where=path, remedy=remedy, code="K07")
    return RESNETS_BY_BLOCKS[blocks]


@torch.no_grad()
def _take_epsilon_away(net: nn.Module) -> None:
    """Lower the variances by the epsilon that each frozen batch norm adds to them."""
    for module in net.modules():
        variance, epsilon = getattr(module, "running_var", None), getattr(module, "eps", 0.0)
        if isinstance(variance, Tensor):
            variance -= epsilon
