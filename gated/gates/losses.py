"""Losses that ask the gates to share the work. None holds a coefficient: multiply by your own.

All come in single precision at least: in half a sum over a batch overflows.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_logits, check_rows, check_same_shape
from gated.gates.statistics import at_least_single, coefficient_of_variation, importance, load


def importance_loss(weights: Float[Tensor, "*batch gates"]) -> Float[Tensor, ""]:
    """CoV(importance(w))^2, from 0 (equal sums) to gates - 1 (one gate has all).

    Raises:
        ValueError: weights not floating point or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eqs. 6 and 7.

    Example:
        >>> importance_loss(torch.eye(4)), importance_loss(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        (tensor(0.), tensor(3.))
    """
    return coefficient_of_variation(importance(weights)) ** 2


def load_loss(probability: Float[Tensor, "*batch gates"]) -> Float[Tensor, ""]:
    """CoV(sum over rows of P)^2, the balance of the smooth load.

    Args:
        probability: P = `selection_probability(...)`, or the second output of `NoisyTopKGate`.

    Raises:
        ValueError: probability not floating point or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, appendix A.

    Example:
        >>> load_loss(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
        tensor(0.)
    """
    check_rows("probability", probability)
    return coefficient_of_variation(importance(probability)) ** 2


def switch_loss(
    probability: Float[Tensor, "*batch gates"],
    selected: Float[Tensor, "*batch gates"] | Bool[Tensor, "*batch gates"],
) -> Float[Tensor, ""]:
    """N sum_i f_i Q_i: f_i = gate i's share of the selections, Q_i = its mean probability; 1 at balance.

    f has no gradient, so the push comes through Q. Balance is not its minimum: where f and Q disagree it
    can be below 1. GShard writes sum_i f_i Q_i / N, which is N^2 times smaller.

    Args:
        probability: softmax weights before the selection, rows that sum to one.
        selected: the gate's output or mask; every entry other than 0 counts as selected.

    Raises:
        ValueError: shapes that differ, wrong dtypes.

    Source: Fedus, Zoph & Shazeer 2021, arXiv 2101.03961, eqs. 4 to 6 (one selection a row);
        Lepikhin et al. 2020 (GShard), arXiv 2006.16668.

    Example:
        >>> p = torch.full((4, 4), 0.25)
        >>> switch_loss(p, torch.eye(4))
        tensor(1.)
    """
    check_rows("probability", probability)
    check_rows("selected", selected, allow_bool=True)
    check_same_shape("selected", selected, "probability", probability)
    precision = at_least_single(probability)
    count = load(selected).to(precision)
    share = count / count.sum().clamp(min=1)
    mean = probability.reshape(-1, probability.shape[-1]).mean(0, dtype=precision)
    return probability.shape[-1] * (share * mean).sum()


def z_loss(logits: Float[Tensor, "*batch gates"], *, check_finite: bool = False) -> Float[Tensor, ""]:
    """mean over rows of (log sum_i exp l_i)^2: keeps logits small, so not shift-invariant, on purpose.

    Raises:
        ValueError: as in `softmax_gate`.

    Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906.

    Example:
        >>> z_loss(torch.zeros(1, 2)).sqrt()  # log 2
        tensor(0.6931)
    """
    check_logits(logits, check_finite)
    return logits.to(at_least_single(logits)).logsumexp(-1).square().mean()
