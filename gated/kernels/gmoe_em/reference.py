"""The definition: whole tensors [data set, point, expert], products by einsum."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gated.kernels.gmoe_em.activations import ACTIVATIONS


def naive_gmoe_em(
    x: Tensor,
    y: Tensor,
    beta0: Tensor,
    beta1: Tensor,
    a: Tensor,
    b: Tensor,
    variance: Tensor,
    tau: Tensor,
    top_k: int,
    rank: str,
    activation: str,
) -> tuple[Tensor, ...]:
    """The fields of `Statistics` for data sets of one size: x [S, n, d], y [S, n], parameters as in `gmoe_em`.

    Example:
        >>> x, y = torch.randn(1, 9, 1), torch.randn(1, 9)
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> given = zero, zero[..., None], zero[..., None], zero, one, one[:, 0]
        >>> sums = naive_gmoe_em(x, y, *given, 2, "logit", "identity")
        >>> points = Points.pack(x[0], y[0], torch.tensor([0, 9]))
        >>> torch.allclose(sums[0].double(), gmoe_em(points, *given).log_likelihood, atol=1e-4)
        True
    """
    (segments, n, d), k = x.shape, beta0.shape[1]
    value, derivative, _ = ACTIVATIONS[activation]
    z = x @ beta1.mT
    logits = (value(z) + beta0[:, None]) / tau[:, None, None]
    order = (value(z) if rank == "slope" else logits).argsort(dim=2, descending=True, stable=True)
    selected = torch.zeros_like(z, dtype=torch.bool).scatter(2, order[..., :top_k], True)
    log_pi = logits.masked_fill(~selected, -torch.inf).log_softmax(2)
    error = y[..., None] - x @ a.mT - b[:, None]
    joint = log_pi - 0.5 * error.square() / variance[:, None] - 0.5 * torch.log(2 * math.pi * variance[:, None])
    r, pi = joint.softmax(2), log_pi.exp()

    one = F.pad(x, (1, 0), value=1.0)
    moment = torch.einsum("snk,sni,snj->skij", r, one, one)
    cross = torch.einsum("snk,snk,sni->ski", r, error, one)
    square = torch.einsum("snk,snk->sk", r, error.square())

    # rows of J: the logits' derivatives by (beta0_i, beta1_i), i < k - 1, and by tau
    jacobian = x.new_zeros(segments, n, k, (k - 1) * (d + 1) + 1)
    for i in range(k - 1):
        at = i * (d + 1)
        jacobian[:, :, i, at] = 1 / tau[:, None]
        jacobian[:, :, i, at + 1 : at + 1 + d] = derivative(z[..., i : i + 1]) * x / tau[:, None, None]
    jacobian[..., -1] = -logits / tau[:, None, None]
    spread = torch.diag_embed(pi) - pi[..., :, None] * pi[..., None, :]
    gradient = torch.einsum("snkg,snk->sg", jacobian, r - pi)
    gram = torch.einsum("snkg,snkm,snmh->sgh", jacobian, spread, jacobian)
    return joint.logsumexp(2).sum(1), moment, cross, square, gradient, gram, selected.to(x.dtype).sum(1)
