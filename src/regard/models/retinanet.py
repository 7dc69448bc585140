"""RetinaNet, plain and attention-augmented: classes and boxes for anchors on the levels of a feature pyramid.

    image -> backbone -> feature pyramid -> two heads shared by all levels -> class scores and offsets of every anchor

Lin et al. 2017 (arXiv 1708.02002); with attention in the backbone Bello et al. 2019, section 4.3. Pyramid, heads and
anchors are torchvision's, so its weights fit. Its images and losses are ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from regard.errors import ConfigError
from regard.models.backbone import create_backbone
from regard.models.configs.retinanet import GROUP_WIDTH, RetinaNetConfig
from regard.models.panoptic import finer_channels
from regard.models.resnet import POSITION_TABLES
from regard.structures.boxes import cxcywh_to_xyxy, decode_boxes, xyxy_to_cxcywh
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DensePredictions, DetectionOutput

RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
ANCHORS = 3 * len(RATIOS)  # of a cell: of three sizes
EXTRA_LEVELS = 2
MULTIPLE = 32  # sides of a batch are padded to a multiple of it


class RetinaNet(nn.Module):
    """Backbone, feature pyramid and heads.

    Args:
        config: sizes and options.

    Raises:
        ConfigError: the backbone has fewer maps than `config.feature_maps` (C03).
    """

    card: ModelCard  # set by `regard.models.build.build`
    no_weight_decay = POSITION_TABLES

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.backbone, norm=config.backbone_norm, image_size=config.image_size)
        finer = finer_channels(self.backbone)
        if config.feature_maps > len(finer) + 1:
            what = f"feature_maps={config.feature_maps}, but {config.backbone} has {len(finer) + 1} maps"
            raise ConfigError(what, where="model", code="C03")
        widths = [*finer[: config.feature_maps - 1][::-1], self.backbone.num_channels]
        c = config.channels
        self.fpn = FeaturePyramidNetwork(widths, c, extra_blocks=LastLevelP6P7(c, c))
        norm = partial(nn.GroupNorm, c // GROUP_WIDTH) if config.head_norm else None
        self.head = RetinaNetHead(c, ANCHORS, config.num_classes, norm_layer=norm)
        self.anchors = AnchorGenerator(*_anchor_shapes(config))

    def forward(
        self, images: ImageBatch | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> DetectionOutput:
        """Predict class scores and a box for every anchor, without gradients of the boxes.

        Boxes are clipped to their image. `regard.results.postprocess.score_queries` suppresses duplicates.

        Args:
            images: normalised float images, a list of (3, H, W) of any sizes, or a batch of them.
            targets: not used; other detectors use them in training.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(list(images))
        height, width = batch.pixels.shape[-2:]
        pixels = F.pad(batch.pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        maps = self.backbone(pixels)[-self.config.feature_maps :]
        levels = list(self.fpn(OrderedDict((str(number), features) for number, features in enumerate(maps))).values())
        found = self.head(levels)
        # At least in float32, under autocast too: half precision moves corners by pixels.
        offsets = found["bbox_regression"]
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        # Anchors take the precision of the maps; only the shapes of these matter.
        shapes = [level.new_empty((0, *level.shape[1:]), dtype=offsets.dtype) for level in levels]
        [corners] = self.anchors(ImageList(pixels[:1], [(height, width)]), shapes)
        anchors = xyxy_to_cxcywh(corners)
        counts = tuple(ANCHORS * level.shape[-2] * level.shape[-1] for level in levels)
        dense = DensePredictions(anchors, offsets, counts, batch.sizes)
        return DetectionOutput(found["cls_logits"], _boxes(offsets.detach(), anchors, batch.scale()), dense=dense)


def _anchor_shapes(config: RetinaNetConfig) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return sizes and ratios of each level: three sizes, a third of an octave apart, rounded down as torchvision's."""
    sides = [config.anchor_size * 2**level for level in range(config.feature_maps + EXTRA_LEVELS)]
    sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in sides)
    return sizes, (RATIOS,) * len(sizes)


def _boxes(offsets: Tensor, anchors: Tensor, scale: Tensor) -> Tensor:
    """Return the boxes (B, Q, 4) cxcywh 0..1 of the unpadded image, clipped to it."""
    corners = cxcywh_to_xyxy(decode_boxes(offsets, anchors)) / scale[:, None].to(offsets.dtype)
    return xyxy_to_cxcywh(corners.clamp(0, 1))
