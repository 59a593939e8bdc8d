"""Continual learning with a mixture of linear experts: tasks arrive one by one, a gate sends each to one expert.

Round t brings one task n with weights w_n: inputs X_t [dim, samples], one of whose columns is the signal v_n, and
targets y_t = X_t^T w_n. The gate adds up the columns, h = theta sum_j X_t[:, j] + r with r ~ U[0, noise], and the
expert m = argmax h alone moves, as little as it can and still fit:

    w_m <- w_m + (X_t^T)^+ (y_t - X_t^T w_m),

the projection of w_m onto {w : X_t^T w = y_t}. The gate then takes one gradient step,

    theta <- theta - rate d/dtheta [ pi_m (|change of w_m| + a_t) ],    pi = softmax(h),    a_t = alpha M / (t + 1),

where a_t is the balance term and t counts from 0. Everything runs for many seeds at once.

Source: Li, Lin, Duan, Liang and Shroff, "Theory on Mixture-of-Experts in Continual Learning", ICLR 2025
(arXiv 2406.16437), algorithm 1, with the sizes of the authors' simulation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from gated.gates import softmax_gate


class TaskStream(NamedTuple):
    """Rounds of linear regression tasks, float64, for several independent seeds."""

    X: Float[Tensor, "rounds seeds dim samples"]
    y: Float[Tensor, "rounds seeds samples"]
    task: Int[Tensor, "rounds seeds"]
    """Which task each round brings, 0..tasks-1."""
    weight: Float[Tensor, "seeds tasks dim"]
    """The true w_n."""
    clusters: int
    """Task n belongs to cluster n mod `clusters`."""

    def truth(self) -> Float[Tensor, "rounds seeds dim"]:
        """The true weights of each round's task."""
        return self.weight[torch.arange(len(self.weight)), self.task]


def linear_task_stream(
    rounds: int,
    seeds: int,
    generator: torch.Generator,
    *,
    tasks: int = 7,
    clusters: int = 3,
    dim: int = 10,
    rank: int = 6,
    samples: int = 6,
    norm: float = 0.4,
    spread: float = 0.002,
    signal: float = 6.0,
    noise: float = 0.1,
) -> TaskStream:
    """Draws tasks, and in each round one of them uniformly.

    Only the first `rank` coordinates are used, the others are 0. The first `clusters` tasks have weights of length
    `norm` in random directions; task n >= clusters is task n - clusters plus normal noise of standard deviation
    `spread` on each used coordinate. Of a round's `samples` inputs one, at a random place, is the signal, of length
    `signal` in the direction of w_n; the others have length `noise` and random directions.

    Raises:
        ValueError: a size below 1, rank > dim, or clusters > tasks.
    """
    sizes = {"rounds": rounds, "seeds": seeds, "clusters": clusters, "rank": rank, "samples": samples}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if tasks < clusters or dim < rank:
        raise ValueError(f"tasks >= clusters and dim >= rank must hold; got {tasks}, {clusters} and {dim}, {rank}")

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, rank, generator=generator, dtype=torch.float64)
        return torch.cat([x, x.new_zeros(*shape, dim - rank)], -1)

    parts = [norm * normalize(normal(seeds, clusters), dim=-1)]
    while len(parts) * clusters < tasks:
        parts.append(parts[-1] + spread * normal(seeds, clusters))
    weight = torch.cat(parts, 1)[:, :tasks]
    task = torch.randint(tasks, (rounds, seeds), generator=generator)
    truth = weight[torch.arange(seeds), task]
    place = one_hot(torch.randint(samples, (rounds, seeds), generator=generator), samples).bool()[..., None]
    others = noise * normalize(normal(rounds, seeds, samples), dim=-1)
    rows = torch.where(place, signal * normalize(truth, dim=-1)[..., None, :], others)
    return TaskStream(rows.mT, (rows @ truth[..., None])[..., 0], task, weight, clusters)


def minimum_norm_update(
    weight: Float[Tensor, "*batch dim"], X: Float[Tensor, "*batch dim samples"], y: Float[Tensor, "*batch samples"]
) -> Float[Tensor, "*batch dim"]:
    """w + (X^T)^+ (y - X^T w): of all weights that fit X^T w = y (in least squares) the nearest to `weight`."""
    error = y[..., None] - X.mT @ weight[..., None]
    return weight + (torch.linalg.pinv(X.mT) @ error)[..., 0]


class History(NamedTuple):
    """What `learn` did, round by round."""

    expert: Int[Tensor, "rounds seeds"]
    """The expert that the round went to."""
    weight: Float[Tensor, "rounds seeds experts dim"]
    """All experts after the round."""
    gate: Float[Tensor, "rounds seeds experts dim"]
    """theta after the round."""


def learn(
    stream: TaskStream,
    num_experts: int,
    generator: torch.Generator,
    *,
    rate: float | int = 0.5,
    noise: float | int = 0.3,
    alpha: float | int = 0.5,
    balance: float | int | None = None,
    stop: int | None = None,
    route: Int[Tensor, "rounds seeds"] | None = None,
) -> History:
    """Runs a stream through `num_experts` experts and the gate, all from zero.

    Args:
        rate: step of the gate; with 0 it stays at zero and the noise alone routes.
        noise: upper end of the uniform noise on the gate's logits.
        alpha: strength of the balance term a_t = alpha M / (t + 1).
        balance: if given, the constant that a_t is instead.
        stop: the first round after which the gate is updated no more (early termination); None: never.
        route: experts to use instead of the gate's choice (an oracle, a hash); the gate still learns beside it.

    Raises:
        ValueError: num_experts < 1; a negative rate, noise, alpha, balance or stop; a route of another shape than the
            stream's tasks, or outside 0..num_experts-1.
    """
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1; got {num_experts}")
    settings = {"rate": rate, "noise": noise, "alpha": alpha, "balance": balance, "stop": stop}
    for name, value in settings.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be at least 0; got {value}")
    rounds, seeds, dim, _ = stream.X.shape
    if route is not None and (route.shape != (rounds, seeds) or not bool(((route >= 0) & (route < num_experts)).all())):
        raise ValueError(f"route must be {(rounds, seeds)} experts in 0..{num_experts - 1}; got {tuple(route.shape)}")
    everyone = torch.arange(seeds)
    weight = gate = stream.X.new_zeros(seeds, num_experts, dim)
    past = []
    for t in range(rounds):
        X, total = stream.X[t], stream.X[t].sum(-1)
        jitter = torch.rand(seeds, num_experts, generator=generator, dtype=total.dtype)
        logits = (gate @ total[..., None])[..., 0] + noise * jitter
        m = logits.argmax(-1) if route is None else route[t]
        old = weight[everyone, m]
        new = minimum_norm_update(old, X, stream.y[t])
        weight = weight.index_put((everyone, m), new)
        if stop is None or t < stop:
            pi = softmax_gate(logits)
            loss = (new - old).norm(dim=-1) + (alpha * num_experts / (t + 1) if balance is None else balance)
            slope = (pi[everyone, m] * loss)[:, None] * (one_hot(m, num_experts) - pi)
            gate = gate - rate * slope[..., None] * total[:, None]
        past.append((m, weight, gate))
    expert, weights, gates = zip(*past, strict=True)
    return History(torch.stack(expert), torch.stack(weights), torch.stack(gates))


def task_errors(stream: TaskStream, history: History, t: int) -> Float[Tensor, "past seeds"]:
    """|w_t^(m_i) - w_(n_i)| for i = 0..t: how far the expert that served round i is, after round t, from its task."""
    now = history.weight[t][torch.arange(len(stream.weight)), history.expert[: t + 1]]
    return (now - stream.truth()[: t + 1]).norm(dim=-1)


def generalisation(stream: TaskStream, history: History) -> Float[Tensor, "rounds seeds"]:
    """G_t = mean over rounds i <= t of |w_t^(m_i) - w_(n_i)|."""
    return torch.stack([task_errors(stream, history, t).mean(0) for t in range(len(stream.task))])


def forgetting(stream: TaskStream, history: History) -> Float[Tensor, "rounds seeds"]:
    """F_t = mean over rounds i < t of | |w_t^(m_i) - w_(n_i)| - |w_i^(m_i) - w_(n_i)| |; F_0 = 0."""
    errors = [task_errors(stream, history, t) for t in range(len(stream.task))]
    fresh = torch.stack([error[-1] for error in errors])
    return torch.stack([(error[:-1] - fresh[:t]).abs().sum(0) / max(t, 1) for t, error in enumerate(errors)])


def purity(stream: TaskStream, history: History) -> Float[Tensor, " seeds"]:
    """Share of the rounds whose cluster is the most frequent one of their expert; 1: no expert mixes clusters."""
    cells = stream.clusters * history.weight.shape[2]
    counts = one_hot(history.expert * stream.clusters + stream.task % stream.clusters, cells).sum(0)
    return counts.unflatten(-1, (-1, stream.clusters)).amax(-1).sum(-1) / len(stream.task)
