"""Scores: from features to logits, other than by a matrix. Any selection of `gated.gates` may follow them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_float, check_positive, holds_anywhere, is_number

Scale = Float[Tensor, "gates"] | Float[Tensor, "gates features"] | Float[Tensor, "gates features features"]
"""A spread per gate: a standard deviation s (Sigma = s^2 I), one per feature, or a lower Cholesky factor of Sigma."""


def cosine_logits(
    x: Float[Tensor, "*batch features"],
    prototypes: Float[Tensor, "gates features"],
    scale: float | int | Float[Tensor, ""] = 1.0,
    *,
    perturbation: tuple[float | int, float | int] = (0.0, 0.0),
) -> Float[Tensor, "*batch gates"]:
    """l_i = scale <e_i, x> / ((|x| + t_1) (|e_i| + t_2)).

    With t = (0, 0), the cosine itself, the length of x does not matter; x = 0 or e_i = 0 scores 0.

    Args:
        x: features. prototypes: e, one per gate.
        scale: 1 / temperature.
        perturbation: t >= 0, added to the lengths: it keeps the logits smooth where a length is near 0.

    Raises:
        ValueError: shapes that do not fit, not floating point, t < 0.

    Source: Li et al. 2023 (GMoE), arXiv 2206.04046, eq. 3; Nguyen et al. 2024, arXiv 2405.14131 (perturbed).

    Example:
        >>> cosine_logits(torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])).tolist()
        [1.0, 0.0]
    """
    _check_features(x, "prototypes", prototypes)
    if not isinstance(scale, Tensor):
        check_positive("scale", scale)
    if len(perturbation) != 2 or not all(is_number(t) and 0 <= t < math.inf for t in perturbation):
        raise ValueError(f"perturbation must hold two finite numbers of at least 0; got {perturbation!r}")
    tiny = torch.finfo(x.dtype).tiny
    lengths = [
        (torch.linalg.vector_norm(v, dim=-1, keepdim=True) + t).clamp(min=tiny)
        for v, t in zip((x, prototypes), perturbation, strict=True)
    ]
    return scale * ((x / lengths[0]) @ (prototypes / lengths[1]).mT)


def gaussian_logits(
    x: Float[Tensor, "*batch features"],
    mean: Float[Tensor, "gates features"],
    scale: Scale,
    log_prior: Float[Tensor, "gates"] | None = None,
) -> Float[Tensor, "*batch gates"]:
    """l_j = log b_j + log N(x; mu_j, Sigma_j): softmax of it is the posterior of the class j given x.

    The exponential-family gate for a Gaussian. Between two gates the boundary is a quadric, and a plane if
    their Sigma are equal.

    Args:
        x: features. mean: mu.
        scale: the spread by its shape: (gates,) s_j with Sigma_j = s_j^2 I; (gates, features) one s per
            feature; (gates, features, features) a lower triangular L_j with Sigma_j = L_j L_j^T.
        log_prior: log b; 0 unless given. -inf shuts a gate.

    Raises:
        ValueError: shapes that do not fit, not floating point, a spread (or a diagonal of L) not above 0.

    Source: Xu, Jordan & Hinton 1994, An alternative model for mixtures of experts.

    Example:
        >>> l = gaussian_logits(torch.tensor([1.0]), torch.tensor([[0.0], [2.0]]), torch.ones(2))
        >>> softmax_gate(l)  # as far from one mean as from the other
        tensor([0.5000, 0.5000])
    """
    square, log_volume = _mahalanobis(x, mean, scale)
    constant = x.shape[-1] / 2 * math.log(2 * math.pi)
    return _with_prior(-square / 2 - log_volume - constant, log_prior)


def student_t_logits(
    x: Float[Tensor, "*batch features"],
    mean: Float[Tensor, "gates features"],
    scale: Scale,
    freedom: float | int | Float[Tensor, "gates"],
    log_prior: Float[Tensor, "gates"] | None = None,
) -> Float[Tensor, "*batch gates"]:
    """l_j = log b_j + log t_v(x; mu_j, Sigma_j), the multivariate Student density with v degrees of freedom.

    log t_v = log G((v + d)/2) - log G(v/2) - d/2 log(v pi) - log|Sigma|/2 - (v + d)/2 log(1 + m^2/v), with d
    features and the Mahalanobis distance m. Far outliers score alike in all gates. v -> inf is
    `gaussian_logits`.

    Args:
        x, mean, scale, log_prior: as in `gaussian_logits`; Sigma is the scale matrix, not the covariance.
        freedom: v > 0, one number or one per gate.

    Raises:
        ValueError: v <= 0, and as in `gaussian_logits`.

    Source: Peel & McLachlan 2000, Robust mixture modelling using the t distribution.

    Example:
        >>> l = student_t_logits(torch.tensor([1.0]), torch.tensor([[0.0], [2.0]]), torch.ones(2), freedom=3)
        >>> softmax_gate(l)
        tensor([0.5000, 0.5000])
    """
    if isinstance(freedom, Tensor):
        check_float("freedom", freedom)
        if freedom.shape != mean.shape[:1] or holds_anywhere(~(freedom > 0)):
            raise ValueError(f"freedom must be positive, one number or one per gate; got {freedom}")
    else:
        check_positive("freedom", freedom)
    square, log_volume = _mahalanobis(x, mean, scale)
    v, d = torch.as_tensor(freedom, dtype=square.dtype, device=square.device), x.shape[-1]
    # lgamma((v + d)/2) - lgamma(v/2) loses all digits for large v, where Stirling's series has them.
    small = v.clamp(max=1e4)
    exact = torch.lgamma((small + d) / 2) - torch.lgamma(small / 2) - d / 2 * torch.log(small / 2)
    constant = torch.where(v > 1e4, d * (d - 2) / (4 * v), exact) - d / 2 * math.log(2 * math.pi)
    return _with_prior(constant - log_volume - (v + d) / 2 * torch.log1p(square / v), log_prior)


def laplace_logits(
    x: Float[Tensor, "*batch features"],
    centres: Float[Tensor, "gates features"],
    temperature: float | int | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "*batch gates"]:
    """l_i = -|x - a_i| / T, the Euclidean distance. Where x = a_i the gradient is 0.

    Raises:
        ValueError: shapes that do not fit, not floating point, T <= 0.

    Source: Han, Nguyen, Harris, Ho & Saria 2024 (FuseMoE), arXiv 2402.03226.

    Example:
        >>> laplace_logits(torch.tensor([3.0, 4.0]), torch.zeros(1, 2), temperature=2.0).tolist()
        [-2.5]
    """
    _check_features(x, "centres", centres)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    elif holds_anywhere(~((temperature > 0) & temperature.isfinite())):
        raise ValueError(f"temperature must be positive and finite everywhere; got {temperature}")
    return -torch.linalg.vector_norm(x[..., None, :] - centres, dim=-1) / temperature


def _mahalanobis(x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mu_j)^T Sigma_j^-1 (x - mu_j), [*batch, gates], and log|Sigma_j| / 2, [gates]."""
    _check_features(x, "mean", mean)
    check_float("scale", scale)
    gates, features = mean.shape
    if scale.shape not in ((gates,), (gates, features), (gates, features, features)):
        raise ValueError(
            f"scale must have shape ({gates},), ({gates}, {features}) or ({gates}, {features}, {features}); "
            f"got {tuple(scale.shape)}"
        )
    spread = scale.diagonal(dim1=-2, dim2=-1) if scale.ndim == 3 else scale
    if holds_anywhere(~(spread > 0)):
        raise ValueError("scale must be positive (for a Cholesky factor: its diagonal); got values that are not")
    offset = x[..., None, :] - mean
    if scale.ndim == 3:
        columns = offset.reshape(-1, gates, features).permute(1, 2, 0)
        z = torch.linalg.solve_triangular(scale, columns, upper=False).permute(2, 0, 1).reshape(offset.shape)
    else:
        z = offset / (scale if scale.ndim == 2 else scale[:, None])
    log_volume = spread.log() * (features if scale.ndim == 1 else 1)
    return z.square().sum(-1), log_volume if scale.ndim == 1 else log_volume.sum(-1)


def _with_prior(log_density: Tensor, log_prior: Tensor | None) -> Tensor:
    if log_prior is None:
        return log_density
    check_float("log_prior", log_prior)
    if log_prior.shape != log_density.shape[-1:]:
        raise ValueError(f"log_prior must have shape ({log_density.shape[-1]},); got {tuple(log_prior.shape)}")
    return log_density + log_prior


def _check_features(x: Tensor, name: str, anchors: Tensor) -> None:
    check_float("x", x)
    check_float(name, anchors)
    if anchors.ndim != 2 or 0 in anchors.shape:
        raise ValueError(f"{name} must have shape (gates, features), each >= 1; got {tuple(anchors.shape)}")
    if x.ndim == 0 or x.shape[-1] != anchors.shape[-1]:
        raise ValueError(f"x must have shape (*batch, {anchors.shape[-1]}); got {tuple(x.shape)}")
