"""Stand-alone self-attention: a cell attends to the k x k cells around it, in place of a convolution.

    y_ij = sum over (a, b) in N_k(i, j) of softmax_ab(q_ij . k_ab + q_ij . r_{a-i, b-j}) v_ab
    r_{a-i, b-j} = [row vector of a - i; column vector of b - j], d/2 numbers each

per head of width d, with no factor 1/sqrt(d). Source: Ramachandran et al. 2019, sections 3 and 3.3.

`window_attention` computes this in three ways with the same result, all in time O(N k^2 C) for N = H W cells and
C channels; they differ in what they store:

    unfold   every window of keys and values, then sums: memory O(N k^2 C).
    shift    the map moved by one of the k^2 offsets at a time: memory O(N (k^2 heads + C)).
    fused    blocks of queries with the keys around them, for which fused kernels need no map. Positions go into the
             vectors: keys get one-hot rows and columns modulo k, which no two keys of a window share, and queries
             their relative logits at these. Time O(N (s + k)^2 (C + heads k)) with blocks of s x s cells, memory
             O(N (C + heads k) (s + k)^2 / s^2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.windows import (
    BORDERS,
    move_windows,
    sum_windows,
    unfold_windows,
    window_border,
    window_softmax,
)

METHODS = ("auto", "unfold", "shift", "fused")
# Side s of a block of queries in `fused`. Maps of ImageNet networks are multiples of 7.
BLOCK = 7
STEM_BLOCK = 4


class StandAloneAttention2d(nn.Module):
    """Local multi-head attention with relative positions in place of a k x k convolution.

    Queries, keys and values are 1x1 convolutions of all channels without a bias, which gives the parameter counts of
    the paper; each head has row and column vectors of its own.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, of all heads together: a multiple of 2 `num_heads`.
        kernel_size: side k of the window, odd.
        num_heads: heads.
        stride: 1, or 2 for an average over 2x2 cells after the attention. For an odd side the last average is
            over the cells that exist, so that sides become ceil(side / 2), as with a strided convolution.
        border: handling of keys outside the map. `masked`: they are left out. `zero`: the map is padded with zeros,
            and these keys enter the softmax with logit q . r and value 0, as in the public code.
        method: see `window_attention`.

    Raises:
        ValueError: the kernel is even, heads do not divide the channels, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 7,
        num_heads: int = 8,
        stride: int = 1,
        border: str = "masked",
        method: str = "auto",
    ) -> None:
        super().__init__()
        window_border(kernel_size)
        if num_heads < 1 or out_channels < 1 or out_channels % (2 * num_heads):
            raise ValueError(
                f"out_channels {out_channels} is no multiple of 2 * num_heads {num_heads}: half of the channels of a "
                "head meet row vectors, half column vectors"
            )
        if stride not in (1, 2):
            raise ValueError(f"stride {stride} must be 1 or 2")
        _check_names(border, method)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.num_heads = num_heads
        self.stride = stride
        self.border = border
        self.method = method
        head_dim = out_channels // num_heads
        self.qkv = nn.Conv2d(in_channels, 3 * out_channels, 1, bias=False)
        # Vectors of the offsets -p .. p, key minus query.
        self.row_table = nn.Parameter(torch.empty(num_heads, kernel_size, head_dim // 2))
        self.column_table = nn.Parameter(torch.empty(num_heads, kernel_size, head_dim // 2))
        for table in (self.row_table, self.column_table):
            nn.init.normal_(table, std=head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W')."""
        query, key, value = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        attended = window_attention(query, key, value, self.row_table, self.column_table, self.border, self.method)
        attended = attended.flatten(1, 2)  # channel = head * d + c
        return F.avg_pool2d(attended, 2, ceil_mode=True) if self.stride == 2 else attended

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, num_heads={self.num_heads}, "
            f"stride={self.stride}, border={self.border!r}"
        )


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    border: str = "masked",
    method: str = "auto",
) -> Tensor:
    """Let each cell attend to the k x k cells around it, with relative positions and without a scale.

    Args:
        query: (B, heads, d, H, W), any H and W from 1 up.
        key: as `query`.
        value: as `query`.
        row_table: (heads, k, d/2), the vectors of the row offsets -p .. p (key minus query), p = (k - 1) / 2; they
            meet the first half of the channels of a query.
        column_table: (heads, k, d/2), of the column offsets, for the second half.
        border: `masked` or `zero`, see `StandAloneAttention2d`.
        method: `unfold`, `shift`, `fused`, or `auto`: the fastest by measurement for the size of the window.

    Returns:
        (B, heads, d, H, W).
    """
    _check_names(border, method)
    if method == "auto":
        method = _fastest(row_table.shape[1])
    path = {"unfold": _unfold, "shift": _shift, "fused": _fused}[method]
    return path(query, key, value, row_table, column_table, border)


def _fastest(kernel_size: int) -> str:
    if torch.compiler.is_exporting():
        return "shift"  # a graph with blocks holds for some sizes only: torch.export takes one block apart from more
    # On a CPU, training with 3x3, 5x5, 7x7 windows on 28x28 cells of 128 channels and 8 heads takes, in ms per image,
    # 17, 53, 114 with unfold, 15, 31, 66 with shift and 16, 18, 23 with fused.
    return "shift" if kernel_size <= 3 else "fused"


def _unfold(query: Tensor, key: Tensor, value: Tensor, row_table: Tensor, column_table: Tensor, border: str) -> Tensor:
    keys, values = (
        unfold_windows(x.flatten(1, 2), row_table.shape[1]).unflatten(1, x.shape[1:3]) for x in (key, value)
    )  # (B, heads, d, k*k, H, W)
    logits = (query[:, :, :, None] * keys).sum(2) + _position_logits(query, row_table, column_table)
    return (window_softmax(logits, border)[:, :, None] * values).sum(3)


def _shift(query: Tensor, key: Tensor, value: Tensor, row_table: Tensor, column_table: Tensor, border: str) -> Tensor:
    content = torch.stack([(query * moved).sum(2) for moved in move_windows(key, row_table.shape[1])], dim=2)
    logits = content + _position_logits(query, row_table, column_table)
    return sum_windows(window_softmax(logits, border), value)


def _position_logits(query: Tensor, row_table: Tensor, column_table: Tensor) -> Tensor:
    """q . r for all offsets: (B, heads, d, H, W) -> (B, heads, k*k, H, W)."""
    for_rows, for_columns = query.chunk(2, dim=2)
    rows = torch.einsum("bndyx,nkd->bnkyx", for_rows, row_table)
    columns = torch.einsum("bndyx,nkd->bnkyx", for_columns, column_table)
    return (rows[:, :, :, None] + columns[:, :, None]).flatten(2, 3)


def _fused(query: Tensor, key: Tensor, value: Tensor, row_table: Tensor, column_table: Tensor, border: str) -> Tensor:
    """Blocks of s x s queries, each with the (s + k - 1)^2 keys that its cells see, in torch's fused kernels."""
    b, heads, d, h, w = query.shape
    kernel_size = row_table.shape[1]
    down, right = _blocks(h, BLOCK), _blocks(w, BLOCK)
    fill = (0, right * BLOCK - w, 0, down * BLOCK - h)  # cells that complete the last blocks
    q = _query_blocks(
        F.pad(query, fill).unflatten(4, (right, BLOCK)).unflatten(3, (down, BLOCK)), row_table, column_table
    )
    k, v = (_key_blocks(F.pad(x.flatten(1, 2), fill), kernel_size, heads) for x in (key, value))
    k = torch.cat((k, _residues(kernel_size, k).expand(*k.shape[:-1], -1)), dim=-1)
    # Kernels that do not store the map need one width for all three, on CUDA a multiple of 8; zeros change nothing.
    width = (q.shape[-1] + 7) // 8 * 8
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    seen = _keys_seen(h, w, kernel_size, border == "masked", query.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None], scale=1.0)[..., :d]
    by_block = out.view(b, heads, down, right, BLOCK, BLOCK, d).permute(0, 1, 6, 2, 4, 3, 5).contiguous()
    return F.pad(by_block.flatten(5, 6).flatten(3, 4), [-x for x in fill])  # a slice would not export


def _query_blocks(blocks: Tensor, row_table: Tensor, column_table: Tensor) -> Tensor:
    """[q; q . row vectors; q . column vectors] by block: (B, heads, d, I, s, J, s) -> (B heads, I J, s s, d + 2k)."""
    kernel_size = row_table.shape[1]
    # The key at offset o from place l stands at l + o of the block; that place modulo k is where its logit belongs.
    place = torch.arange(BLOCK, device=blocks.device)
    offset = (torch.arange(kernel_size, device=blocks.device) - place[:, None]) % kernel_size  # (s, k)
    for_rows, for_columns = blocks.chunk(2, dim=2)
    rows = torch.einsum("bndiyjx,nykd->bnijyxk", for_rows, row_table[:, offset])
    columns = torch.einsum("bndiyjx,nxkd->bnijyxk", for_columns, column_table[:, offset])
    q = torch.cat((blocks.permute(0, 1, 3, 5, 4, 6, 2).to(rows.dtype), rows, columns), dim=-1)
    return q.flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _key_blocks(x: Tensor, kernel_size: int, heads: int) -> Tensor:
    """All cells that a block sees, zero beyond the map: (B, heads d, I s, J s) -> (B heads, I J, (s + k - 1)^2, d)."""
    side = BLOCK + kernel_size - 1
    cells = F.unfold(x, side, stride=BLOCK, padding=kernel_size // 2)
    return cells.unflatten(1, (heads, -1, side * side)).permute(0, 1, 4, 3, 2).flatten(0, 1)


def _residues(kernel_size: int, like: Tensor) -> Tensor:
    """One-hot rows and columns modulo k of the cells that a block sees: ((s + k - 1)^2, 2k)."""
    side = BLOCK + kernel_size - 1
    place = torch.arange(side, device=like.device) % kernel_size
    hot = torch.eye(kernel_size, dtype=like.dtype, device=like.device)[place]
    return torch.cat((hot[:, None].expand(side, side, -1), hot.expand(side, side, -1)), dim=-1).flatten(0, 1)


def _keys_seen(height: int, width: int, kernel_size: int, masked: bool, device: torch.device) -> Tensor:
    """Whether a query of a block looks at a key: bool (I J, s s, (s + k - 1)^2), or (1, ...) for all blocks."""
    place = torch.arange(BLOCK + kernel_size - 1, device=device)
    steps = place - torch.arange(BLOCK, device=device)[:, None]
    near = (steps >= 0) & (steps < kernel_size)  # (s, s + k - 1)
    window = (near[:, None, :, None] & near[None, :, None, :]).flatten(2, 3).flatten(0, 1)[None]
    if not masked:
        return window
    inside = []
    for length in (height, width):
        start = torch.arange(_blocks(length, BLOCK), device=device) * BLOCK - kernel_size // 2
        cell = start[:, None] + place
        inside.append((cell >= 0) & (cell < length))
    on_map = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).flatten(2, 3).flatten(0, 1)[:, None]
    seen = window & on_map
    # Queries beyond the map are cut off later, but softmax over nothing would be NaN for some kernels.
    return seen | ~seen.any(dim=-1, keepdim=True)


class AttentionStem2d(nn.Module):
    """The first layer of a network of attention: 4x4 blocks of pixels, each attending to itself, then a max pool.

        y_ij = sum over (a, b) in the block of softmax_ab(q_ij . k_ab) v_ab
        v_ab = (sum over m of p(a, b, m) W_V^m) x_ab,    p(a, b, m) = softmax_m((emb_row(a) + emb_col(b)) . nu^m)

    so that values depend on the place in the block, as in a convolution, and edges can be detected. Then batch
    normalization and a 4x4 max pool. p is shared by the heads. Source: Ramachandran et al. 2019, section 3.3.
    Time O(N (C_in + 16) C), memory O(N (C + 16 heads)).

    Args:
        in_channels: channels of the input.
        out_channels: channels C of the output, a multiple of `num_heads`.
        num_heads: heads.
        num_mixtures: matrices W_V^m that are mixed.
    """

    def __init__(self, in_channels: int, out_channels: int, num_heads: int = 8, num_mixtures: int = 4) -> None:
        super().__init__()
        if num_heads < 1 or out_channels < 1 or out_channels % num_heads:
            raise ValueError(f"out_channels {out_channels} is no multiple of num_heads {num_heads}")
        if num_mixtures < 1:
            raise ValueError(f"num_mixtures {num_mixtures} must be at least 1")
        self.num_heads = num_heads
        head_dim = out_channels // num_heads
        self.qk = nn.Conv2d(in_channels, 2 * out_channels, 1, bias=False)
        self.value_weight = nn.Parameter(torch.empty(num_mixtures, out_channels, in_channels))
        self.row_embed = nn.Parameter(torch.empty(STEM_BLOCK, head_dim))
        self.column_embed = nn.Parameter(torch.empty(STEM_BLOCK, head_dim))
        self.mixture_embed = nn.Parameter(torch.empty(num_mixtures, head_dim))
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.uniform_(self.value_weight, -(in_channels**-0.5), in_channels**-0.5)  # as `nn.Conv2d`
        for table in (self.row_embed, self.column_embed, self.mixture_embed):
            nn.init.normal_(table)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, ceil(H / 4), ceil(W / 4)). Blocks that the map does not fill have fewer pixels."""
        attended = self.norm(self.attend(x))
        return F.max_pool2d(attended, STEM_BLOCK, ceil_mode=True)

    def attend(self, x: Tensor) -> Tensor:
        """The attention alone: (B, C, H, W) -> (B, F, H, W)."""
        h, w = x.shape[-2:]
        s, down, right = STEM_BLOCK, _blocks(h, STEM_BLOCK), _blocks(w, STEM_BLOCK)
        fill = (0, right * s - w, 0, down * s - h)
        x = F.pad(x, fill)
        query, key = (
            t.unflatten(4, (right, s)).unflatten(3, (down, s)).permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5)
            for t in self.qk(x).unflatten(1, (2, self.num_heads, -1)).unbind(1)
        )  # (B, heads, I, J, 16, d)
        # One matrix per place: mixing them before the product spares a value per mixture and pixel.
        matrices = torch.einsum("aem,moc->aeoc", self.mixture_weights(), self.value_weight)
        value = torch.einsum("aeoc,bciaje->bijaeo", matrices, x.unflatten(3, (right, s)).unflatten(2, (down, s)))
        value = value.flatten(3, 4).unflatten(4, (self.num_heads, -1)).permute(0, 4, 1, 2, 3, 5)
        logits = query @ key.transpose(-2, -1)
        weights = logits.masked_fill(~_pixels_inside(h, w, x.device), -math.inf).softmax(dim=-1)
        attended = (weights @ value).unflatten(4, (s, s)).permute(0, 1, 6, 2, 4, 3, 5).contiguous()
        return F.pad(attended.flatten(5, 6).flatten(3, 4).flatten(1, 2), [-n for n in fill])  # a slice would not export

    def mixture_weights(self) -> Tensor:
        """p(a, b, m) of row a, column b and mixture m: (4, 4, M)."""
        place = self.row_embed[:, None] + self.column_embed
        return (place @ self.mixture_embed.t()).softmax(dim=-1)


def _pixels_inside(height: int, width: int, device: torch.device) -> Tensor:
    """Which pixels of each block lie on the map: bool (I, J, 1, 16)."""
    s = STEM_BLOCK
    rows = (torch.arange(_blocks(height, s) * s, device=device) < height).view(-1, 1, s, 1)
    columns = (torch.arange(_blocks(width, s) * s, device=device) < width).view(1, -1, 1, s)
    return (rows & columns).flatten(2, 3)[:, :, None]


def _check_names(border: str, method: str) -> None:
    for name, given, known in (("border", border, BORDERS), ("method", method, METHODS)):
        if given not in known:
            raise ValueError(f"{name} {given!r} is none of {', '.join(known)}")


def _blocks(length: int, side: int) -> int:
    """Blocks that cover a length. torch.export follows this form of rounding up, and not -(-length // side)."""
    return (length + side - 1) // side
