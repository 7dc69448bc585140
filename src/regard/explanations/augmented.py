"""Explanations of attention-augmented networks: attention of their cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.augmented_conv import AugmentedConv2d
from regard.attention.relative import relative_logits
from regard.errors import ConfigError
from regard.explanations.checks import cell_of, check_kind, chosen
from regard.explanations.explanation import Box, SaliencyMap
from regard.models.retinanet import RetinaNet
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput

# Kinds of explanation with the options that each uses.
KINDS = {"layers": ("point", "head"), "heads": ("point", "layer"), "relevance": ()}


class Call(NamedTuple):
    """What one layer was given, and its attended values (B, d_v, h, w) before the output projection."""

    name: str
    layer: AugmentedConv2d
    x: Tensor
    attended: Tensor


def explain_augmented(
    net: nn.Module,
    card: ModelCard,
    pixels: Tensor,
    extent: Box,
    what: str,
    *,
    point: tuple[float, float] | None,
    layer: int | None,
    head: int | None,
) -> tuple[list[SaliencyMap], int]:
    """Return maps over the cells of attention layers for one image, and the number of maps per row of the picture.

    * `layers`: of the cell at `point` (the middle if None) in each layer, mean of heads (or one head).
    * `heads`: of that cell for each head of a layer, with the relative logits in the first row and without them in the
      second; a layer without relative positions has one row.
    * `relevance`: of all cells of each layer for the predicted class, of a detector for its best score: mean over heads
      of relu(A dy/dA), summed over the attending cells. Each layer is computed alone, not through convolutions.

    Args:
        net: a classifier, or a detector with such a network as its backbone.
        pixels: (1, 3, H, W) as the network sees them.
        extent: what they show of the original image.

    Raises:
        ConfigError: the network has no such layer.
    """
    check_kind(what, KINDS, card.name, point=point, layer=layer, head=head)
    calls, logits = _calls(net, pixels.clone().requires_grad_())
    _check_attention(calls, card.name)
    if what == "relevance":
        best = logits[0].argmax()  # of a detector over all anchors and classes
        label = int(best) % logits.shape[-1]
        title = card.categories[label].name if card.categories else f"class {label}"
        of_outputs = torch.autograd.grad(logits[0].flatten()[best], [call.attended for call in calls])
        found = zip(calls, of_outputs, strict=True)
        return [SaliencyMap(_relevance(call, g), f"{call.name}, for {title}", extent) for call, g in found], 4
    if what == "heads":
        call = calls[chosen("layer", layer, len(calls), -1)]
        parts = [True, False] if call.layer.relative is not None else [True]
        maps = []
        for relative in parts:
            weights, grid = _weights(call, relative=relative)
            row, at = _row(point, extent, grid)
            title = "" if relative or len(parts) == 1 else ", content only"
            maps += [
                SaliencyMap(w[row].unflatten(0, grid), f"{call.name}, head {i}{title}", extent, at)
                for i, w in enumerate(weights)
            ]
        return maps, len(maps) // len(parts)
    maps = []
    for call in calls:
        weights, grid = _weights(call, relative=True)
        row, at = _row(point, extent, grid)
        mean = weights.mean(0) if head is None else weights[chosen("head", head, len(weights), 0)]
        maps.append(SaliencyMap(mean[row].unflatten(0, grid), call.name, extent, at))
    return maps, 4


def cell_attention(net: nn.Module, pixels: Tensor, extent: Box, point: tuple[float, float]) -> list[tuple[str, Tensor]]:
    """Return name and attention (heads, h, w) of each layer, of the cell at a point; arguments as above.

    Raises:
        ConfigError: the network has no such layer (C09), or does not see the point (C03).
    """
    with torch.no_grad():
        calls, _ = _calls(net, pixels)
    _check_attention(calls, getattr(getattr(net, "card", None), "name", "the network"))
    found = []
    for call in calls:
        weights, grid = _weights(call, relative=True)
        row, _ = _row(point, extent, grid)
        found.append((call.name, weights[:, row].unflatten(-1, grid).cpu()))
    return found


def _check_attention(calls: list[Call], name: str) -> None:
    if not calls:
        remedy = "take one of regard models 'aa_*', or put attention in with regard.augment"
        raise ConfigError(f"{name} has no attention-augmented convolution", remedy=remedy, code="C09")


def _calls(net: nn.Module, pixels: Tensor) -> tuple[list[Call], Tensor]:
    """All augmented layers with attention, in the order of the forward pass, and the logits (1, C) or (1, Q, C)."""
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, AugmentedConv2d) and module.value_channels
    }
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name, layer in layers.items():
        for module, kept in ((layer, inputs), (layer.out, outputs)):
            hooks.append(module.register_forward_pre_hook(lambda _, args, n=name, k=kept: k.update({n: args[0]})))
    try:
        images = ImageBatch(pixels, ((pixels.shape[-2], pixels.shape[-1]),)) if isinstance(net, RetinaNet) else pixels
        output = net(images)
        logits = output.logits if isinstance(output, DetectionOutput) else output
    finally:
        for hook in hooks:
            hook.remove()
    return [Call(name, layers[name], x.detach(), outputs[name]) for name, x in inputs.items()], logits


def _weights(call: Call, *, relative: bool) -> tuple[Tensor, tuple[int, int]]:
    """(heads, N, N) of a call, and the grid (h, w) of its N cells."""
    with torch.no_grad():
        query, key, _ = call.layer.project(call.x)
        logits = relative_logits(query, key, call.layer.relative if relative else None)
    return logits[0].softmax(-1), (query.shape[2], query.shape[3])


def _relevance(call: Call, gradient: Tensor) -> Tensor:
    """(h, w) how much the cells matter to those that look at them; `gradient` is that of `call.attended`."""
    weights, grid = _weights(call, relative=True)
    with torch.no_grad():
        value = call.layer.project(call.x)[2][0].flatten(1, 2)  # (heads, N, e)
    of_heads = gradient[0].unflatten(0, (call.layer.num_heads, -1)).flatten(2).transpose(1, 2)
    weighted = (weights * (of_heads @ value.transpose(1, 2))).relu().mean(0)
    return weighted.sum(0).unflatten(0, grid)


def _row(point: tuple[float, float] | None, extent: Box, grid: tuple[int, int]) -> tuple[int, tuple[float, float]]:
    """The number of the cell at a point, and the point."""
    y, x = cell_of(point, extent, grid)
    x0, y0, x1, y1 = extent
    return y * grid[1] + x, point or ((x0 + x1) / 2, (y0 + y1) / 2)
