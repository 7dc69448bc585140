"""DETR: detection as set prediction with a transformer. (Carion et al. 2020, arXiv 2005.12872.)

    image -> backbone -> 1x1 projection -> encoder -> decoder with object queries -> class and box of every query
                                                                                  -> a mask, with `masks` (panoptic.py)

The defaults are the paper's. `anchors`, `query_groups`, `denoising_groups` and `sigmoid` are later findings with which
the same model learns in a fraction of the epochs. Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import LearnedPositionEncoding, SinePositionEncoding
from regard.errors import ConfigError
from regard.models.anchors import (
    TEMPERATURE,
    AnchorDecoder,
    AnchorDecoderLayer,
    AnchorQueries,
    Proposals,
    QuerySet,
    group_mask,
    move_by_size,
    move_logits,
)
from regard.models.backbone import create_backbone
from regard.models.configs.detr import DETRConfig
from regard.models.panoptic import (
    PLACE_MAPS,
    AttentionMap,
    MaskHead,
    cell_centres,
    ellipse_logits,
    finer_channels,
    relative_places,
)
from regard.models.transformer import MLP, Trace, Transformer
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import Denoising, DetectionOutput, MaskInputs

MASKS_AT_ONCE = 16  # of the mask head in evaluation: 25 MB each for 800 x 1066 pixels, and more are not faster


class AttentionMaps(NamedTuple):
    """The output of a DETR and the weights of all its attention layers; tokens follow the feature map row by row.

    encoder: (L, B, heads, h*w, h*w) or None without encoder. decoder_self: (L, B, heads, Q, Q).
    decoder_cross: (L, B, heads, Q, h*w). Every row sums to 1; padding gets 0.
    feature_size: (h, w).
    """

    output: DetectionOutput
    encoder: Tensor | None
    decoder_self: Tensor
    decoder_cross: Tensor
    feature_size: tuple[int, int]


class DETR(nn.Module):
    """Backbone, transformer and heads.

    Args:
        config: sizes and options.
    """

    card: ModelCard  # set by `regard.models.build.build`

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.config = config
        self.detector_is_frozen = False
        self.auxiliary_outputs = True  # whether outputs hold those of the earlier decoder layers
        c = config.embed_dim
        self.backbone = create_backbone(config.backbone, dilation=config.dilation, norm=config.backbone_norm)
        self.position_encoding = _position_encoding(config)
        self.input_proj = nn.Conv2d(self.backbone.num_channels, c, kernel_size=1)
        finer = finer_channels(self.backbone) if config.masks or config.feature_maps > 1 else []
        fused = config.feature_maps - 1
        if fused > len(finer):
            what = f"feature_maps={config.feature_maps}, but {config.backbone} has {len(finer) + 1} maps"
            raise ConfigError(what, where="model", code="C03")
        self.finer_proj = nn.ModuleList(nn.Conv2d(channels, c, kernel_size=1) for channels in finer[:fused])
        if fused:
            self.fusion = nn.Conv2d(c, c, kernel_size=3, padding=1)
        self.transformer = Transformer(
            c,
            config.num_heads,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            feedforward_dim=config.feedforward_dim,
            dropout=config.dropout,
            norm_first=config.norm_first,
            decoder=AnchorDecoder if config.anchors else None,
            layer=AnchorDecoderLayer if config.anchors else None,
        )
        self.class_embed = nn.Linear(c, config.num_classes + (0 if config.sigmoid else 1))
        self.bbox_embed = MLP(c, c, 4, num_layers=3)
        if config.anchors:
            self.query_embed: nn.Module = AnchorQueries(
                num_queries=config.num_queries,
                num_groups=config.query_groups,
                denoising_groups=config.denoising_groups,
                num_classes=config.num_classes,
                embed_dim=c,
                label_noise=config.label_noise,
                box_noise=config.box_noise,
                anchor_size=config.anchor_size,
                learned_anchors=not config.proposals,
            )
            if config.proposals:
                self.proposals = Proposals(config.num_classes, c, config.anchor_size)
                self.proposals.reset_parameters()
            nn.init.zeros_(self.bbox_embed.last.weight)  # boxes start at their anchors
            nn.init.zeros_(self.bbox_embed.last.bias)
        else:
            self.query_embed = nn.Embedding(config.num_queries * config.query_groups, c)
        if config.masks:
            self.bbox_attention = AttentionMap(c, config.num_heads)
            self.mask_maps = len(finer) - fused
            width, maps = c, config.num_heads
            if config.mask_dim:
                self.mask_proj = nn.Conv2d(c, config.mask_dim, kernel_size=1)
                width, maps = config.mask_dim, config.num_heads + PLACE_MAPS
            self.mask_head = MaskHead(width, maps, finer[fused:])
        if config.sigmoid:
            # Classes start with probability 0.01; otherwise empty queries dominate the loss (RetinaNet, section 4.1).
            nn.init.constant_(self.class_embed.bias, -4.6)

    def forward(
        self,
        images: ImageBatch | Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        *,
        masks: bool | None = None,
    ) -> DetectionOutput:
        """Detect objects.

        Args:
            images: normalised float images, a list of (3, H, W) of any sizes, or a batch of them.
            targets: per image `{"labels": (T,) int64, "boxes": (T, 4) cxcywh 0..1}`. Used in training only, by
                models with denoising queries.
            masks: whether to compute the masks of all queries; if None in evaluation only. Masks of some queries
                cost far less: `model.masks(output, image, query)`.
        """
        output = self._detect(images, targets, trace=None)
        if output.mask_inputs is None or not (not self.training if masks is None else masks):
            return output
        num_images, num_queries = output.logits.shape[:2]
        image = torch.arange(num_images, device=output.logits.device).repeat_interleave(num_queries)
        query = torch.arange(num_queries, device=output.logits.device).repeat(num_images)
        return output._replace(masks=self.masks(output, image, query).unflatten(0, (num_images, num_queries)))

    def freeze_detector(self) -> None:
        """Freeze everything but the mask head (section 4.4).

        Batch norm of the detector then uses its running statistics in training too. Dropout stays on, as in the
        authors' code.
        """
        self.requires_grad_(False)
        self.bbox_attention.requires_grad_()
        self.mask_head.requires_grad_()
        if self.config.mask_dim:
            self.mask_proj.requires_grad_()
        self.detector_is_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> DETR:
        """Set the mode; batch norm of a frozen detector stays in evaluation mode."""
        super().train(mode)
        if self.detector_is_frozen:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def masks(self, output: DetectionOutput, image: Tensor, query: Tensor) -> Tensor:
        """Compute mask logits (M, H, W) for M queries of an output, at the size of the finest map of the backbone.

        Args:
            output: output of this model for a batch.
            image: (M,) int64, index of the image of each query.
            query: (M,) int64, index of each query.

        Raises:
            ConfigError: the model has no mask head.
        """
        if self.training or len(query) <= MASKS_AT_ONCE:
            return self.masks_at_once(output, image, query)
        parts = (each.split(MASKS_AT_ONCE) for each in (image, query))
        return torch.cat([self.masks_at_once(output, *part) for part in zip(*parts, strict=True)])

    def masks_at_once(self, output: DetectionOutput, image: Tensor, query: Tensor) -> Tensor:
        """Compute the same as `masks`, however many queries there are: for 16 of them it takes 400 MB."""
        inputs = output.mask_inputs
        if inputs is None:
            raise ConfigError("the model has no mask head", remedy="train one with model.masks=true", code="C09")
        boxes = output.boxes[image, query].detach()
        projected, size = inputs.projected, inputs.projected.shape[-2:]
        maps = self.bbox_attention(inputs.hidden[image, query], inputs.memory, image, inputs.visible).unflatten(2, size)
        if not self.config.mask_dim:
            return self.mask_head(maps, projected, inputs.finer, image)
        if inputs.visible is None:
            padding = torch.zeros(projected.shape[0], *size, dtype=torch.bool, device=projected.device)
        else:
            padding = ~inputs.visible.view(-1, *size)
        places = relative_places(cell_centres(padding)[image], boxes).to(maps.dtype)
        logits = self.mask_head(torch.cat((maps, places), dim=1), self.mask_proj(projected), inputs.finer, image)
        return logits + ellipse_logits(places, (logits.shape[-2], logits.shape[-1]))

    def attention(self, images: ImageBatch | Sequence[Tensor], *, encoder: bool = True) -> AttentionMaps:
        """Run `forward` and keep the weights of every attention layer; slower than `forward`.

        Args:
            images: as for `forward`.
            encoder: whether to keep the weights of the encoder too: 2 GB for DC5 at 800 x 1066 pixels.
        """
        trace = Trace(keep_encoder=encoder)
        output = self._detect(images, None, trace)
        return AttentionMaps(
            output,
            encoder=torch.stack(trace.encoder) if trace.encoder else None,
            decoder_self=torch.stack(trace.decoder_self),
            decoder_cross=torch.stack(trace.decoder_cross),
            feature_size=trace.feature_size,
        )

    def _detect(
        self,
        images: ImageBatch | Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None,
        trace: Trace | None,
    ) -> DetectionOutput:
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(list(images))
        *earlier, features = self.backbone(batch.pixels)  # (B, 2048, h, w)
        tokens, features = self._tokens(features, earlier)
        padding, mask = _padding_of(batch, features)
        if trace is not None:
            trace.feature_size = (features.shape[-2], features.shape[-1])

        # As the weights, for models in half precision; under autocast the features are in half precision, weights not.
        positions = self.position_encoding(padding).flatten(1, 2).to(self.input_proj.weight.dtype)  # (B, hw, C)
        if self.config.positions_at == "input":
            placed, positions = tokens + positions, torch.zeros_like(positions)
            memory = self.transformer.encoder(placed, positions, mask, trace)
        else:
            in_encoder = positions if self.config.positions_at == "attention" else torch.zeros_like(positions)
            memory = self.transformer.encoder(tokens, in_encoder, mask, trace)
        decoder = self.transformer.decoder
        if isinstance(decoder, AnchorDecoder):
            proposals = proposed = None
            if self.config.proposals:
                proposals, proposing = self.proposals(memory, padding)
                proposed = self.proposals.best(proposals, proposing, self.config.num_queries)
            queries = self.query_embed(batch.pixels.shape[0], targets, proposed)
            move = move_by_size if self.config.proposals else move_logits
            hidden, boxes = decoder.decode(
                queries, self.bbox_embed, memory, positions, move=move, memory_mask=mask, trace=trace
            )
            if not self.auxiliary_outputs:
                hidden, boxes = hidden[-1:], boxes[-1:]
            output = self._output(self.class_embed(hidden), boxes, queries)
            if self.training:
                output = output._replace(proposals=proposals)
            return self._with_mask_inputs(output, hidden, memory, tokens, earlier, features, mask)
        embed, query_mask = self._learned_queries(batch.pixels.shape[0])
        start = None
        if self.config.positions_at == "input":
            start, embed = embed, torch.zeros_like(embed)
        hidden = decoder(
            embed, memory, positions, start=start, query_mask=query_mask, memory_mask=mask, trace=trace
        )  # (L, B, Q, C)
        if not self.auxiliary_outputs:
            hidden = hidden[-1:]
        # At least in float32, under autocast too: bfloat16 moves a corner by up to 3 pixels of 1333.
        boxes = self.bbox_embed(hidden)
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).sigmoid()
        output = self._output(self.class_embed(hidden), boxes)
        return self._with_mask_inputs(output, hidden, memory, tokens, earlier, features, mask)

    def _tokens(self, features: Tensor, earlier: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, h*w, C) and the finest map of the backbone that they come from.

        Finer maps, which are taken from the end of `earlier`, are added to the enlarged coarser ones, and a 3x3
        convolution smooths the sum (feature pyramids, Lin et al. 2017, section 3).
        """
        tokens = _project(self.input_proj, features)
        for projection in self.finer_proj:
            coarser, features = _as_map(tokens, features), earlier.pop()
            enlarged = F.interpolate(coarser, size=features.shape[-2:], mode="nearest")
            tokens = _project(projection, features) + enlarged.flatten(2).transpose(1, 2)
        if len(self.finer_proj):
            tokens = tokens + self.fusion(_as_map(tokens, features).relu()).flatten(2).transpose(1, 2)
        return tokens, features

    def _with_mask_inputs(
        self,
        output: DetectionOutput,
        hidden: Tensor,
        memory: Tensor,
        tokens: Tensor,
        earlier: Sequence[Tensor],
        features: Tensor,
        mask: Tensor | None,
    ) -> DetectionOutput:
        if not self.config.masks:
            return output
        projected = tokens.transpose(1, 2).unflatten(2, features.shape[-2:])
        finer = tuple(earlier[::-1][: self.mask_maps])
        return output._replace(mask_inputs=MaskInputs(hidden[-1], memory, projected, finer, mask))

    def _learned_queries(self, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """Return query embeddings (B, Q, C): all groups in training, the first group otherwise."""
        config = self.config
        groups = config.query_groups if self.training else 1
        assert isinstance(self.query_embed, nn.Embedding)
        embed = self.query_embed.weight[: config.num_queries * groups].expand(batch_size, -1, -1)
        if groups == 1:
            return embed, None
        return embed, group_mask(torch.arange(embed.shape[1], device=embed.device) // config.num_queries)

    def _output(self, logits: Tensor, boxes: Tensor, queries: QuerySet | None = None) -> DetectionOutput:
        """Layers' predictions (L, B, N, ...) -> output; queries with noised targets are kept separately."""
        denoising = None
        if queries is not None and queries.noised_target is not None:
            count = logits.shape[2] - queries.noised_target.shape[1]
            denoising = Denoising(logits[:, :, count:], boxes[:, :, count:], queries.noised_target)
            logits, boxes = logits[:, :, :count], boxes[:, :, :count]
        return DetectionOutput(
            logits=logits[-1],
            boxes=boxes[-1],
            auxiliary=[DetectionOutput(*layer) for layer in zip(logits[:-1], boxes[:-1], strict=True)],
            num_groups=self.config.query_groups if self.training else 1,
            denoising=denoising,
            duplicate_iou=self.config.duplicate_iou,
        )


def _as_map(tokens: Tensor, features: Tensor) -> Tensor:
    """Tokens (B, h*w, C) -> a map (B, C, h, w) of the size of `features`, channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, features.shape[-2:])


def _project(projection: nn.Module, features: Tensor) -> Tensor:
    """Project a map (B, C_i, h, w) by a 1x1 convolution, and return its cells as tokens (B, h*w, C).

    On tokens the convolution is a linear layer, which needs no change of memory layout.
    """
    assert isinstance(projection, nn.Conv2d)
    return F.linear(features.flatten(2).transpose(1, 2), projection.weight.flatten(1), projection.bias)


class NoPositionEncoding(nn.Module):
    """Zeros in place of a position encoding.

    Args:
        embed_dim: width C.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, padding: Tensor) -> Tensor:
        """Mask (B, h, w) bool -> zeros (B, h, w, C)."""
        return torch.zeros(*padding.shape, self.embed_dim, device=padding.device)


def _position_encoding(config: DETRConfig) -> nn.Module:
    if config.position_encoding == "none":
        return NoPositionEncoding(config.embed_dim)
    if config.position_encoding == "learned":
        return LearnedPositionEncoding(config.embed_dim)
    if config.anchors:  # anchors and cells are measured alike
        return SinePositionEncoding(config.embed_dim, TEMPERATURE, centered=True)
    return SinePositionEncoding(config.embed_dim)


def _padding_of(batch: ImageBatch, features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Padding mask of the feature map (B or 1, h, w), and which tokens attention may see, (B, 1, 1, hw) or None.

    A cell is padding if the pixel at its top left corner is (nearest neighbour, as in the authors' backbone.py).
    """
    size = features.shape[-2:]
    mask = batch.padding_mask()
    if mask is None:
        return torch.zeros(1, *size, dtype=torch.bool, device=features.device), None
    rows, columns = (nearest_pixels(n, cells, features.device) for n, cells in zip(mask.shape[1:], size, strict=True))
    padding = mask[:, rows[:, None], columns]
    return padding, ~padding.flatten(1)[:, None, None]


def nearest_pixels(length: int, cells: int, device: torch.device) -> Tensor:
    """Return which of `length` pixels `F.interpolate` takes for each of `cells` cells: (cells,) int64.

    In an ONNX file `F.interpolate` itself divides where it should multiply, and takes pixel 27 for 28.
    """
    scale = torch.scalar_tensor(length, dtype=torch.float32, device=device) / cells
    return (torch.arange(cells, device=device) * scale).floor().long().clamp(max=length - 1)
