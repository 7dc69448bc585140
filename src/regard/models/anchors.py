"""Anchor queries: object queries that are boxes, refined by every decoder layer; query groups and denoising.

* `AnchorDecoder`: a query is a box; sines of its coordinates tell attention where to look; every layer moves it.
  (DAB-DETR, Liu et al. 2022.)
* `Proposals`: every cell of the feature map proposes a box; the best become queries, with what the cell saw.
  (Deformable DETR, Zhu et al. 2021, section 4.2, "two-stage"; contents of queries as in RT-DETR, Zhao et al. 2024.)
* `AnchorQueries`: the learned anchors, several groups of them in training (Group DETR, Chen et al. 2022), and noised
  copies of the targets (DN-DETR, Li et al. 2022). Groups and copies exist in training only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regard.attention import attend, attention_weights, sine_embedding
from regard.attention.positions import SCALE
from regard.models.transformer import MLP, Decoder, DecoderLayer, Trace
from regard.structures.outputs import DetectionOutput
from regard.structures.transfer import upload

TEMPERATURE = 20.0  # of the sines of anchors and of the image's positions (DAB-DETR, section 4.4)
PLACE_GAIN = 4.0
OUTSIDE = -30.0  # logit of a cell of padding
MAX_GROWTH = 4.0  # logarithm of the greatest factor by which one layer enlarges a box
EPS = 1e-3  # nothing smaller is divided by, or has its logarithm taken


class QuerySet(NamedTuple):
    """Queries of one forward pass: the learned ones, then the noised targets if there are any.

    content: (B, N, C). anchors: (B, N, 4) cxcywh 0..1. mask: (B or 1, 1, N, N) bool, which query sees which, or None.
    noised_target: (B, M) int64 on the host, object that each of the last M queries copies, -1 for padding; or None.
    """

    content: Tensor
    anchors: Tensor
    mask: Tensor | None = None
    noised_target: Tensor | None = None


class AnchorQueries(nn.Module):
    """Learned content and anchor box of every query.

    Args:
        num_queries: queries at inference.
        num_groups: groups of as many queries in training, each matched on its own.
        denoising_groups: noised copies of every target in training.
        num_classes: classes of the targets.
        embed_dim: width C.
        label_noise: share of copies with another label.
        box_noise: largest shift of a copy's corners, in halves of its width and height.
        anchor_size: width and height of the anchors before training, as fractions of the image.
        learned_anchors: False where `forward` gets the anchors of each image.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        num_groups: int,
        denoising_groups: int,
        num_classes: int,
        embed_dim: int,
        label_noise: float,
        box_noise: float,
        anchor_size: float = 0.3,
        learned_anchors: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.num_groups = num_groups
        self.denoising_groups = denoising_groups
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.content = nn.Embedding(num_queries * num_groups, embed_dim)
        if denoising_groups:
            self.labels = nn.Embedding(num_classes, embed_dim)
        nn.init.normal_(self.content.weight, std=0.02)
        if not learned_anchors:
            return
        self.anchors = nn.Embedding(num_queries * num_groups, 4)  # logits of cxcywh
        with torch.no_grad():  # centres anywhere
            self.anchors.weight[:, :2] = inverse_sigmoid(torch.rand(num_queries * num_groups, 2))
            self.anchors.weight[:, 2:] = inverse_sigmoid(torch.full((num_queries * num_groups, 2), anchor_size))

    def forward(
        self, batch_size: int, targets: Sequence[Mapping[str, Tensor]] | None, proposed: QuerySet | None = None
    ) -> QuerySet:
        """Return the queries of a batch: in training all groups, and with `targets` their noised copies.

        Args:
            proposed: `num_queries` of them for every group: their anchors instead of the learned ones, and contents
                that are added to the learned ones.
        """
        groups = self.num_groups if self.training else 1
        count = self.num_queries * groups
        content = self.content.weight[:count].expand(batch_size, -1, -1)
        if proposed is None:
            anchors = self.anchors.weight[:count].sigmoid().expand(batch_size, -1, -1)
        else:
            anchors = proposed.anchors.repeat(1, groups, 1)
            content = content + proposed.content.repeat(1, groups, 1)
        group = torch.arange(count, device=content.device) // self.num_queries
        if not self.training:
            return QuerySet(content, anchors)
        most = max((len(t["labels"]) for t in targets), default=0) if targets is not None else 0
        if self.denoising_groups and targets is not None and most:
            return self._with_denoising(content, anchors, group, targets, most)
        if self.denoising_groups:  # a parameter without gradient would stop DistributedDataParallel
            content = content + 0 * self.labels.weight[0]
        return QuerySet(content, anchors, group_mask(group) if self.num_groups > 1 else None)

    def _with_denoising(
        self,
        content: Tensor,
        anchors: Tensor,
        group: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        most: int,
    ) -> QuerySet:
        device, copies = content.device, self.denoising_groups
        labels = torch.zeros(len(targets), most, dtype=torch.int64)
        boxes = torch.full((len(targets), most, 4), 0.5)
        target = torch.full((len(targets), most), -1)
        for i, t in enumerate(targets):
            n = len(t["labels"])
            labels[i, :n], boxes[i, :n], target[i, :n] = t["labels"], t["boxes"], torch.arange(n)
        labels, boxes = upload(labels, device).repeat(1, copies), upload(boxes, device).repeat(1, copies, 1)
        target = target.repeat(1, copies)  # stays on the host, where the loss reads it

        flipped = torch.rand(labels.shape, device=device) < self.label_noise
        labels = torch.where(flipped, torch.randint_like(labels, self.labels.num_embeddings), labels)
        noised = noise_boxes(boxes, self.box_noise)

        noised_group = self.num_groups + torch.arange(copies, device=device).repeat_interleave(most)
        mask = group_mask(torch.cat((group, noised_group)))
        real = upload(torch.cat((torch.ones(len(targets), len(group), dtype=torch.bool), target >= 0), dim=1), device)
        # Padding is seen by none, but every query sees itself: a row of the mask is never empty.
        itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=device)
        return QuerySet(
            content=torch.cat((content, self.labels(labels)), dim=1),
            anchors=torch.cat((anchors, noised), dim=1),
            mask=mask & real[:, None, None, :] | itself,
            noised_target=target,
        )


class Proposals(nn.Module):
    """A box and class scores for every cell of the feature map.

    Args:
        num_classes: classes, each with a sigmoid.
        embed_dim: width C of a token.
        anchor_size: width and height of the boxes before training, as fractions of the image.
    """

    def __init__(self, num_classes: int, embed_dim: int, anchor_size: float) -> None:
        super().__init__()
        self.anchor_size = anchor_size
        self.norm = nn.LayerNorm(embed_dim)
        self.class_embed = nn.Linear(embed_dim, num_classes)
        self.bbox_embed = MLP(embed_dim, embed_dim, 4, num_layers=3)

    def reset_parameters(self) -> None:
        """Propose boxes around each cell, and objects with a probability of 0.01."""
        nn.init.zeros_(self.bbox_embed.last.weight)
        nn.init.zeros_(self.bbox_embed.last.bias)
        nn.init.constant_(self.class_embed.bias, -4.6)

    def forward(self, memory: Tensor, padding: Tensor) -> tuple[DetectionOutput, Tensor]:
        """Return the proposals, and the normalised tokens (B, h*w, C) that they come from.

        Logits are (B, h*w, classes), those of padding very low, and boxes (B, h*w, 4) cxcywh 0..1.

        Args:
            memory: (B, h*w, C), tokens after the encoder.
            padding: (B or 1, h, w) bool.
        """
        tokens = self.norm(memory)
        cells = cell_boxes(padding, self.anchor_size).flatten(1, 2)
        logits = self.class_embed(tokens).masked_fill(padding.flatten(1)[..., None], OUTSIDE)
        return DetectionOutput(logits, move_by_size(cells, self.bbox_embed(tokens))), tokens

    def best(self, proposals: DetectionOutput, tokens: Tensor, count: int) -> QuerySet:
        """Return the proposals with the highest score of any class as queries. Their anchors have no gradient.

        Args:
            proposals, tokens: as from `forward`.
            count: number of queries.
        """
        scores = proposals.logits.detach().amax(-1)
        count_of_cells = scores.shape[1]
        best = scores.topk(min(count, count_of_cells), dim=1).indices
        if count > count_of_cells:  # A small image has fewer cells than queries: the best ones serve twice.
            best = best.repeat(1, (count + count_of_cells - 1) // count_of_cells)[:, :count]
        content = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))
        return QuerySet(content, proposals.boxes.detach().gather(1, best[..., None].expand(-1, -1, 4)))


def cell_boxes(padding: Tensor, size: float) -> Tensor:
    """Return a box around the centre of each cell: (B, h, w, 4) cxcywh, as fractions of the unpadded image.

    Centres follow the position encoding (`SinePositionEncoding`, centered).
    """
    valid = (~padding).to(torch.float32)
    y, x = valid.cumsum(dim=1), valid.cumsum(dim=2)
    rows, columns = y[:, -1:, :].clamp(min=1), x[:, :, -1:].clamp(min=1)
    sides = torch.full_like(valid, size)
    return torch.stack(((x - 0.5) / columns, (y - 0.5) / rows, sides, sides), dim=-1).clamp(0, 1)


class AnchorDecoderLayer(DecoderLayer):
    """DETR's decoder layer, with cross-attention that tells where to look from what to look for.

    Queries and keys are content and position side by side, so that attention logits are the sum of a product of
    contents and a product of positions (Conditional DETR, Meng et al. 2021, eq. 2). Both position projections start as
    one matrix: a query first looks at the place of its own anchor. That is ours; without it the start takes longer.
    """

    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float, norm_first: bool) -> None:
        super().__init__(embed_dim, num_heads, feedforward_dim, dropout, norm_first)
        self.query_place = nn.Linear(embed_dim, embed_dim, bias=False)
        self.memory_place = nn.Linear(embed_dim, embed_dim, bias=False)

    def reset_places(self) -> None:
        """Start looking at the anchor's own place: the logit falls by about 1 over a tenth of the image."""
        nn.init.orthogonal_(self.query_place.weight, gain=PLACE_GAIN)
        with torch.no_grad():
            self.memory_place.weight.copy_(self.query_place.weight)

    def cross_attend(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        mask: Tensor | None,
        trace: Trace | None,
    ) -> Tensor:
        attention = self.multihead_attn
        q, k, v = attention.project(x, memory, memory)  # (B, heads, N, d)
        q = torch.cat((q, attention.split_heads(self.query_place(positions))), dim=-1)
        placed = attention.split_heads(self.memory_place(memory_positions)).expand(k.shape[0], -1, -1, -1)
        k = torch.cat((k, placed), dim=-1)
        if trace is not None:
            trace.decoder_cross.append(attention_weights(q, k, mask=mask))
        attended = attend(q, k, v, mask=mask, dropout=attention.dropout if self.training else 0.0)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))


class AnchorDecoder(Decoder):
    """DETR's decoder over anchors: positions are sines of the boxes, and every layer corrects the boxes.

    Args:
        layers, norm: as in `Decoder`.
    """

    def __init__(self, layers: Sequence[AnchorDecoderLayer], norm: nn.LayerNorm) -> None:
        super().__init__(layers, norm)
        self.embed_dim = embed_dim = norm.normalized_shape[0]
        self.position_mlp = MLP(2 * embed_dim, embed_dim, embed_dim, num_layers=2)
        self.scale_mlp = MLP(embed_dim, embed_dim, embed_dim, num_layers=2)
        self.size_mlp = MLP(embed_dim, embed_dim, 2, num_layers=2)

    def reset_parameters(self) -> None:
        """Look at the anchor's own place, in the size of the anchor."""
        for module in self.modules():
            if isinstance(module, AnchorDecoderLayer):
                module.reset_places()
        nn.init.ones_(self.scale_mlp.last.bias)

    def decode(
        self,
        queries: QuerySet,
        bbox_embed: nn.Module,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        move: Callable[[Tensor, Tensor], Tensor],
        memory_mask: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the queries after every layer: hidden (L, B, N, C), normalised, and boxes (L, B, N, 4) in 0..1.

        Args:
            move: how a correction moves a box: `move_logits` (DAB-DETR), or `move_by_size` for proposals.
        """
        x, anchors = queries.content, queries.anchors
        hidden, boxes = [], []
        for layer in self.layers:
            sines = sine_embedding(anchors * SCALE, self.embed_dim // 2, TEMPERATURE)  # (B, N, 4, C/2)
            x = layer(
                x,
                self.position_mlp(sines.flatten(2).to(x.dtype)),
                memory,
                memory_positions,
                cross_positions=self._look_from(x, anchors),
                query_mask=queries.mask,
                memory_mask=memory_mask,
                trace=trace,
            )
            normalised = self.norm(x)
            refined = move(anchors, bbox_embed(normalised))
            hidden.append(normalised)
            boxes.append(refined)
            anchors = refined.detach()  # gradients of a layer reach only its own correction
        return torch.stack(hidden), torch.stack(boxes)

    def _look_from(self, x: Tensor, anchors: Tensor) -> Tensor:
        """Sines of the centre as in the image's own position encoding, sharper for smaller boxes (DAB-DETR, eq. 6)."""
        cx, cy, _, _ = anchors.unbind(-1)
        w, h = anchors[..., 2:].clamp(min=EPS).unbind(-1)
        y, x_ = (sine_embedding(p * SCALE, self.embed_dim // 2, TEMPERATURE) for p in (cy, cx))
        ref_w, ref_h = self.size_mlp(x).sigmoid().unbind(-1)
        sines = torch.cat((y * (ref_h / h)[..., None], x_ * (ref_w / w)[..., None]), dim=-1)
        return sines.to(x.dtype) * self.scale_mlp(x)


def noise_boxes(boxes_cxcywh: Tensor, scale: float) -> Tensor:
    """Boxes (..., 4) with each corner moved by up to `scale` halves of the width and height, inside the image."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
    half = torch.stack((w, h, w, h), dim=-1) / 2
    x0, y0, x1, y1 = (corners + (torch.rand_like(corners) * 2 - 1) * half * scale).clamp(0, 1).unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def group_mask(group: Tensor) -> Tensor:
    """Group of each query (N,) -> (1, 1, N, N) bool: queries see those of their own group."""
    return (group[:, None] == group[None, :])[None, None]


def move_logits(boxes_cxcywh: Tensor, change: Tensor) -> Tensor:
    """Add `change` to the logits of boxes (..., 4) in 0..1."""
    return (inverse_sigmoid(boxes_cxcywh) + change).sigmoid()


def move_by_size(boxes_cxcywh: Tensor, change: Tensor) -> Tensor:
    """Move the centre by `change` widths and heights of the box, and scale its size by exp(change). (R-CNN.)

    A small box thus needs no finer numbers than a large one. At least in float32, under autocast too.
    """
    change = change.to(torch.promote_types(change.dtype, torch.float32))
    size = boxes_cxcywh[..., 2:].clamp(min=EPS)
    centre = boxes_cxcywh[..., :2] + size * change[..., :2]
    moved = torch.cat((centre, size * change[..., 2:].clamp(max=MAX_GROWTH).exp()), dim=-1)
    # 1.0, as the export to ONNX takes no limits of two types. The gradient can bring back what is outside.
    return moved + (moved.clamp(EPS, 1.0) - moved).detach()


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit of x in 0..1, kept finite."""
    x = x.clamp(EPS, 1 - EPS)
    return torch.log(x / (1 - x))
