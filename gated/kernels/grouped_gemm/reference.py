"""The definition, a row at a time."""

import torch
from torch import Tensor


def naive_grouped_gemm(x: Tensor, weight: Tensor, offsets: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """y_m = r_m · x_m W_{g(m)}; row m belongs to the group g with offsets[g] <= m < offsets[g + 1].

    Args:
        row_weight: r; 1 unless given.

    Example:
        >>> weight = torch.stack([torch.eye(2), 5 * torch.eye(2)])
        >>> naive_grouped_gemm(torch.ones(3, 2), weight, torch.tensor([0, 1, 3])).tolist()
        [[1.0, 1.0], [5.0, 5.0], [5.0, 5.0]]
    """
    rows = []
    for m in range(x.shape[0]):
        group = int((offsets[1:] <= m).sum())
        row = x[m] @ weight[group]
        rows.append(row if row_weight is None else row_weight[m] * row)
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[2])
