"""What is asked of the gates: that few are open, and that each says the same for all inputs.

g: gates of a batch [batch, gates], in [0, 1]: hard gates, or the probabilities p behind them. m_l = mean_i g_il, the
share of the batch for which gate l is open. The mean over inputs comes first and the mean over gates second: the other
order asks for something else. All is computed in single precision at least: half overflows at 65504, a small cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_float, check_number, is_number
from gated.gates.statistics import at_least_single


class Decomposition(NamedTuple):
    """m (1 - m) = E[p (1 - p)] + Var[p], for each gate over the inputs (law of total variance)."""

    total: Tensor
    """m (1 - m), what the polarization loss averages."""
    indecision: Tensor
    """E[p (1 - p)]: how far from 0 and 1 the gate is for one input. 0 for hard gates."""
    disagreement: Tensor
    """Var[p], biased: how much the inputs differ. 0 where all inputs agree, be it on 1/2."""


def polarization_loss(gates: Float[Tensor, "batch gates"], *, unbiased: bool = False) -> Float[Tensor, ""]:
    """L_pol = (1/L) sum_l m_l (1 - m_l), between 0 (each gate says the same for all inputs) and 1/4.

    It is 0 too where all gates are open or all are shut, so it is read beside the open share. With B inputs that are
    drawn at random and hard gates its mean is (1 - 1/B) of the value of the whole population; one input agrees with
    itself, so B = 1 gives 0.

    Args:
        gates: hard gates, or probabilities for a smooth loss.
        unbiased: multiply by B/(B - 1), which is exact in the mean for hard gates. Needs two inputs.

    Raises:
        ValueError: no inputs, no gates, or `unbiased` with one input.

    Example:
        >>> polarization_loss(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).item()  # one of two gates is divided
        0.125
    """
    mean = _checked("gates", gates).mean(0)
    loss = (mean * (1 - mean)).mean()
    if not unbiased:
        return loss
    if len(gates) < 2:
        raise ValueError("unbiased needs a batch of at least 2 inputs, got 1")
    return loss * (len(gates) / (len(gates) - 1))


def activation_loss(
    gates: Float[Tensor, "batch gates"],
    cost: Float[Tensor, " gates"] | Sequence[float | int] | None = None,
    target: float | int | None = None,
) -> Float[Tensor, ""]:
    """L_act = sum_l c_l m_l / sum_l c_l, the open share of what the gates cost; with a target r, (L_act - r)^2.

    Args:
        gates: as in `polarization_loss`.
        cost: c_l >= 0, a tensor or a sequence, for instance the `macs` of `costs`; None counts gates.
        target: r in [0, 1], the open share that is wanted: 1 - sparsity.

    Raises:
        ValueError: no inputs, no gates, a cost that does not fit, a target outside [0, 1].

    Example:
        >>> activation_loss(torch.tensor([[1.0, 0.0]]), cost=torch.tensor([3.0, 1.0])).item()
        0.75
    """
    gates = _checked("gates", gates)
    weight = check_cost(cost, gates)
    share = (gates.mean(0) * weight).sum() / weight.sum()
    if target is None:
        return share
    check_share("target", target)
    return (share - target) ** 2


def target_rate_loss(gates: Float[Tensor, "batch gates"], target: float | int) -> Float[Tensor, ""]:
    """(1/L) sum_l (m_l - t)^2: each gate is open for a share t of the inputs.

    It equals t^2 + (1 - 2t) L_act - L_pol: the loss that keeps gates dynamic is the polarization loss with weight -1.

    Raises:
        ValueError: as in `activation_loss`.

    Source: Veit and Belongie 2018 (ConvNet-AIG), arXiv 1711.11503.

    Example:
        >>> target_rate_loss(torch.tensor([[1.0], [0.0]]), target=0.5).item()
        0.0
    """
    gates = _checked("gates", gates)
    check_share("target", target)
    return ((gates.mean(0) - target) ** 2).mean()


def decomposition(probability: Float[Tensor, "batch gates"]) -> Decomposition:
    """The two parts of m (1 - m) for each gate. Raises ValueError without inputs or gates.

    Example:
        >>> parts = decomposition(torch.tensor([[1.0], [0.0]]))
        >>> parts.indecision.item(), parts.disagreement.item()
        (0.0, 0.25)
    """
    probability = _checked("probability", probability)
    mean = probability.mean(0)
    return Decomposition(mean * (1 - mean), (probability * (1 - probability)).mean(0), probability.var(0, correction=0))


def check_cost(cost: Tensor | Sequence[float | int] | None, gates: Tensor) -> Float[Tensor, " gates"]:
    precision = at_least_single(gates)
    if cost is None:
        return gates.new_ones(gates.shape[-1], dtype=precision)
    if not isinstance(cost, Tensor):
        if not isinstance(cost, Sequence) or not all(map(is_number, cost)):
            raise ValueError(f"cost must be a tensor or a sequence of numbers; got {cost!r}")
        cost = torch.tensor(cost, dtype=torch.float64)
    cost = cost.to(gates.device, precision)
    if cost.shape != gates.shape[-1:]:
        raise ValueError(f"cost must have one entry for each of {gates.shape[-1]} gates, got {tuple(cost.shape)}")
    if not torch.compiler.is_compiling() and not ((cost >= 0).all() and 0 < cost.sum() < torch.inf):
        raise ValueError(f"cost must be finite, non-negative, and positive somewhere, got {cost.tolist()}")
    return cost


def check_share(name: str, value: float | int) -> None:
    check_number(name, value, "[0, 1]")


def _checked(name: str, gates: Tensor) -> Float[Tensor, "batch gates"]:
    check_float(name, gates)
    if gates.ndim != 2 or 0 in gates.shape:
        raise ValueError(
            f"{name} must have shape [batch, gates] with at least one input and one gate, got {tuple(gates.shape)}"
        )
    return gates.to(at_least_single(gates))
