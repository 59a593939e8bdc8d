"""One BLAS call a group, written straight into its rows of the result."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

# Splitting gives all views in one call: half of what a pair of slices a group costs, which small groups notice.


def gemm(x: Tensor, weight: Tensor, bounds: list[int], row_weight: Tensor | None) -> Tensor:
    y, sizes = x.new_empty(x.shape[0], weight.shape[2]), _sizes(bounds)
    for rows, matrix, out in zip(x.split(sizes), weight.unbind(0), y.split(sizes), strict=True):
        torch.mm(rows, matrix, out=out)
    return y if row_weight is None else y.mul_(row_weight[:, None])


def gemm_weight(x: Tensor, dy: Tensor, bounds: list[int]) -> Tensor:
    dw, sizes = x.new_empty(len(bounds) - 1, x.shape[1], dy.shape[1]), _sizes(bounds)
    for columns, rows, out in zip(x.T.split(sizes, 1), dy.split(sizes), dw.unbind(0), strict=True):
        torch.mm(columns, rows, out=out)  # zeros where the group has no rows
    return dw


def _sizes(bounds: list[int]) -> list[int]:
    return [stop - start for start, stop in pairwise(bounds)]
