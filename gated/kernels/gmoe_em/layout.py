"""The order of the numbers that the kernels add up, and what they mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Statistics(NamedTuple):
    """Sums over the points of each data set, in float64. All are 0 for an empty data set. D = dim + 1.

    Numbers of the gate stand in the order beta_0i, beta_1i for i = 1..k-1 in turn, then tau: G = (k - 1) D + 1.
    The last expert's beta_0 and beta_1 are fixed (the softmax does not see a number that is added to all logits).

    Example:
        >>> points = Points.pack(torch.randn(9, 1), torch.randn(9), torch.tensor([0, 9]))
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> sums = gmoe_em(points, zero, zero[..., None], zero[..., None], zero, one, one[:, 0])
        >>> sums.log_likelihood.shape, sums.moment.shape, sums.gram.shape
        (torch.Size([1]), torch.Size([1, 2, 2, 2]), torch.Size([1, 3, 3]))
    """

    log_likelihood: Float[Tensor, " segments"]
    moment: Float[Tensor, "segments experts D D"]
    cross: Float[Tensor, "segments experts D"]
    square: Float[Tensor, "segments experts"]
    gradient: Float[Tensor, "segments G"]
    gram: Float[Tensor, "segments G G"]
    selected: Float[Tensor, "segments experts"]  # at how many points each expert is selected


def sizes(k: int, d: int) -> list[int]:
    """How many numbers each field takes of a row; of a symmetric matrix the upper triangle, row after row."""
    corner, gate = (d + 1) * (d + 2) // 2, (k - 1) * (d + 1) + 1
    return [1, k * corner, k * (d + 1), k, gate, gate * (gate + 1) // 2, k]


def unpack(flat: Float[Tensor, "segments numbers"], k: int, d: int, tau: Float[Tensor, " segments"]) -> Statistics:
    """The rows' meaning. Kernels leave out 1 / tau, which all derivatives of the logits have as a factor."""
    total, moment, cross, square, gradient, gram, selected = flat.split(sizes(k, d), 1)
    segments, gate = len(flat), gradient.shape[1]
    return Statistics(
        total[:, 0],
        _symmetric(moment.reshape(segments, k, -1), d + 1),
        cross.reshape(segments, k, d + 1),
        square,
        gradient / tau[:, None],
        _symmetric(gram, gate) / tau.square()[:, None, None],
        selected,
    )


def _symmetric(upper: Tensor, size: int) -> Tensor:
    """[..., size, size] from the rows of the upper triangle."""
    row, column = torch.triu_indices(size, size, device=upper.device)
    index = torch.empty(size, size, dtype=torch.int64, device=upper.device)
    index[row, column] = index[column, row] = torch.arange(len(row), device=upper.device)
    return upper[..., index]
