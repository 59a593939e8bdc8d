"""When to stop, where the answer is known: the dynamic programme, and worlds small enough to be solved by hand.

A gate sees what the network says, not the label. The best it can do is to stop when the mean loss here is at most
the mean of going on; the surrogate labels count votes instead. These worlds tell the two apart.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_choice, check_float, check_positive, check_sizes, is_number
from gated.jeidnn._validation import check_costs, check_number, check_rows


class Stopping(NamedTuple):
    """`value` V_l(u) of standing at exit l in state u, and where it is best to `stop`."""

    value: Float[Tensor, "exits states"]
    stop: Bool[Tensor, "exits states"]


def optimal_stopping(
    losses: Float[Tensor, "exits states"],
    costs: Float[Tensor, "exits"],
    transitions: Float[Tensor, "gates states states"],
    trade_off: float | int,
) -> Stopping:
    """V_l(u) = min(loss_l(u) + lambda c_l, sum_u' P_l(u, u') V_{l+1}(u')), V_L = loss_L + lambda c_L; ties stop.

    Args:
        losses: E[loss_l | u_l = u].
        costs: c_l, rising.
        transitions: P_l(u, u') from exit l to l + 1, rows that sum to 1: what the gate sees is a Markov chain.
        trade_off: lambda >= 0.

    Raises:
        ValueError: transitions of another shape, negative, or with rows that do not sum to 1.

    Example:
        >>> losses = torch.tensor([[0.1, 0.9], [0.0, 0.0]])  # two states at exit 1
        >>> costs, stay = torch.tensor([1.0, 2.0]), torch.eye(2)[None]
        >>> optimal_stopping(losses, costs, stay, trade_off=0.5).stop[0].tolist()
        [True, False]
    """
    check_number("trade_off", trade_off, "[0, inf)")
    check_rows("losses", losses, 2)
    exits, states = losses.shape
    check_costs(costs, exits)
    check_float("transitions", transitions)
    if transitions.shape != (exits - 1, states, states):
        raise ValueError(f"transitions must have shape {(exits - 1, states, states)}, got {tuple(transitions.shape)}")
    if (transitions < 0).any() or not torch.allclose(transitions.sum(-1), transitions.new_ones(())):
        raise ValueError("transitions must be at least 0 with rows that sum to 1")
    now = losses + trade_off * costs.to(losses)[:, None]
    value, stop = [now[-1]], [torch.ones(states, dtype=torch.bool, device=losses.device)]
    for l in range(exits - 2, -1, -1):
        later = transitions[l].to(losses) @ value[0]
        value.insert(0, torch.minimum(now[l], later))
        stop.insert(0, now[l] <= later)
    return Stopping(torch.stack(value), torch.stack(stop))


class TwoExits(NamedTuple):
    """The best threshold, the share that leaves first, and the accuracy."""

    threshold: float
    rate: float
    accuracy: float


def calibrated_two_exits(accuracy: float | int, price: float | int) -> TwoExits:
    """Exit 1 is right with probability q ~ U(1/2, 1) and says so; exit 2 with probability a = `accuracy` always.

    Under 0/1 loss it is best to leave iff q >= tau = a - lambda (c_2 - c_1), with `price` = lambda (c_2 - c_1), held
    in [1/2, 1]. The share 2 (1 - tau) = rho leaves, and rho (1 - rho / 4) + (1 - rho) a are right: here a confidence
    threshold is the best there is, and a learned gate can only find it.

    Example:
        >>> calibrated_two_exits(accuracy=0.875, price=0.125)  # leave from q = 0.75 on: half of all
        TwoExits(threshold=0.75, rate=0.5, accuracy=0.875)
    """
    check_number("accuracy", accuracy, "[0, 1]")
    check_number("price", price, "[0, inf)")
    threshold = min(max(accuracy - price, 0.5), 1.0)
    rate = 2 * (1 - threshold)
    return TwoExits(threshold, rate, rate * (1 - rate / 4) + (1 - rate) * accuracy)


Order = Literal["gain", "confidence", "random"]


def accuracy_when_continuing(
    shares: Sequence[float | int],
    first: Sequence[float | int],
    second: Sequence[float | int],
    budget: float | int,
    order: Order = "gain",
) -> float:
    """Accuracy of two exits if the share `budget` of all samples goes on, over groups with known accuracies.

    Args:
        shares: of the groups, sum 1.
        first, second: accuracy of each group at exit 1 and at exit 2.
        budget: in [0, 1].
        order: who goes on first. "gain": where second - first is largest, the best there is. "confidence": where
            `first` is smallest, as under a threshold. "random": anybody.

    Raises:
        ValueError: shares that are negative or do not sum to 1, a budget out of range, not two accuracies a group.
    """
    check_choice("order", order, get_args(Order))
    check_number("budget", budget, "[0, 1]")
    if not len(shares) == len(first) == len(second):
        raise ValueError(f"shares, first and second must be as many; got {len(shares)}, {len(first)} and {len(second)}")
    for name, values in (("first", first), ("second", second)):
        for value in values:
            check_number(name, value, "[0, inf)")
    groups = list(zip(shares, first, second, strict=True))
    if not all(is_number(share) and share >= 0 for share in shares) or not abs(sum(shares) - 1) <= 1e-9:
        raise ValueError(f"shares must be at least 0 and sum to 1, got {list(shares)}")
    right = sum(share * a for share, a, _ in groups)
    if order == "random":
        return right + budget * sum(share * (b - a) for share, a, b in groups)
    groups.sort(key=(lambda g: g[1] - g[2]) if order == "gain" else (lambda g: g[1]))
    left = budget
    for share, a, b in groups:
        right += min(share, left) * (b - a)
        left -= min(share, left)
    return right


def selection_bias(threshold: float | int, spread: float | int, noise: float | int) -> float:
    """E[eps | q + eps >= tau] = (noise^2 / s) phi(tau / s) / Phi(-tau / s), s^2 = spread^2 + noise^2.

    q ~ N(0, spread^2) is the truth, q + eps with eps ~ N(0, noise^2) the score: who passes a threshold has been lucky.
    The shrunk score (q + eps) spread^2 / s^2 = E[q | q + eps] has no such bias.
    """
    check_number("threshold", threshold)
    check_number("spread", spread, "[0, inf)")
    check_positive("noise", noise)
    s = math.hypot(spread, noise)
    # phi / Phi(-t) as sqrt(2/pi) / erfcx(t / sqrt 2): neither factor may underflow
    mills = math.sqrt(2 / math.pi) / float(torch.special.erfcx(torch.tensor(threshold / s / math.sqrt(2)).double()))
    return noise**2 / s * mills


def expected_maximum(n: int) -> float:
    """E max of n independent N(0, 1): how far the best of n noisy scores lies above its truth, in their spread.

    The integral of 1 - Phi^n - (1 - Phi)^n over x > 0, on a grid fine enough for ten digits.
    """
    check_sizes(n=n)
    x = torch.linspace(0, 40, 40001).double()
    upper = torch.special.log_ndtr(-x).exp()
    return float(torch.trapezoid(-torch.expm1(n * torch.log1p(-upper)) - upper**n, x))


class Chain(NamedTuple):
    """Posterior means after 0, 1, ... flips, and the outcome that they foretell."""

    probability: Float[Tensor, "samples steps"]
    outcome: Bool[Tensor, "samples"]


def beta_bernoulli_chain(samples: int, flips: int, generator: torch.Generator) -> Chain:
    """q ~ U(0, 1); `flips` coins and one outcome, all Bernoulli(q). The posterior mean of q is (1 + heads) / (2 + n).

    It is calibrated at each step for all that was seen by then, so no stopping rule whatever can bias it. In float64.
    """
    check_sizes(samples=samples, flips=flips)
    device = generator.device
    q = torch.rand(samples, 1, generator=generator, device=device, dtype=torch.float64)
    coins = torch.rand(samples, flips + 1, generator=generator, device=device, dtype=torch.float64) < q
    heads = torch.cat([q.new_zeros(samples, 1), coins[:, :-1].double().cumsum(1)], 1)
    return Chain((1 + heads) / (2 + torch.arange(flips + 1, device=device)), coins[:, -1])
