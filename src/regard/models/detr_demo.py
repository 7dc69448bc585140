"""The authors' demonstration model: DETR in fifty lines, about 40 AP. (DETR, listing 1 and detr_demo.ipynb.)

It differs from the paper's model: learned positions enter once, at the input of the encoder; the box head is one
linear layer; there is no padding mask, so images of different sizes go through one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn

from regard.errors import ConfigError
from regard.models.configs.detr import DETRDemoConfig
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput


class DETRDemo(nn.Module):
    """ResNet-50, `nn.Transformer` and two linear heads. Parameter names are the authors'.

    Args:
        config: number of classes and queries.
    """

    card: ModelCard  # set by `regard.models.build.build`

    def __init__(self, config: DETRDemoConfig) -> None:
        super().__init__()
        self.config = config
        c = 256
        self.backbone = torchvision.models.resnet50(weights=None)
        del self.backbone.fc
        self.conv = nn.Conv2d(2048, c, kernel_size=1)
        # nn.Transformer's own encoder, without the warning that the authors' layout has no nested tensors.
        layer = nn.TransformerEncoderLayer(c, nhead=8)
        encoder = nn.TransformerEncoder(layer, 6, nn.LayerNorm(c), enable_nested_tensor=False)
        self.transformer = nn.Transformer(c, nhead=8, num_decoder_layers=6, custom_encoder=encoder)
        self.linear_class = nn.Linear(c, config.num_classes + 1)
        self.linear_bbox = nn.Linear(c, 4)
        self.query_pos = nn.Parameter(torch.rand(config.num_queries, c))
        self.row_embed = nn.Parameter(torch.rand(50, c // 2))
        self.col_embed = nn.Parameter(torch.rand(50, c // 2))

    def forward(
        self, images: ImageBatch | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> DetectionOutput:
        """Detect objects; arguments and result as in `DETR.forward`, without auxiliary outputs."""
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(list(images))
        if not batch.is_padded:
            return self._detect(batch.pixels)
        single = [self._detect(p[None, :, :h, :w]) for p, (h, w) in zip(batch.pixels, batch.sizes, strict=True)]
        return DetectionOutput(torch.cat([o.logits for o in single]), torch.cat([o.boxes for o in single]))

    def _detect(self, pixels: Tensor) -> DetectionOutput:
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
        x = self.conv(net.layer4(net.layer3(net.layer2(net.layer1(x)))))  # (B, C, h, w)
        b, _, h, w = x.shape
        if max(h, w) > len(self.row_embed):
            raise ConfigError(
                f"images of {h * 32} x {w * 32} pixels, but detr_demo knows positions up to {len(self.row_embed) * 32}",
                remedy="use smaller images or detr_resnet50",
            )
        rows = self.row_embed[:h, None].expand(-1, w, -1)
        columns = self.col_embed[None, :w].expand(h, -1, -1)
        positions = torch.cat((columns, rows), dim=-1).flatten(0, 1)  # (hw, C)
        tokens = positions[:, None] + 0.1 * x.flatten(2).permute(2, 0, 1)  # (hw, B, C)
        hidden = self.transformer(tokens, self.query_pos[:, None].expand(-1, b, -1)).transpose(0, 1)
        return DetectionOutput(self.linear_class(hidden), self.linear_bbox(hidden).sigmoid())
