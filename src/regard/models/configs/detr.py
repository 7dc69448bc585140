"""Settings of DETR and of the authors' demonstration model, and the named models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DETRConfig:
    """Settings of a DETR; its checkpoints keep them."""

    num_classes: int = 91  # with softmax the no-object class comes on top, as the last logit
    backbone: str = "resnet50"  # ResNet, classifier or timm/NAME; `small`: a small CNN
    backbone_norm: Literal["frozen", "batch"] = "frozen"  # batch normalisation of the backbone: fixed, or trained
    feature_maps: int = 1  # maps of the backbone that attention sees, from the coarsest on; summed in the finest's size
    dilation: bool = False  # DC5: dilated last stage, twice the resolution
    embed_dim: int = 256  # channels of the transformer
    num_heads: int = 8  # attention heads
    encoder_layers: int = 6  # may be 0
    decoder_layers: int = 6  # at least 1
    feedforward_dim: int = 2048  # hidden channels of the feed-forward layers; 0: none, attention alone
    dropout: float = 0.1  # probability, 0 to less than 1
    norm_first: bool = False  # pre-norm: layer norm before each block instead of after the residual sum
    position_encoding: Literal["sine", "learned", "none"] = "sine"  # of the feature map
    # where positions are added: `attention`, in every attention layer; `decoder`, those of the feature map in the
    # decoder alone; `input`, once, to the tokens and to the queries
    positions_at: Literal["attention", "decoder", "input"] = "attention"
    num_queries: int = 100  # maximum number of detections of an image
    sigmoid: bool = False  # a sigmoid per class instead of softmax with a no-object class
    anchors: bool = False  # queries are boxes that every decoder layer refines (DAB-DETR)
    proposals: bool = False  # queries start at the best boxes that cells of the feature map propose (two-stage)
    anchor_size: float = 0.3  # width and height of anchors and proposals before training, as fractions of the image
    duplicate_iou: float = 1.0  # drop the worse of two detections of a class that overlap more; 1: none, as the paper
    query_groups: int = 1  # groups of queries in training, each matched on its own (Group DETR)
    denoising_groups: int = 0  # noised copies of the targets as extra queries in training (DN-DETR)
    label_noise: float = 0.2  # DN-DETR: share of copies with a random label
    masks: bool = False  # a mask for every query (section 4.4)
    mask_dim: int = 0  # channels of a smaller mask head, which also sees where the box is; 0: the paper's head
    box_noise: float = 0.4  # DN-DETR: maximum shift of a corner, in halves of the box

    def __post_init__(self) -> None:
        check_choices(self)
        for name in (
            "num_classes",
            "num_queries",
            "decoder_layers",
            "query_groups",
            "num_heads",
            "feature_maps",
            "embed_dim",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, expected at least 1", code="C08")
        for name in ("encoder_layers", "denoising_groups", "feedforward_dim", "mask_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, expected at least 0", code="C08")
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise ConfigError(
                f"model.embed_dim {self.embed_dim} is not a multiple of 4 and of model.num_heads {self.num_heads}",
                code="C05",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}, expected 0 <= dropout < 1", code="C03")
        if not 0 < self.anchor_size <= 1:
            raise ConfigError(f"model.anchor_size is {self.anchor_size}, expected more than 0, at most 1", code="C03")
        if 0 < self.mask_dim < 16:
            raise ConfigError(f"model.mask_dim is {self.mask_dim}, expected 0 or at least 16", code="C03")
        if not 0 < self.duplicate_iou <= 1:
            what = f"model.duplicate_iou is {self.duplicate_iou}, expected more than 0, at most 1"
            raise ConfigError(what, code="C03")
        if not (0 <= self.label_noise <= 1 and 0 <= self.box_noise <= 1):
            what = f"model.label_noise is {self.label_noise} and model.box_noise {self.box_noise}, expected 0 to 1"
            raise ConfigError(what, code="C03")
        if self.anchors and (self.position_encoding == "none" or self.positions_at == "input"):
            what = "model.anchors needs the positions of the feature map in the decoder"
            remedy = "set model.anchors=false, or leave model.position_encoding and model.positions_at as they are"
            raise ConfigError(what, remedy=remedy, code="C09")
        if self.proposals and not (self.anchors and self.sigmoid):
            what = "model.proposals needs model.anchors=true and model.sigmoid=true"
            raise ConfigError(what, remedy="set them, or model.proposals=false", code="C09")
        if self.denoising_groups and not self.anchors:
            raise ConfigError(
                "model.denoising_groups needs anchor queries: a noised target is a box",
                remedy="set model.anchors=true or model.denoising_groups=0",
                code="C09",
            )


@dataclass(frozen=True, kw_only=True)
class DETRDemoConfig:
    """Settings of the demonstration model, which has one size only."""

    num_classes: int = 91  # without the no-object class
    num_queries: int = 100  # maximum number of detections of an image

    @property
    def sigmoid(self) -> bool:
        return False


# Only what differs from the paper's DETR-R50. The names are torch hub's; `detr_tiny` and its like are ours.
DETR_PRESETS: dict[str, DETRConfig] = {
    "detr_resnet50": DETRConfig(),
    "detr_resnet50_dc5": DETRConfig(dilation=True),
    "detr_resnet101": DETRConfig(backbone="resnet101"),
    "detr_resnet101_dc5": DETRConfig(backbone="resnet101", dilation=True),
    "detr_resnet50_panoptic": DETRConfig(num_classes=250, masks=True),
    "detr_resnet50_dc5_panoptic": DETRConfig(num_classes=250, masks=True, dilation=True),
    "detr_resnet101_panoptic": DETRConfig(num_classes=250, masks=True, backbone="resnet101"),
    "detr_resnet18": DETRConfig(backbone="resnet18"),
    "detr_resnet34": DETRConfig(backbone="resnet34"),
    "detr_lite": DETRConfig(
        backbone="efficientnet_lite0", encoder_layers=1, decoder_layers=3, feedforward_dim=1024, dropout=0.0,
        norm_first=True, num_queries=40, sigmoid=True, anchors=True, query_groups=3, denoising_groups=3,
        duplicate_iou=0.7,
    ),
    "detr_tiny": DETRConfig(
        backbone="small", backbone_norm="batch", embed_dim=96, num_heads=4, encoder_layers=0, decoder_layers=2,
        feedforward_dim=256, dropout=0.0, norm_first=True, num_queries=10, sigmoid=True, anchors=True, query_groups=3,
        denoising_groups=2,
    ),
}  # fmt: skip
DETR_PRESETS["detr_lite_panoptic"] = replace(DETR_PRESETS["detr_lite"], masks=True, mask_dim=64)
DETR_PRESETS["detr_tiny_panoptic"] = replace(DETR_PRESETS["detr_tiny"], masks=True, num_queries=15)
