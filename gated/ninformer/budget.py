"""What each network costs, in closed form: parameters, and MACs (multiply-adds) of one image.

Equal depth is not equal budget: a NiNformer block holds a whole Mixer block, the map P and an MLP. MACs are those of
matrix products and convolutions, one per multiply-add (half of what is called FLOPs); norms, GELUs, softmax, sums, the
product u * g and the Fourier transform are not counted.

| block      | MACs (n tokens, d channels; hidden widths T, C, F; e of gMLP) |
|------------|---------------------------------------------------------------|
| Mixer      | 2 n T d + 2 n d C                                             |
| NiNformer  | 2 n T d + 2 n d C + n d^2 + 2 n d F                           |
| ViT        | 4 n d^2 + 2 n^2 d + 2 n d F                                   |
| LocalViT   | ... + 9 n F                                                   |
| gMLP       | 3/2 n d e + n^2 e / 2                                         |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from gated.gates._validation import check_choice, check_count, check_sizes
from gated.ninformer.gate import Variant, squeezed
from gated.ninformer.model import Kind
from gated.ninformer.sizes import Sizes


class Budget(NamedTuple):
    """Parameters of a network, and its MACs for one image.

    Args:
        params, macs: see above.
    """

    params: int
    macs: int


def block_macs(kind: Kind, sizes: Sizes, tokens: int | None = None, variant: Variant = "released") -> int:
    """MACs of one block for one image; `tokens` replaces `sizes.tokens`, all widths being kept.

    Raises:
        ValueError: an unknown kind or variant, a variant of another kind, tokens below 1.
    """
    _check(kind, variant)
    n, d = sizes.tokens if tokens is None else tokens, sizes.dim
    check_sizes(tokens=n)
    T, C, F, e = sizes.token_hidden, sizes.channel_hidden, sizes.ffn_hidden, sizes.gmlp_hidden
    mixer = 2 * n * T * d + 2 * n * d * C
    if kind == "mixer":
        return mixer
    if kind == "gmlp":
        return 3 * n * d * e // 2 + n * n * e // 2
    if kind in ("vit", "local_vit"):
        return 4 * n * d * d + 2 * n * n * d + 2 * n * d * F + (9 * n * F if kind == "local_vit" else 0)
    gates = {
        "static": 0,
        "fourier": 0,
        "no token mixing": 2 * n * d * C,
        "squeeze": 2 * d * squeezed(d),
        "spatial": n * n * d,
    }
    value = 0 if variant == "no value" else n * d * d
    return gates.get(variant, mixer) + value + 2 * n * d * F


def block_params(kind: Kind, sizes: Sizes, variant: Variant = "released") -> int:
    """Parameters of one block. Raises as `block_macs`."""
    _check(kind, variant)
    n, d, norm = sizes.tokens, sizes.dim, 2 * sizes.dim
    T, C, F, e = sizes.token_hidden, sizes.channel_hidden, sizes.ffn_hidden, sizes.gmlp_hidden
    along_tokens, along_channels = norm + 2 * n * T + T + n, norm + 2 * d * C + C + d
    ffn = 2 * d * F + F + d
    if kind == "mixer":
        return along_tokens + along_channels
    if kind == "gmlp":
        return norm + d * e + e + e + n * n + n + d * e // 2 + d  # the fourth term: the norm of half the width
    if kind in ("vit", "local_vit"):
        return 2 * norm + 4 * d * d + 4 * d + ffn + (10 * F if kind == "local_vit" else 0)
    gates = {
        "static": n * d,
        "fourier": 0,
        "no token mixing": along_channels,
        "squeeze": 2 * d * squeezed(d) + squeezed(d) + d,
        "spatial": norm + n * n + n,
    }
    gate = gates.get(variant, along_tokens + along_channels)
    value = 0 if variant == "no value" else d * d + d
    return (2 if variant == "untied" else 1) * norm + gate + value + ffn


def network(kind: Kind, sizes: Sizes, depth: int, variant: Variant = "released") -> Budget:
    """The whole network: patches, positions where there are any, `depth` blocks and the linear map at the end.

    Raises:
        ValueError: as `block_macs`; depth below 1.

    Example:
        >>> network("mixer", DIGITS, depth=2).macs > network("mixer", DIGITS, depth=1).macs
        True
    """
    check_sizes(depth=depth)
    n, d = sizes.tokens, sizes.dim
    patch = 0 if sizes.image is None else sizes.image[0] * sizes.patch**2
    params = depth * block_params(kind, sizes, variant) + (d + 1) * sizes.outputs
    params += (d * (patch + 1) if patch else 0) + (n * d if kind in ("vit", "local_vit") else 0)
    return Budget(params, depth * block_macs(kind, sizes, variant=variant) + n * patch * d + d * sizes.outputs)


def matched_depths(
    kind: Kind, sizes: Sizes, budget: Budget, by: Literal["params", "macs"] = "params"
) -> tuple[int, int]:
    """The depths that bracket a budget: the deepest network within it, and the next one.

    The first is 0 when not even one block fits. Equal depths mean that the budget is met exactly.

    Raises:
        ValueError: as `block_macs`; `by` is neither "params" nor "macs".
    """
    if by not in ("params", "macs"):
        raise ValueError(f"by must be 'params' or 'macs'; got {by!r}")
    one, two = (getattr(network(kind, sizes, depth), by) for depth in (1, 2))
    check_count("params", budget.params, 0)
    check_count("macs", budget.macs, 0)
    below, rest = divmod(getattr(budget, by) - (2 * one - two), two - one)  # 2 one - two: what no block costs
    below = max(0, below)
    return below, below if below and not rest else below + 1


def crossover(sizes: Sizes) -> float:
    """n* = T + C - 3/2 d: a NiNformer block costs fewer MACs than a ViT block of equal d and F only for n > n*.

    Example:
        >>> crossover(DIGITS) == DIGITS.token_hidden + DIGITS.channel_hidden - 1.5 * DIGITS.dim
        True
    """
    return sizes.token_hidden + sizes.channel_hidden - 1.5 * sizes.dim


def _check(kind: str, variant: str) -> None:
    check_choice("kind", kind, get_args(Kind))
    check_choice("variant", variant, get_args(Variant))
    if variant != "released" and kind != "ninformer":
        raise ValueError(f"variant must be 'released' unless kind is 'ninformer'; got {variant!r} for {kind!r}")
