"""What data can tell about each parameter: the Fisher information, its null space, and the ray that explains it.

    I(theta) = E_X[ int s s^T p(y | x) dy ],    s = d log p(y | x) / d theta

From n points a maximum likelihood estimate has covariance I^-1 / n, as long as I can be inverted. With a temperature it
cannot for every gate. If sigma is homogeneous of degree p, then (beta_1, beta_0, tau) -> (c^(1/p) beta_1, c beta_0,
c tau) leaves the density as it is, at any n. The tangent of this ray, (beta_1 / p, beta_0, tau), is a null vector of I.

With responsibilities r_i(x, y), e_i = y - a_i^T x - b_i and J the derivatives of the logits, the score is J^T (r - pi)
for the gate and r_i e_i (x, 1) / nu_i, r_i (e_i^2 / nu_i - 1) / (2 nu_i) for the experts.

Source: Nguyen, Akbarian and Ho 2024 (arXiv 2401.13875) for the relation between the derivatives, which is Euler's for
functions homogeneous of degree 0; the reading as a symmetry, and the information, are ours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gaussian_moe.distances import REACH, Interval, nodes
from gated.gaussian_moe.em import fit
from gated.gaussian_moe.model import GaussianMoE
from gated.kernels.gmoe_em import ACTIVATIONS, ActivationName, Points

STEPS_PER_DEVIATION = 6  # the integrand is smooth in y: the trapezoidal rule is then exact to the last bits
NULL = 1e-9  # of the largest eigenvalue, in units in which every parameter has information 1


class Fisher(NamedTuple):
    """The Fisher information of one observation, for one model or for many."""

    matrix: Float[Tensor, "*models parameters parameters"]
    names: tuple[str, ...]
    """beta0_1, beta1_1, ... for all experts but the last, then tau if it is free, then a_i, b_i, variance_i. With
    inputs in R^d there are beta1_1[0] to beta1_1[d-1]."""

    def null_space(self) -> Float[Tensor, "parameters nulls"]:
        """A basis of the directions of one model in which the density does not change, in columns of length 1."""
        if self.matrix.ndim != 2:
            raise ValueError(
                f"null_space is of one model; got models {tuple(self.matrix.shape[:-2])}: index matrix first"
            )
        scale, values, vectors = self._spectrum()
        null = vectors[:, values <= NULL * values[-1]] / scale[:, None]
        return null / torch.linalg.vector_norm(null, dim=0)

    def standard_errors(self, n: int = 1) -> Float[Tensor, "*models parameters"]:
        """sqrt((I^-1)_jj / n); infinite for each parameter that a null direction moves."""
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}")
        scale, values, vectors = self._spectrum()
        null = (values <= NULL * values[..., -1:])[..., None, :]
        variance = vectors.square() / torch.where(null, torch.ones_like(values)[..., None, :], values[..., None, :])
        variance = variance.masked_fill(null, 0).sum(-1) / scale.square() / n
        moved = vectors.abs().masked_fill(~null, 0).amax(-1) > 1e-5
        return variance.sqrt().masked_fill(moved, math.inf)

    def eigenvalues(self) -> Float[Tensor, "*models parameters"]:
        """Of the matrix, smallest first; rounding makes a zero one +-1e-16."""
        return torch.linalg.eigvalsh(self.matrix)

    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Units of the parameters in which the diagonal is 1, and the eigenvalues and eigenvectors in these."""
        scale = self.matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return scale, *torch.linalg.eigh(self.matrix / scale[..., :, None] / scale[..., None, :])


def fisher_information(
    model: GaussianMoE,
    interval: Interval | Float[Tensor, "n dim"],
    *,
    free_tau: bool = True,
    points: int = 135,
) -> Fisher:
    """I(theta) at the model's parameters, by quadrature in x and y with exact scores.

    Where a top-K selection switches, the density jumps and has no derivative in the parameters that move the switch:
    here the selection is held as it is.

    Args:
        interval: X is uniform on (low, high); or inputs [n, dim] to average over.
        free_tau: whether tau is a parameter.
        points: midpoints in x; the rule is evaluated on three times as many, and extrapolated from both.

    Raises:
        ValueError: see `gated.gaussian_moe.distances.distances`.
    """
    flat = model.map(lambda t: t.double().reshape(model.models.numel(), *t.shape[len(model.models) :]))
    matrices = []
    for one in range(model.models.numel()):
        single = flat[one]
        if isinstance(interval, Tensor):
            x, weight = interval.double(), single.tau.new_full((len(interval),), 1 / len(interval))
        else:
            x, fine, coarse = nodes(single, interval, points)
            weight = (9 * fine - coarse) / 8  # removes the term h^2 of the midpoint rule's error
        matrices.append(_information(single, x, weight, free_tau))
    matrix = torch.stack(matrices).reshape(*model.models, *matrices[0].shape)
    return Fisher(matrix.to(model.tau.dtype), _names(model, free_tau))


def _information(model: GaussianMoE, x: Tensor, weight: Tensor, free_tau: bool) -> Tensor:
    deviation = model.variance.sqrt()
    means = model.means(x)
    low, high = (means - REACH * deviation).amin(-1), (means + REACH * deviation).amax(-1)
    count = math.ceil(float((high - low).amax() / deviation.amin()) * STEPS_PER_DEVIATION) + 1
    rows = max(1, (1 << 20) // (count * 8 * model.num_experts))
    total: Tensor | float = 0.0
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        y = low[some, None] + (high - low)[some, None] * torch.linspace(0, 1, count, dtype=x.dtype, device=x.device)
        log_density, score = density_and_score(model, x[some], y, free_tau)
        mass = (weight * (high - low) / (count - 1))[some, None] * log_density.exp()
        score = score.flatten(0, 1)
        total = total + score.mT @ (mass.flatten()[:, None] * score)
    assert isinstance(total, Tensor)
    return (total + total.mT) / 2


def density_and_score(
    model: GaussianMoE, x: Float[Tensor, "n dim"], y: Float[Tensor, "n m"], free_tau: bool = True
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m parameters"]]:
    """log p(y | x) of one model at m outputs for each input, and its derivatives in the order of `Fisher.names`."""
    activation = ACTIVATIONS[model.gate.activation]
    log_pi = model.log_gate(x)  # [n, k]
    error = y[..., None] - model.means(x)[:, None]  # [n, m, k]
    log_joint = log_pi[:, None] - 0.5 * (error.square() / model.variance + torch.log(2 * math.pi * model.variance))
    log_density = log_joint.logsumexp(-1)
    r = (log_joint - log_density[..., None]).exp()
    excess = r - log_pi.exp()[:, None]
    z = x @ model.beta1.mT
    slope = activation.derivative(z)[..., None] * x[:, None] / model.tau  # [n, k, d]
    parts = []
    for i in range(model.num_experts - 1):
        parts += [excess[..., i, None] / model.tau, excess[..., i, None] * slope[:, None, i]]
    if free_tau:
        logits = (activation.value(z) + model.beta0) / model.tau
        parts.append(-(excess * logits[:, None]).sum(-1, keepdim=True) / model.tau)
    pull = r * error / model.variance
    parts += [(pull[..., None] * x[:, None, None]).flatten(-2), pull]
    parts.append(r * (error.square() / model.variance - 1) / (2 * model.variance))
    return log_density, torch.cat(parts, -1)


def _names(model: GaussianMoE, free_tau: bool) -> tuple[str, ...]:
    axes = [f"[{u}]" for u in range(model.dim)] if model.dim > 1 else [""]
    experts = range(1, model.num_experts + 1)
    gate = [name for i in experts[:-1] for name in (f"beta0_{i}", *(f"beta1_{i}{u}" for u in axes))]
    experts_names = [f"a_{i}{u}" for i in experts for u in axes]
    return (
        *gate,
        *(["tau"] if free_tau else []),
        *experts_names,
        *(f"b_{i}" for i in experts),
        *(f"variance_{i}" for i in experts),
    )


# The ray --------------------------------------------------------------------------------------------------------------


def ray(model: GaussianMoE, scale: float | int | Float[Tensor, "*scales"]) -> GaussianMoE:
    """(c^(1/p) beta_1, c beta_0, c tau), where p is the degree of a homogeneous activation, and 1 for any other.

    Along it the density is constant for homogeneous activations. The axes of `scale` come before those of the model.

    Raises:
        ValueError: a scale not above 0.
    """
    c = torch.as_tensor(scale, dtype=model.tau.dtype, device=model.tau.device)
    if not ((c > 0) & c.isfinite()).all():
        raise ValueError(f"scale must be above 0 and finite; got {c.tolist()}")
    degree = ACTIVATIONS[model.gate.activation].degree or 1
    grow = lambda tensor, factor: factor.reshape((*c.shape, *[1] * tensor.ndim)) * tensor  # noqa: E731
    moved = {"beta0": c, "beta1": c ** (1 / degree), "tau": c}
    one = torch.ones_like(c)
    return replace(model, **{name: grow(tensor, moved.get(name, one)) for name, tensor in model.tensors().items()})


def ray_log_likelihood(
    model: GaussianMoE, x: Float[Tensor, "n dim"], y: Float[Tensor, " n"], scales: Float[Tensor, " scales"]
) -> Float[Tensor, " scales"]:
    """sum_t log p(y_t | x_t) of one model at the points `scales` of its ray, all else held fixed."""
    return torch.stack([point.log_density(x, y).sum() for point in (ray(model, c) for c in scales)])


def profile_log_likelihood(
    model: GaussianMoE,
    x: Float[Tensor, "n dim"],
    y: Float[Tensor, " n"],
    scales: Float[Tensor, " scales"],
    **options: Any,
) -> Float[Tensor, " scales"]:
    """The largest log-likelihood at each temperature c tau: all other parameters are fitted anew.

    EM with tau fixed starts at the ray's point for c. Flat where tau is not identified. `options` go to
    `gated.gaussian_moe.em.fit`. The model's last expert must have beta_0 = 0 and beta_1 = 0.
    """
    copies = len(scales)
    offsets = torch.arange(copies + 1, device=x.device) * len(x)
    points = Points.pack(x.repeat(copies, 1), y.repeat(copies), offsets)
    return fit(points, ray(model, scales), free_tau=False, **options).log_likelihood


class Homogeneity(NamedTuple):
    degree: float
    defect: float


def homogeneity(activation: ActivationName, z: Float[Tensor, " n"]) -> Homogeneity:
    """How near an activation comes to z sigma'(z) = p sigma(z) + q on the points z, by least squares in p and q.

    Where this holds, the tangents 1, x sigma'(beta_1 x) and sigma(beta_1 x) of the logits are linearly dependent, so
    that the information of (beta_0, beta_1, tau) is singular. q = 0 is homogeneity of degree p.

    Returns:
        p, and the root mean square of z sigma'(z) - p sigma(z) - q over that of z sigma'(z): 0 where it holds exactly.
    """
    value, derivative = ACTIVATIONS[activation].value(z), ACTIVATIONS[activation].derivative(z)
    target = z * derivative
    design = torch.stack([value, torch.ones_like(z)], -1)
    solution = torch.linalg.lstsq(design, target[:, None]).solution
    rest = target - (design @ solution)[:, 0]
    return Homogeneity(float(solution[0]), float(rest.norm() / target.norm()))
