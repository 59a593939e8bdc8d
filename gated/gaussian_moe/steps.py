"""Where one pass over the points says to go from the current parameters: EM's step, or L-BFGS's on top of it.

The parameters of a model stand in one row: (beta_0i, beta_1i) of experts 1..k-1 in turn, tau, (b_i, a_i) of all experts
in turn, log nu_i. The rows of a batch are handled at once. Bounds are a lower and an upper row; a number that is not
estimated has two equal bounds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.kernels.gmoe_em import ACTIVATIONS, Points, Statistics, gmoe_em

EMPTY = 1e-8  # an expert whose responsibilities sum to less keeps its parameters
RIDGE = 1e-9  # of the gate's step, relative to the number of points (for a slope, to the sum of its x^2)
RIDGE_TEMPERATURE = 1e-6  # where tau is estimated: the Gram matrix may be singular

Rows = Float[Tensor, "datasets numbers"]


def for_kernel(points: Points) -> Points:
    """The points as `gmoe_em` takes them: a GPU's kernel computes in float32 (and adds up in float64)."""
    return points._replace(x=points.x.float(), y=points.y.float()) if points.x.is_cuda else points


class Layout(NamedTuple):
    """What a row holds."""

    k: int
    d: int
    gate: Gate

    @property
    def parts(self) -> tuple[int, int, int]:
        """How many numbers the gate takes (tau with it), the (b, a), the log nu."""
        return (self.k - 1) * (self.d + 1) + 1, self.k * (self.d + 1), self.k

    def pack(self, model: GaussianMoE) -> Rows:
        gate = torch.cat([model.beta0[:, :-1, None], model.beta1[:, :-1]], -1).flatten(1)
        experts = torch.cat([model.b[..., None], model.a], -1).flatten(1)
        return torch.cat([gate, model.tau[:, None], experts, model.variance.log()], 1)

    def unpack(self, theta: Rows) -> GaussianMoE:
        gate, experts, log_variance = theta.split(self.parts, 1)
        rows = torch.nn.functional.pad(gate[:, :-1].unflatten(1, (self.k - 1, self.d + 1)), (0, 0, 0, 1))
        experts = experts.unflatten(1, (self.k, self.d + 1))
        return GaussianMoE(
            beta0=rows[..., 0],
            beta1=rows[..., 1:],
            a=experts[..., 1:],
            b=experts[..., 0],
            variance=log_variance.exp(),
            tau=gate[:, -1],
            gate=self.gate,
        )

    def bounds(
        self,
        start: Rows,
        floor: Float[Tensor, " datasets"],
        free_tau: bool,
        max_slope: float | int,
        min_tau: float | int,
        max_bias: float | int = math.inf,
    ) -> tuple[Rows, Rows]:
        """Variances of at least `floor`, slopes and biases of at most `max_slope` and `max_bias` in size, a temperature
        of at least `min_tau` or fixed.

        A softmax of one expert is 1 and has no gradient: with top_k = 1 the whole gate is fixed.
        """
        low, high = torch.full_like(start, -math.inf), torch.full_like(start, math.inf)
        gate = self.parts[0]
        slope = torch.arange(gate - 1, device=start.device) % (self.d + 1) > 0
        most = torch.where(slope, float(max_slope), float(max_bias)).to(start)
        low[:, : gate - 1], high[:, : gate - 1] = -most, most
        low[:, gate - 1], low[:, -self.k :] = min_tau, floor.log()[:, None]
        if self.k == 1 or self.gate.top_k == 1:
            low[:, :gate], high[:, :gate] = start[:, :gate], start[:, :gate]
        elif not free_tau:
            low[:, gate - 1], high[:, gate - 1] = start[:, gate - 1], start[:, gate - 1]
        return low, high

    def statistics(self, points: Points, theta: Rows, compiled: bool) -> Statistics:
        gate = self.gate
        return gmoe_em(
            for_kernel(points),
            **self.unpack(theta).tensors(),
            top_k=gate.top_k,
            rank=gate.rank,
            activation=gate.activation,
            compiled=compiled,
        )


class Step(NamedTuple):
    """The gradient of the log-likelihood (0 where a bound is in the way), EM's step, and what that was solved with."""

    gradient: Rows
    em: Rows
    free: Bool[Tensor, "datasets numbers"]
    gate: Float[Tensor, "datasets G G"]  # Cholesky factor of the gate's Gram matrix and ridge
    experts: Float[Tensor, "datasets experts D D"]  # Cholesky factor of the moments in units of `scale`
    scale: Float[Tensor, "datasets experts D"]
    variance: Float[Tensor, "datasets experts"]
    total: Float[Tensor, "datasets experts"]  # sum of responsibilities

    def precondition(self, layout: Layout, vector: Rows) -> Rows:
        """The inverse information of the complete data (where it is known which expert made a point) times a vector.

        Of the gradient it makes EM's step, but for the variances, which EM also corrects for the experts' new lines.
        """
        gate, experts, log_variance = (vector * self.free).split(layout.parts, 1)
        gate = torch.cholesky_solve(gate[..., None], self.gate)[..., 0]
        experts = experts.unflatten(1, (layout.k, layout.d + 1)) * self.variance[..., None]
        live = self.total >= EMPTY
        experts = _solve(self.experts, self.scale, experts) * live[..., None]
        log_variance = torch.where(live, 2 * log_variance / self.total.clamp(min=EMPTY), 0)
        return torch.cat([gate, experts.flatten(1), log_variance], 1) * self.free


def step_from(s: Statistics, layout: Layout, theta: Rows, bounds: tuple[Rows, Rows], free_tau: bool) -> Step:
    """EM's step from the statistics at theta.

    Experts: weighted least squares on the residuals, (delta b, delta a) = moment^-1 cross, and with the new lines
    nu = (square - 2 delta^T cross + delta^T moment delta) / total, at least its bound. Gate: Fisher scoring,
    (gram + ridge)^-1 gradient. Both matrices may be singular (inputs that are all equal, an expert without points, a
    temperature that cannot be estimated): then the small ridge finds the least step that does as well.
    """
    (low, high), (gate_size, _, k) = bounds, layout.parts
    total, variance = s.moment[..., 0, 0], theta[:, -k:].exp()
    lines = s.cross / variance[..., None]
    gradient = torch.cat([s.gradient, lines.flatten(1), 0.5 * (s.square / variance - total)], 1)
    free = ~((theta <= low) & (gradient <= 0) | (theta >= high) & (gradient >= 0))
    gradient = gradient * free

    squares = s.moment.diagonal(dim1=-2, dim2=-1)
    n = total.sum(1, keepdim=True)
    if free_tau:  # the same in all directions: the step then is orthogonal to any that the likelihood does not see
        ridge = RIDGE_TEMPERATURE * n.expand(-1, gate_size)
    else:
        ridge = RIDGE * torch.cat([squares.sum(1).repeat(1, k - 1), n], 1)
    ridge = ridge.clamp(min=torch.finfo(ridge.dtype).tiny) / theta[:, gate_size - 1 : gate_size].square()
    open_ = free[:, :gate_size].to(theta)
    gram = s.gram * open_[:, :, None] * open_[:, None, :] + ridge.diag_embed()
    gate, _ = torch.linalg.cholesky_ex(gram)

    scale = torch.where(squares > 0, squares, 1.0).sqrt()
    eye = torch.eye(layout.d + 1, dtype=theta.dtype, device=theta.device)
    experts, _ = torch.linalg.cholesky_ex(s.moment / scale[..., :, None] / scale[..., None, :] + 1e-10 * eye)
    delta = _solve(experts, scale, s.cross)
    square = s.square - 2 * (delta * s.cross).sum(-1) + (delta * (s.moment @ delta[..., None])[..., 0]).sum(-1)
    live = total >= EMPTY
    log_variance = (square.clamp(min=0) / total.clamp(min=EMPTY)).log().maximum(low[:, -k:])

    parts = [
        torch.cholesky_solve(gradient[:, :gate_size, None], gate)[..., 0] * open_,
        (delta * live[..., None]).flatten(1),
        torch.where(live, log_variance - theta[:, -k:], 0),
    ]
    em = torch.cat(parts, 1)
    em = torch.where(em.isfinite(), em, 0)
    return Step(gradient, em, free, gate, experts, scale, variance, total)


def _solve(factor: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve((right / scale)[..., None], factor)[..., 0] / scale


def quasi_newton(
    step: Step,
    layout: Layout,
    steps: Float[Tensor, "datasets memory numbers"],
    changes: Float[Tensor, "datasets memory numbers"],
    theta: Rows,
) -> Rows:
    """L-BFGS's direction: EM's inverse information, corrected by what the last steps did to the gradient.

    The two loops of Nocedal 1980 (doi 10.1090/S0025-5718-1980-0572855-7). Rows of zeros remember nothing. With a
    homogeneous activation the remembered steps lie across other points of the ray on which the likelihood is constant;
    what they would add along it is taken out, so that the temperature is moved by the data alone, as in EM.
    """
    curvature = (steps * changes).sum(-1)
    rho = torch.where(curvature > 0, 1 / curvature.clamp(min=torch.finfo(curvature.dtype).tiny), 0)
    vector, alphas = step.gradient, []
    for m in reversed(range(steps.shape[1])):
        alphas.append(rho[:, m] * (steps[:, m] * vector).sum(-1))
        vector = vector - alphas[-1][:, None] * changes[:, m]
    vector = step.precondition(layout, vector)
    for m, alpha in zip(range(steps.shape[1]), reversed(alphas), strict=True):
        beta = rho[:, m] * (changes[:, m] * vector).sum(-1)
        vector = vector + (alpha - beta)[:, None] * steps[:, m]
    if (degree := ACTIVATIONS[layout.gate.activation].degree) is not None:
        vector = torch.where(
            step.free[:, layout.parts[0] - 1, None], _off_the_ray(vector, layout, theta, degree), vector
        )
    # A variance changes by a factor of e at most: a straight line is a poor guide to a logarithm over more than that.
    return vector * step.free / vector[:, -layout.k :].abs().amax(1, keepdim=True).clamp(min=1)


def _off_the_ray(vector: Rows, layout: Layout, theta: Rows, degree: int) -> Rows:
    """Without its part along (beta_0, beta_1 / p, tau)."""
    gate = layout.parts[0]
    ray = theta[:, :gate].clone()
    slope = torch.arange(gate - 1, device=theta.device) % (layout.d + 1) > 0
    ray[:, : gate - 1][:, slope] /= degree
    along = (vector[:, :gate] * ray).sum(1, keepdim=True) / ray.square().sum(1, keepdim=True)
    return torch.cat([vector[:, :gate] - along * ray, vector[:, gate:]], 1)
