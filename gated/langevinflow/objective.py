"""What is minimised: the Poisson likelihood of hidden counts and the KL divergence along the flow.

All likelihoods and divergences are sums in nats, for each trial; beta multiplies the divergence of a trial.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import (
    check_axes,
    check_choice,
    check_float,
    check_number,
    check_same_shape,
    check_sizes,
    holds_anywhere,
)

ScoreRule = Literal["original", "released"]


class Dropped(NamedTuple):
    """Counts of which a part was hidden."""

    spikes: Tensor
    """x m / c: what the encoder sees; its mean over masks is x."""
    visible: Tensor
    """m, bool."""


def coordinated_dropout(
    spikes: Float[Tensor, "trials bins neurons"], keep: float | int, generator: torch.Generator
) -> Dropped:
    """Each count is shown, over c, with probability c = `keep`, and hidden else.

    Raises ValueError unless 0 < keep <= 1.

    Source: Keshtkaran and Pandarinath 2019, "Enabling hyperparameter optimization in sequential autoencoders for
    spiking neural data".

    Example:
        >>> dropped = coordinated_dropout(torch.ones(2, 5, 3), 0.5, torch.Generator().manual_seed(0))
        >>> set(dropped.spikes.unique().tolist()) <= {0.0, 2.0}
        True
    """
    check_keep(keep)
    check_float("spikes", spikes)
    check_axes("trials bins neurons", spikes=spikes)
    visible = torch.rand(spikes.shape, generator=generator, device=spikes.device) < keep
    return Dropped(spikes * visible / keep, visible)


def scored(
    visible: Bool[Tensor, "*shape"], keep: float | int, rule: ScoreRule, generator: torch.Generator
) -> Bool[Tensor, "*shape"]:
    """Which of the counts the loss asks for.

    "original": those that were hidden, a share 1 - c, so that nothing can be copied. "released": the hidden ones and
    each visible one with probability 1 - c: a share 1 - c^2, and c (1 - c) of all counts are both seen and scored.

    Args:
        keep: c, the share of counts that stay visible.

    Raises:
        ValueError: a share outside (0, 1], what is not bool, an unknown rule.

    Example:
        >>> visible = torch.tensor([True, True, False])
        >>> scored(visible, 0.7, "original", torch.Generator().manual_seed(0)).tolist()
        [False, False, True]
    """
    check_keep(keep)
    if visible.dtype != torch.bool:
        raise ValueError(f"visible must be bool; got {visible.dtype}")
    check_rule(rule)
    if rule == "original":
        return ~visible
    return ~visible | (torch.rand(visible.shape, generator=generator, device=visible.device) >= keep)


def poisson_nll(
    log_rates: Float[Tensor, "*shape"], counts: Float[Tensor, "*shape"], *, full: bool = False
) -> Float[Tensor, "*shape"]:
    """exp(r) - y r for each count y at log rate r (expected counts per bin), in nats; + ln y! with `full`.

    Raises:
        ValueError: log rates that are not finite, counts that are negative or not finite, shapes that differ.

    Example:
        >>> poisson_nll(torch.zeros(1), torch.ones(1)).item()  # rate 1, one spike
        1.0
    """
    check_same_shape("counts", counts, "log_rates", log_rates)
    check_counts("counts", counts)
    if holds_anywhere(~log_rates.isfinite()):
        raise ValueError("log_rates must be finite; got some that are not")
    nll = log_rates.exp() - counts * log_rates
    return nll + torch.lgamma(counts + 1) if full else nll


def gaussian_kl(
    mean: Float[Tensor, "*batch dim"],
    log_variance: Float[Tensor, "*batch dim"],
    prior_mean: float | int | Float[Tensor, "*batch dim"] = 0.0,
    prior_log_variance: float | int | Float[Tensor, "*batch dim"] = 0.0,
) -> Float[Tensor, "*batch"]:
    """KL(N(m, e^l) || N(m_0, e^l_0)) = 1/2 sum [l_0 - l - 1 + e^(l - l_0) + (m - m_0)^2 / e^l_0].

    Raises:
        ValueError: shapes that differ, a prior that is not a finite number or such a tensor.

    Example:
        >>> gaussian_kl(torch.tensor([2.0]), torch.zeros(1)).item()
        2.0
    """
    check_float("mean", mean)
    check_float("log_variance", log_variance)
    check_axes("*batch dim, *batch dim", mean=mean, log_variance=log_variance)
    for name, value in (("prior_mean", prior_mean), ("prior_log_variance", prior_log_variance)):
        if isinstance(value, Tensor):
            check_same_shape(name, value, "mean", mean)
        else:
            check_number(name, value)
    apart = prior_log_variance - log_variance
    distance = (mean - prior_mean) ** 2 * _exp(-prior_log_variance)
    return (apart - 1 + torch.exp(-apart) + distance).sum(-1) / 2


def girsanov_kl(push: Float[Tensor, "*batch dim"], scale: float | int | Tensor) -> Float[Tensor, "*batch"]:
    """KL_t = |u_t|^2 / (2 sigma^2): what a push u costs in one step whose noise has scale sigma > 0.

    Summed over steps it is the divergence of the pushed paths from the free ones. The push is what the posterior adds
    to the mean of v; what both share (force, leak, noise) cancels.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> girsanov_kl(torch.tensor([2.0]), scale=1.0).item()
        2.0
    """
    if not isinstance(scale, Tensor):
        check_number("scale", scale, "(0, inf]")
    return ((push / scale) ** 2).sum(-1) / 2


def released_kl(
    velocity: Float[Tensor, "trials time dim"], friction: float | int, *, proper_constant: bool = False
) -> Float[Tensor, " trials"]:
    """The released term: sum_t 1/2 sum [ln .1 - 2 gamma - 1 + v^2 / .1 + e^(2 gamma) / .1], v sampled.

    It compares N(v, e^(2 gamma)) with N(0, .1) for the sampled v: 2 gamma is a variance that stands where a log
    variance belongs. Only 5 v^2 has a gradient. The constant is 12.820 for each step and dimension at gamma = .55;
    with ln(2 gamma) (`proper_constant`) it is 3.801.

    Args:
        friction: gamma.

    Raises:
        ValueError: a velocity that is not [trials, time, dim], a friction that is negative or not finite.
    """
    check_float("velocity", velocity)
    check_axes("trials time dim", velocity=velocity)
    check_number("friction", friction, "(0, inf)" if proper_constant else "[0, inf)")
    log_variance = math.log(2 * friction) if proper_constant else 2 * friction
    return gaussian_kl(velocity, torch.full_like(velocity, log_variance), 0.0, math.log(0.1)).sum(-1)


def released_beta(bins: int, neurons: int, weight: float | int = 0.1) -> float:
    """weight * bins * neurons, the beta of a released loss: its likelihood is a mean over counts, its KL is a sum.

    Raises:
        ValueError: sizes below 1, a weight that is negative or not finite.

    Example:
        >>> released_beta(bins=10, neurons=20)
        20.0
    """
    check_sizes(bins=bins, neurons=neurons)
    check_number("weight", weight, "[0, inf)")
    return float(weight * bins * neurons)


def check_keep(keep: float | int) -> None:
    check_number("keep", keep, "(0, 1]")


def check_counts(name: str, counts: Tensor) -> None:
    if holds_anywhere(~counts.isfinite() | (counts < 0)):
        raise ValueError(f"{name} must be finite counts of at least 0; got some that are not")


def check_rule(rule: str) -> None:
    check_choice("rule", rule, get_args(ScoreRule))


def _exp(value: float | int | Tensor) -> float | Tensor:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)
