"""Self-attention mechanisms for images. Tensors in, tensors out: nothing here knows of models, losses or data."""

from regard.attention.multi_head import MultiHeadAttention, attend, attention_weights
from regard.attention.positions import LearnedPositionEncoding, SinePositionEncoding, sine_embedding

__all__ = [
    "LearnedPositionEncoding",
    "MultiHeadAttention",
    "SinePositionEncoding",
    "attend",
    "attention_weights",
    "sine_embedding",
]
