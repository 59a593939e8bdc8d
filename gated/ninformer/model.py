"""Whole networks, all of one form: patches, blocks, the mean over tokens, one linear map.

    net = build("ninformer", RELEASED, depth=4, dropout=0.5)
    logits, gates = net(images, gate_mix=0.5, return_gates=True)

There is neither a class token nor a norm after the last block, as in the authors' code. Attention alone gets positional
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.backbones import TransformerBlock
from gated.gates._validation import check_choice, check_number
from gated.ninformer.blocks import GMLPBlock, LocalViTBlock, MixerBlock
from gated.ninformer.gate import NiNBlock, Variant
from gated.ninformer.sizes import Sizes

Kind = Literal["ninformer", "mixer", "vit", "local_vit", "gmlp"]


class Network(nn.Module):
    """Patches -> blocks -> mean over tokens -> linear map.

    `embed` cuts images into patches and maps each to d channels, row by row; `positions` [n, d] are added where the
    blocks know no place by themselves; `blocks` are L modules of tokens; `head` is the linear map.

    Args:
        block: makes one module of tokens; it is called `depth` times.

    Raises:
        ValueError: a depth below 1; gates asked of blocks that have none, or a mix outside [0, 1].
    """

    def __init__(self, sizes: Sizes, block: Callable[[], nn.Module], depth: int, *, positions: bool = False) -> None:
        super().__init__()
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be an integer of at least 1; got {depth!r}")
        self.sizes = sizes
        if sizes.image is not None:
            self.embed = nn.Conv2d(sizes.image[0], sizes.dim, sizes.patch, stride=sizes.patch)
        if positions:
            self.positions = nn.Parameter(0.02 * torch.randn(sizes.tokens, sizes.dim))
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.head = nn.Linear(sizes.dim, sizes.outputs)

    def forward(
        self, x: Float[Tensor, "batch ..."], gate_mix: float | int = 1.0, return_gates: bool = False
    ) -> Float[Tensor, "batch outputs"] | tuple[Float[Tensor, "batch outputs"], Float[Tensor, "layers batch n d"]]:
        """Logits of images [batch, channels, height, width], or of tokens [batch, n, d] when the sizes name no image.

        Args:
            gate_mix: lambda in [0, 1], the dial of every `NiNBlock`: its gate becomes (1 - lambda) + lambda g. At 0 a
                NiNformer is a bag of patches.
            return_gates: also return g of every block (before the dial), [layers, batch, n, d].

        Raises:
            ValueError: input of another shape, of integers, or with values that are not finite; gate_mix outside [0, 1]
                or, like return_gates, asked of a network without NiNformer blocks.
        """
        _check_input(x, self.sizes)
        dialled = gate_mix != 1 or return_gates
        if dialled and not isinstance(self.blocks[0], NiNBlock):
            raise ValueError("gate_mix and return_gates need a network of NiNformer blocks; this one has none")
        if not 0 <= gate_mix <= 1:
            raise ValueError(f"gate_mix must lie in [0, 1]; got {gate_mix}")
        if self.sizes.image is not None:
            x = self.embed(x).flatten(2).mT
        if hasattr(self, "positions"):
            x = x + self.positions
        gates = []
        for block in self.blocks:
            if return_gates:
                x, gate = block(x, gate_mix, return_gate=True)
                gates.append(gate)
            else:
                x = block(x, gate_mix) if dialled else block(x)
        logits = self.head(x.mean(1))
        return (logits, torch.stack(gates)) if return_gates else logits


def build(
    kind: Kind, sizes: Sizes, depth: int, *, dropout: float | int = 0.0, variant: Variant = "released"
) -> Network:
    """A network of `depth` blocks: "ninformer", "mixer", "vit" and "local_vit" (with positions), or "gmlp".

    Args:
        dropout: in [0, 1), after the GELU and after the last map of each MLP, and after attention: the same for all.
        variant: what to change in each NiNformer block (`Variant`).

    Parameters start as PyTorch's layers do, from its global generator; seed that with `torch.manual_seed`.

    Raises:
        ValueError: an unknown kind or variant, a variant for another kind, dropout outside [0, 1), depth below 1, heads
            that do not divide d.

    Example:
        >>> net = build("ninformer", DIGITS, depth=1)
        >>> sum(p.numel() for p in net.parameters()) == network("ninformer", DIGITS, depth=1).params
        True
    """
    check_choice("kind", kind, get_args(Kind))
    if variant != "released" and kind != "ninformer":
        raise ValueError(f"variant must be 'released' unless kind is 'ninformer'; got {variant!r} for {kind!r}")
    _check_dropout(dropout)
    s = sizes
    makers: dict[str, Callable[[], nn.Module]] = {
        "ninformer": lambda: NiNBlock(
            s.tokens, s.dim, s.token_hidden, s.channel_hidden, s.ffn_hidden, dropout=dropout, variant=variant
        ),
        "mixer": lambda: MixerBlock(s.tokens, s.dim, s.token_hidden, s.channel_hidden, dropout),
        "vit": lambda: TransformerBlock(s.dim, s.heads, s.ffn_hidden, dropout),
        "local_vit": lambda: LocalViTBlock(s.dim, s.heads, s.ffn_hidden, s.grid, dropout),
        "gmlp": lambda: GMLPBlock(s.tokens, s.dim, s.gmlp_hidden, dropout),
    }
    return Network(sizes, makers[kind], depth, positions=kind in ("vit", "local_vit"))


class FlatMLP(nn.Module):
    """All pixels as one vector through `depth` hidden layers of equal width, GELU and dropout: a check of the ceiling.

    It shares no weight between places and so tells how much of a small data set needs no structure at all.

    Raises:
        ValueError: a depth or width below 1; in `within`, fewer parameters than the thinnest network has.
    """

    def __init__(self, sizes: Sizes, depth: int, hidden: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        for name, value in {"depth": depth, "hidden": hidden}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        _check_dropout(dropout)
        self.sizes, self.hidden = sizes, hidden
        widths = [_entries(sizes), *[hidden] * depth]
        layers = [
            layer
            for wide, narrow in pairwise(widths)
            for layer in (nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout))
        ]
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(hidden, sizes.outputs))

    @classmethod
    def within(cls, params: int, sizes: Sizes, depth: int, dropout: float | int = 0.0) -> FlatMLP:
        """The widest one of at most `params` parameters; with D entries of the input and w of a hidden layer they are
        (depth - 1) w^2 + (D + depth + outputs) w + outputs.

        Raises:
            ValueError: fewer parameters than width 1 needs.
        """
        fits, linear = 0, _entries(sizes) + depth + sizes.outputs
        while (depth - 1) * (fits + 1) ** 2 + linear * (fits + 1) + sizes.outputs <= params:
            fits += 1
        if not fits:
            raise ValueError(f"params must be at least {depth - 1 + linear + sizes.outputs}; got {params}")
        return cls(sizes, depth, fits, dropout)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Logits; the same input and the same errors as `Network`."""
        _check_input(x, self.sizes)
        return self.layers(x)


def _input_shape(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.tokens, sizes.dim) if sizes.image is None else tuple(sizes.image)


def _entries(sizes: Sizes) -> int:
    return prod(_input_shape(sizes))


def _check_input(x: Tensor, sizes: Sizes) -> None:
    shape = _input_shape(sizes)
    if not x.is_floating_point() or x.shape[1:] != shape:
        raise ValueError(
            f"x must be floating point [batch, {', '.join(map(str, shape))}]; got {x.dtype} {tuple(x.shape)}. The "
            f"weights know exactly {sizes.tokens} tokens: resize the images, or build a network for their size"
        )
    if not torch.compiler.is_compiling() and not torch.isfinite(x).all():
        raise ValueError("x must be finite; got values that are nan or infinite")


def _check_dropout(dropout: float | int) -> None:
    check_number("dropout", dropout, "[0, 1)")
