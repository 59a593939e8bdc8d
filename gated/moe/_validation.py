"""What gates and layers check about their arguments. All raise a `ValueError` that names the argument."""

import torch
from torch import Tensor


def check_mask(mask: Tensor | None, tokens: int, num_experts: int) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != (tokens, num_experts):
        raise ValueError(
            f"mask must be boolean, shape ({tokens}, {num_experts}); got {mask.dtype}, {tuple(mask.shape)}"
        )
    if not torch.compiler.is_compiling() and not mask.any(-1).all():
        raise ValueError("mask must leave each token an expert; got a row of False only")


def check_features(x: Tensor, width: int) -> None:
    if x.ndim != 2 or not x.is_floating_point() or x.shape[-1] != width:
        raise ValueError(f"x must be floating point, shape (tokens, {width}); got {x.dtype}, {tuple(x.shape)}")


def check_ids(ids: Tensor) -> None:
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers, shape (tokens,); got {ids.dtype}, {tuple(ids.shape)}")


def check_k(k: int, num_experts: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_experts:
        raise ValueError(f"k must be an integer from 1 to the experts to choose from, {num_experts}; got {k!r}")
    return k
