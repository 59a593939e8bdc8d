"""Self-tuning on ridge regression in closed form: the numbers of the figure `response`.

A mode is a principal direction of the training inputs, d its singular value, a = d^2, and t the targets along it. The
training loss is (a + r) w^2 / 2 - d t w with the penalty r = exp(lambda), so that the best weight predicts d w = g t
with the gate g = sigmoid(2 ln d - lambda). The validation loss is a quadratic form in the predictions of the modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from gated.stn.theory import SigmoidResponse, affine_ridge_response

MODES, STEPS, SPAN = 6, 100, 6
"""Modes; steps of a run; lambda is kept to -SPAN to SPAN."""
NARROW, WIDE = 0.05, 4.0
"""sigma is kept between these: where the loss bends down along the response, entropy widens it without end."""
RATES = (2.0, 5.0)
"""Of the gradient steps: of lambda, and of rho with sigma = softplus(rho)."""


def _sets() -> tuple[Tensor, Tensor, Tensor]:
    """Training targets in the modes; Z^T Z and Z^T t of 40 validation inputs Z and targets t, which have length 1."""
    rng, signal = np.random.default_rng(4), np.array([1.0, -0.8, 0.7, 0.35, -0.2, 0.1])
    train, inputs = signal + 0.35 * rng.standard_normal(MODES), rng.standard_normal((40, MODES))
    targets = inputs @ signal + rng.standard_normal(40)
    size = targets @ targets
    found = (train.round(2), (inputs.T @ inputs / size).round(4), (inputs.T @ targets / size).round(4))
    return tuple(map(torch.from_numpy, found))  # type: ignore[return-value]


TARGETS, GRAM, PULL = _sets()
"""A spectrum d scales the inputs of both sets, so that validation inputs are Z diag(d), and leaves the targets."""
SETS = {"targets": TARGETS.tolist(), "gram": GRAM.tolist(), "pull": PULL.tolist()}


@cache
def draws(seed: int) -> list[list[float]]:
    """Standard normal numbers for each step, mode by mode: xorshift on 32 bits, then pairs by Box and Muller."""
    state, uniform = (seed * 2654435761 + 88172645) % 2**32 or 1, list[float]()
    for _ in range((STEPS + 1) * MODES):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        uniform.append((state - 0.5) / 2**32)
    normal = list[float]()
    for u, angle in zip(uniform[::2], uniform[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(u))
        normal += [radius * math.cos(2 * math.pi * angle), radius * math.sin(2 * math.pi * angle)]
    return [normal[i : i + MODES] for i in range(0, len(normal), MODES)]


@dataclass(frozen=True)
class RidgeTuning:
    """Alternating updates on ridge regression, with every refit in closed form.

    Attributes:
        spectrum: 2 ln d of each mode. tau: weight of the entropy of N(lambda, sigma^2).
        noise: covariance of targets and perturbation that a refit finds by chance, over d sigma. seed: of that chance.
    """

    spectrum: tuple[float, ...]
    tau: float
    noise: float
    seed: int

    @cached_property
    def ridge(self) -> SigmoidResponse:
        """The exact response in the basis of the modes."""
        threshold = torch.tensor(self.spectrum, dtype=torch.float64)
        unit, readout = torch.eye(MODES, dtype=torch.float64), TARGETS / (threshold / 2).exp()
        return SigmoidResponse(unit, readout, -torch.ones_like(threshold), threshold)

    def fit(self, method: str, lam: float, sigma: float, draw: Sequence[float]) -> tuple[Tensor, Tensor]:
        """What the weights at lambda predict in each mode, d w_0, and its slope, d J.

        With a chance covariance c = noise d sigma xi between targets and perturbation, the normal equations of a
        mode are (a + r m) w_0 + r m sigma^2 J = b and r m w_0 + (a + r m (1 + sigma^2)) J = c / sigma^2. What c adds
        is added here; without it they are those of `affine_ridge_response`. Δ-STN solves the second one alone.
        """
        ridge = self.ridge
        a, d = ridge.threshold.exp(), (ridge.threshold / 2).exp()
        if method == "exact":
            return d * ridge.weights(lam), d * ridge.jacobian(lam)
        centre, jacobian = affine_ridge_response(
            a, a * ridge.readout, lam, sigma, "stn" if method == "stn" else "delta"
        )
        if self.noise:
            chance = self.noise * d * torch.tensor(draw, dtype=torch.float64) / sigma
            rm = math.exp(lam + sigma**2 / 2)
            if method == "stn":
                determinant = (a + rm) ** 2 + a * rm * sigma**2
                centre = centre - rm * sigma**2 * chance / determinant
                jacobian = jacobian + (a + rm) * chance / determinant
            else:
                jacobian = jacobian + chance / (a + rm * (1 + sigma**2))
        return d * centre, d * jacobian

    def loss(self, predicted: Tensor) -> Tensor:
        """Validation loss [...] of predictions [..., modes]: the share of the targets' square that is left."""
        return 1 + (predicted @ GRAM * predicted).sum(-1) - 2 * predicted @ PULL

    def slopes(self, method: str, centre: Tensor, slope: Tensor) -> tuple[float, float, float]:
        """First and second derivative of the validation loss along the response, and the second along its line."""
        pressed, line = 2 * (GRAM @ centre - PULL), 2 * (slope @ GRAM @ slope).item()
        curvature = line
        if method == "exact":
            curvature += (
                pressed @ (slope * (2 * centre / TARGETS - 1))
            ).item()  # as g' = -g (1 - g), g'' = g' (2 g - 1)
        return (pressed @ slope).item(), curvature, line

    def noise_of_slope(self, method: str, lam: float, sigma: float, centre: Tensor) -> float:
        """Standard deviation of the first derivative that the chance in J alone makes."""
        if method == "exact":
            return 0.0
        a, rm = self.ridge.threshold.exp(), math.exp(lam + sigma**2 / 2)
        stiff = (a + rm) ** 2 + a * rm * sigma**2
        share = a * (a + rm) / stiff if method == "stn" else a / (a + rm * (1 + sigma**2))
        return 2 * self.noise / sigma * (share * (GRAM @ centre - PULL)).norm().item()


@lru_cache(maxsize=64)
def run(tuning: RidgeTuning, method: str, lam: float, sigma: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """lambda and sigma, before each step and after the last. A step: refit, then one gradient step of both."""
    lams, sigmas = [lam], [sigma]
    for drawn in draws(tuning.seed)[:STEPS]:
        at, width = lams[-1], sigmas[-1]
        down, curvature, _ = tuning.slopes(method, *tuning.fit(method, at, width, drawn))
        inner = -math.expm1(-width)  # of softplus at rho = width + ln(inner)
        rho = width + math.log(inner) - RATES[1] * (width * curvature - tuning.tau / width) * inner
        lams.append(min(float(SPAN), max(-float(SPAN), at - RATES[0] * down)))
        sigmas.append(min(WIDE, max(NARROW, max(rho, 0.0) + math.log1p(math.exp(-abs(rho))))))
    return tuple(lams), tuple(sigmas)
