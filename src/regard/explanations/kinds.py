"""What can be asked about the attention of a model: kinds of explanation, layers and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from regard.attention import AugmentedConv2d
from regard.explanations.augmented import KINDS as AUGMENTED_KINDS
from regard.explanations.detr import KINDS as DETR_KINDS
from regard.explanations.vit import KINDS as VIT_KINDS
from regard.models.build import Model, QueryDetector
from regard.models.detr import DETR
from regard.models.vit import VisionTransformer


class AttentionLayer(NamedTuple):
    """A layer with attention: its name, as in `LayerAttention`, and its number of heads."""

    name: str
    heads: int


def kinds_of(net: Model) -> Mapping[str, Sequence[str]]:
    """Return the kinds of explanation of a model, the default first, each with the options that it uses."""
    if isinstance(net, DETR):
        kinds = {kind: (*options, "threshold") for kind, options in DETR_KINDS.items()}
        return kinds if net.config.encoder_layers else {k: options for k, options in kinds.items() if k != "encoder"}
    if isinstance(net, VisionTransformer):
        return VIT_KINDS
    return AUGMENTED_KINDS if _augmented(net) else {}


def layers_of(net: Model) -> dict[str, list[AttentionLayer]]:
    """Return the layers of which `explain_stack` gives the attention of a `query`, a `point` or a `token`."""
    if isinstance(net, DETR):
        heads = net.config.num_heads
        decoder = {"query": _numbered("decoder", net.config.decoder_layers, heads)}
        encoder = _numbered("encoder", net.config.encoder_layers, heads)
        return {**decoder, "point": encoder} if encoder else decoder
    if isinstance(net, VisionTransformer):
        layers = _numbered("block", net.config.depth, net.config.num_heads)
        return {"token": layers, "point": layers}
    layers = _augmented(net)
    return {"point": layers} if layers else {}


def tokens_of(net: Model) -> list[str]:
    """Return the tokens of a vision transformer that stand for no patch, by their numbers."""
    return ["class", "distillation"][: net.num_tokens] if isinstance(net, VisionTransformer) else []


def _numbered(name: str, count: int, heads: int) -> list[AttentionLayer]:
    return [AttentionLayer(f"{name} {number}", heads) for number in range(count)]


def _augmented(net: Model) -> list[AttentionLayer]:
    if isinstance(net, QueryDetector):
        return []
    modules = net.named_modules()
    found = [(name, one) for name, one in modules if isinstance(one, AugmentedConv2d) and one.value_channels]
    return [AttentionLayer(name, layer.num_heads) for name, layer in found]
