"""Where fits start. A study of rates depends on it, so that it is drawn here once and for all of them.

All starts scatter around a truth, since theory is about the maximum near it. The noise has one size for all numbers
of points. Where it shrinks with the sample, as is customary, an estimator that does nothing at all shows a rate.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from gated.gaussian_moe.model import Gate, GaussianMoE


def near(
    truth: GaussianMoE, datasets: int, scale: float | int, generator: torch.Generator, *, ray: float | int = 0.0
) -> GaussianMoE:
    """The truth with noise: beta_0, beta_1, a, b + scale N(0, 1), nu exp(scale N(0, 1)); tau and the last gate stay.

    Args:
        truth: one model.
        scale: of the noise, >= 0.
        ray: standard deviation of log c; (beta_0, beta_1, tau) is multiplied by c, which for the identity moves along
            the direction that data cannot see.

    Raises:
        ValueError: more than one model, a negative scale or ray.
    """
    return _scatter(_one(truth).expand(datasets), scale, ray, generator)


def deal(
    truth: GaussianMoE,
    experts: int,
    datasets: int,
    scale: float | int,
    generator: torch.Generator,
    *,
    gate: Gate | None = None,
    ray: float | int = 0.0,
) -> GaussianMoE:
    """More experts than the truth has: each true expert gets at least one, the rest are dealt at random, then noise.

    The m experts that share a true one share its weight: beta_0 - tau log m. In a data set's model the experts stand
    in the order of the true ones, so that a copy of the last true expert is last.

    Args:
        experts: how many, at least the truth's number.
        gate: the fitted form, where it differs from the truth's (top_k).

    Raises:
        ValueError: fewer experts than the truth has; see also `near`.
    """
    truth, true = _one(truth), truth.num_experts
    if experts < true:
        raise ValueError(f"experts must be at least the truth's {true}; got {experts}")
    device = truth.tau.device
    extra = torch.randint(true, (datasets, experts - true), generator=generator, device=generator.device).to(device)
    cell = torch.cat([torch.arange(true, device=device).expand(datasets, true), extra], 1).sort(1).values
    return share(truth, cell, scale, generator, gate=gate, ray=ray)


def share(
    truth: GaussianMoE,
    cell: Int[Tensor, "datasets experts"],
    scale: float | int,
    generator: torch.Generator,
    *,
    gate: Gate | None = None,
    ray: float | int = 0.0,
) -> GaussianMoE:
    """As `deal`, with the true expert of each expert given: cell [datasets, experts], the last of them the last's."""
    truth = _one(truth)
    if cell.dim() != 2 or not ((cell >= 0) & (cell < truth.num_experts)).all():
        raise ValueError(f"cell must be [datasets, experts] in 0..{truth.num_experts - 1}; got {tuple(cell.shape)}")
    if not (cell[:, -1] == truth.num_experts - 1).all():
        raise ValueError(f"cell must end with the last true expert, {truth.num_experts - 1}, whose gate stays 0")
    model = _taken(truth, cell, gate)
    return _scatter(model, scale, ray, generator)


def apart(
    truth: GaussianMoE,
    cell: Int[Tensor, "datasets experts"],
    distance: float | int,
    scale: float | int,
    generator: torch.Generator,
    *,
    gate: Gate | None = None,
    ray: float | int = 0.0,
) -> GaussianMoE:
    """As `share`, with b of the experts that share a true one spread evenly over +- distance standard deviations.

    The variance within is lowered by that between, so that mean and variance of the mixture stay: nu - mean of squares.

    Raises:
        ValueError: a distance of which no variance is left; see also `share`.
    """
    model = share(truth, cell, 0.0, generator, gate=gate)
    same = cell[:, :, None] == cell[:, None, :]
    number = same.sum(-1).to(truth.tau)
    before = (same & torch.ones_like(same).tril(-1)).sum(-1)
    place = torch.where(number > 1, 2 * before / (number - 1).clamp(min=1) - 1, 0.0)  # -1 .. 1 among those that share
    spread = (same * place.square()[:, None]).sum(-1) / number * distance**2
    if not (spread < 1).all():
        raise ValueError(f"distance must leave some variance within experts, |distance| < 1; got {distance}")
    model = replace(model, b=model.b + distance * place * model.variance.sqrt(), variance=model.variance * (1 - spread))
    return _scatter(model, scale, ray, generator)


def _one(truth: GaussianMoE) -> GaussianMoE:
    if truth.models != ():
        raise ValueError(f"truth must be one model; got models {tuple(truth.models)}")
    return truth


def _taken(truth: GaussianMoE, cell: Int[Tensor, "datasets experts"], gate: Gate | None) -> GaussianMoE:
    number = torch.nn.functional.one_hot(cell, truth.num_experts).sum(1).gather(1, cell)
    beta0 = truth.beta0[cell] - truth.tau * number.to(truth.tau).log()
    return GaussianMoE(
        beta0 - beta0[:, -1:],
        truth.beta1[cell],
        truth.a[cell],
        truth.b[cell],
        truth.variance[cell],
        truth.tau.expand(len(cell)).clone(),
        gate or truth.gate,
    )


def _scatter(model: GaussianMoE, scale: float | int, ray: float | int, generator: torch.Generator) -> GaussianMoE:
    for name, number in (("scale", scale), ("ray", ray)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be at least 0; got {number}")

    def normal(like: Tensor) -> Tensor:
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
        return noise.to(like.device)

    c = (ray * normal(model.tau)).exp()
    live = torch.ones_like(model.beta0)
    live[:, -1] = 0  # the gate of the last expert stays 0, whatever is drawn for it
    return replace(
        model,
        beta0=(model.beta0 + scale * normal(model.beta0)) * live * c[:, None],
        beta1=(model.beta1 + scale * normal(model.beta1)) * (live * c[:, None])[..., None],
        a=model.a + scale * normal(model.a),
        b=model.b + scale * normal(model.b),
        variance=model.variance * (scale * normal(model.variance)).exp(),
        tau=model.tau * c,
    )
