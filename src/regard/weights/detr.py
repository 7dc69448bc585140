"""Load detectors from files of the DETR authors, recognised by tensor names; start training from a trained detector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from regard.errors import ArchitectureError, CheckpointError, ConfigError, MachineError, counted
from regard.models.backbone import RESNETS
from regard.models.build import QueryDetector, build
from regard.models.catalog import WEIGHTS, preset
from regard.models.configs import CLASSIFIER_PRESETS, ModelConfig
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.models.detr import DETR
from regard.weights.classifiers import load_classifier
from regard.weights.download import download
from regard.weights.headless import mark_headless
from regard.weights.packages import released_file
from regard.weights.state_dict import load_exactly, read_weights

# (blocks of stage 3, blocks of stage 4, whether blocks are bottlenecks)
RESNETS_BY_BLOCKS = {
    (2, 2, False): "resnet18",
    (6, 3, False): "resnet34",
    (6, 3, True): "resnet50",
    (23, 3, True): "resnet101",
    (36, 3, True): "resnet152",
}

# Tensors of the authors' files that files of other DETR variants lack.
DETR_KEYS = (
    "class_embed.weight",
    "query_embed.weight",
    "transformer.decoder.layers.0.linear1.weight",
    "transformer.decoder.norm.weight",
)

# Prefixes of the tensors that only models with masks have.
MASK_PREFIXES = ("bbox_attention.", "mask_head.", "mask_proj.")

# Tensors with a row for each query of each group.
QUERY_TENSORS = ("query_embed.weight", "query_embed.content.weight", "query_embed.anchors.weight")


def load_file(path: str | Path, *, model: str | None = None, to_train: bool = False) -> QueryDetector:
    """Return a detector with the weights of a file of the DETR authors, in evaluation mode.

    Sizes and the number of classes come from the tensors. The tensors do not show the number of heads, nor whether the
    last stage is dilated (DC5). These come from the `args` of a training checkpoint, else from `model` or the name of a
    released file, else they are those of the paper.

    Args:
        path: `.pth` or `.safetensors`: released weights, a training checkpoint, or the `state_dict` of our `DETR` with
            the layout of the paper.
        model: a name of `list_models()`, needed where tensors and file name do not determine the model.
        to_train: accept a DETR whose class layer was removed. Its card then has no categories, and its class layer is
            zero and of no use.

    Raises:
        CheckpointError: not a readable weights file (see `read_weights`), or it does not fit (K07).
    """
    path = Path(path)
    tensors, metadata = read_weights(path)
    if any(key.startswith("mask_head.") for key in tensors):  # a panoptic model contains a detector
        tensors = {key.removeprefix("detr."): value for key, value in tensors.items()}
    tensors = {official_name(key): value for key, value in tensors.items()}  # so our own names are accepted too
    name = model or _released_name(path)
    known = preset(name) if name else None
    config: DETRConfig | DETRDemoConfig
    headless = "class_embed.weight" not in tensors and all(key in tensors for key in DETR_KEYS[1:])
    if headless:
        width = tensors["query_embed.weight"].shape[1:]
        tensors |= {"class_embed.weight": torch.zeros(2, *width), "class_embed.bias": torch.zeros(2)}
    if "linear_class.weight" in tensors and "query_pos" in tensors:
        config = DETRDemoConfig(
            num_classes=len(tensors["linear_class.weight"]) - 1, num_queries=len(tensors["query_pos"])
        )
    elif all(key in tensors for key in DETR_KEYS):
        trained = _with_arguments(known if isinstance(known, DETRConfig) else DETRConfig(), metadata.get("args"))
        config = _infer_config(tensors, trained, path)
        tensors = {_internal_name(key): value for key, value in tensors.items()}
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
    net = build(config, name or _model_name(config))
    assert isinstance(net, QueryDetector)
    load_exactly(net, tensors, where=path)
    if headless:
        mark_headless(net, to_train, path)
    return net.eval()


def imagenet_weights(backbone: str) -> Mapping[str, Tensor]:
    """Return the released ImageNet weights of a backbone, downloaded if necessary.

    They are torchvision's IMAGENET1K_V1, as in the authors' code, or timm's default for a name with `timm/`.

    Args:
        backbone: a torchvision name, `timm/NAME`, or one of our attention-augmented networks (an error).

    Raises:
        ConfigError: torchvision has no such weights (C09).
        MachineError: the download failed, or no weights of this network have been released.
    """
    if backbone in WEIGHTS and backbone not in RESNETS:
        tensors = read_weights(released_file(WEIGHTS[backbone])).tensors
        return load_classifier(tensors, backbone, where=backbone).state_dict()
    if backbone in CLASSIFIER_PRESETS and backbone not in RESNETS:
        remedy = f"train a {backbone} with regard, then start_from=RUN"
        raise MachineError("none have been released", remedy=remedy)
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
    """Load the weights of a classifier into the backbone of a detector, without its classification layer.

    Raises:
        CheckpointError: the tensors do not fit (K07).
    """
    body = backbone.get_submodule("body")
    wanted = body.state_dict()
    load_exactly(body, {key: value for key, value in tensors.items() if key in wanted}, where=where)


@torch.no_grad()
def transfer(source: QueryDetector, net: QueryDetector, *, whole: bool = False) -> str:
    """Copy the weights of a trained detector to a new one with other classes or another number of queries.

    The rows of the class outputs are copied for classes of the same name and for no-object. Of the queries, the first
    min(old, new) of each group are copied. All other rows keep their random values, and so does a mask head that the
    trained detector lacks.

    Args:
        source: the trained detector.
        net: the new detector; changed in place.
        whole: True if the detector is frozen and only masks are trained, so that all of its weights must be copied.

    Returns:
        What was copied, in one line for the user.

    Raises:
        CheckpointError: the two are different models (K07), or with `whole` some weights are not in `source` (K08).
    """
    ours, theirs = net.state_dict(), source.state_dict()
    same_classes = [c.name for c in source.card.categories] == [c.name for c in net.card.categories]
    # Tensors with a row for each class.
    heads = [] if same_classes else [k for k in ours if k.startswith(("class_embed.", "query_embed.labels."))]
    heads = [k for k in heads if k in theirs and ours[k].shape[1:] == theirs[k].shape[1:]]
    fresh = [k for k in ours if k.startswith(MASK_PREFIXES) and k not in theirs]
    differing = [k for k in ours if k not in fresh and (k not in theirs or ours[k].shape != theirs[k].shape)]
    resized = [k for k in differing if k in QUERY_TENSORS and k in theirs and ours[k].shape[1:] == theirs[k].shape[1:]]
    mismatches = [k for k in differing if k not in heads + resized] + _differences(source, net)
    if mismatches:
        names = ", ".join(mismatches)
        raise ArchitectureError(
            f"{source.card.name} does not fit {net.card.name}: {names}"[:300],
            remedy="start from the same model",
            code="K07",
        )
    rows = {category.name: row for row, category in enumerate(source.card.categories)}
    pairs = [(i, rows[c.name]) for i, c in enumerate(net.card.categories) if c.name in rows]
    if whole and (resized or len(pairs) < len(net.card.categories)):
        raise _incomplete_error(source, net)
    if isinstance(net, DETR) and isinstance(source, DETR):
        net.backbone.normalization = source.backbone.normalization
    for key in set(ours) - set(heads) - set(resized) - set(fresh):
        ours[key].copy_(theirs[key])
    counts = (net.config.num_queries, source.config.num_queries)
    for key in resized:  # groups follow one another in the rows
        new, old = (
            rows.view(-1, count, rows.shape[1]) for rows, count in zip((ours[key], theirs[key]), counts, strict=True)
        )
        groups, kept = min(len(new), len(old)), min(counts)
        new[:groups, :kept] = old[:groups, :kept]
    for key in heads:
        for ours_row, theirs_row in pairs:
            ours[key][ours_row] = theirs[key][theirs_row]
        if not net.config.sigmoid and key.startswith("class_embed.") and source.card.categories:
            ours[key][-1] = theirs[key][-1]  # no-object
    known = f", {len(pairs)} of them known by name" if heads else ""
    known = known if source.card.categories else ", whose layer starts at random: the file has none"
    queries = f", {min(counts)} of {counts[0]} queries" if counts[0] != counts[1] else ""
    masks = ", a new mask head" if fresh else ""
    count = counted(len(net.card.categories), "class", "classes")
    return f"started from {source.card.name}; {count}{known}{queries}{masks}"


def _differences(source: QueryDetector, net: QueryDetector) -> list[str]:
    """Describe the settings that differ and that tensors do not show, or show only if the source has fewer layers."""
    found = []
    if source.config.sigmoid != net.config.sigmoid:
        found.append("class_embed (softmax and sigmoid)")
    for name in ("num_heads", "norm_first", "encoder_layers", "decoder_layers", "backbone", "dilation"):
        before, now = getattr(source.config, name, None), getattr(net.config, name, None)
        if before != now:
            found.append(f"{name} {before}, not {now}")
    return found


def _incomplete_error(source: QueryDetector, net: QueryDetector) -> CheckpointError:
    """Return the error for a frozen detector with weights that the trained one lacks."""
    known = {category.name for category in source.card.categories}
    unknown = [category.name for category in net.card.categories if category.name not in known]
    lacking = f"the class {unknown[0]!r:.40}" if unknown else f"{net.config.num_queries} queries of these groups"
    what = f"a frozen detector needs all of its parts, and {source.card.name} lacks {lacking}"
    return CheckpointError(what, remedy="start from a detector of these classes and queries", code="K08")


def official_name(name: str) -> str:
    """Return the authors' name of a parameter, given ours."""
    name = re.sub(r"^backbone\.body\.", "backbone.0.body.", name)
    return re.sub(r"^position_encoding\.", "backbone.1.", name)


def _internal_name(name: str) -> str:
    name = re.sub(r"^backbone\.0\.body\.", "backbone.body.", name)
    return re.sub(r"^backbone\.1\.", "position_encoding.", name)


def _released_name(path: Path) -> str | None:
    return next((name for name, weights in WEIGHTS.items() if weights.file_name == path.name), None)


def _family(config: ModelConfig) -> str:
    if isinstance(config, DETRConfig):
        return f"DETR with {config.backbone}{', dilated' * config.dilation}{', with masks' * config.masks}"
    return type(config).__name__.removesuffix("Config")


def _model_name(config: DETRConfig | DETRDemoConfig) -> str:
    if isinstance(config, DETRConfig):
        return f"detr_{config.backbone}{'_dc5' * config.dilation}{'_panoptic' * config.masks}"
    return "detr_demo"


def _with_arguments(config: DETRConfig, arguments: object) -> DETRConfig:
    """Return `config` with the heads and the dilation of `args` in a checkpoint of the authors' main.py."""
    given = arguments if isinstance(arguments, Mapping) else {}
    heads, dilation = given.get("nheads"), given.get("dilation")
    return replace(
        config,
        num_heads=heads if type(heads) is int else config.num_heads,
        dilation=dilation if type(dilation) is bool else config.dilation,
    )


def _infer_config(tensors: Mapping[str, Tensor], known: DETRConfig, path: Path) -> DETRConfig:
    """Return `known` with the sizes that the authors' tensors show."""

    def count(pattern: str) -> int:
        return len({m.group(1) for key in tensors if (m := re.match(pattern, key))})

    body = r"backbone\.0\.body\.layer{}\.(\d+)\."
    blocks = (
        count(body.format(3)),
        count(body.format(4)),
        "backbone.0.body.layer1.0.conv3.weight" in tensors,
    )
    if blocks not in RESNETS_BY_BLOCKS:
        what = "the backbone is none of torchvision's ResNets 18 to 152"
        remedy = "if the file belongs to a run, name the run's folder, which has the settings"
        raise ArchitectureError(what, where=path, remedy=remedy, code="K07")
    prefix = "transformer.decoder.layers.0."
    return replace(
        known,
        backbone=RESNETS_BY_BLOCKS[blocks],
        num_classes=len(tensors["class_embed.weight"]) - 1,
        num_queries=len(tensors["query_embed.weight"]),
        embed_dim=tensors["query_embed.weight"].shape[1],
        feedforward_dim=len(tensors.get(f"{prefix}linear1.weight", ())),
        encoder_layers=count(r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=count(r"transformer\.decoder\.layers\.(\d+)\."),
        norm_first="transformer.encoder.norm.weight" in tensors,
        masks="mask_head.lay1.weight" in tensors,
        position_encoding="learned" if "backbone.1.row_embed.weight" in tensors else "sine",
    )
