"""Self-attention mechanisms for images. Tensors in, tensors out: nothing here knows of models, losses or data."""

from regard.attention.augmented_conv import AugmentedConv2d, attention_channels
from regard.attention.multi_head import MultiHeadAttention, attend, attention_weights
from regard.attention.positions import (
    LearnedPositionEncoding,
    SinePositionEncoding,
    coordinate_channels,
    sine_embedding,
)
from regard.attention.relative import RelativePosition2d, relative_attention, relative_logits

__all__ = [
    "AugmentedConv2d",
    "LearnedPositionEncoding",
    "MultiHeadAttention",
    "RelativePosition2d",
    "SinePositionEncoding",
    "attend",
    "attention_channels",
    "attention_weights",
    "coordinate_channels",
    "relative_attention",
    "relative_logits",
    "sine_embedding",
]
