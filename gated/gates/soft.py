"""Soft gates: each row of logits becomes a point of the simplex, smooth in the logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import Temperature, check_logits, check_temperature


def tempered(logits: Float[Tensor, "*shape"], temperature: Temperature) -> Float[Tensor, "*shape"]:
    """logits / temperature, row by row; infinite logits pass unchanged (and give dT no NaN)."""
    check_temperature(temperature, logits)
    if not isinstance(temperature, Tensor):
        return logits / temperature
    infinite = logits.isinf()
    per_row = temperature[..., None] if temperature.ndim else temperature
    return torch.where(infinite, logits, logits.masked_fill(infinite, 0) / per_row)


def softmax_gate(
    logits: Float[Tensor, "*batch gates"], temperature: Temperature = 1.0, *, check_finite: bool = False
) -> Float[Tensor, "*batch gates"]:
    """w = softmax(l / T): every gate open, rows sum to one; T -> 0 is argmax, T -> inf is uniform.

    Args:
        logits: l, one row per decision; -inf shuts a gate (weight and gradient exactly 0).
        temperature: T > 0: a number, a scalar tensor, or one value per row (shape `batch`); differentiable.
        check_finite: also read the values, which costs a pass and, on a GPU, a wait.

    Raises:
        ValueError: logits not floating point or without gates; T <= 0 or of another shape; with
            `check_finite`: NaN, +inf, or a row of -inf only.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2 (the temperature).

    Example:
        >>> softmax_gate(torch.tensor([0.0, 0.0, float("-inf")])).tolist()
        [0.5, 0.5, 0.0]
    """
    check_logits(logits, check_finite)
    # The largest is subtracted first: l / T overflows for small T, (l - max) / T at worst shuts a gate.
    return torch.softmax(tempered(logits - logits.detach().amax(-1, keepdim=True), temperature), -1)


def entmax_gate(
    logits: Float[Tensor, "*batch gates"],
    alpha: float | int = 1.5,
    temperature: Temperature = 1.0,
    *,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """w = [(alpha - 1) l/T - t]_+^(1 / (alpha - 1)) = argmax over the simplex of <w, l/T> + H_alpha(w).

    H_alpha is the Tsallis entropy. The threshold t makes the row sum to one; gates under it are exactly 0.
    alpha = 1 is softmax, 2 is sparsemax. t is found by bisection and polished by two Newton steps, which
    autograd sees: with the residual at zero they carry its exact implicit derivatives, first and second.

    Args:
        logits, temperature, check_finite: as in `softmax_gate`.
        alpha: 1 <= alpha <= 2; beyond 2 the derivative is unbounded at the edge of the support.

    Raises:
        ValueError: alpha outside [1, 2], and as in `softmax_gate`.

    Source: Peters, Niculae & Martins 2019, arXiv 1905.05702;
        Martins & Astudillo 2016, arXiv 1602.02068 (alpha = 2).

    Example:
        >>> entmax_gate(torch.tensor([3.0, 0.0])).round(decimals=4).tolist()
        [1.0, 0.0]
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (float, int)) or not 1 <= alpha <= 2:
        raise ValueError(f"alpha must be a number from 1 (softmax) to 2 (sparsemax); got {alpha!r}")
    if alpha == 1:
        return softmax_gate(logits, temperature, check_finite=check_finite)
    check_logits(logits, check_finite)
    power = 1 / (alpha - 1)
    scores = (alpha - 1) * tempered(logits - logits.detach().amax(-1, keepdim=True), temperature)

    def open_part(threshold: Tensor) -> tuple[Tensor, Tensor]:
        above = scores - threshold
        shut = above <= 0  # written so that NaN counts as open and is seen in the result
        return above.masked_fill(shut, 1), shut  # 1, not 0: 0 ** (power - 1) has an infinite derivative

    # The row's largest score is 0 and holds a weight in [1/gates, 1], which brackets t.
    fixed, threshold = scores.detach(), torch.full_like(scores[..., :1], -1.0).detach()
    width = 1 - logits.shape[-1] ** (1 - alpha)
    for _ in range(2 - round(math.log2(torch.finfo(logits.dtype).eps))):
        width /= 2
        total = (fixed - threshold - width).clamp(min=0).pow(power).sum(-1, keepdim=True)
        threshold = torch.where(total >= 1, threshold + width, threshold)
    for _ in range(2):
        base, shut = open_part(threshold)
        residual = base.pow(power).masked_fill(shut, 0).sum(-1, keepdim=True) - 1
        steepness = power * base.pow(power - 1).masked_fill(shut, 0).sum(-1, keepdim=True)
        threshold = threshold + residual / steepness
    base, shut = open_part(threshold)
    return base.pow(power).masked_fill(shut, 0)


def sparsemax_gate(
    logits: Float[Tensor, "*batch gates"], temperature: Temperature = 1.0, *, check_finite: bool = False
) -> Float[Tensor, "*batch gates"]:
    """w = argmin over the simplex of |w - l/T|^2, the Euclidean projection: `entmax_gate` with alpha = 2.

    Args, Raises: as in `entmax_gate`.

    Source: Martins & Astudillo 2016, arXiv 1602.02068.

    Example:
        >>> sparsemax_gate(torch.tensor([0.5, 0.0])).tolist()
        [0.75, 0.25]
    """
    return entmax_gate(logits, 2, temperature, check_finite=check_finite)
