"""The lookup game solved: what any graph is worth, who answers that well, and when listening pays.

N agents, K symbols; the share of right answers, at best:

    nobody hears anybody                       1/K
    a random row of one sender                 1/(N-1) + (1 - 1/(N-1)) / K
    all hear all and messages have names       1
    all hear all and messages have none        E[largest count among N-1 symbols] / (N-1)

The last stands below 1: the target's symbol is among those heard, and the best guess is the most frequent one. A graph
of one edge a row says by itself who speaks. With a private flag, a gate and a price λ for an open one, listening is
worth 1 - 1/K when the flag is set and nothing when not; `gate_optimum` follows from that. All of this is our own
derivation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from gated.commformer.graph import check_agents, check_graph
from gated.commformer.worlds import PermutationLookup, check_derangement


def random_derangement(agents: int, generator: torch.Generator) -> tuple[int, ...]:
    """A permutation without a fixed point, each of them with the same probability."""
    check_agents(agents)
    while True:
        drawn = torch.randperm(agents, generator=generator, device=generator.device).tolist()
        if all(i != j for i, j in enumerate(drawn)):
            return tuple(drawn)


def expected_largest_count(messages: int, symbols: int) -> float:
    """E of how often the most frequent of `symbols` occurs among `messages` even draws, exactly.

    P(largest <= m) = n!/K^n [z^n] (Σ_{j<=m} z^j/j!)^K, and E = Σ_{m>=0} P(largest > m).
    """
    if messages < 1 or symbols < 1:
        raise ValueError(f"messages and symbols must be at least 1, got {messages} and {symbols}")
    expected = Fraction(0)
    for m in range(messages):
        power = [Fraction(1)] + [Fraction(0)] * messages
        for _ in range(symbols):
            power = [
                sum((power[n - j] / math.factorial(j) for j in range(min(m, n) + 1)), Fraction(0))
                for n in range(messages + 1)
            ]
        expected += 1 - power[messages] * math.factorial(messages) / Fraction(symbols) ** messages
    return float(expected)


def no_communication(symbols: int) -> float:
    """1/K."""
    return 1 / symbols


def random_row(agents: int, symbols: int) -> float:
    """1/(N-1) + (1 - 1/(N-1))/K: the one sender of a row is drawn evenly from the others."""
    check_agents(agents)
    return 1 / (agents - 1) + (1 - 1 / (agents - 1)) / symbols


def full_without_ids(agents: int, symbols: int) -> float:
    """E[largest count among N-1 symbols] / (N-1)."""
    check_agents(agents)
    return expected_largest_count(agents - 1, symbols) / (agents - 1)


def bayes_value(
    graph: Float[Tensor, "*graphs agents agents"],
    permutation: Sequence[int],
    symbols: int,
    *,
    ids: bool = True,
    flag_rate: float | int = 1.0,
) -> Float[Tensor, "*graphs agents"]:
    """The share of right answers of each agent that knows π and the graph, and answers as well as can be (float64).

    With names it is right when π(i) is in its row, else it guesses. Without, it hears a bag of d symbols, and that of
    π(i) may be any of them: E[largest count among d]/d. A flag that is not set makes it right without hearing anybody.
    """
    check_derangement(permutation)
    agents = len(permutation)
    _check_rows(graph, agents)
    hears = _others(graph)
    degree = hears.sum(-1)
    bag = [1.0] * agents if ids else [1.0, *(expected_largest_count(d, symbols) / d for d in range(1, agents))]
    heard = torch.tensor(bag, dtype=torch.float64, device=graph.device)[degree]
    right = torch.where(hears[..., range(agents), list(permutation)], heard, 1 / symbols)
    return 1 - flag_rate + flag_rate * right


def best_answers(world: PermutationLookup, graph: Float[Tensor, "agents agents"]) -> Int64[Tensor, "batch agents"]:
    """Actions that reach `bayes_value`, from what `graph` lets each agent know of the world's state."""
    _check_rows(graph, world.num_agents)
    targets, x = list(world.permutation), world.symbols
    hears = _others(graph).to(x.device)
    if world.ids:
        heard = x[:, targets]
    else:
        counts = torch.einsum("ij,bjk->bik", hears.float(), one_hot(x, world.num_actions).float())
        heard = counts.argmax(-1)
    return torch.where(world.flags, torch.where(hears[range(len(targets)), targets], heard, 0), x)


class GateOptimum(NamedTuple):
    """The best gate at a price: the lowest and the highest share of open gates that are best, and the mean reward."""

    rate: tuple[float, float]
    reward: float


def listening_threshold(symbols: int) -> float:
    """λ* = 1 - 1/K, what hearing π(i) is worth to an agent whose flag is set."""
    return 1 - 1 / symbols


def gate_optimum(symbols: int, flag_rate: float | int, penalty: float | int) -> GateOptimum:
    """The best reward when π(i) can be heard and an open gate costs `penalty` λ, with ρ = `flag_rate`.

    0 < λ < λ*: open when the flag is set, reward 1 - λρ. λ > λ*: never, reward 1 - ρ + ρ/K. At λ = 0 a gate that is
    open when the flag is not set costs nothing, so any rate from ρ to 1 is best; at λ* any from 0 to ρ.
    """
    if not 0 <= flag_rate <= 1 or not 0 <= penalty < math.inf:
        raise ValueError(f"flag_rate must lie in [0, 1] and penalty in [0, inf), got {flag_rate} and {penalty}")
    threshold = listening_threshold(symbols)
    low = flag_rate if penalty < threshold else 0.0
    high = 1.0 if penalty == 0 else flag_rate if penalty <= threshold else 0.0
    reward = max(1 - penalty * flag_rate, 1 - flag_rate * threshold)
    return GateOptimum((float(low), float(high)), float(reward))


def _check_rows(graph: Tensor, agents: int) -> None:
    check_graph(graph)
    if graph.shape[-1] != agents:
        raise ValueError(f"graph must have a row for each of {agents} agents, got shape {tuple(graph.shape)}")


def _others(graph: Tensor) -> Tensor:
    return (graph > 0) & ~torch.eye(graph.shape[-1], dtype=torch.bool, device=graph.device)
