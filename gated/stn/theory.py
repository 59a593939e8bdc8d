"""Best responses that are known exactly, and hypergradients without a gate: what a self-tuning network is held against.

lambda: hyperparameters; w*(lambda): the weights that minimise the training loss L_T(w, lambda), the best response. The
hypergradient is the total derivative of L_V(w*(lambda), lambda), L_V the validation loss.

Theorem 1: a linear network y = s . (Q x) is trained on the sum over examples of

    (y - t)^2 + (1/N) exp(lambda) |dy/dx|^2 .

Only u = Q^T s counts, and this is ridge regression, |X u - t|^2 + exp(lambda) |u|^2. With X = U diag(d) P^T:

    Q*(lambda) = sigmoid(v lambda + c) * Q_0 (row by row),   s* = s_0,
    Q_0 = P^T,   s_0 = U^T t / d,   v = -1,   c = 2 ln d.

Source: MacKay et al. 2019, "Self-Tuning Networks", theorems 1 and 2; the values of v and c and the affine fit under
exp(lambda) are our own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev

Loss = Callable[[Tensor, Tensor], Tensor]  # (weights, hyperparameters) -> a number
Lambda = Float[Tensor, "*#penalties"] | float | int


def jacobian_loss(
    q: Float[Tensor, "units inputs"],
    s: Float[Tensor, " units"],
    x: Float[Tensor, "examples inputs"],
    t: Float[Tensor, " examples"],
    log_penalty: Float[Tensor, ""] | float | int,
) -> Float[Tensor, ""]:
    """L_T of theorem 1: squared error plus exp(lambda) / N times the squared input Jacobian, summed over examples."""
    slope = s @ q  # dy/dx, the same for every x
    penalty = torch.as_tensor(log_penalty, dtype=x.dtype, device=x.device).exp()
    return (x @ slope - t).square().sum() + penalty * slope.square().sum()


def ridge_response(
    x: Float[Tensor, "examples inputs"], t: Float[Tensor, " examples"], log_penalty: float | int
) -> Float[Tensor, " inputs"]:
    """u*(lambda), the minimiser of |X u - t|^2 + exp(lambda) |u|^2, by least squares on [X; exp(lambda / 2) I].

    This is the direct solve, without singular values and without the normal equations, which square the condition.
    """
    inputs = x.shape[1]
    ridge = math.exp(log_penalty / 2) * torch.eye(inputs, dtype=x.dtype, device=x.device)
    rows, values = torch.cat([x, ridge]), torch.cat([t, t.new_zeros(inputs)])
    return torch.linalg.lstsq(rows, values[:, None]).solution[:, 0]


class SigmoidResponse(NamedTuple):
    """Theorem 1's best response: hidden unit i of the unregularised network, times sigmoid(v_i lambda + c_i).

    Attributes:
        basis: Q_0, the principal directions (right singular vectors of X, uncentred) as rows.
        readout: s_0, which solves the unregularised problem in that basis.
        slope: v, -1 in every unit. threshold: c = 2 ln d, minus infinity where the data have no spread.
    """

    basis: Float[Tensor, "units inputs"]
    readout: Float[Tensor, " units"]
    slope: Float[Tensor, " units"]
    threshold: Float[Tensor, " units"]

    def gates(self, log_penalty: Lambda) -> Float[Tensor, "*penalties units"]:
        """sigmoid(v lambda + c) for each lambda: d^2 / (d^2 + exp(lambda))."""
        return self._logits(log_penalty).sigmoid()

    def weights(self, log_penalty: Lambda) -> Float[Tensor, "*penalties inputs"]:
        """u*(lambda) = Q*(lambda)^T s_0: what the network computes."""
        return (self.gates(log_penalty) * self.readout) @ self.basis

    def jacobian(self, log_penalty: Lambda) -> Float[Tensor, "*penalties inputs"]:
        """du*/dlambda = -Q_0^T (g (1 - g) s_0), the response Jacobian."""
        return (self._bend(log_penalty) * self.readout) @ self.basis

    def tangent(self, at: float | int) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
        """The straight line that touches the gates at `at`: (intercept, slope), g ~ intercept + slope lambda.

        This is the best-response layer with one hyperparameter: W_elem = intercept * Q_0, W_hyper = Q_0, V = slope. It
        misses the gate by at most (lambda - at)^2 / (12 sqrt 3).
        """
        slope = self._bend(at)
        return self.gates(at) - slope * at, slope

    def _logits(self, log_penalty: Lambda) -> Tensor:
        lam = torch.as_tensor(log_penalty, dtype=self.slope.dtype, device=self.slope.device)
        return lam[..., None] * self.slope + self.threshold

    def _bend(self, log_penalty: Lambda) -> Tensor:
        """dg/dlambda. Not by 1 - g, which has lost its digits where g is near 1."""
        z = self._logits(log_penalty)
        return self.slope * z.sigmoid() * (-z).sigmoid()


def sigmoid_response(x: Float[Tensor, "examples inputs"], t: Float[Tensor, " examples"]) -> SigmoidResponse:
    """Theorem 1 for data X, t. Directions in which X is zero to rounding have gate and readout 0.

    Raises ValueError for data without an example, or that are not finite.
    """
    if not x.numel() or not bool(x.isfinite().all() and t.isfinite().all()):
        raise ValueError(f"x and t must be finite and have an example and an input, got x of shape {tuple(x.shape)}")
    examples, inputs = x.shape
    u, d, basis = torch.linalg.svd(x, full_matrices=examples < inputs)
    rank = int((d > d.amax() * max(x.shape) * torch.finfo(x.dtype).eps).sum())
    readout = x.new_zeros(inputs)
    readout[:rank] = (u[:, :rank].T @ t) / d[:rank]
    threshold = torch.full_like(readout, -math.inf)
    threshold[:rank] = 2 * d[:rank].log()
    return SigmoidResponse(basis, readout, torch.full_like(readout, -1.0), threshold)


class AffineResponse(NamedTuple):
    """w_0 and dw/dlambda of a response w_0 + J (lambda - lambda_0)."""

    centre: Tensor
    jacobian: Tensor


def affine_ridge_response(
    curvature: Float[Tensor, "*modes"],
    pull: Float[Tensor, "*modes"],
    log_penalty: float | int,
    scale: float | int,
    method: Literal["stn", "delta"] = "stn",
) -> AffineResponse:
    """The affine response that fits ridge regression best under lambda_0 + eps, eps ~ N(0, sigma^2), mode by mode.

    A mode has L_T = (a + exp(lambda)) w^2 / 2 - b w. With r = exp(lambda_0), m = exp(sigma^2 / 2) the best fit has
    J = -r m w_0 / (a + r m (1 + sigma^2)) and w_0 = b / (a + r m - r^2 sigma^2 m^2 / (a + r m (1 + sigma^2))). The
    truth is b / (a + r) and -r b / (a + r)^2.

    Args:
        curvature: a, squared singular values. pull: b, such that the unregularised w is b / a.
        log_penalty: lambda_0. scale: sigma >= 0; 0 gives the limit, which is the truth.
        method: "stn" fits both under the perturbation; "delta" has the exact centre and fits J alone.

    Raises:
        ValueError: scale negative or not finite, or another method.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and at least 0, got {scale}")
    if method not in ("stn", "delta"):
        raise ValueError(f"method must be 'stn' or 'delta', got {method!r}")
    r, m, square = math.exp(log_penalty), math.exp(scale**2 / 2), scale**2
    stiff = curvature + r * m * (1 + square)
    centre = pull / (curvature + (r * m - square * (r * m) ** 2 / stiff if method == "stn" else r))
    return AffineResponse(centre, -r * m * centre / stiff)


def fit_affine_response(
    train: Loss,
    start: Float[Tensor, " weights"],
    at: Float[Tensor, " hyperparameters"],
    scale: float | int,
    *,
    nodes: int = 24,
    steps: int = 1,
) -> AffineResponse:
    """The minimiser of E L_T(w_0 + J eps, lambda_0 + eps), eps ~ N(0, sigma^2 I), by quadrature and Newton's method.

    Theorem 2: where L_T is jointly quadratic, J is the response Jacobian for every sigma. One step is exact if L_T is
    quadratic in w. Hessians are dense and the nodes a grid, so this is for a few weights and one to three lambdas.

    Args:
        train: L_T(w [weights], lambda [hyperparameters]) -> a number.
        start: first w_0 (J starts at 0). at: lambda_0. scale: sigma > 0.
        nodes: of the Gauss-Hermite rule for each hyperparameter. steps: Newton steps.

    Raises:
        ValueError: scale not positive, nodes or steps below 1.
    """
    if not scale > 0 or nodes < 1 or steps < 1:
        raise ValueError(f"scale must be positive, nodes and steps at least 1; got {scale}, {nodes} and {steps}")
    points, mass = np.polynomial.hermite_e.hermegauss(nodes)
    knots = scale * torch.as_tensor(points).to(start)
    axis_mass = torch.as_tensor(mass / mass.sum()).to(start)
    n, size = len(at), len(start)
    eps = torch.cartesian_prod(*[knots] * n).reshape(-1, n)
    p = torch.cartesian_prod(*[axis_mass] * n).reshape(-1, n).prod(1)

    def smoothed(phi: Tensor) -> Tensor:
        w = phi[:size] + eps @ phi[size:].reshape(size, n).T
        return p @ torch.func.vmap(train)(w, at + eps)

    phi = torch.cat([start, start.new_zeros(size * n)])
    for _ in range(steps):
        phi = phi - torch.linalg.solve(jacrev(grad(smoothed))(phi), grad(smoothed)(phi))
    return AffineResponse(phi[:size], phi[size:].reshape(size, n))


def implicit_hypergradient(
    train: Loss,
    validate: Loss,
    weights: Float[Tensor, " weights"],
    hyperparameters: Float[Tensor, " hyperparameters"],
    *,
    iterations: int = 50,
    damping: float | int = 0.0,
) -> Float[Tensor, " hyperparameters"]:
    """dL_V/dlambda by the implicit function theorem: d_lambda L_V - (d_lambda d_w L_T) (H + damping I)^-1 d_w L_V.

    H = d_w d_w L_T; the system is solved by conjugate gradients on Hessian-vector products, so no Hessian is formed.
    Exact where `weights` minimise L_T, H is positive definite, damping is 0 and there are as many iterations as
    weights (in exact arithmetic). Runs under `torch.func.vmap`.

    Raises ValueError for iterations below 1 or negative damping.
    """
    if iterations < 1 or not damping >= 0:
        raise ValueError(f"iterations must be at least 1 and damping at least 0, got {iterations} and {damping}")
    slope = lambda w: grad(train)(w, hyperparameters)  # noqa: E731
    times = lambda v: grad(lambda w: slope(w) @ v)(weights) + damping * v  # noqa: E731
    pull, direct = grad(validate, argnums=(0, 1))(weights, hyperparameters)
    solution, residual, direction = torch.zeros_like(pull), pull, pull
    square = residual @ residual
    for _ in range(iterations):
        image = times(direction)
        bend = direction @ image
        # a direction without curvature, or a residual of zero: stay
        step = torch.where(bend > 0, square / bend.clamp(min=torch.finfo(bend.dtype).tiny), 0)
        solution, residual = solution + step * direction, residual - step * image
        before, square = square, residual @ residual
        turn = torch.where(before > 0, square / before.clamp(min=torch.finfo(before.dtype).tiny), 0)
        direction = residual + turn * direction
    along = lambda lam: grad(train)(weights, lam) @ solution  # noqa: E731
    return direct - grad(along)(hyperparameters)


def unrolled_hypergradient(
    train: Loss,
    validate: Loss,
    start: Float[Tensor, " weights"],
    hyperparameters: Float[Tensor, " hyperparameters"],
    *,
    steps: int,
    rate: float | int,
) -> Float[Tensor, " hyperparameters"]:
    """dL_V/dlambda through `steps` of gradient descent on L_T from `start`, which does not depend on lambda.

    Too few steps cut the response short. Memory grows with the steps. Raises ValueError for steps or rate not positive.
    """
    if steps < 1 or not rate > 0:
        raise ValueError(f"steps must be at least 1 and rate positive, got {steps} and {rate}")

    def outcome(lam: Tensor) -> Tensor:
        w = start
        for _ in range(steps):
            w = w - rate * grad(train)(w, lam)
        return validate(w, lam)

    return grad(outcome)(hyperparameters)


def difference_hypergradient(
    outcome: Callable[[Tensor], Tensor | float], hyperparameters: Float[Tensor, " hyperparameters"], width: float | int
) -> Float[Tensor, " hyperparameters"]:
    """Central differences of lambda -> L_V(w*(lambda), lambda), one hyperparameter after the other.

    Where `outcome` trains a network, it should use the same random numbers each time. Raises ValueError unless
    width > 0.
    """
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    shifts = width * torch.eye(len(hyperparameters)).to(hyperparameters)
    pairs = [(float(outcome(hyperparameters + e)), float(outcome(hyperparameters - e))) for e in shifts]
    return torch.tensor([(up - down) / (2 * width) for up, down in pairs]).to(hyperparameters)


def equilibrium_scale(temperature: float | int, curvature: float | int) -> float:
    """sigma = sqrt(tau / h), where L_V of curvature h along the response and tau times the entropy balance.

    Infinite for h <= 0: nothing holds sigma back. Raises ValueError for negative tau.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    return math.sqrt(temperature / curvature) if curvature > 0 else math.inf
