"""What learned gates are compared with, all at equal mean cost: thresholds, patience, chance, mixtures, oracles.

Each rule maps the answers of all exits to the exit taken, [batch]; `tally` turns that into cost and accuracy.
"""

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gated.gates._validation import check_axes, check_float, check_int, check_positive, check_sizes
from gated.jeidnn._validation import as_numbers, check_correct, check_costs, check_exits, check_number, check_rows
from gated.jeidnn.exits import first_true


class Tally(NamedTuple):
    """Mean cost, accuracy, and the share of samples that left at each exit."""

    cost: float
    accuracy: float
    rates: Float[Tensor, "exits"]


def tally(exit: Int64[Tensor, "batch"], correct: Bool[Tensor, "batch exits"], costs: Float[Tensor, "exits"]) -> Tally:
    """What a rule costs and gets right, given which exits are right on each sample.

    Raises:
        ValueError: no samples, an exit that does not exist, costs that do not rise, shapes or dtypes that do not fit.

    Example:
        >>> correct = torch.tensor([[True, True], [False, True]])
        >>> cost, accuracy, rates = tally(torch.tensor([0, 1]), correct, torch.tensor([0.5, 1.0]))
        >>> cost, accuracy
        (0.75, 1.0)
    """
    check_correct(correct)
    exits = correct.shape[1]
    check_exits(exit, len(correct), exits)
    check_costs(costs, exits)
    rates = torch.bincount(exit, minlength=exits).double() / len(exit)
    right = correct.gather(1, exit[:, None]).double().mean()
    return Tally(float(rates @ costs.double()), float(right), rates)


def threshold_exit(
    scores: Float[Tensor, "batch gates"], threshold: float | int | Float[Tensor, "gates"]
) -> Int64[Tensor, "batch"]:
    """The first exit whose score (see `score`) reaches its threshold, one for all or one each; else the last.

    Raises:
        ValueError: thresholds of another shape, or NaN.

    Example:
        >>> threshold_exit(torch.tensor([[0.2, 0.9], [0.1, 0.3]]), threshold=0.5).tolist()
        [1, 2]
    """
    check_rows("scores", scores, 2)
    if not isinstance(threshold, Real | Tensor):
        raise ValueError(f"threshold must be a number or a tensor; got {threshold!r}")
    threshold = torch.as_tensor(threshold, device=scores.device)
    if threshold.isnan().any():
        raise ValueError("threshold must hold no NaN, which no score reaches; got some")
    if threshold.ndim and threshold.shape != scores.shape[1:]:
        raise ValueError(f"threshold must be a number or have shape ({scores.shape[1]},), got {tuple(threshold.shape)}")
    return first_true(scores >= threshold)


def geometric_quotas(exits: int, ratio: float | int) -> Float[Tensor, "exits"]:
    """q_k in proportion to ratio^k, sum 1: the shares that shall leave at each exit. 1 is uniform, large is late.

    Raises:
        ValueError: no exits, a ratio that is not positive and finite.

    Source: Huang et al. 2018, arXiv 1703.09844 (MSDNet).

    Example:
        >>> geometric_quotas(2, ratio=3.0).tolist()
        [0.25, 0.75]
    """
    check_sizes(exits=exits)
    check_positive("ratio", ratio)
    # through a softmax, so that no power overflows
    return (torch.arange(exits).double() * torch.tensor(float(ratio)).double().log()).softmax(0)


def quota_thresholds(scores: Float[Tensor, "batch gates"], quotas: Float[Tensor, "exits"]) -> Float[Tensor, "gates"]:
    """T_k, the floor(n q_k)-th largest score among the samples that have not left: about n q_k leave at exit k.

    Infinity where that number is 0, so that nobody leaves.

    Raises:
        ValueError: quotas that are not one an exit or do not sum to 1.

    Source: Huang et al. 2018, arXiv 1703.09844.

    Example:
        >>> scores = torch.tensor([[0.9], [0.2], [0.6], [0.4]])
        >>> quota_thresholds(scores, torch.tensor([0.5, 0.5]))  # half of the samples leave first
        tensor([0.6000])
    """
    check_rows("scores", scores, 2)
    check_float("quotas", quotas)
    n, gates = scores.shape
    if quotas.shape != (gates + 1,) or (quotas < 0).any() or not torch.isclose(quotas.sum(), quotas.new_ones(())):
        raise ValueError(f"quotas must be {gates + 1} shares for these scores, of sum 1, got {quotas.tolist()}")
    live = torch.ones(n, dtype=torch.bool, device=scores.device)
    thresholds = scores.new_full((gates,), torch.inf)
    for k in range(gates):
        # the small summand keeps n q that is whole but for rounding
        wanted = min(int(n * float(quotas[k]) + 1e-9), int(live.sum()))
        if wanted:
            thresholds[k] = scores[live, k].topk(wanted).values[-1]
            live &= scores[:, k] < thresholds[k]
    return thresholds


def patience_exit(guess: Int64[Tensor, "batch exits"], patience: int) -> Int64[Tensor, "batch"]:
    """The first exit at which `patience` exits in a row have given the same class; else the last. 1 is the first.

    Raises:
        ValueError: a patience below 1, guesses that are not [batch, exits] of classes.

    Source: Zhou et al. 2020, arXiv 2006.04152.

    Example:
        >>> patience_exit(torch.tensor([[1, 2, 2, 0]]), patience=2).tolist()
        [2]
    """
    check_sizes(patience=patience)
    check_int("guess", guess)
    if guess.ndim != 2 or not guess.shape[1]:
        raise ValueError(f"guess must be [batch, exits] with at least one exit; got {tuple(guess.shape)}")
    agree = torch.ones_like(guess[:, :-1], dtype=torch.bool)
    for back in range(1, patience):
        agree[:, back:] &= guess[:, back:-1] == guess[:, : -back - 1]
        agree[:, :back] = False
    return first_true(agree)


def random_exit_accuracy(accuracy: Float[Tensor, "exits"], rates: Float[Tensor, "exits"]) -> float:
    """sum_l pi_l acc_l: exits drawn with a method's own rates pi, blind to the sample. Its cost is the method's.

    Raises:
        ValueError: rates that are not one an exit or do not sum to 1.

    Example:
        >>> random_exit_accuracy(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.5]))
        0.75
    """
    check_axes("exits, exits", accuracy=accuracy, rates=rates)
    if (rates < 0).any() or abs(float(rates.sum()) - 1) > 1e-6:
        raise ValueError(f"rates must be {len(accuracy)} shares that sum to 1, got {rates.tolist()}")
    return float(accuracy.double() @ rates.double())


def oracle_exit(correct: Bool[Tensor, "batch exits"]) -> Int64[Tensor, "batch"]:
    """The first exit that is right, and the cheapest where none is: no rule is more accurate, none as cheap at that.

    Raises:
        ValueError: no samples, no exits, what is not bool.

    Example:
        >>> oracle_exit(torch.tensor([[False, True, True], [False, False, False]])).tolist()
        [1, 0]
    """
    check_correct(correct)
    first = first_true(correct)
    return first.masked_fill(first == correct.shape[1], 0)


def concave_hull(costs: Sequence[float] | Tensor, values: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Corners of the least concave curve over the points: what the best random mixture of two of them reaches.

    Starts at the cheapest point and ends at the best one; float64, costs rising.

    Args:
        costs, values: the points, in any order.

    Example:
        >>> costs, values = concave_hull([1.0, 2.0, 3.0], [0.0, 0.25, 1.0])
        >>> costs.tolist()  # a mixture of the outer two beats the one between
        [1.0, 3.0]
    """
    x, y = points(costs, values)
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) > (y[i] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    top = max(range(len(corners)), key=lambda j: float(y[corners[j]]))
    keep = torch.tensor(corners[: top + 1])
    return x[keep], y[keep]


def at_cost(costs: Sequence[float] | Tensor, values: Sequence[float] | Tensor, cost: float | int) -> float:
    """The value of a curve at `cost`, between its points by a straight line: what mixing two of its rules would give.

    Of points of equal cost the best counts. Raises ValueError outside the curve: it says nothing there.

    Args:
        costs, values: the curve's points.

    Example:
        >>> at_cost([0.0, 1.0], [0.0, 2.0], cost=0.5)
        1.0
    """
    x, y = points(costs, values)
    check_number("cost", cost, f"[{float(x[0])}, {float(x[-1])}]")
    right = min(int(torch.searchsorted(x, torch.tensor(float(cost)).double())), len(x) - 1)
    if float(x[right]) == cost or right == 0:
        return float(y[right])
    share = (cost - float(x[right - 1])) / float(x[right] - x[right - 1])
    return float(torch.lerp(y[right - 1], y[right], share))


def points(costs: Sequence[float] | Tensor, values: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, in order of cost, the best value of each cost."""
    x, y = as_numbers("costs", costs).flatten(), as_numbers("values", values).flatten()
    if len(x) != len(y) or not len(x) or not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"costs and values must pair at least one finite point, got {len(x)} and {len(y)}")
    unique, index = x.unique(return_inverse=True)
    return unique, torch.full_like(unique, -torch.inf).scatter_reduce(0, index, y, "amax")
