"""Other people's weight files -> our models. Files are told apart by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from regard.errors import ArchitectureError, CheckpointError, ConfigError, MachineError
from regard.models.backbone import RESNETS
from regard.models.build import Detector, build
from regard.models.catalog import WEIGHTS, preset
from regard.models.configs import CLASSIFIER_PRESETS, ModelConfig
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.weights.classifiers import load_classifier
from regard.weights.download import download
from regard.weights.packages import released_file
from regard.weights.state_dict import load_exactly, read_weights

# (blocks of stage 3, blocks of stage 4, whether blocks are bottlenecks)
RESNET_OF_BLOCKS = {
    (2, 2, False): "resnet18",
    (6, 3, False): "resnet34",
    (6, 3, True): "resnet50",
    (23, 3, True): "resnet101",
    (36, 3, True): "resnet152",
}

# What the authors' files have, and those of DETR's relatives lack.
DETR_KEYS = (
    "class_embed.weight",
    "query_embed.weight",
    "transformer.decoder.layers.0.linear1.weight",
    "transformer.decoder.norm.weight",
)

# What only models with masks have.
MASK_PARTS = ("bbox_attention.", "mask_head.")

# A row for every query of every group.
QUERY_ROWS = ("query_embed.weight", "query_embed.content.weight", "query_embed.anchors.weight")


def load_file(path: str | Path, *, model: str | None = None) -> Detector:
    """A model from a file of the DETR authors, with its weights, in evaluation mode.

    Sizes and the number of classes are read off the tensors. The number of heads and whether the last stage is
    dilated (DC5) leave no trace in them: they are taken from the `args` that a training checkpoint keeps, else from
    the released file's name or from `model`; without any they are the paper's.

    Args:
        path: `.pth` or `.safetensors`; released weights, a training checkpoint, or the `state_dict` of a `DETR` of ours
            with the paper's layout.
        model: a name of `list_models()`, where the keys alone cannot tell.

    Raises:
        CheckpointError: not such a file, or it does not fit.
    """
    path = Path(path)
    tensors, metadata = read_weights(path)
    if any(key.startswith("mask_head.") for key in tensors):  # the authors' panoptic models have the detector inside
        tensors = {key.removeprefix("detr."): value for key, value in tensors.items()}
    tensors = {official_name(key): value for key, value in tensors.items()}  # those of our plain models fit as well
    name = model or _released_name(path)
    known = preset(name) if name else None
    config: DETRConfig | DETRDemoConfig
    if "linear_class.weight" in tensors and "query_pos" in tensors:
        config = DETRDemoConfig(
            num_classes=len(tensors["linear_class.weight"]) - 1, num_queries=len(tensors["query_pos"])
        )
    elif all(key in tensors for key in DETR_KEYS):
        trained = _with_arguments(known if isinstance(known, DETRConfig) else DETRConfig(), metadata.get("args"))
        config = _config_of(tensors, trained, path)
        tensors = {_our_name(key): value for key, value in tensors.items()}
    elif "query_embed.content.weight" in tensors:
        what = "weights of a DETR with anchors, without its settings"
        raise ArchitectureError(what, where=path, remedy="name the run's folder: it has them", code="K07")
    else:
        raise ArchitectureError(
            f"no weights of a known model ({len(tensors)} tensors, the first is {next(iter(tensors), 'none')!r})",
            where=path,
            remedy="expected the DETR authors' layout",
            code="K07",
        )
    if known is not None and _family(known) != _family(config):
        what = f"weights of a {_family(config)}, but {name} is a {_family(known)}"
        raise ArchitectureError(what, where=path, remedy="name the model that the file belongs to", code="K07")
    net = build(config, name or _name_of(config))
    load_exactly(net, tensors, where=path)
    return net.eval()


def imagenet_weights(backbone: str) -> Mapping[str, Tensor]:
    """Released ImageNet weights of a backbone: torchvision's first set, as the authors used, or timm's own.

    Raises:
        ConfigError: there are none.
        MachineError: they cannot be downloaded, or nobody has released any of this network.
    """
    if backbone in WEIGHTS and backbone not in RESNETS:
        return load_classifier(read_weights(released_file(WEIGHTS[backbone])).tensors, backbone, where=backbone).state_dict()
    if backbone in CLASSIFIER_PRESETS and backbone not in RESNETS:
        remedy = f"train a {backbone} with regard, then start_from=RUN"
        raise MachineError("nobody has released any", remedy=remedy)
    if backbone.startswith("timm/"):
        try:
            import timm

            return timm.create_model(backbone.removeprefix("timm/"), pretrained=True, features_only=True).state_dict()
        except (ImportError, OSError, RuntimeError) as error:
            raise MachineError(f"cannot get timm's weights: {error}", where=backbone) from error
    try:
        url = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"].url
    except (ValueError, KeyError) as error:
        remedy = "correct model.backbone, or set start_from=none"
        raise ConfigError(f"no ImageNet weights of backbone {backbone!r}", remedy=remedy, code="C09") from error
    return read_weights(download(url)).tensors


def load_backbone(backbone: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Weights of a classifier into the backbone of a detector; what only the classifier has is left out."""
    body = backbone.get_submodule("body")
    wanted = body.state_dict()
    load_exactly(body, {key: value for key, value in tensors.items() if key in wanted}, where=where)


@torch.no_grad()
def transfer(source: Detector, net: Detector, *, whole: bool = False) -> str:
    """Copy what fits from a trained model to a new one with other classes, and say what was done.

    Class outputs are copied row by row for classes of the same name, and for no-object; others start at random. So do
    queries that the trained model did not have; the first, as many as both have, are copied. A mask head starts at
    random where the trained model has none.

    Args:
        whole: all of the detector has to come from the trained model, for nothing of it will learn (masks apart).

    Raises:
        CheckpointError: the two are different models, or with `whole` something would start at random.
    """
    ours, theirs = net.state_dict(), source.state_dict()
    same_classes = [c.name for c in source.card.categories] == [c.name for c in net.card.categories]
    # Tensors with a row for every class.
    heads = [] if same_classes else [k for k in ours if k.startswith(("class_embed.", "query_embed.labels."))]
    heads = [k for k in heads if k in theirs and ours[k].shape[1:] == theirs[k].shape[1:]]
    fresh = [k for k in ours if k.startswith(MASK_PARTS) and k not in theirs]
    differing = [k for k in ours if k not in fresh and (k not in theirs or ours[k].shape != theirs[k].shape)]
    resized = [k for k in differing if k in QUERY_ROWS and k in theirs and ours[k].shape[1:] == theirs[k].shape[1:]]
    misfits = [k for k in differing if k not in heads + resized]
    if source.config.sigmoid != net.config.sigmoid:
        misfits.append("class_embed (softmax and sigmoid)")
    # Of these, tensors show nothing, or only that the source has more of them.
    shape = ("num_heads", "norm_first", "encoder_layers", "decoder_layers", "backbone", "dilation")
    for name in shape:
        before, now = getattr(source.config, name, None), getattr(net.config, name, None)
        if before != now:
            misfits.append(f"{name} {before}, not {now}")
    if misfits:
        names = ", ".join(misfits)
        raise ArchitectureError(
            f"{source.card.name} does not fit {net.card.name}: {names}"[:300],
            remedy="start from the same model",
            code="K07",
        )
    rows = {category.name: row for row, category in enumerate(source.card.categories)}
    pairs = [(i, rows[c.name]) for i, c in enumerate(net.card.categories) if c.name in rows]
    if whole and (resized or len(pairs) < len(net.card.categories)):
        raise _incomplete(source, net)
    for key in set(ours) - set(heads) - set(resized) - set(fresh):
        ours[key].copy_(theirs[key])
    counts = (net.config.num_queries, source.config.num_queries)
    for key in resized:  # the queries of one group after those of the other
        new, old = (
            rows.view(-1, count, rows.shape[1]) for rows, count in zip((ours[key], theirs[key]), counts, strict=True)
        )
        groups, kept = min(len(new), len(old)), min(counts)
        new[:groups, :kept] = old[:groups, :kept]
    for key in heads:
        for ours_row, theirs_row in pairs:
            ours[key][ours_row] = theirs[key][theirs_row]
        if not net.config.sigmoid and key.startswith("class_embed."):
            ours[key][-1] = theirs[key][-1]  # no-object
    known = f", {len(pairs)} of them known by name" if heads else ""
    queries = f", {min(counts)} of {counts[0]} queries" if counts[0] != counts[1] else ""
    masks = ", a new mask head" if fresh else ""
    return f"started from {source.card.name}; {len(net.card.categories)} classes{known}{queries}{masks}"


def _incomplete(source: Detector, net: Detector) -> CheckpointError:
    """The error for a detector whose parts are not all in the trained model."""
    known = {category.name for category in source.card.categories}
    unknown = [category.name for category in net.card.categories if category.name not in known]
    lacking = f"the class {unknown[0]!r:.40}" if unknown else f"{net.config.num_queries} queries of these groups"
    what = f"a frozen detector needs all of its parts, and {source.card.name} lacks {lacking}"
    return CheckpointError(what, remedy="start from a detector of these classes and queries", code="K08")


def official_name(name: str) -> str:
    """Our parameter name -> the authors'."""
    name = re.sub(r"^backbone\.body\.", "backbone.0.body.", name)
    return re.sub(r"^position_encoding\.", "backbone.1.", name)


def _our_name(name: str) -> str:
    name = re.sub(r"^backbone\.0\.body\.", "backbone.body.", name)
    return re.sub(r"^backbone\.1\.", "position_encoding.", name)


def _released_name(path: Path) -> str | None:
    return next((name for name, weights in WEIGHTS.items() if weights.file_name == path.name), None)


def _family(config: ModelConfig) -> str:
    if isinstance(config, DETRConfig):
        return f"DETR with {config.backbone}{', dilated' * config.dilation}{', with masks' * config.masks}"
    return type(config).__name__.removesuffix("Config")


def _name_of(config: DETRConfig | DETRDemoConfig) -> str:
    if isinstance(config, DETRConfig):
        return f"detr_{config.backbone}{'_dc5' * config.dilation}{'_panoptic' * config.masks}"
    return "detr_demo"


def _with_arguments(config: DETRConfig, arguments: object) -> DETRConfig:
    """What the authors' main.py was called with, where a checkpoint of it says so."""
    given = arguments if isinstance(arguments, Mapping) else {}
    heads, dilation = given.get("nheads"), given.get("dilation")
    return replace(
        config,
        num_heads=heads if type(heads) is int else config.num_heads,
        dilation=dilation if type(dilation) is bool else config.dilation,
    )


def _config_of(tensors: Mapping[str, Tensor], known: DETRConfig, path: Path) -> DETRConfig:
    """The sizes that the authors' tensors show; the rest as in `known`."""

    def count(pattern: str) -> int:
        return len({m.group(1) for key in tensors if (m := re.match(pattern, key))})

    body = r"backbone\.0\.body\.layer{}\.(\d+)\."
    blocks = (
        count(body.format(3)),
        count(body.format(4)),
        "backbone.0.body.layer1.0.conv3.weight" in tensors,
    )
    if blocks not in RESNET_OF_BLOCKS:
        what = "the backbone is none of torchvision's ResNets 18 to 152"
        remedy = "if it is of a run, name the run's folder, which has the settings"
        raise ArchitectureError(what, where=path, remedy=remedy, code="K07")
    prefix = "transformer.decoder.layers.0."
    return replace(
        known,
        backbone=RESNET_OF_BLOCKS[blocks],
        num_classes=len(tensors["class_embed.weight"]) - 1,
        num_queries=len(tensors["query_embed.weight"]),
        embed_dim=tensors["query_embed.weight"].shape[1],
        feedforward_dim=len(tensors[f"{prefix}linear1.weight"]),
        encoder_layers=count(r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=count(r"transformer\.decoder\.layers\.(\d+)\."),
        norm_first="transformer.encoder.norm.weight" in tensors,
        masks="mask_head.lay1.weight" in tensors,
        position_encoding="learned" if "backbone.1.row_embed.weight" in tensors else "sine",
    )
