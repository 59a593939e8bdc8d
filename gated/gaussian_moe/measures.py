"""What the study measures of a fit: densities, losses, and the error of every parameter, for inputs in R^1.

Each function gives {name: [replicates]}. Parameters are numbered by true expert, from 1: a_1 is the absolute error of
expert 1's slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from gated.gaussian_moe import em
from gated.gaussian_moe.boundary import boundary
from gated.gaussian_moe.distances import distances
from gated.gaussian_moe.model import GaussianMoE
from gated.gaussian_moe.voronoi import cells, exact_loss, fix_gauge, over_loss, tempered_loss


class Data(NamedTuple):
    """A data set, with the experts that its points came from, which only an oracle may see."""

    x: Float[Tensor, "n 1"]
    y: Float[Tensor, " n"]
    expert: Int[Tensor, " n"]


class Outcome(NamedTuple):
    """Fits of replicates, one model each, with what they are compared with."""

    truth: GaussianMoE
    interval: tuple[float, float]
    fit: em.Fit
    start: GaussianMoE
    likelihood_ratio: Float[Tensor, " replicates"]
    data: list[Data]
    max_slope: float = math.inf  # the fit's bounds
    max_bias: float = math.inf

    def only(self, i: int) -> Outcome:
        """Of one replicate."""
        one = slice(i, i + 1)
        fit = em.Fit(
            self.fit.model[one],
            self.fit.log_likelihood[one],
            self.fit.iterations[one],
            self.fit.converged[one],
            self.fit.dormant[one],
            self.fit.at_bound[one],
            None,
        )
        return self._replace(
            fit=fit, start=self.start[one], likelihood_ratio=self.likelihood_ratio[one], data=self.data[one]
        )


Measured = dict[str, Float[Tensor, " replicates"] | Int[Tensor, " replicates"] | Bool[Tensor, " replicates"]]


def density(o: Outcome) -> Measured:
    """How well the density was found, and how the fit went. All other measurements of fits begin with these.

    likelihood_ratio    2 (l(fit) - l(truth)); for a right model about chi^2 of as many degrees as it estimates
    squared_hellinger, total_variation    of the fitted from the true density, by quadrature
    iterations, converged, dormant    as in `gated.gaussian_moe.em.Fit`
    at_bound    a variance or temperature at its bound, or a bias or slope within 5 % of its own: where the likelihood
                grows by ever less, a fit stops on its way
    """
    model = o.fit.model
    near_bound = (model.beta1.flatten(1).abs().amax(1) >= 0.95 * o.max_slope) | (
        model.beta0.abs().amax(1) >= 0.95 * o.max_bias
    )
    apart = distances(o.fit.model, o.truth, o.interval)
    return {
        "likelihood_ratio": o.likelihood_ratio,
        "squared_hellinger": apart.squared_hellinger,
        "total_variation": apart.total_variation,
        "iterations": o.fit.iterations,
        "converged": o.fit.converged,
        "dormant": o.fit.dormant,
        "at_bound": o.fit.at_bound | near_bound,
    }


def exact(o: Outcome) -> Measured:
    """As many experts as there are: D1 (and that of the start), and the error of every parameter."""
    return density(o) | {
        "loss": exact_loss(fix_gauge(o.fit.model, o.truth), o.truth),
        "initial_loss": exact_loss(fix_gauge(o.start, o.truth), o.truth),
        **_by_expert(errors(o.fit.model, o.truth), ("beta0", "beta1", "a", "b", "variance")),
    }


def over(o: Outcome) -> Measured:
    """More experts than there are: D2, and how many experts the fullest cell has."""
    fitted = fix_gauge(o.fit.model, o.truth)
    return density(o) | {
        "loss": over_loss(fitted, o.truth),
        "initial_loss": over_loss(fix_gauge(o.start, o.truth), o.truth),
        "largest_cell": F.one_hot(cells(fitted, o.truth), o.truth.num_experts).sum(1).amax(1),
    }


def double(o: Outcome) -> Measured:
    """`over` for two true experts, with the errors in the fuller cell ("double_b") and in the other ("single_b").

    Of the experts of the fuller cell: light_bias, the least share of the cell's sum of e^beta_0 (its weight at x = 0);
    light_work, the least share of the cell's part of the gate, averaged over x; and light_distance of the expert with
    that share, |b - true b| in true standard deviations.
    """
    fitted = fix_gauge(o.fit.model, o.truth)
    member = cells(fitted, o.truth)
    size = F.one_hot(member, 2).sum(1)
    fuller, found = size.argmax(1, keepdim=True), errors(o.fit.model, o.truth)
    out = over(o)
    for name in ("beta0", "beta1", "a", "b", "variance"):
        out[f"double_{name}"] = found[name].gather(1, fuller)[:, 0]
        out[f"single_{name}"] = found[name].gather(1, 1 - fuller)[:, 0]
    low, high = o.interval
    x = low + (high - low) * (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    inside = member == fuller
    work = fitted.log_gate(x.expand(len(size), -1, -1)).exp().mean(1) * inside
    work = (work / work.sum(1, keepdim=True)).masked_fill(~inside, math.inf)
    bias = fitted.beta0.masked_fill(~inside, -math.inf).softmax(1).masked_fill(~inside, math.inf)
    away = (fitted.b - o.truth.b[fuller]).abs() / o.truth.variance.sqrt()[fuller]
    light = work.argmin(1, keepdim=True)
    out |= {
        "light_bias": bias.amin(1),
        "light_work": work.amin(1),
        "light_distance": away.gather(1, light)[:, 0],
    }
    return out


def ratios(o: Outcome) -> Measured:
    """A gate with tau given, of which beta / tau is all there is to estimate."""
    return density(o) | _by_expert(errors(o.fit.model, o.truth), ("ratio0", "ratio1", "a", "b", "variance"))


def known_temperature(o: Outcome) -> Measured:
    """The loss with temperature, and the gate's parameters as they are and as ratios to tau."""
    loss = tempered_loss(fix_gauge(o.fit.model, o.truth), o.truth)
    return ratios(o) | {"loss": loss, **_by_expert(errors(o.fit.model, o.truth), ("beta0", "beta1"))}


def free_temperature(o: Outcome) -> Measured:
    """tau too, and how wrong the start was."""
    found, initial = errors(o.fit.model, o.truth), errors(o.start, o.truth)
    return known_temperature(o) | {
        "tau": found["tau"][:, 0],
        "initial_tau": initial["tau"][:, 0],
        "initial_beta1_1": initial["beta1"][:, 0],
        "initial_ratio1_1": initial["ratio1"][:, 0],
    }


def top1(o: Outcome) -> Measured:
    """How far EM moved the gate, and the error of the boundary between two experts at EM's start and by a scan."""
    fitted, start = o.fit.model, o.start
    moved = torch.cat([fitted.beta0 - start.beta0, (fitted.beta1 - start.beta1)[..., 0]], 1)
    cut = lambda model: -model.beta0[..., 0] / model.beta1[..., 0, 0]  # noqa: E731
    scanned = torch.stack([boundary(d.x[:, 0], d.y).boundary for d in o.data])
    return density(o) | {
        "gate_moved": moved.abs().amax(1),
        "initial_boundary": (cut(start) - cut(o.truth)).abs(),
        "boundary": (scanned - cut(o.truth)).abs(),
    }


def oracle(truth: GaussianMoE, data: list[Data]) -> Measured:
    """Errors of each expert's line through the points that came from it; through fewer than two it is level (a = 0)."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("a", "b", "variance")}
    for d in data:
        member = F.one_hot(d.expert, truth.num_experts).mT.to(d.x)
        count = member.sum(1).clamp(min=1)
        mean_x, mean_y = member @ d.x[:, 0] / count, member @ d.y / count
        x, y = member * (d.x[:, 0] - mean_x[:, None]), member * (d.y - mean_y[:, None])
        square = (x * x).sum(1)
        a = torch.where(square > 0, (x * y).sum(1) / square.clamp(min=torch.finfo(square.dtype).tiny), 0)
        found["a"].append(a - truth.a[:, 0])
        found["b"].append(mean_y - a * mean_x - truth.b)
        found["variance"].append((y - a[:, None] * x).square().sum(1) / count - truth.variance)
    return _by_expert({name: torch.stack(values).abs() for name, values in found.items()}, tuple(found))


def errors(
    fitted: GaussianMoE, truth: GaussianMoE
) -> dict[str, Float[Tensor, "models experts"] | Float[Tensor, "models 1"]]:
    """Absolute errors [models, true experts] after the gauge is fixed, for inputs in R^1.

    In the cell of a true expert j, with the cell's experts weighted by their shares of e^(beta_0 / tau):
      beta1, a, b, variance, ratio1 (= beta_1 / tau)    the root of the weighted mean square error
      beta0, ratio0 (= beta_0 / tau)                    the error of what one expert of the cell's weight would have
    and tau [models, 1]. A cell that nothing is in borrows the fitted expert that is nearest to j: no error is missing.
    """
    fitted = fix_gauge(fitted, truth)
    theta = [torch.cat([m.beta1, m.a, m.b[..., None], m.variance[..., None]], -1) for m in (fitted, truth)]
    distance = (theta[0][..., None, :] - theta[1]).norm(dim=-1).mT
    member = F.one_hot(cells(fitted, truth), truth.num_experts).bool().mT
    nearest = F.one_hot(distance.argmin(-1), fitted.num_experts).bool()
    member = torch.where(member.any(-1, keepdim=True), member, nearest)
    logit = (fitted.beta0 / fitted.tau[..., None])[..., None, :].masked_fill(~member, -math.inf)
    share, weight = logit.softmax(-1), logit.logsumexp(-1)

    def spread(of: Tensor, true: Tensor) -> Tensor:
        return (share * (of[..., None, :] - true[..., None]).square()).sum(-1).sqrt()

    one, true = by_tau(fitted), by_tau(truth)
    return {
        "beta0": (fitted.tau[..., None] * weight - truth.beta0).abs(),
        "beta1": spread(fitted.beta1[..., 0], truth.beta1[..., 0]),
        "a": spread(fitted.a[..., 0], truth.a[..., 0]),
        "b": spread(fitted.b, truth.b),
        "variance": spread(fitted.variance, truth.variance),
        "ratio0": (weight - true.beta0).abs(),
        "ratio1": spread(one.beta1[..., 0], true.beta1[..., 0]),
        "tau": (fitted.tau - truth.tau).abs()[..., None],
    }


def _by_expert(found: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """One entry an expert; without the last one's gate, which is 0 by convention."""
    gate = ("beta0", "beta1", "ratio0", "ratio1")
    return {
        f"{name}_{j + 1}": found[name][:, j] for name in names for j in range(found[name].shape[1] - (name in gate))
    }


def by_tau(model: GaussianMoE) -> GaussianMoE:
    """The same density of an identity gate with tau = 1."""
    tau = model.tau[..., None]
    return replace(model, beta0=model.beta0 / tau, beta1=model.beta1 / tau[..., None], tau=torch.ones_like(model.tau))
