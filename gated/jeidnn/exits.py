"""From gates to exits: the distribution over exits, the hard rule, and what a sample then costs.

Exits are counted from 0 here; exit L - 1 is the network's own head and takes what the L - 1 gates leave.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gated.gates._validation import check_axes, check_choice, check_float, check_number, check_same_shape
from gated.jeidnn._validation import check_costs, check_gates, check_rows

Causal = Literal["clip", "stick", "cdf"]
Rule = Literal["conditional", "median"]


def spend(
    gate: Float[Tensor, "*batch"], mass: Float[Tensor, "*batch"], composition: Causal = "clip"
) -> Float[Tensor, "*batch"]:
    """p_l from g_l and the mass m = 1 - sum_{j<l} p_j that no earlier exit took.

    clip   min(g, m): g is the probability of leaving exactly here (JEI-DNN)
    stick  g m: g is the probability of leaving here for who has come this far
    cdf    max(0, g - (1 - m)): g is the probability of leaving here or earlier

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163 (clip).
    """
    if composition == "clip":
        return torch.minimum(gate, mass)
    return gate * mass if composition == "stick" else (gate - (1 - mass)).clamp(min=0)


def exit_distribution(
    gates: Float[Tensor, "*batch gates"], composition: Causal = "clip"
) -> Float[Tensor, "*batch exits"]:
    """p over L exits from L - 1 gates g in [0, 1]; p >= 0, rows sum to 1. With L = 2 all agree: p = (g, 1 - g).

    Args:
        gates: g, row by row.
        composition: how `spend` reads a gate. Exit l needs the gates up to l only, so a batch can stop early.

    Raises:
        ValueError: gates outside [0, 1], NaN, or none; an unknown composition.

    Example:
        >>> exit_distribution(torch.tensor([0.5, 0.25])).tolist()
        [0.5, 0.25, 0.25]
    """
    check_choice("composition", composition, get_args(Causal))
    check_gates(gates)
    mass, taken = torch.ones_like(gates[..., 0]), []
    for gate in gates.unbind(-1):
        taken.append(spend(gate, mass, composition))
        mass = (mass - taken[-1]).clamp(min=0)
    return torch.stack([*taken, mass], -1)


def remaining_mass(p: Float[Tensor, "*batch exits"]) -> Float[Tensor, "*batch exits"]:
    """m_l = 1 - sum_{j<l} p_j, at least 0; m_0 = 1.

    Example:
        >>> remaining_mass(torch.tensor([0.5, 0.25, 0.25])).tolist()
        [1.0, 0.5, 0.25]
    """
    check_rows("p", p, p.ndim)
    return (1 - torch.cat([torch.zeros_like(p[..., :1]), p[..., :-1].cumsum(-1)], -1)).clamp(min=0)


def conditional_gates(p: Float[Tensor, "*batch exits"]) -> Float[Tensor, "*batch exits"]:
    """h_l = p_l / m_l, the probability of leaving at l for who has come this far; 1 once the mass m_l is spent.

    p_l = h_l prod_{j<l} (1 - h_j), and h = 1 at the last exit.

    Example:
        >>> conditional_gates(torch.tensor([0.5, 0.25, 0.25])).tolist()
        [0.5, 0.5, 1.0]
    """
    mass = remaining_mass(p)
    spent = mass < tolerance(p.dtype)
    h = (p / mass.masked_fill(spent, 1)).clamp(0, 1).masked_fill(spent, 1)
    return torch.cat([h[..., :-1], torch.ones_like(h[..., :1])], -1)


def leaves(
    p: Float[Tensor, "*batch"], mass: Float[Tensor, "*batch"], rule: Rule = "conditional"
) -> Bool[Tensor, "*batch"]:
    """Whether a sample that has come to this exit leaves: its mass here is p, `mass` = m was left before.

    conditional  2 p >= m, that is h >= 1/2 without the division, which at ties depends on rounding
    median       p + (1 - m) >= 1/2: at least half of all the mass is spent by now
    """
    slack = tolerance(p.dtype)
    return 2 * p >= mass - slack if rule == "conditional" else p + (1 - mass) >= 0.5 - slack


def hard_exit(p: Float[Tensor, "*batch exits"], rule: Rule = "conditional") -> Int64[Tensor, "*batch"]:
    """The first exit that `leaves`. Under "clip" and "conditional" the bar m / 2 for g falls as mass is spent.

    Raises:
        ValueError: p not finite, an unknown rule.

    Example:
        >>> hard_exit(torch.tensor([0.25, 0.5, 0.25])).item()
        1
    """
    check_choice("rule", rule, get_args(Rule))
    stop = leaves(p, remaining_mass(p), rule)
    return first_true(stop[..., :-1])


def first_true(stop: Bool[Tensor, "*batch gates"]) -> Int64[Tensor, "*batch"]:
    """Index of the first True of each row, and the number of gates, the last exit, where there is none."""
    index = torch.arange(stop.shape[-1], device=stop.device).expand(stop.shape)
    last = torch.full((*stop.shape[:-1], 1), stop.shape[-1], device=stop.device)
    return torch.cat([index.masked_fill(~stop, stop.shape[-1]), last], -1).amin(-1)


def expected_cost(p: Float[Tensor, "*batch exits"], costs: Float[Tensor, "exits"]) -> Float[Tensor, "*batch"]:
    """sum_l p_l c_l, with c_l all that is computed until a sample has left at l.

    Raises:
        ValueError: costs that do not rise or are not one an exit.

    Example:
        >>> expected_cost(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])).item()
        0.625
    """
    check_float("p", p)
    check_axes("*batch exits", p=p)
    check_costs(costs, p.shape[-1])
    return p @ costs.to(p)


def objective(
    p: Float[Tensor, "*batch exits"],
    losses: Float[Tensor, "*batch exits"],
    costs: Float[Tensor, "exits"],
    trade_off: float | int,
) -> Float[Tensor, "*batch"]:
    """J = sum_l p_l (loss_l + lambda c_l), lambda = `trade_off` >= 0 in nats for one run of the full network.

    Raises:
        ValueError: shapes that differ, a trade_off that is negative or not finite; as `expected_cost`.

    Example:
        >>> p, losses, costs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 1.0]])
        >>> objective(p, losses, costs, trade_off=2.0).item()
        2.0
    """
    check_number("trade_off", trade_off, "[0, inf)")
    check_float("losses", losses)
    check_same_shape("losses", losses, "p", p)
    return (p * losses).sum(-1) + trade_off * expected_cost(p, costs)


def tolerance(dtype: torch.dtype) -> float:
    """How far apart two masses may be and still be equal: 1e-12, or a few rounding steps of a coarser type."""
    return max(1e-12, 8 * torch.finfo(dtype).eps)
