"""Mixtures of linear experts fitted by expectation and maximisation instead of gradients.

Two gates. The Gaussian gate models inputs and outputs together,

    p(x, y) = sum_j b_j N(x; mu_j, Sigma_j) N(y; w_j^T [x; 1], s_j^2),

so that g_j(x) = b_j N(x; mu_j, Sigma_j) / sum_i b_i N(x; mu_i, Sigma_i) and every step of EM is in closed form. Either
normal may be replaced by Student's t with fixed degrees of freedom, which is a normal whose precision is scaled by a
hidden gamma variable: EM then averages over that as well, and outliers weigh less. The softmax gate,
g(x) = softmax(V [x; 1]), models p(y | x) alone, and its maximisation needs Newton's method inside each step.

EM raises the joint likelihood of the first and the conditional likelihood of the second. To compare them, take
`conditional_log_likelihood` of both. All functions fit many data sets ("runs") at once. Use float64.

Source: Jordan & Jacobs 1994, Hierarchical mixtures of experts and the EM algorithm (softmax gate); Xu, Jordan & Hinton
1994, An alternative model for mixtures of experts (Gaussian gate); Peel & McLachlan 2000, Robust mixture modelling
using the t distribution.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates import gaussian_logits, student_t_logits

DEAD = 1e-10  # an expert with less responsibility than this keeps its parameters


class GaussianGateModel(NamedTuple):
    """Parameters of the joint model. Freedom inf is the normal distribution."""

    log_prior: Float[Tensor, "runs experts"]
    mean: Float[Tensor, "runs experts dim"]
    factor: Float[Tensor, "runs experts dim dim"]
    """Lower Cholesky factor of Sigma_j."""
    weight: Float[Tensor, "runs experts dim+1"]
    """The last entry is the intercept."""
    std: Float[Tensor, "runs experts"]
    gate_freedom: float = math.inf
    expert_freedom: float = math.inf

    def gate_logits(self, x: Float[Tensor, "runs n dim"]) -> Float[Tensor, "runs n experts"]:
        """log b_j p(x | j); its softmax is the gate."""
        if self.gate_freedom == math.inf:
            return torch.vmap(gaussian_logits)(x, self.mean, self.factor, self.log_prior)
        gate = lambda x, mean, factor, prior: student_t_logits(x, mean, factor, self.gate_freedom, prior)  # noqa: E731
        return torch.vmap(gate)(x, self.mean, self.factor, self.log_prior)

    def log_joint(self, x: Float[Tensor, "runs n dim"], y: Float[Tensor, "runs n"]) -> Float[Tensor, "runs n experts"]:
        """log b_j p(x | j) p(y | x, j)."""
        return self.gate_logits(x) + _expert_log_density(self, x, y)

    def log_likelihood(self, x: Float[Tensor, "runs n dim"], y: Float[Tensor, "runs n"]) -> Float[Tensor, "runs"]:
        """sum_t log p(x_t, y_t): what EM raises."""
        return self.log_joint(x, y).logsumexp(-1).sum(-1)

    def conditional_log_likelihood(
        self, x: Float[Tensor, "runs n dim"], y: Float[Tensor, "runs n"]
    ) -> Float[Tensor, "runs"]:
        """sum_t log p(y_t | x_t)."""
        return _conditional(self, x, y)

    def predict(self, x: Float[Tensor, "runs n dim"]) -> Float[Tensor, "runs n"]:
        """sum_j g_j(x) w_j^T [x; 1]."""
        return _predict(self, x)


class SoftmaxGateModel(NamedTuple):
    """Parameters of the conditional model. The last expert's logits are 0."""

    gate: Float[Tensor, "runs experts dim+1"]
    weight: Float[Tensor, "runs experts dim+1"]
    std: Float[Tensor, "runs experts"]
    expert_freedom: float = math.inf

    def gate_logits(self, x: Float[Tensor, "runs n dim"]) -> Float[Tensor, "runs n experts"]:
        """V [x; 1]."""
        return _with_one(x) @ self.gate.mT

    def log_likelihood(self, x: Float[Tensor, "runs n dim"], y: Float[Tensor, "runs n"]) -> Float[Tensor, "runs"]:
        """sum_t log p(y_t | x_t): what EM raises."""
        return _conditional(self, x, y)

    def conditional_log_likelihood(
        self, x: Float[Tensor, "runs n dim"], y: Float[Tensor, "runs n"]
    ) -> Float[Tensor, "runs"]:
        """The same as `log_likelihood`."""
        return _conditional(self, x, y)

    def predict(self, x: Float[Tensor, "runs n dim"]) -> Float[Tensor, "runs n"]:
        """sum_j g_j(x) w_j^T [x; 1]."""
        return _predict(self, x)


class Fit(NamedTuple):
    """A fitted model, and the log-likelihood that EM raises before the first step and after each."""

    model: GaussianGateModel | SoftmaxGateModel
    log_likelihood: Float[Tensor, "steps+1 runs"]

    def iterations(self, tolerance: float | int) -> list[int]:
        """Per run, the first step after which the log-likelihood is within `tolerance` of its last value."""
        near = self.log_likelihood[-1] - self.log_likelihood <= tolerance
        return near.int().argmax(0).tolist()


def nearest_of_random(
    x: Float[Tensor, "runs n dim"], experts: int, generator: torch.Generator
) -> Float[Tensor, "runs n experts"]:
    """Responsibilities to start from: `experts` of the inputs are drawn, each input belongs to the nearest of them.

    Raises:
        ValueError: experts outside 1..n.
    """
    runs, n, dim = x.shape
    if not 1 <= experts <= n:
        raise ValueError(f"experts must be from 1 to the number of inputs, {n}; got {experts}")
    drawn = torch.rand(runs, n, generator=generator, dtype=x.dtype, device=x.device).argsort(-1)[:, :experts]
    centres = x.gather(1, drawn[..., None].expand(runs, experts, dim))
    return torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(-1), experts).to(x)


def fit_gaussian_gate(
    x: Float[Tensor, "runs n dim"],
    y: Float[Tensor, "runs n"],
    responsibility: Float[Tensor, "runs n experts"],
    *,
    steps: int = 500,
    tolerance: float | int = 1e-9,
    floor: float | int = 1e-4,
    gate_freedom: float | int = math.inf,
    expert_freedom: float | int = math.inf,
) -> Fit:
    """EM for the Gaussian gate, or with finite freedom for Student's t in the gate, the experts or both.

    E: h_tj = p(j | x_t, y_t); for t with v degrees of freedom in d dimensions the weight u = (v + d)/(v + m^2), where m
    is the Mahalanobis distance (u = 1 for the normal). M: b_j = mean h_j; mu_j and Sigma_j are moments weighted by h u
    (Sigma divided by sum h); w_j is least squares weighted by h u', with u' from the residual; s_j^2 its mean square.
    The eigenvalues of Sigma and s^2 are clipped at `floor`, which is the exact maximum under that constraint, so the
    log-likelihood never decreases. An expert that nobody wants keeps its parameters.

    Args:
        responsibility: where to start; rows sum to one, see `nearest_of_random`.
        steps: at most so many. tolerance: stop when no run gains more than this per example.
        floor: least variance, > 0, in the units of x^2 and y^2.
        gate_freedom, expert_freedom: v > 0, fixed; inf is the normal.

    Raises:
        ValueError: shapes that differ, a freedom or floor not above 0, steps below 1.
    """
    _check(x, y, responsibility, steps, floor)
    for name, freedom in (("gate_freedom", gate_freedom), ("expert_freedom", expert_freedom)):
        if not freedom > 0:
            raise ValueError(f"{name} must be above 0 (inf for the normal distribution); got {freedom}")
    (runs, n, dim), experts = x.shape, responsibility.shape[-1]
    eye = torch.eye(dim, dtype=x.dtype, device=x.device)
    ones = x.new_ones(runs, experts)
    spread = x.std(1, correction=0).amax(-1).clamp(min=floor**0.5)
    model = GaussianGateModel(
        (ones / experts).log(),
        x.mean(1, keepdim=True).expand(runs, experts, dim),
        eye.expand(runs, experts, dim, dim) * spread[:, None, None, None],
        x.new_zeros(runs, experts, dim + 1),
        ones * y.std(-1, correction=0, keepdim=True).clamp(min=floor**0.5),
        float(gate_freedom),
        float(expert_freedom),
    )
    uniform = torch.ones_like(responsibility)
    model = _maximise_joint(model, x, y, responsibility, uniform, uniform, floor)
    history = [model.log_likelihood(x, y)]
    for _ in range(steps):
        h = model.log_joint(x, y).softmax(-1)
        u, v = uniform, uniform
        if gate_freedom < math.inf:
            offset = x[:, :, None] - model.mean[:, None]
            z = torch.linalg.solve_triangular(model.factor, offset.permute(0, 2, 3, 1), upper=False)
            u = (gate_freedom + dim) / (gate_freedom + z.square().sum(2).mT)
        if expert_freedom < math.inf:
            v = (expert_freedom + 1) / (expert_freedom + _standard_residual(model, x, y).square())
        model = _maximise_joint(model, x, y, h, u, v, floor)
        history.append(model.log_likelihood(x, y))
        if ((history[-1] - history[-2]) < tolerance * n).all():
            break
    return Fit(model, torch.stack(history))


def fit_softmax_gate(
    x: Float[Tensor, "runs n dim"],
    y: Float[Tensor, "runs n"],
    responsibility: Float[Tensor, "runs n experts"],
    *,
    steps: int = 500,
    tolerance: float | int = 1e-9,
    floor: float | int = 1e-4,
    newton_steps: int = 8,
) -> Fit:
    """EM for the softmax gate. E: h_tj = p(j | x_t, y_t). M: the experts as in `fit_gaussian_gate`; the gate by Newton.

    The gate's part of M is a multinomial logistic regression of h on x: sum_t sum_j h_tj log g_j(x_t) is concave in V.
    Newton's steps (iteratively reweighted least squares) are halved until they do not lower it, so the conditional
    log-likelihood never decreases, even where V has no finite maximum.

    Args:
        newton_steps: at most so many inside each step, >= 1; the rest as in `fit_gaussian_gate`.

    Raises:
        ValueError: shapes that differ, floor not above 0, steps below 1.
    """
    _check(x, y, responsibility, min(steps, newton_steps), floor)
    (runs, n, dim), experts = x.shape, responsibility.shape[-1]
    ones = x.new_ones(runs, experts)
    gate = x.new_zeros(runs, experts, dim + 1)
    model = SoftmaxGateModel(gate, gate, ones * y.std(-1, correction=0, keepdim=True).clamp(min=floor**0.5))
    history, h = [], responsibility
    for step in range(steps + 1):
        if step:
            h = (model.gate_logits(x).log_softmax(-1) + _expert_log_density(model, x, y)).softmax(-1)
        weight, std = _regress(model, x, y, h, torch.ones_like(h), floor)
        model = SoftmaxGateModel(_newton(model.gate, _with_one(x), h, newton_steps), weight, std)
        history.append(model.log_likelihood(x, y))
        if step and ((history[-1] - history[-2]) < tolerance * n).all():
            break
    return Fit(model, torch.stack(history))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def _standard_residual(model: GaussianGateModel | SoftmaxGateModel, x: Tensor, y: Tensor) -> Tensor:
    return (y[..., None] - _with_one(x) @ model.weight.mT) / model.std[:, None]


def _expert_log_density(model: GaussianGateModel | SoftmaxGateModel, x: Tensor, y: Tensor) -> Tensor:
    z = _standard_residual(model, x, y)[..., None]
    zero, one = z.new_zeros(1, 1), z.new_ones(1)
    if model.expert_freedom == math.inf:
        density = gaussian_logits(z, zero, one)
    else:
        density = student_t_logits(z, zero, one, model.expert_freedom)
    return density[..., 0] - model.std.log()[:, None]


def _conditional(model: GaussianGateModel | SoftmaxGateModel, x: Tensor, y: Tensor) -> Tensor:
    return (model.gate_logits(x).log_softmax(-1) + _expert_log_density(model, x, y)).logsumexp(-1).sum(-1)


def _predict(model: GaussianGateModel | SoftmaxGateModel, x: Tensor) -> Tensor:
    return (model.gate_logits(x).softmax(-1) * (_with_one(x) @ model.weight.mT)).sum(-1)


def _regress(
    model: GaussianGateModel | SoftmaxGateModel, x: Tensor, y: Tensor, h: Tensor, v: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Least squares weighted by h v, and sum h v r^2 / sum h, clipped; the old values where sum h is nothing."""
    one, total, hv = _with_one(x), h.sum(1), h * v
    normal = torch.einsum("rnj,rna,rnb->rjab", hv, one, one)
    moment = torch.einsum("rnj,rna,rn->rja", hv, one, y)
    weight = (torch.linalg.pinv(normal, hermitian=True, rtol=1e-13) @ moment[..., None])[..., 0]
    alive = total > DEAD
    weight = torch.where(alive[..., None], weight, model.weight)
    square = (hv * (y[..., None] - one @ weight.mT).square()).sum(1) / total.clamp(min=DEAD)
    return weight, torch.where(alive, square.clamp(min=floor).sqrt(), model.std)


def _maximise_joint(
    model: GaussianGateModel, x: Tensor, y: Tensor, h: Tensor, u: Tensor, v: Tensor, floor: float
) -> GaussianGateModel:
    total, hu = h.sum(1), h * u
    alive = total > DEAD
    mean = torch.einsum("rnj,rnd->rjd", hu, x) / hu.sum(1).clamp(min=DEAD)[..., None]
    mean = torch.where(alive[..., None], mean, model.mean)
    offset = x[:, :, None] - mean[:, None]
    scatter = torch.einsum("rnj,rnjd,rnje->rjde", hu, offset, offset) / total.clamp(min=DEAD)[..., None, None]
    values, vectors = torch.linalg.eigh(scatter)
    clipped = vectors * values.clamp(min=floor)[..., None, :] @ vectors.mT
    factor = torch.where(alive[..., None, None], torch.linalg.cholesky(clipped), model.factor)
    weight, std = _regress(model, x, y, h, v, floor)
    log_prior = (total / total.sum(-1, keepdim=True)).log()
    return model._replace(log_prior=log_prior, mean=mean, factor=factor, weight=weight, std=std)


def _newton(gate: Tensor, one: Tensor, h: Tensor, steps: int) -> Tensor:
    runs, experts, width = gate.shape
    free = experts - 1  # the last expert's row stays 0: logits are free up to a common shift
    if not free:
        return gate

    def value(gate: Tensor) -> Tensor:
        return (h * (one @ gate.mT).log_softmax(-1)).sum((1, 2))

    now = value(gate)
    for _ in range(steps):
        g = (one @ gate.mT).softmax(-1)
        slope = torch.einsum("rnj,rna->rja", h - g, one)[:, :free].reshape(runs, -1)
        inner = torch.diag_embed(g[..., :free]) - g[..., :free, None] * g[..., None, :free]
        hessian = torch.einsum("rnij,rna,rnb->riajb", inner, one, one).reshape(runs, free * width, free * width)
        ridge = 1e-10 * hessian.diagonal(dim1=1, dim2=2).mean(-1) + 1e-10
        hessian = hessian + ridge[:, None, None] * torch.eye(free * width, dtype=h.dtype, device=h.device)
        move = torch.linalg.solve(hessian, slope).reshape(runs, free, width)
        move = torch.cat([move, torch.zeros_like(gate[:, :1])], 1)
        size = torch.ones_like(now)
        for _ in range(30):
            better = value(gate + size[:, None, None] * move) >= now
            if better.all():
                break
            size = torch.where(better, size, size / 2)
        size = torch.where(better, size, torch.zeros_like(size))
        gate, before = gate + size[:, None, None] * move, now
        now = value(gate)
        if (now - before < 1e-12 * one.shape[1]).all():
            break
    return gate


def _check(x: Tensor, y: Tensor, responsibility: Tensor, steps: int, floor: float) -> None:
    if x.ndim != 3 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(f"x must be floating point, shape (runs, n, dim); got {x.dtype}, {tuple(x.shape)}")
    if y.shape != x.shape[:2] or y.dtype != x.dtype:
        raise ValueError(f"y must be {x.dtype}, shape {tuple(x.shape[:2])}; got {y.dtype}, {tuple(y.shape)}")
    if responsibility.ndim != 3 or responsibility.shape[:2] != x.shape[:2] or responsibility.dtype != x.dtype:
        raise ValueError(
            f"responsibility must be {x.dtype}, shape {tuple(x.shape[:2])} and experts; "
            f"got {responsibility.dtype}, {tuple(responsibility.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps (and newton_steps) must be at least 1; got {steps}")
    if not floor > 0:
        raise ValueError(f"floor must be above 0; got {floor}")
