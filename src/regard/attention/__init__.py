"""Self-attention mechanisms for images. Tensors in, tensors out: they use no model, loss or data set."""

from regard.attention.augmented_conv import AugmentedConv2d, attention_channels
from regard.attention.axial import AxialAttention
from regard.attention.criss_cross import CrissCrossAttention, criss_cross_attention
from regard.attention.local_relation import LocalRelation2d
from regard.attention.masks import causal_mask, key_padding_mask
from regard.attention.multi_head import MultiHeadAttention, attend, attention_weights
from regard.attention.non_local import NonLocalBlock
from regard.attention.positions import (
    LearnedPositionEncoding,
    SinePositionEncoding,
    coordinate_channels,
    resize_positions,
    sine_embedding,
)
from regard.attention.relative import RelativePosition2d, relative_attention, relative_logits
from regard.attention.stand_alone import AttentionStem2d, StandAloneAttention2d, window_attention
from regard.attention.vector import PairwiseVectorAttention2d, PatchwiseVectorAttention2d
from regard.attention.windows import unfold_windows

__all__ = [
    "AttentionStem2d",
    "AugmentedConv2d",
    "AxialAttention",
    "CrissCrossAttention",
    "LearnedPositionEncoding",
    "LocalRelation2d",
    "MultiHeadAttention",
    "NonLocalBlock",
    "PairwiseVectorAttention2d",
    "PatchwiseVectorAttention2d",
    "RelativePosition2d",
    "SinePositionEncoding",
    "StandAloneAttention2d",
    "attend",
    "attention_channels",
    "attention_weights",
    "causal_mask",
    "coordinate_channels",
    "criss_cross_attention",
    "key_padding_mask",
    "relative_attention",
    "relative_logits",
    "resize_positions",
    "sine_embedding",
    "unfold_windows",
    "window_attention",
]
