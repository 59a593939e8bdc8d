"""What the figure of the particle computes: 200 noisy paths of two coupled oscillators, and what is known of them.

Both have unit mass and U = k/2 (z_1^2 + z_2^2) + c/2 (z_1 - z_2)^2. Their sum and their difference are motions (modes)
that do not mix, with curvatures k and k + 2c, and each step of a mode is a 2 x 2 matrix M plus noise.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gated.langevinflow.integrators import Scheme, simulate

POINTS, STEPS, NEURONS = 200, 120, 12
RADIUS, BOUND, CAP = 0.5, 50, 6
"""The blob is a disc of RADIUS; a run ends before a coordinate passes BOUND; rates are cut at CAP spikes a bin."""
REST = 1e-3
"""Power of a point, at all LINES together, that nobody sees: waves of height 0.001."""
LINES = range(2, 31)
"""Frequencies of the spectrum, in turns per STEPS bins: periods of 60 to 4 bins."""


class Mode(NamedTuple):
    """A mode's step: what its eigenvalues and its stationary law are made of, written so that nothing cancels."""

    curvature: float
    trace: float
    det: float
    gap: float
    """1 + det - trace, the determinant of 1 - M."""
    over: float
    """1 + det + trace."""
    turn: float
    """trace^2 - 4 det: below 0 the mode rotates."""

    @classmethod
    def of(cls, curvature: float, a: float, h: float, scheme: Scheme) -> Mode:
        x = h * h * curvature
        if scheme == "euler":
            return cls(curvature, 1 + a, a * (1 + x), a * x, 2 + 2 * a + a * x, (1 - a) * (1 - a) - 4 * a * x)
        if scheme == "symplectic":
            trace, gap, over = 1 + a - a * x, a * x, 2 + 2 * a - a * x
        else:
            trace, gap, over = (1 + a) * (1 - x / 2), (1 + a) * x / 2, (1 + a) * (2 - x / 2)
        return cls(curvature, trace, a, gap, over, trace * trace - 4 * a)

    @property
    def eigenvalues(self) -> list[list[float]]:
        """Real and imaginary part of both."""
        middle, root = self.trace / 2, math.sqrt(abs(self.turn)) / 2
        return [[middle, k * root] if self.turn < 0 else [middle + k * root, 0.0] for k in (1, -1)]

    @property
    def radius(self) -> float:
        return max(math.hypot(*eigenvalue) for eigenvalue in self.eigenvalues)

    @property
    def period(self) -> float | str:
        """Bins of a turn."""
        return 2 * math.pi / math.atan2(self.eigenvalues[0][1], self.trace / 2) if self.turn < 0 else "none"

    def law(self, a: float, h: float, scale: float, scheme: Scheme) -> tuple[float, float, float]:
        """Long-run variances of z and v and their covariance: those of an autoregression of second order."""
        if scheme == "baoab":
            heat = scale**2 / (1 - a * a)
            return heat / self.curvature, heat * (1 - h * h * self.curvature / 4), 0.0
        place = (scale * h) ** 2 * (1 + self.det) / ((1 - self.det) * self.gap * self.over)
        share = place * self.gap / (1 + self.det)
        return place, 2 * share / (h * h), -share / h


def kind_of(modes: list[Mode], friction: float) -> str:
    """Which of the figure's words applies."""
    if modes[0].curvature < 0:
        return "saddle"
    if any(m.curvature > 0 and (m.det > 1 or m.over <= 0 or (m.det == 1 and friction > 0)) for m in modes):
        return "bursts"
    if modes[0].curvature == 0:
        return "drifts"
    if friction == 0:
        return "free"
    if any(mode.turn < 0 for mode in modes):
        return "turns"
    return "frozen" if max(mode.radius for mode in modes) > math.exp(-1 / STEPS) else "creeps"


def bound(a: float, scheme: Scheme) -> float:
    """The h^2 k beyond which a mode turns."""
    root = (1 - math.sqrt(a)) ** 2
    return {"euler": (1 - a) ** 2 / (4 * a), "symplectic": root / a, "baoab": 2 * root / (1 + a)}[scheme]


def uniforms(seed: int, count: int) -> np.ndarray:
    """The first numbers in (0, 1) of the generator mulberry32."""
    state = np.uint32(seed % 2**32) + np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
    x = (state ^ (state >> 15)) * (state | 1)
    x ^= x + (x ^ (x >> 7)) * (x | 61)
    return ((x ^ (x >> 14)) + 0.5) / 2.0**32


@cache
def normals(seed: int) -> Tensor:
    """Noise of every point, step and oscillator [points, steps, 2], by Box and Muller."""
    u = uniforms((seed + 1) * 0x9E3779B9, 2 * STEPS * POINTS).reshape(STEPS, POINTS, 2)
    radius, angle = np.sqrt(-2 * np.log(u[..., 0])), 2 * np.pi * u[..., 1]
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).swapaxes(0, 1).copy())


def blob(z: float, v: float) -> tuple[Tensor, Tensor]:
    """Positions and velocities [points, 2]: a disc around (z, v), and the same one around 0 for the partners, mixed."""
    i = torch.arange(POINTS, dtype=torch.float64)

    def disc(j: Tensor) -> Tensor:
        angle = j * (math.pi * (3 - math.sqrt(5)))
        return (RADIUS * (j / POINTS).sqrt())[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    both = torch.stack([disc(i) + torch.tensor([z, v], dtype=torch.float64), disc(i * 89 % POINTS)], 1)
    return both[..., 0], both[..., 1]


def paths(
    start: tuple[Tensor, Tensor], hessian: Tensor, noise: Tensor, *, a: float, h: float, scale: float, scheme: Scheme
) -> Tensor:
    """The library's steps: (z_1, z_2, v_1, v_2) of every point [points, steps + 1, 4], cut before BOUND."""
    after = simulate(lambda z: z @ hessian, *start, noise, step=h, decay=a, scale=scale, scheme=scheme)
    x = torch.cat([torch.cat([one[:, None], more], 1) for one, more in zip(start, after, strict=True)], 2)
    gone = (x.abs() > BOUND).any(2).any(0).nonzero()
    return x[:, : int(gone[0])] if len(gone) else x


def volumes(x: Tensor) -> list[float]:
    """Half the log volume of the points [points, bins, 4] in all four coordinates, less its start."""
    centred = (x - x.mean(0)).transpose(0, 1)
    logs = torch.linalg.qr(centred, mode="r").R.diagonal(dim1=1, dim2=2).abs().log().sum(1) / 2
    return (logs - logs[0]).tolist()


def _window() -> np.ndarray:
    """Hann's: a constant leaves nothing at the frequencies of LINES."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(STEPS) / STEPS)


def spectrum(z: Tensor) -> list[float] | str:
    """Shares of the power of z [points, bins] at LINES, all points together; "none" where it is cut or they rest."""
    if z.shape[1] < STEPS:
        return "none"
    turns = np.exp(-2j * np.pi * np.outer(np.arange(STEPS), LINES) / STEPS)
    power = (np.abs((z - z[:, :1]).numpy() * _window() @ turns) ** 2).sum(0)
    return (power / power.sum()).tolist() if power.sum() > REST * POINTS else "none"


def expected_spectrum(modes: list[Mode], laws: list[tuple[float, float, float]], scheme: Scheme) -> list[float]:
    """The same for the stationary law, from its autocovariances; their constant part falls out and is left out."""
    r = np.zeros(STEPS)
    for mode, (place, _, _) in zip(modes, laws, strict=True):
        u = [0.0, -place * mode.gap / (2 if scheme == "baoab" else 1 + mode.det)]
        for lag in range(2, STEPS):
            u.append(mode.trace * u[lag - 1] - mode.det * u[lag - 2] - mode.gap * place)
        r += u
    w = _window()
    overlap = np.array([w[: STEPS - lag] @ w[lag:] for lag in range(STEPS)])
    power = np.cos(2 * np.pi * np.outer(LINES, np.arange(STEPS)) / STEPS) @ (r * overlap)
    return (power / power.sum()).tolist()


def spikes(path: Tensor, seed: int) -> tuple[list[str], int]:
    """Counts of every neuron, a digit a bin, and how many rates were cut. Log rates are linear in (z, v).

    Neuron i fires most where the angle of (z, v) is 2 pi i / 12, at .25 spikes a bin times exp(.8 of that component).
    """
    angle = torch.arange(NEURONS, dtype=torch.float64) * (2 * math.pi / NEURONS)
    rates = 0.25 * (0.8 * (angle.cos() * path[:STEPS, 0, None] + angle.sin() * path[:STEPS, 2, None])).exp()
    draws = uniforms((seed + 1) * 0x85EBCA6B, STEPS * NEURONS).reshape(STEPS, NEURONS)[: len(rates)]
    counts = np.zeros(draws.shape, dtype=int)
    rate = rates.clamp_max(CAP).numpy()
    chance = np.exp(-rate)
    below = chance.copy()
    for k in range(1, 10):  # by inversion; nothing above 9
        counts += draws > below
        chance = chance * rate / k
        below = below + chance
    return ["".join(map(str, row)) for row in counts.T.tolist()], int((rates > CAP).sum())
