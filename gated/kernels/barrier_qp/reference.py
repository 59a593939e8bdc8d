"""The definition: every candidate written down, those that break a row struck out, and the cheapest one taken."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def naive_barrier_qp(
    a: Float[Tensor, "problems rows 2"],
    b: Float[Tensor, "problems rows"],
    *,
    limit: float | int,
    c: Float[Tensor, "problems 2"] | None = None,
    d: Float[Tensor, " problems"] | None = None,
    xi: float | int = 1.0,
    nominal: Float[Tensor, "problems 2"] | None = None,
) -> tuple[Float[Tensor, "problems 2"], Float[Tensor, " problems"], Bool[Tensor, " problems"]]:
    """u, value and verdict of `barrier_qp`: 1 + 2m + m(m - 1)/2 candidates for m rows, limits among them.

    Two on each row's line, one for either piece of the objective, and the meeting point of each pair of rows. Plain
    autograd goes through the candidate that wins. Checks nothing.

    Args:
        xi: price of breaking the wish, as in `barrier_qp`.

    Example:
        >>> a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.5]])
        >>> u, value, feasible = naive_barrier_qp(a, b, limit=1.0, nominal=torch.tensor([[-1.0, 0.25]]))
        >>> u.tolist(), feasible.tolist()
        ([[0.5, 0.25]], [True])
    """
    w = a.new_zeros(len(a), 2) if nominal is None else nominal
    c = torch.zeros_like(w) if c is None else c
    d = torch.zeros_like(w[:, 0]) if d is None else d
    box = a.new_tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    a = torch.cat([a, box.expand(len(a), 4, 2)], 1)
    b = torch.cat([b, b.new_full((len(b), 4), -limit)], 1)
    b, d = b - (a @ w[..., None]).squeeze(-1), d + (c * w).sum(-1)  # v = u - w from here on

    longest = a.detach().abs().amax(-1)
    real = longest > 0
    a, b = a / torch.where(real, longest, 1)[..., None], b / torch.where(real, longest, 1)  # no square leaves the range
    length = a.norm(dim=-1)
    square = torch.where(real, length, 1) ** 2
    flat = 1 + xi * (c * c).sum(-1)
    free = torch.where(d[:, None] > 0, -(xi * d / flat)[:, None] * c, 0)
    to_line = a - (xi * (a * c[:, None]).sum(-1) / flat[:, None])[..., None] * c[:, None]  # H^-1 a
    start = -(xi * d / flat)[:, None] * c
    missing = b - (a * start[:, None]).sum(-1)
    along = torch.where(real, (a * to_line).sum(-1), 1)
    i, j = torch.triu_indices(a.shape[1], a.shape[1], 1)
    det = a[:, i, 0] * a[:, j, 1] - a[:, i, 1] * a[:, j, 0]
    crossing = det.abs() > 1e-12 * length[:, i] * length[:, j]
    det = torch.where(crossing, det, 1)
    meet = torch.stack([b[:, i] * a[:, j, 1] - b[:, j] * a[:, i, 1], a[:, i, 0] * b[:, j] - a[:, j, 0] * b[:, i]], -1)
    candidates = torch.cat(
        [
            free[:, None],
            start[:, None] + (missing / along)[..., None] * to_line,
            (b / square)[..., None] * a,
            meet / det[..., None],
        ],
        1,
    )
    there = torch.cat([torch.ones_like(real[:, :1]), real, real, crossing], 1)
    tolerance = limit * (1e-9 if a.dtype == torch.float64 else 1e-5)
    left = candidates.detach() @ a.detach().mT - b.detach()[:, None]
    feasible = there & (left >= -tolerance * length.detach()[:, None]).all(-1)
    cost = (candidates**2).sum(-1) + xi * ((candidates * c[:, None]).sum(-1) + d[:, None]).clamp_min(0) ** 2
    value, best = cost.masked_fill(~feasible, torch.inf).min(1)
    u = w + candidates[torch.arange(len(a)), best]
    return torch.where(feasible.any(1)[:, None], u, 0), value, feasible.any(1)
