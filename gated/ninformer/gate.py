"""The gating unit: a token's value u, times a gate g that a whole inner network makes from all tokens.

    x^ = LN(x),   u = P x^ + p,   g = MixerBlock(x^),   y = x + u * g,   z = y + MLP(LN(y))

u_i depends on token i alone. So all that a token learns of the others comes through the product:
dy_i / dx_j = Diag(u_i) dg_i / dx_j for i != j. The gate is signed and not bounded; no sigmoid squashes it. It starts
close to x^ itself, because the inner network is residual: a fresh block is near x + (P x^ + p) * x^.

Source: Abdullah and Aydin 2024 (arXiv 2403.02411) and the authors' code, in which both norms are one module.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_choice, check_count, check_floats, check_sizes
from gated.ninformer.blocks import MLP, MixerBlock, SpatialGate
from gated.ninformer.fused import fuses, in_slices

Variant = Literal[
    "released", "untied", "sum", "sigmoid", "static", "no token mixing", "no value", "squeeze", "spatial", "fourier"
]
"""What to change in the block, one thing at a time:

| variant           | u            | gate                                     | y         | norms |
|-------------------|--------------|------------------------------------------|-----------|-------|
| "released"        | P x^ + p     | MixerBlock(x^)                           | x + u * g | one   |
| "untied"          |              |                                          |           | two   |
| "sum"             |              |                                          | x + u + g |       |
| "sigmoid"         |              | sigmoid(MixerBlock(x^))                  |           |       |
| "static"          |              | learned constant [n, d], 1 at the start  |           |       |
| "no token mixing" |              | MixerBlock without its first half        |           |       |
| "no value"        | x^           |                                          |           |       |
| "squeeze"         |              | `SqueezeGate`: one number a channel      |           |       |
| "spatial"         |              | `SpatialGate`, the one of gMLP           |           |       |
| "fourier"         |              | `FourierGate`, without parameters        |           |       |

An empty field is as in "released".
"""

_FUSED = ("released", "untied", "no token mixing", "no value")


class StaticGate(nn.Module):
    """g = a learned [n, d], the same for every image; 1 at the start.

    Example:
        >>> StaticGate(tokens=4, dim=8)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        check_sizes(tokens=tokens, dim=dim)
        self.gate = nn.Parameter(torch.ones(tokens, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch {len(self.gate)} {self.gate.shape[1]}", x=x)
        return self.gate.to(x.dtype).repeat(len(x), 1, 1)


class SqueezeGate(nn.Module):
    """g = sigmoid(W_2 relu(W_1 mean over tokens(x))), the same for all tokens, in (0, 1) (Hu et al. 2018).

    Example:
        >>> SqueezeGate(dim=8)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.down, self.up = nn.Linear(dim, squeezed(dim)), nn.Linear(squeezed(dim), dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats(f"batch tokens {self.down.in_features}", x=x)
        return self.up(self.down(x.mean(1, keepdim=True)).relu()).sigmoid().expand_as(x)


def squeezed(dim: int) -> int:
    """Width between the two maps of `SqueezeGate`: a quarter of d, at least 1."""
    return max(1, dim // 4)


class FourierGate(nn.Module):
    """g = Re FFT(x) over tokens and channels, divided by sqrt(n d), so that it keeps the scale of x (FNet's mixing).

    Example:
        >>> FourierGate()(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        check_floats("batch tokens dim", x=x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # no half-precision FFT on a CPU
        return torch.fft.fft2(wide, norm="ortho").real.to(x.dtype)


class NiNBlock(nn.Module):
    """x^ = LN(x), y = x + (P x^ + p) * MixerBlock(x^), then y + MLP(LN(y)): a block of NiNformer.

    Args:
        tokens, dim: n and d; n is fixed by the weights of the token mixing.
        token_hidden, channel_hidden: T and C, of the inner Mixer.
        ffn_hidden: F, of the MLP after the gate.
        dropout: after the GELU and after the second map of all three MLPs.
        variant: "released" (both norms are one), or one of the changes that `Variant` lists.

    The state of "released" has the order of the authors' code: norm, inner norm and MLP along the tokens, inner norm
    and MLP along the channels, P, MLP.

    Raises:
        ValueError: an unknown variant; the fused unit asked for a variant that it does not compute.

    Example:
        >>> block = NiNBlock(4, 8, token_hidden=6, channel_hidden=16, ffn_hidden=16)
        >>> block(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        token_hidden: int,
        channel_hidden: int,
        ffn_hidden: int,
        *,
        dropout: float | int = 0.0,
        variant: Variant = "released",
    ) -> None:
        super().__init__()
        check_choice("variant", variant, get_args(Variant))
        check_sizes(tokens=tokens, dim=dim, channel_hidden=channel_hidden, ffn_hidden=ffn_hidden)
        check_count("token_hidden", token_hidden, least=0)
        self.variant, self.tokens, self.dim = variant, tokens, dim
        self.norm = nn.LayerNorm(dim)
        if variant == "static":
            self.gate: nn.Module = StaticGate(tokens, dim)
        elif variant == "squeeze":
            self.gate = SqueezeGate(dim)
        elif variant == "spatial":
            self.gate = SpatialGate(tokens, dim)
        elif variant == "fourier":
            self.gate = FourierGate()
        else:
            hidden = 0 if variant == "no token mixing" else token_hidden
            self.gate = MixerBlock(tokens, dim, hidden, channel_hidden, dropout)
        self.value = nn.Identity() if variant == "no value" else nn.Linear(dim, dim)
        self.mlp = MLP(dim, ffn_hidden, dropout)
        self.mlp_norm = nn.LayerNorm(dim) if variant == "untied" else None

    def value_and_gate(
        self, normed: Float[Tensor, "batch tokens dim"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """u and g of normalised tokens x^."""
        gate = self.gate(normed)
        return self.value(normed), gate.sigmoid() if self.variant == "sigmoid" else gate

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], gate_mix: float | int = 1.0, return_gate: bool = False
    ) -> (
        Float[Tensor, "batch tokens dim"] | tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]
    ):
        """The block's tokens, and its gate g if asked.

        gate_mix: lambda in [0, 1]. The tokens are those of the gate (1 - lambda) + lambda g; at 0 no token sees
        another. In the variant "sum" it is lambda g, since there the gate that changes nothing is 0.

        Within `torch.inference_mode()` on a CPU, the same numbers (to rounding) come by fewer passes.
        """
        check_floats(f"batch {self.tokens} {self.dim}", x=x)
        if gate_mix == 1 and not return_gate and self.variant in _FUSED and fuses(x, self.mlp.dropout):
            y = self.fused_unit(x)
            return y + self.mlp((self.mlp_norm or self.norm)(y))
        value, gate = self.value_and_gate(self.norm(x))
        if self.variant == "sum":
            y = torch.add(x + value, gate, alpha=gate_mix)
        else:
            mixed = gate if gate_mix == 1 else torch.lerp(torch.ones_like(gate), gate, gate_mix)
            # one pass instead of two, and under autocast to float16 a product in float32: nothing bounds its factors
            y = torch.addcmul(x, value, mixed)
        z = y + self.mlp((self.mlp_norm or self.norm)(y))
        return (z, gate) if return_gate else z

    def fused_unit(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """x + u * g without gradients and dropout, by fewer passes over memory (`gated.ninformer.fused`).

        Raises:
            ValueError: a variant that is not u times the gate of a MixerBlock.
        """
        if self.variant not in _FUSED:
            raise ValueError(f"variant must be one of {_FUSED} for the fused unit; got {self.variant!r}")
        mixer = self.gate
        assert isinstance(mixer, MixerBlock)

        def write(part: Tensor, out: Tensor) -> None:
            normed = self.norm(part)
            torch.addcmul(part, self.value(normed), mixer.fused(normed), out=out)

        with torch.no_grad():
            return in_slices(write, x, mixer.largest(x))
