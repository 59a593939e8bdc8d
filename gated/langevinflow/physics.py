"""What a particle in a quadratic potential does exactly: moments, stationary laws, and errors of long averages.

H: the symmetric matrix of U = z H z / 2. gamma_c: friction per unit of time. T: temperature. A state is (z, v),
stacked to [2 dim]; its density under dz = v dt, dv = -(H z + gamma_c v) dt + sqrt(2 gamma_c T) dW stays Gaussian.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_axes, check_count, check_float, check_number, check_positive
from gated.langevinflow.integrators import Scheme, check_hessian, langevin_step, step_matrix


def ou_moments(
    hessian: Float[Tensor, "dim dim"], *, friction: float | int, temperature: float | int, time: float | int
) -> tuple[Float[Tensor, "two_dim two_dim"], Float[Tensor, "two_dim two_dim"]]:
    """(E, C): a state x becomes E x plus Gaussian noise of covariance C after `time`; E = exp(A t).

    C = integral of E(s) Q E(s)^T (Van Loan's block exponential), for saddles too; where U confines it equals
    S - E S E^T with S the stationary covariance diag(T / H, T). Raises ValueError for negative friction or temperature.

    Example:
        >>> E, C = ou_moments(torch.eye(1), friction=1.0, temperature=2.0, time=50.0)
        >>> C.diagonal().round(decimals=3).tolist()  # at rest: T / H for the position, T for the velocity
        [2.0, 2.0]
    """
    check_hessian(hessian)
    check_number("friction", friction, "[0, inf)")
    check_number("temperature", temperature, "[0, inf)")
    check_positive("time", time)
    drift, diffusion = _drift(hessian, friction), _diffusion(hessian, friction * temperature)
    size = len(drift)
    block = drift.new_zeros(2 * size, 2 * size)
    block[:size, :size], block[:size, size:], block[size:, size:] = drift, diffusion, -drift.mT
    block = torch.linalg.matrix_exp(block * time)
    flow = block[:size, :size]
    return flow, block[:size, size:] @ flow.mT


def split_moments(
    covariance: Float[Tensor, "two_dim two_dim"],
    hessian: Float[Tensor, "dim dim"],
    *,
    friction: float | int,
    temperature: float | int,
    time: float | int,
    steps: int,
) -> Float[Tensor, "two_dim two_dim"]:
    """The covariance after `time`, by turns of the three parts of the Fokker-Planck equation, each one exact.

    Hamiltonian flow keeps log q along its path; friction shrinks v by exp(-gamma_c h) and so raises log q by
    gamma_c d h; diffusion adds 2 gamma_c T h to the variance of v and is no change of variables. The error of this
    (Lie) splitting falls with the first power of h = time / steps.

    Raises:
        ValueError: a covariance that is not [2 dim, 2 dim], steps below 1; as `ou_moments`.
    """
    check_hessian(hessian)
    check_float("covariance", covariance)
    if covariance.shape != (2 * len(hessian), 2 * len(hessian)):
        raise ValueError(f"covariance must be [2 dim, 2 dim], dim = {len(hessian)}; got {tuple(covariance.shape)}")
    check_number("friction", friction, "[0, inf)")
    check_number("temperature", temperature, "[0, inf)")
    check_positive("time", time)
    check_count("steps", steps)
    h, dim = time / steps, len(hessian)
    flow = torch.linalg.matrix_exp(h * _drift(hessian, 0.0))
    shrink = torch.cat([flow.new_ones(dim), torch.exp(flow.new_full((dim,), -friction * h))])
    for _ in range(steps):
        covariance = flow @ covariance @ flow.mT
        covariance = shrink[:, None] * covariance * shrink + h * _diffusion(hessian, friction * temperature)
    return covariance


def step_covariance(
    hessian: Float[Tensor, "dim dim"],
    *,
    step: float | int,
    decay: float | int,
    scale: float | int,
    scheme: Scheme = "baoab",
) -> Float[Tensor, "two_dim two_dim"]:
    """Q: what the noise of one step of an integrator adds to the covariance of the state.

    Args:
        decay, scale: a, and sigma of the noise.

    Raises:
        ValueError: a Hessian that is not square and finite; as `langevin_step`.
    """
    check_hessian(hessian)
    dim = len(hessian)
    at_rest = hessian.new_zeros(dim, dim)
    noise = torch.eye(dim, dtype=hessian.dtype, device=hessian.device)
    after = langevin_step(
        lambda z: z @ hessian.mT, at_rest, at_rest, noise, step=step, decay=decay, scale=scale, scheme=scheme
    )
    gain = torch.cat(after, 1)
    return gain.mT @ gain


def stationary_covariance(
    hessian: Float[Tensor, "dim dim"],
    *,
    step: float | int,
    decay: float | int,
    scale: float | int,
    scheme: Scheme = "baoab",
) -> Float[Tensor, "two_dim two_dim"]:
    """S = M S M^T + Q (discrete Lyapunov equation): the law that an integrator really settles in.

    BAOAB with the exact noise has position variance T / omega^2 at every stable step and velocity variance
    T (1 - h^2 omega^2 / 4). The released step has 2 / (2 - gamma) and, as h -> 0, 1 / ((1 - gamma) lambda).

    Args:
        decay, scale: a, and sigma of the noise.

    Raises:
        ValueError: no stationary law, because M does not contract.

    Example:
        >>> S = stationary_covariance(torch.eye(1).double(), step=1.0, decay=0.5, scale=exact_noise(0.5))
        >>> S.diagonal().tolist()  # the position is exact, the velocity 1 - h^2 / 4
        [1.0, 0.75]
    """
    flow = step_matrix(hessian, step=step, decay=decay, scheme=scheme)
    radius = float(torch.linalg.eigvals(flow).abs().max()) if bool(flow.isfinite().all()) else math.inf
    if not radius < 1:
        raise ValueError(
            f"step, decay and hessian must make the step contract for a stationary law; its spectral radius is {radius}"
        )
    total = step_covariance(hessian, step=step, decay=decay, scale=scale, scheme=scheme)
    while float(flow.abs().max()) > 1e-20:  # doubling: after k rounds the sum has 2^k terms
        total, flow = total + flow @ total @ flow.mT, flow @ flow
    return total


def autocorrelation_time(series: Float[Tensor, "*batch time"], window: float | int = 5.0) -> Float[Tensor, "*batch"]:
    """tau = 1 + 2 sum_k rho_k: how many steps of the series are worth one independent draw.

    The sum stops at the first k >= window * tau (Sokal's automatic window). Raises ValueError for fewer than 4 steps.

    Example:
        >>> steps = torch.randn(4000, generator=torch.Generator().manual_seed(0))
        >>> walk = steps.cumsum(0)
        >>> bool(autocorrelation_time(steps) < 1.2), bool(autocorrelation_time(walk) > 100)
        (True, True)
    """
    check_float("series", series)
    check_axes("*batch time", series=series)
    check_number("window", window, "[0, inf)")
    time = series.shape[-1]
    if time < 4 or not series.numel():
        raise ValueError(f"series must have at least 4 steps; got shape {tuple(series.shape)}")
    centred = series - series.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * time).abs() ** 2
    rho = torch.fft.irfft(spectrum)[..., :time]
    rho = rho / rho[..., :1].clamp_min(torch.finfo(rho.dtype).tiny)
    tau = 2 * rho.cumsum(-1) - 1
    enough = torch.arange(time, device=series.device) >= window * tau
    enough[..., -1] = True
    return tau.gather(-1, enough.to(torch.int8).argmax(-1, keepdim=True)).squeeze(-1).clamp_min(1.0)


def mean_with_error(series: Float[Tensor, "*batch time"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The mean over time and its standard error sd sqrt(tau / time), for a series that remembers itself.

    Raises:
        ValueError: as `autocorrelation_time`.
    """
    tau = autocorrelation_time(series)
    return series.mean(-1), series.std(-1) * (tau / series.shape[-1]).sqrt()


def _drift(hessian: Tensor, friction: float | int) -> Tensor:
    """A of dx = A x dt."""
    dim = len(hessian)
    drift = hessian.new_zeros(2 * dim, 2 * dim)
    drift[:dim, dim:] = torch.eye(dim, dtype=hessian.dtype, device=hessian.device)
    drift[dim:, :dim] = -hessian
    drift[dim:, dim:].diagonal().fill_(-friction)
    return drift


def _diffusion(hessian: Tensor, strength: float | int) -> Tensor:
    """2 gamma_c T on the velocities, per unit of time."""
    dim = len(hessian)
    return torch.diag(torch.cat([hessian.new_zeros(dim), hessian.new_full((dim,), 2 * strength)]))
