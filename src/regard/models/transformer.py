"""The transformer of DETR: an encoder over image tokens, a decoder from queries to image tokens.

It differs from Vaswani et al. 2017 in where positions enter: they are added to queries and keys of every attention
layer, never to values. (DETR, figure 10 and models/transformer.py, whose parameter names are kept.)

Masks are bool, True where a query may attend, and broadcast to (B, heads, N, M).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from regard.attention import MultiHeadAttention


@dataclass
class Trace:
    """Attention weights of one forward pass, one (B, heads, N, M) per layer."""

    encoder: list[Tensor] = field(default_factory=list)
    decoder_self: list[Tensor] = field(default_factory=list)
    decoder_cross: list[Tensor] = field(default_factory=list)
    feature_size: tuple[int, int] = (0, 0)
    keep_encoder: bool = True


class MLP(nn.Module):
    """Linear layers with ReLU between them, under the name and the keys of the authors' models/detr.py.

    Args:
        in_dim, hidden_dim, out_dim: widths of the input, of all layers between, of the output.
        num_layers: linear layers in all.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Transformer(nn.Module):
    """Encoder and decoder; the model calls them one after the other.

    Args:
        embed_dim: width C of tokens and queries.
        num_heads: attention heads.
        encoder_layers, decoder_layers: depth of the two halves; the encoder may have none.
        feedforward_dim: hidden width of the feed-forward blocks; 0: layers of attention alone.
        dropout: of attention weights, of feed-forward activations and of every residual branch.
        norm_first: layer norm before each block (pre-norm) instead of after it (post-norm, the paper).
        decoder, layer: classes of the decoder and of its layers, the paper's if None.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        encoder_layers: int,
        decoder_layers: int,
        feedforward_dim: int,
        dropout: float,
        norm_first: bool,
        decoder: type[Decoder] | None = None,
        layer: type[DecoderLayer] | None = None,
    ) -> None:
        super().__init__()
        sizes = (embed_dim, num_heads, feedforward_dim, dropout, norm_first)
        self.encoder = Encoder(
            [EncoderLayer(*sizes) for _ in range(encoder_layers)],
            nn.LayerNorm(embed_dim) if norm_first else None,
        )
        self.decoder = (decoder or Decoder)(
            [(layer or DecoderLayer)(*sizes) for _ in range(decoder_layers)], nn.LayerNorm(embed_dim)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder.reset_parameters()


class Encoder(nn.Module):
    """Self-attention among all image tokens, layer after layer."""

    def __init__(self, layers: Sequence[EncoderLayer], norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None, trace: Trace | None = None
    ) -> Tensor:
        """Tokens (B, N, C) and their positions (B or 1, N, C) -> memory (B, N, C)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, mask, trace)
        return tokens if self.norm is None else self.norm(tokens)


class Decoder(nn.Module):
    """Queries attend to each other, then to the image, layer after layer."""

    def __init__(self, layers: Sequence[DecoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def reset_parameters(self) -> None:
        """Initial values that differ from the transformer's."""

    def forward(
        self,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        start: Tensor | None = None,
        query_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Learned query positions (B, Q, C) -> queries after every layer, (L, B, Q, C), normalised.

        `start`: queries (B, Q, C) before the first layer; zeros if None.
        """
        queries = torch.zeros_like(query_positions) if start is None else start
        hidden = []
        for layer in self.layers:
            queries = layer(
                queries,
                query_positions,
                memory,
                memory_positions,
                query_mask=query_mask,
                memory_mask=memory_mask,
                trace=trace,
            )
            hidden.append(queries)
        return self.norm(torch.stack(hidden))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, if it has a width, each with a residual sum and a layer norm."""

    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.feeds_forward = feedforward_dim > 0
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, dropout)
        if self.feeds_forward:
            self.linear1 = nn.Linear(embed_dim, feedforward_dim)
            self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        if self.feeds_forward:
            self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if self.norm_first:
            x = x + self.dropout(self._attend(self.norm1(x), positions, mask, trace))
            return x + self.dropout(self._feed_forward(self.norm2(x))) if self.feeds_forward else x
        x = self.norm1(x + self.dropout(self._attend(x, positions, mask, trace)))
        return self.norm2(x + self.dropout(self._feed_forward(x))) if self.feeds_forward else x

    def _attend(self, x: Tensor, positions: Tensor, mask: Tensor | None, trace: Trace | None) -> Tensor:
        placed = x + positions
        if trace is not None and trace.keep_encoder:
            trace.encoder.append(self.self_attn.weights(placed, placed, mask=mask))
        return self.self_attn(placed, placed, x, mask=mask)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(_relu(self.linear1(x))))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the memory, feed-forward block if it has a width."""

    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, dropout)
        self.multihead_attn = MultiHeadAttention(embed_dim, num_heads, dropout)
        self.feeds_forward = feedforward_dim > 0
        if self.feeds_forward:
            self.linear1 = nn.Linear(embed_dim, feedforward_dim)
            self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        if self.feeds_forward:
            self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        cross_positions: Tensor | None = None,
        query_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C).

        `cross_positions` take the place of `positions` in cross-attention where queries have two kinds of them.
        """
        place = positions if cross_positions is None else cross_positions

        def look_at_queries(x: Tensor) -> Tensor:
            placed = x + positions
            if trace is not None:
                trace.decoder_self.append(self.self_attn.weights(placed, placed, mask=query_mask))
            return self.dropout(self.self_attn(placed, placed, x, mask=query_mask))

        def look_at_image(x: Tensor) -> Tensor:
            return self.dropout(self.cross_attend(x, place, memory, memory_positions, memory_mask, trace))

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout(self.linear2(self.dropout(_relu(self.linear1(x)))))

        if self.norm_first:
            x = x + look_at_queries(self.norm1(x))
            x = x + look_at_image(self.norm2(x))
            return x + feed_forward(self.norm3(x)) if self.feeds_forward else x
        x = self.norm1(x + look_at_queries(x))
        x = self.norm2(x + look_at_image(x))
        return self.norm3(x + feed_forward(x)) if self.feeds_forward else x

    def cross_attend(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        mask: Tensor | None,
        trace: Trace | None,
    ) -> Tensor:
        """Attention from the queries to the image: positions are added to queries and keys."""
        query, key = x + positions, memory + memory_positions
        if trace is not None:
            trace.decoder_cross.append(self.multihead_attn.weights(query, key, mask=mask))
        return self.multihead_attn(query, key, memory, mask=mask)


def _relu(x: Tensor) -> Tensor:
    """ReLU of an intermediate result: in place if no gradient needs it, as new memory costs more than the function."""
    return x.relu() if torch.is_grad_enabled() else x.relu_()
