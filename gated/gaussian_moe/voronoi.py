"""How far the parameters of a fit are from the truth when nobody says which expert is which, or how many there are.

Every fitted expert i belongs to the cell A_j of the true expert j that is nearest in (beta_1, a, b, variance). With the
weights w_i = e^(beta_0i / tau) the losses below compare the total weight of each cell with the true weight, and the
weighted distances inside the cells with 0. A top-K gate shows K experts at a time, so that only the K largest costs
count: the maximum over K-subsets of a sum over the subset is the sum of the K largest.

A cell that holds one expert is charged the distance itself. One that holds m > 1 is charged powers of it, since the
excesses of several experts can cancel to high order: powers rbar(m) in beta_1 and b, rbar(m)/2 in a and the variance.
rbar(m) is the smallest r for which the polynomial system below has no solution but trivial ones.

Source: Nguyen, Akbarian, Yan and Ho 2024 (arXiv 2309.13850) for the top-K form; Nguyen, Nguyen and Ho 2023 (arXiv
2305.03288) for the exponents and the polynomial system; Nguyen, Akbarian and Ho 2024 (arXiv 2401.13875) for the
losses with temperature.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated.gaussian_moe.model import GaussianMoE


def cells(fitted: GaussianMoE, truth: GaussianMoE) -> Int[Tensor, "*models experts"]:
    """Which true expert each fitted one is nearest to, in Euclidean distance of (beta_1, a, b, variance) as they are.

    Ties go to the lower index. The axes of `fitted` and `truth` before the experts are broadcast.
    """
    _check(fitted, truth)
    return torch.cdist(_theta(fitted), _theta(truth), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)


def fix_gauge(fitted: GaussianMoE, truth: GaussianMoE) -> GaussianMoE:
    """The same density, with the logits shifted so that the experts of the last true cell weigh what the true one does.

    A softmax does not change when all beta_0 or all beta_1 move together. A fit holds its own last expert at 0. Where
    other experts share that cell, or the last expert went elsewhere, its weights are then off by a common factor. Here
    beta_0 moves so that the cell's weights sum to the true weight, and beta_1 so that their weighted mean is the true
    beta_1. The cells for this are those of (a, b, variance), which no shift changes; an empty one is represented by the
    fitted expert that comes closest. With an activation beta_1 must not move (sigma(z + t) is not sigma(z) + t).
    """
    _check(fitted, truth)
    distance = torch.cdist(
        _theta(fitted, gate=False), _theta(truth, gate=False), compute_mode="donot_use_mm_for_euclid_dist"
    )
    last = truth.num_experts - 1
    inside = distance.argmin(-1) == last
    closest = torch.zeros_like(inside).scatter(-1, distance[..., last].argmin(-1, keepdim=True), True)
    inside = torch.where(inside.any(-1, keepdim=True), inside, closest)
    logit = (fitted.beta0 / fitted.tau[..., None]).masked_fill(~inside, -math.inf)
    shift = truth.beta0[..., -1] / truth.tau - logit.logsumexp(-1)
    fitted = replace(fitted, beta0=fitted.beta0 + (fitted.tau * shift)[..., None])
    if fitted.gate.activation != "identity":
        return fitted
    mean = (logit.softmax(-1)[..., None] * fitted.beta1).sum(-2, keepdim=True)
    return replace(fitted, beta1=fitted.beta1 - mean + truth.beta1[..., -1:, :])


def exact_loss(fitted: GaussianMoE, truth: GaussianMoE) -> Float[Tensor, "*models"]:
    """D1, for as many fitted experts as true ones: the K largest of the true experts' costs

    |sum_{i in A_j} w_i - w*_j| + sum_{i in A_j} w_i ||(beta_1i - beta*_1j, a_i - a*_j, b_i - b*_j, nu_i - nu*_j)||.

    Fix the gauge first.
    """
    given = _cells(fitted, truth)
    return _largest(given, given.norm(given.beta1, given.a, given.b, given.variance))


def over_loss(fitted: GaussianMoE, truth: GaussianMoE) -> Float[Tensor, "*models"]:
    """D2, for more fitted experts than true ones: D1's cost in cells of one expert, and in those of m > 1 experts

    |sum w_i - w*_j| + sum w_i (||(d beta_1, d b)||^rbar(m) + ||(d a, d nu)||^(rbar(m)/2)),  d: fitted minus true.
    """
    given = _cells(fitted, truth)
    power = _rbar(given.size)
    single = given.norm(given.beta1, given.a, given.b, given.variance)
    several = given.norm(given.beta1, given.b) ** power + given.norm(given.a, given.variance) ** (power / 2)
    return _largest(given, torch.where(given.size == 1, single, several))


def tempered_loss(fitted: GaussianMoE, truth: GaussianMoE, *, power: float | int = 1) -> Float[Tensor, "*models"]:
    """The loss with temperature, all powers r alike: the sum over true experts of

    |sum w_i - w*_j| + sum w_i (||d beta_1||^r + |d tau|^r + ||d a||^r + |d b|^r + |d nu|^r),  w = e^(beta_0 / tau).

    Args:
        power: r >= 1; 1 is the loss of the exactly specified model.

    Raises:
        ValueError: power below 1, parameters that do not fit together.
    """
    if not power >= 1:
        raise ValueError(f"power must be at least 1; got {power}")
    given = _cells(fitted, truth)
    tau = (fitted.tau - truth.tau).abs()[..., None].expand(given.weight.shape)
    terms = (given.norm(given.beta1), tau, given.norm(given.a), given.norm(given.b), given.norm(given.variance))
    return _largest(given, torch.stack([term**power for term in terms]).sum(0))


def tempered_over_loss(fitted: GaussianMoE, truth: GaussianMoE) -> Float[Tensor, "*models"]:
    """The loss of an over-specified activation gate: |d tau| once, and over the true experts the sum of

    |sum w_i - w*_j| + sum w_i (||d beta_1||^s + ||d a||^s + |d b|^t + |d nu|^u)

    with s = t = u = 1 in cells of one expert and s = 2, t = rbar(m), u = rbar(m)/2 in those of m.

    Source: the powers are those of Han et al. 2024, FuseMoE (arXiv 2402.03226), for a Laplace gate of the same authors.
    """
    given = _cells(fitted, truth)
    one, power = given.size == 1, _rbar(given.size)
    gate = torch.where(one, torch.ones_like(power), torch.full_like(power, 2))
    b, variance = torch.where(one, gate, power), torch.where(one, gate, power / 2)
    terms = given.norm(given.beta1) ** gate + given.norm(given.a) ** gate
    terms = terms + given.norm(given.b) ** b + given.norm(given.variance) ** variance
    return _largest(given, terms) + (fitted.tau - truth.tau).abs()


def rbar(m: int) -> int:
    """The order at which m experts in one cell stop cancelling: 1 for m = 1, 4 for 2, 6 for 3. From 4 on, 2 m is a
    conjecture of the source (Nguyen, Nguyen and Ho 2023, arXiv 2305.03288)."""
    if m < 1:
        raise ValueError(f"m must be at least 1; got {m}")
    return 2 * m if m > 1 else 1


# The cells ------------------------------------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """Each fitted expert beside the true one of its cell."""

    cell: Tensor  # [*models, experts]: which it is
    size: Tensor  # how many experts share it
    weight: Tensor
    target: Tensor  # [*models, true experts]: the true weights
    top_k: int
    beta1: Tensor  # differences, with a last axis
    a: Tensor
    b: Tensor
    variance: Tensor

    def norm(self, *differences: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.cat(differences, -1), dim=-1)


def _cells(fitted: GaussianMoE, truth: GaussianMoE) -> _Cells:
    index = cells(fitted, truth)
    size = torch.nn.functional.one_hot(index, truth.num_experts).sum(-2).gather(-1, index)

    def difference(name: str) -> Tensor:
        ours, theirs = getattr(fitted, name), getattr(truth, name)
        if ours.ndim == fitted.beta0.ndim:
            ours, theirs = ours[..., None], theirs[..., None]
        theirs = theirs.broadcast_to((*index.shape[:-1], *theirs.shape[-2:]))
        return ours - theirs.gather(-2, index[..., None].expand(*index.shape, ours.shape[-1]))

    differences = {name: difference(name) for name in ("beta1", "a", "b", "variance")}
    weight, target = _weight(fitted), _weight(truth)
    target = target.broadcast_to((*index.shape[:-1], truth.num_experts))
    top_k = truth.gate.top_k or truth.num_experts
    return _Cells(index, size, weight.expand(index.shape), target, top_k, **differences)


def _largest(given: _Cells, term: Tensor) -> Tensor:
    """The sum of the K largest of |sum w_i - w*_j| + sum w_i term_i over the true experts j."""
    zero = torch.zeros_like(given.target)
    weight = zero.scatter_add(-1, given.cell, given.weight)
    cost = (weight - given.target).abs() + zero.scatter_add(-1, given.cell, given.weight * term)
    return cost.topk(given.top_k, dim=-1).values.sum(-1)


def _theta(model: GaussianMoE, *, gate: bool = True) -> Tensor:
    parts = [model.a, model.b[..., None], model.variance[..., None]]
    return torch.cat([model.beta1, *parts] if gate else parts, -1)


def _weight(model: GaussianMoE) -> Tensor:
    # e^700 is near the largest float64: a very cold gate has a huge loss, not an infinite or an undefined one.
    return (model.beta0 / model.tau[..., None]).clamp(max=700).exp()


def _rbar(size: Tensor) -> Tensor:
    return torch.where(size == 1, torch.ones_like(size), 2 * size).double()


def _check(fitted: GaussianMoE, truth: GaussianMoE) -> None:
    if fitted.dim != truth.dim:
        raise ValueError(f"fitted and truth must have inputs of one dimension; got {fitted.dim} and {truth.dim}")
    for name, tensor in fitted.tensors().items():
        if not tensor.isfinite().all():
            raise ValueError(f"fitted.{name} must be finite; got {int((~tensor.isfinite()).sum())} other values")


# The polynomial system ------------------------------------------------------------------------------------------------


def polynomial_residual(p: Float[Tensor, "*starts experts 5"], order: int) -> Float[Tensor, "*starts equations"]:
    """The left sides of the system that defines rbar, for inputs in R^1. m experts cancel to order r if all are 0:

    sum_l p_5l^2 sum p_1l^a1 p_2l^a2 p_3l^a3 p_4l^a4 / (a1! a2! a3! a4!) = 0,  a1 + a2 = l1,  a2 + a3 + 2 a4 = l2,

    for all l1, l2 >= 0 with 1 <= l1 + l2 <= r: (r^2 + 3r)/2 equations. Here p_5^2 stands for e^beta_0, and p_1 to p_4
    for the excess of (beta_1, a, b, variance / 2). A solution is not trivial if all p_5 and some p_3 are not 0. The
    system follows from d2u / d beta_1 d b = du / da and d2u / db2 = 2 du / d nu, where u = e^(beta_1 x + beta_0) N(y).

    Raises:
        ValueError: order below 1.
    """
    return _system(p, order)[0]


def least_residual(
    experts: int, order: int, *, starts: int = 64, steps: int = 200, generator: torch.Generator
) -> Float[Tensor, " starts"]:
    """The norms of the residual that Levenberg and Marquardt's method ends at on the polynomial system, smallest first.

    Trivial solutions are kept out by sum_l p_3l^2 = m and by p_5 between 1/2 and 3/2. A smallest norm of 0 (to the
    precision of float64) shows that rbar(m) > r. Norms that stay away from 0 from all starts suggest rbar(m) <= r.

    Raises:
        ValueError: order below 1.
    """
    free = torch.randn(starts, experts, 5, dtype=torch.float64, device=generator.device, generator=generator)
    value, slope = _bounded(free, order)
    damping = free.new_full((starts, 1, 1), 1e-2)
    eye = torch.eye(5 * experts, dtype=free.dtype, device=free.device)
    for _ in range(steps):
        step = torch.linalg.solve(slope.mT @ slope + damping * eye, slope.mT @ value[..., None])
        moved = free - step.reshape(free.shape)
        trial, steeper = _bounded(moved, order)
        better = trial.square().sum(-1) < value.square().sum(-1)
        free = torch.where(better[:, None, None], moved, free)
        value = torch.where(better[:, None], trial, value)
        slope = torch.where(better[:, None, None], steeper, slope)
        damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-14, 1e10)
    return torch.linalg.vector_norm(value, dim=-1).sort().values


def _bounded(free: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Residual and Jacobian in free parameters: p_3 on a sphere, p_5 = 1 + sin(.) / 2."""
    experts = free.shape[-2]
    length = torch.linalg.vector_norm(free[..., 2], dim=-1, keepdim=True)
    unit = free[..., 2] / length
    p = torch.stack([*free[..., :2].unbind(-1), unit * experts**0.5, free[..., 3], 1 + free[..., 4].sin() / 2], -1)
    value, slope = _system(p, order)  # slope: [..., equations, experts, 5]
    along = slope[..., 2]
    along = (along - (along * unit[..., None, :]).sum(-1, keepdim=True) * unit[..., None, :]) * experts**0.5
    slope = torch.stack(
        [
            *slope[..., :2].unbind(-1),
            along / length[..., None],
            slope[..., 3],
            slope[..., 4] * free[..., None, :, 4].cos() / 2,
        ],
        -1,
    )
    return value, slope.flatten(-2)


def _system(p: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The left sides [..., equations], and their derivatives [..., equations, experts, 5]."""
    if order < 1:
        raise ValueError(f"order must be at least 1; got {order}")
    equations = [(l1, l2) for l1 in range(order + 1) for l2 in range(order + 1 - l1) if l1 + l2]
    alphas, sides = [], []
    for side, (l1, l2) in enumerate(equations):
        for a2 in range(min(l1, l2) + 1):
            for a4 in range((l2 - a2) // 2 + 1):
                alphas.append((l1 - a2, a2, l2 - a2 - 2 * a4, a4))
                sides.append(side)
    collect = p.new_zeros(len(alphas), len(equations))
    collect[torch.arange(len(alphas)), torch.tensor(sides)] = 1
    powers = [torch.zeros_like(p[..., :4]), torch.ones_like(p[..., :4])]
    for degree in range(1, order + 1):
        powers.append(powers[-1] * p[..., :4] / degree)
    table = torch.stack(powers, -1)  # [..., experts, 4, order + 2]: p^n / n! at n + 1, and its derivative at n
    alpha = torch.tensor(alphas, device=p.device)
    factors = [table[..., c, alpha[:, c] + 1] for c in range(4)]
    terms = math.prod(factors[1:], start=factors[0])
    weight = p[..., 4:].square()
    slopes = []
    for c in range(4):
        others = [factors[o] if o != c else table[..., c, alpha[:, c]] for o in range(4)]
        slopes.append((weight * math.prod(others[1:], start=others[0])) @ collect)
    sums = terms @ collect  # [..., experts, equations]
    slopes.append(2 * p[..., 4:] * sums)
    return (weight * sums).sum(-2), torch.stack(slopes, -1).transpose(-3, -2)
