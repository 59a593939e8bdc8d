"""The blocks that a NiNformer is compared with, and the pieces that it shares with them.

Each block maps tokens [batch, tokens, dim] to tokens of the same shape. They differ in how a token learns of others:

| block            | what mixes the tokens                       | weights of the mix       | source           |
|------------------|---------------------------------------------|--------------------------|------------------|
| `MixerBlock`     | an MLP along the token axis, every channel  | fixed after training     | Tolstikhin 2021  |
| ViT's            | softmax(Q K^T / sqrt(dim / heads)) V        | made from the image      | Dosovitskiy 2021 |
| `LocalViTBlock`  | ... and a 3 x 3 convolution inside the MLP  | made, and fixed          | Li 2021          |
| `GMLPBlock`      | half of the channels, mixed along the       | fixed, but they multiply | Liu 2021         |
|                  | tokens, as the gate of the other half       |                          |                  |

ViT's block is `gated.backbones.TransformerBlock`. Fixed weights know places, because each pair of them has its own;
attention without positional embeddings sees a bag of patches.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.backbones import TransformerBlock
from gated.gates._validation import check_count, check_floats, check_number, check_sizes
from gated.ninformer.fused import from_left, fuses, gelu_, in_slices


class MLP(nn.Module):
    """W_2 GELU(W_1 x + b_1) + b_2 along the last axis, with dropout after the GELU and after the second map.

    The GELU is the exact one, x Phi(x). State: `up` [hidden, width], `down` [width, hidden], as in `nn.Linear`.
    """

    def __init__(self, width: int, hidden: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        check_number("dropout", dropout, "[0, 1]")
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        check_floats(f"*batch {self.up.in_features}", x=x)
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))


class MixerBlock(nn.Module):
    """h = x + MLP(LN(x)^T)^T along the tokens, then h + MLP(LN(h)) along the channels: a block of MLP-Mixer.

    Args:
        tokens, dim: n and d. The token-mixing weights are [token_hidden, n] and [n, token_hidden]: n is fixed.
        token_hidden: T, the hidden width along the tokens; 0 leaves token mixing out (an ablation).
        channel_hidden: C, the hidden width along the channels.

    Source: Tolstikhin et al. 2021 (arXiv 2105.01601), equation 1.

    Example:
        >>> MixerBlock(4, 8, token_hidden=6, channel_hidden=16)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(
        self, tokens: int, dim: int, token_hidden: int, channel_hidden: int, dropout: float | int = 0.0
    ) -> None:
        super().__init__()
        check_sizes(tokens=tokens, dim=dim, channel_hidden=channel_hidden)
        check_count("token_hidden", token_hidden, least=0)
        self.tokens, self.dim = tokens, dim
        self.token_norm = nn.LayerNorm(dim) if token_hidden else None
        self.token_mlp = MLP(tokens, token_hidden, dropout) if token_hidden else None
        self.channel_norm, self.channel_mlp = nn.LayerNorm(dim), MLP(dim, channel_hidden, dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch {self.tokens} {self.dim}", x=x)
        if fuses(x, self.channel_mlp.dropout):
            return in_slices(lambda part, out: out.copy_(self.fused(part)), x, self.largest(x))
        if self.token_norm is not None and self.token_mlp is not None:
            x = x + self.token_mlp(self.token_norm(x).mT).mT
        return x + self.channel_mlp(self.channel_norm(x))

    def largest(self, x: Tensor) -> int:
        """Numbers of the largest array between two operators, for one image."""
        token_hidden = 0 if self.token_mlp is None else self.token_mlp.up.out_features
        return max(token_hidden * x.shape[2], x.shape[1] * self.channel_mlp.up.out_features)

    def fused(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The block for a few images, without gradients and dropout (`gated.ninformer.fused`)."""
        if self.token_norm is not None and self.token_mlp is not None:
            up, down = self.token_mlp.up, self.token_mlp.down
            hidden = gelu_(from_left(up, self.token_norm(x), up.bias[:, None]))
            x = from_left(down, hidden, x + down.bias[:, None])
        hidden = gelu_(self.channel_mlp.up(self.channel_norm(x)))
        return self.channel_mlp.down(hidden).add_(x)


class LocalMLP(nn.Module):
    """W_2 GELU(conv(GELU(W_1 x + b_1))) + b_2, conv a depth-wise 3 x 3 convolution over the grid of patches.

    Args:
        grid: rows and columns of the patches; beyond the border are zeros.
    """

    def __init__(self, dim: int, hidden: int, grid: tuple[int, int], dropout: float | int = 0.0) -> None:
        super().__init__()
        check_sizes(dim=dim, hidden=hidden)
        check_number("dropout", dropout, "[0, 1]")
        self.grid = grid
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch {self.grid[0] * self.grid[1]} {self.up.in_features}", x=x)
        image = F.gelu(self.up(x)).mT.unflatten(-1, self.grid)
        return self.dropout(self.down(self.dropout(F.gelu(self.conv(image)).flatten(2).mT)))


class LocalViTBlock(TransformerBlock):
    """The block of a ViT with `LocalMLP` in place of its MLP, as in LocalViT (Li et al. 2021, arXiv 2104.05707).

    Their batch norms are left out, so that the convolution is all that differs from ViT.

    Args:
        grid: rows and columns of the tokens.

    Example:
        >>> LocalViTBlock(dim=8, heads=2, hidden=16, grid=(2, 2))(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, dim: int, heads: int, hidden: int, grid: tuple[int, int], dropout: float | int = 0.0) -> None:
        check_sizes(hidden=hidden)
        super().__init__(dim, heads, hidden, dropout)
        self.mlp = LocalMLP(dim, hidden, grid, dropout)  # type: ignore[assignment]


class SpatialGate(nn.Module):
    """g = W LN(x) + b along the tokens, W [n, n] near 0 and b = 1 at the start: an open gate (Liu et al. 2021).

    Example:
        >>> SpatialGate(tokens=4, dim=8)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        check_sizes(tokens=tokens, dim=dim)
        self.norm, self.mix = nn.LayerNorm(dim), nn.Linear(tokens, tokens)
        nn.init.uniform_(self.mix.weight, -1e-3 / tokens, 1e-3 / tokens)
        nn.init.ones_(self.mix.bias)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch {self.mix.in_features} {self.norm.normalized_shape[0]}", x=x)
        return self.mix(self.norm(x).mT).mT


class GMLPBlock(nn.Module):
    """x + V (z_1 * (W LN(z_2) + b)), [z_1, z_2] = GELU(U LN(x)): the block of gMLP (arXiv 2105.08050).

    `hidden`, even, is the width of U LN(x); half of it passes, the other half is the gate.

    Raises:
        ValueError: an odd `hidden`, sizes below 1.

    Example:
        >>> GMLPBlock(tokens=4, dim=8, hidden=16)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, tokens: int, dim: int, hidden: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        check_sizes(tokens=tokens, dim=dim)
        check_count("hidden", hidden, least=2)
        if hidden % 2:
            raise ValueError(f"hidden must be even, for half of it is the gate; got {hidden}")
        check_number("dropout", dropout, "[0, 1]")
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.gate = SpatialGate(tokens, hidden // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch {self.gate.mix.in_features} {self.up.in_features}", x=x)
        passed, gate = self.dropout(F.gelu(self.up(self.norm(x)))).chunk(2, -1)
        return x + self.dropout(self.down(passed * self.gate(gate)))
