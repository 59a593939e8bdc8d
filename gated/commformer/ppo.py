"""Proximal policy optimisation for many runs at once: values in units of their own, the clipped loss.

All tensors of a rollout have the leading axes runs, time, batch; then agents. A run is a network of its own, and
nothing here mixes two of them. A copy of the world that is done stays in its place until the block ends, and no longer
counts: `live` says so.

L = -E[min(rho A, clip(rho, 1 - c, 1 + c) A)] - entropy H + value L_V, with rho_i = pi(a_i | o, a_<i) / pi_old for each
agent, L_V = max(Huber(V - R), Huber(V_clip - R)), V_clip within c of the old value, and R in units of its running
deviation.

Source: Schulman et al. 2017, arXiv 1707.06347; values as in the released code
of arXiv 2405.08550.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from gated.gates._validation import check_axes, check_float, check_number, check_positive, check_sizes
from gated.policy_gradient import clipped_gain


@dataclass(frozen=True)
class PPO:
    """What all runs share. The released values, but for `clip`, which it sets for each map (0.05 or 0.2).

    Args:
        entropy: weight of the entropy, which is to be large.
        discount: of rewards, in [0, 1].
        huber: where the value loss turns from a parabola into a line.

    Raises:
        ValueError: a discount or trace outside [0, 1], a weight that is negative or not finite, a count below 1.
    """

    epochs: int = 5
    """Passes over one rollout, each over all of it."""
    clip: float | int = 0.2
    entropy: float | int = 0.01
    value: float | int = 1.0
    """Weight of L_V."""
    edge_value: float | int = 1.0
    """Weight of L_V in passes that move edges: with 0 the critic has no say in who hears whom."""
    discount: float | int = 0.99
    trace: float | int = 0.95
    """lambda of the generalised advantage."""
    huber: float | int = 10.0
    grad_norm: float | int = 10.0
    """Longest gradient of a run's weights; that of the edges is not cut."""
    groups: int = 1
    """Graphs drawn for a pass that moves edges, each for an equal share of the batch."""
    temperature: float | int = 1.0
    """Of the relaxation of the graph."""

    def __post_init__(self) -> None:
        check_sizes(epochs=self.epochs, groups=self.groups)
        for name in ("clip", "huber", "grad_norm", "temperature"):
            check_positive(name, getattr(self, name))
        for name in ("discount", "trace"):
            check_number(name, getattr(self, name), "[0, 1]")
        for name in ("entropy", "value", "edge_value"):
            check_number(name, getattr(self, name), "[0, inf)")


class Rollout(NamedTuple):
    """A block of steps of all runs, as it was played."""

    observation: Float[Tensor, "runs time batch agents features"]
    action: Int[Tensor, "runs time batch agents"]
    log_prob: Float[Tensor, "runs time batch agents"]
    reward: Float[Tensor, "runs time batch agents"]
    value: Float[Tensor, "runs after batch agents"]
    """The critic's, one step longer (`after` = time + 1): the last is what is expected where the block ends."""
    receive: Float[Tensor, "runs time batch agents"]
    """z: stored, because the update must take the same."""
    gate_log_prob: Float[Tensor, "runs time batch agents"]
    gate_baseline: Float[Tensor, "runs after batch agents"]
    done: Bool[Tensor, "runs time batch"]
    """Nothing follows this step."""
    messages: Float[Tensor, "runs time batch"]
    """That crossed between agents in this step."""

    @property
    def live(self) -> Bool[Tensor, "runs time batch"]:
        """Steps that count: those that were not done before."""
        before = torch.zeros_like(self.done[:, :1])
        return ~torch.cat((before, self.done[:, :-1]), 1)

    @property
    def score(self) -> Float[Tensor, "runs batch"]:
        """Sum of rewards over the steps that count, mean over agents."""
        return (self.reward.mean(-1) * self.live).sum(1)

    @property
    def steps(self) -> Int[Tensor, "runs batch"]:
        """That were taken until done, or until the block's end."""
        return self.live.sum(1)

    @property
    def messages_per_step(self) -> Float[Tensor, " runs"]:
        return (self.messages * self.live).sum((1, 2)) / self.live.sum((1, 2))

    @property
    def receive_rate(self) -> Float[Tensor, " runs"]:
        """Share of open gates over agents and the steps that count."""
        return (self.receive.mean(-1) * self.live).sum((1, 2)) / self.live.sum((1, 2))


class ValueNorm:
    """Running mean and deviation of the returns of each run, so that the critic learns numbers of order one.

    Both are exponential averages whose start at 0 is corrected for, as in Adam.

    Args:
        runs: how many.
        keep: weight of the past at each update.
        like: dtype and device follow it.

    Raises:
        ValueError: `keep` outside [0, 1).

    Source: van Hasselt et al. 2016, arXiv 1602.07714, as the released code uses it.

    Example:
        >>> norm = ValueNorm(1, like=torch.zeros(()))
        >>> norm.update(torch.tensor([[8.0, 12.0]]), torch.ones(1, 2))
        >>> norm.normalise(torch.tensor([[10.0, 14.0]])).round(decimals=3).tolist()
        [[0.0, 2.0]]
    """

    def __init__(self, runs: int, *, keep: float | int = 0.99999, like: Tensor) -> None:
        check_sizes(runs=runs)
        check_number("keep", keep, "[0, 1)")
        check_float("like", like)
        self.keep = keep
        self._sums = torch.zeros(3, runs, dtype=torch.float64, device=like.device)  # x, x^2, and the weight of both

    def update(self, returns: Float[Tensor, "runs ..."], weight: Float[Tensor, "runs ..."]) -> None:
        """Takes in returns, each with its weight (0: does not count)."""
        x, w = returns.flatten(1).double(), weight.expand_as(returns).flatten(1).double()
        total = w.sum(1).clamp(min=1e-12)
        new = torch.stack(((w * x).sum(1) / total, (w * x * x).sum(1) / total, torch.ones_like(total)))
        self._sums = self.keep * self._sums + (1 - self.keep) * new

    def normalise(self, x: Float[Tensor, "runs ..."]) -> Float[Tensor, "runs ..."]:
        mean, deviation = self._moments(x)
        return (x - mean) / deviation

    def denormalise(self, x: Float[Tensor, "runs ..."]) -> Float[Tensor, "runs ..."]:
        """As they are before the first update."""
        mean, deviation = self._moments(x)
        return x * deviation + mean

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        first, second, weight = self._sums
        if not bool((weight > 0).all()):
            return torch.zeros(()).to(like), torch.ones(()).to(like)
        mean = first / weight
        deviation = (second / weight - mean**2).clamp(min=1e-4).sqrt()
        shape = (-1, *[1] * (like.ndim - 1))
        return mean.view(shape).to(like), deviation.view(shape).to(like)


def clipped_policy_loss(
    log_prob: Float[Tensor, " runs *rest"],
    old_log_prob: Float[Tensor, " runs *rest"],
    advantage: Float[Tensor, " runs *rest"],
    weight: Float[Tensor, " runs *#rest"],
    clip: float | int,
) -> Float[Tensor, " runs"]:
    """-sum w min(rho A, clip(rho, 1 - c, 1 + c) A) / sum w for each run, rho = exp(log_prob - old_log_prob).

    Raises:
        ValueError: shapes that do not fit, a clip that is negative or not finite.

    Example:
        >>> one = torch.ones(1, 4)
        >>> clipped_policy_loss((2 * one).log(), one.log(), one, one, clip=0.2)  # the ratio 2 is cut to 1.2
        tensor([-1.2000])
    """
    check_float("log_prob", log_prob)
    check_float("old_log_prob", old_log_prob)
    check_axes("runs *rest, runs *rest, runs *rest", log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    _check_weight(weight, log_prob)
    gain = clipped_gain(log_prob - old_log_prob, advantage, clip)
    return -run_mean(gain, weight)


def clipped_value_loss(
    value: Float[Tensor, " runs *rest"],
    old_value: Float[Tensor, " runs *rest"],
    target: Float[Tensor, " runs *rest"],
    weight: Float[Tensor, " runs *#rest"],
    clip: float | int,
    huber: float | int = 10.0,
) -> Float[Tensor, " runs"]:
    """sum w max(Huber(V - R), Huber(V_clip - R)) / sum w for each run; V_clip = V_old + clip(V - V_old, -c, c).

    Args:
        huber: where Huber's loss turns from a parabola into a line.

    Raises:
        ValueError: shapes that do not fit, a clip that is negative, a huber that is not positive.

    Example:
        >>> old, one = torch.zeros(1, 4), torch.ones(1, 4)
        >>> clipped_value_loss(one, old, one, one, clip=0.5)  # right now, but the clipped value is 0.5 off
        tensor([0.1250])
    """
    check_number("clip", clip, "[0, inf)")
    check_positive("huber", huber)
    check_float("value", value)
    check_float("old_value", old_value)
    check_axes("runs *rest, runs *rest, runs *rest", value=value, old_value=old_value, target=target)
    _check_weight(weight, value)
    near = old_value + (value - old_value).clamp(-clip, clip)
    losses = (F.huber_loss(v, target, reduction="none", delta=huber) for v in (value, near))
    return run_mean(torch.maximum(*losses), weight)


def standardise(x: Float[Tensor, " runs *rest"], weight: Float[Tensor, " runs *#rest"]) -> Float[Tensor, " runs *rest"]:
    """(x - mean) / (deviation + 1e-5), with weights, for each run."""
    shape = (-1, *[1] * (x.ndim - 1))
    mean = run_mean(x, weight).view(shape)
    deviation = run_mean((x - mean) ** 2, weight).sqrt().view(shape)
    return (x - mean) / (deviation + 1e-5)


def run_mean(x: Float[Tensor, " runs *rest"], weight: Float[Tensor, " runs *#rest"]) -> Float[Tensor, " runs"]:
    """sum w x / sum w for each run."""
    w = weight.expand_as(x)
    return (w * x).flatten(1).sum(1) / w.flatten(1).sum(1)


def _check_weight(weight: Tensor, x: Tensor) -> None:
    """One weight for each entry of x, or for all along an axis of size 1; each run has its own."""
    fits = weight.ndim == x.ndim and len(weight) == len(x)
    if not fits or any(size not in (1, wanted) for size, wanted in zip(weight.shape, x.shape, strict=True)):
        raise ValueError(f"weight must have the shape {tuple(x.shape)} or 1s in it; got {tuple(weight.shape)}")
