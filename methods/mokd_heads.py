"""MOKD's two projection heads: one on a network's pooled vector, one of transformer blocks on its last map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.method import full_precision

Streams = Callable[[str], torch.Generator]

DEVIATION = 0.02
"""Of the first weights of linear layers and positions, as in DINO's heads (Caron et al., ICCV 2021)."""
RATIO = 4
"""Width of a block's inner layer, in widths of the block."""
NORM_EPSILON = 1e-6
LENGTH_EPSILON = 1e-12


@full_precision
def unit_length(vectors: Tensor) -> Tensor:
    """Vectors [rows, width] divided by their length, or by 1e-12 where they are shorter."""
    return F.normalize(vectors, dim=1, eps=LENGTH_EPSILON)


class NormalLinear(nn.Linear):
    """A linear layer that starts from N(0, 0.02^2), its bias from 0."""

    @torch.no_grad()
    def fill(self, streams: Streams) -> None:
        """Fill the weights from their stream."""
        self.weight.copy_(torch.randn(self.weight.shape, generator=streams("weight")) * DEVIATION)
        self.bias.zero_()


class Prototypes(nn.Module):
    """A linear layer without bias whose weights are directions times gains (weight normalisation).

    gains: whether the gains, which start at 1, are trained.
    """

    def __init__(self, width: int, prototypes: int, gains: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=gains)
        self.weight_v = nn.Parameter(torch.empty(prototypes, width))

    @torch.no_grad()
    def fill(self, streams: Streams) -> None:
        """Gains of 1; directions by PyTorch's rule for linear layers."""
        bound = 1 / math.sqrt(self.weight_v.shape[1])
        self.weight_g.fill_(1)
        self.weight_v.copy_(torch.rand(self.weight_v.shape, generator=streams("weight_v")) * (2 * bound) - bound)

    def forward(self, features: Tensor) -> Tensor:
        """Features [rows, width] to scores [rows, prototypes]."""
        return F.linear(features, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class MLPHead(nn.Module):
    """Three linear layers with GELU between them, unit length, and prototypes whose gains stay 1.

    The head of DINO (Caron et al., ICCV 2021), which MOKD has on each network's pooled vector.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            NormalLinear(inputs, hidden),
            nn.GELU(),
            NormalLinear(hidden, hidden),
            nn.GELU(),
            NormalLinear(hidden, bottleneck),
        )
        self.last_layer = Prototypes(bottleneck, prototypes, gains=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled vectors [rows, inputs] to scores [rows, prototypes]."""
        scores: Tensor = self.last_layer(unit_length(self.mlp(pooled)))
        return scores


class Attention(nn.Module):
    """Self-attention among the tokens of an image; `heads` divides `width`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = NormalLinear(width, 3 * width)
        self.proj = NormalLinear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [rows, tokens, width] to the same shape."""
        by_head = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = by_head.unbind(0)
        # Written out: the fused kernels do not promise the same gradient each time on a GPU.
        attention = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        mixed: Tensor = self.proj((attention @ value).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """A transformer block with its norms in front: attention, then an inner layer with GELU, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.ModuleDict(
            {"fc1": NormalLinear(width, RATIO * width), "fc2": NormalLinear(RATIO * width, width)},
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [rows, tokens, width] to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        inner: Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))
        return tokens + inner


@dataclass(frozen=True)
class Found:
    """What a T-head makes of maps: scores [rows, prototypes], and the embedded map's mean, pooled [rows, width]."""

    scores: Tensor
    pooled: Tensor


class THead(nn.Module):
    """Transformer blocks on the positions of a map, their mean, and prototypes with trained gains.

    The map is brought to the blocks' width by a 1x1 convolution, as MOKD does for convolutional networks; put an
    identity in place of `patch_embed` for tokens that have the width already.

    channels, size: of the map; for maps of other sizes the position embedding is resized (bicubic).
    """

    def __init__(
        self, channels: int, size: tuple[int, int], width: int, depth: int, heads: int, prototypes: int
    ) -> None:
        super().__init__()
        self.size = size
        self.pos_embed = nn.Parameter(torch.empty(1, size[0] * size[1], width))
        self.patch_embed: nn.Module = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.last_layer = Prototypes(width, prototypes, gains=True)

    @torch.no_grad()
    def fill(self, streams: Streams) -> None:
        """Fill the position embedding, the one parameter of the head itself."""
        self.pos_embed.copy_(torch.randn(self.pos_embed.shape, generator=streams("pos_embed")) * DEVIATION)

    def forward(self, maps: Tensor, query: Tensor | None = None) -> Found:
        """Maps [rows, channels, height, width], in any size, to what the head finds in them.

        query: vectors [times * rows, width], each a token beside those of a map, times-major: query i goes with map i
        modulo rows. There are then as many results as queries.
        """
        embedded = self.patch_embed(maps)
        tokens = embedded.flatten(2).transpose(1, 2) + self.positions(embedded.shape[2], embedded.shape[3])
        if query is not None:
            tokens = torch.cat((query[:, None], tokens.repeat(len(query) // len(tokens), 1, 1)), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        if query is not None:
            tokens = tokens[:, 1:]
        return Found(self.last_layer(tokens.mean(1)), embedded.mean((2, 3)))

    def positions(self, height: int, width: int) -> Tensor:
        """The position embedding of a map of this size, [1, height * width, width of the blocks]."""
        if (height, width) == self.size:
            return self.pos_embed
        return _bicubic(self.size, (height, width), self.pos_embed) @ self.pos_embed


def _bicubic(source: tuple[int, int], target: tuple[int, int], like: Tensor) -> Tensor:
    """Bicubic resizing as a matrix [target positions, source positions], in the precision of `like`.

    PyTorch's own resizing has no deterministic gradient on a GPU; a matrix product has.
    """
    positions = source[0] * source[1]
    impulses = torch.eye(positions, dtype=like.dtype, device=like.device).view(1, positions, *source)
    return F.interpolate(impulses, size=target, mode="bicubic", align_corners=False)[0].flatten(1).t()
