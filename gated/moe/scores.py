"""Scores: what a gate thinks of each expert, from features to logits, in modules that learn.

Each is the module of a function of `gated.gates` (or of a matrix product). Any gate of `gated.moe.gates` takes any of
them.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gated import gates
from gated.gates._validation import check_number, check_positive, check_sizes
from gated.moe._validation import check_features

__all__ = [
    "CosineScore",
    "GaussianScore",
    "LaplaceScore",
    "LinearScore",
    "PredictionErrorScore",
    "StudentTScore",
]


class LinearScore(nn.Module):
    """l = x W^T, and + b with `bias=True`. W starts uniform in +-1 / sqrt(features), with `zero=True` at 0; b at 0."""

    def __init__(self, features: int, num_experts: int, *, zero: bool = False, bias: bool = False):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts)
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.zeros(num_experts, features))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None
        if not zero:
            nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, self.weight.shape[1])
        return F.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))


class CosineScore(nn.Module):
    """l_i = scale cos(P x, e_i), scale = exp(min(theta, log 100)) learned; P projects to `projection` dimensions.

    The length of x does not matter. Keep e and theta out of weight decay: it works against the normalisation.

    Args:
        projection: width of P; None leaves P out.
        scale: where the learned scale starts, 0 < scale <= 100. It stops at 100: beyond, the gate saturates.
        perturbation: (t_1, t_2) as in `gated.gates.cosine_logits`; with t_1 > 0 the length of x matters again.

    Source: Li et al. 2023 (GMoE), arXiv 2206.04046, eq. 3; the clamp is that of the library tutel.
    """

    def __init__(
        self,
        features: int,
        num_experts: int,
        *,
        projection: int | None = None,
        scale: float | int = 2.0,
        perturbation: tuple[float | int, float | int] = (0.0, 0.0),
    ):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts, projection=1 if projection is None else projection)
        check_number("scale", scale, "(0, 100]")
        self.num_experts, self.perturbation = num_experts, perturbation
        self.projection = nn.Parameter(torch.empty(projection, features)) if projection else None
        if self.projection is not None:
            nn.init.uniform_(self.projection, -(features**-0.5), features**-0.5)
        self.prototypes = nn.Parameter(0.01 * torch.randn(num_experts, projection or features))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, (self.prototypes if self.projection is None else self.projection).shape[1])
        if self.projection is not None:
            x = x @ self.projection.to(x).mT
        scale = self.log_scale.to(x).clamp(max=math.log(100)).exp()
        return gates.cosine_logits(x, self.prototypes.to(x), scale, perturbation=self.perturbation)


class GaussianScore(nn.Module):
    """l_j = log b_j + log N(x; mu_j, Sigma_j), with b, mu and Sigma learned.

    Args:
        covariance: "spherical", "diagonal" or "full" (by its Cholesky factor).
        min_std: added to the learned standard deviations (the factor's diagonal), so that none collapses.

    Source: Xu, Jordan & Hinton 1994, An alternative model for mixtures of experts.
    """

    def __init__(
        self,
        features: int,
        num_experts: int,
        *,
        covariance: Literal["spherical", "diagonal", "full"] = "diagonal",
        min_std: float | int = 1e-2,
    ):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts)
        if covariance not in ("spherical", "diagonal", "full"):
            raise ValueError(f"covariance must be 'spherical', 'diagonal' or 'full'; got {covariance!r}")
        check_number("min_std", min_std, "(0, inf]")
        self.num_experts, self.min_std = num_experts, min_std
        self.mean = nn.Parameter(torch.randn(num_experts, features))
        shape = (num_experts,) if covariance == "spherical" else (num_experts, features)
        self.log_std = nn.Parameter(torch.zeros(shape))
        lower = torch.zeros(num_experts, features, features)
        self.lower = nn.Parameter(lower) if covariance == "full" else None
        self.prior = nn.Parameter(torch.zeros(num_experts))

    def scale(self) -> Tensor:
        """The spread as `gated.gates.gaussian_logits` takes it."""
        std = self.log_std.exp() + self.min_std
        return std if self.lower is None else self.lower.tril(-1) + torch.diag_embed(std)

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, self.mean.shape[1])
        return gates.gaussian_logits(x, self.mean.to(x), self.scale().to(x), self.prior.to(x).log_softmax(0))


class StudentTScore(GaussianScore):
    """l_j = log b_j + log t_v(x; mu_j, Sigma_j): `GaussianScore` with heavy tails, v = `freedom` fixed."""

    def __init__(
        self,
        features: int,
        num_experts: int,
        freedom: float | int = 3.0,
        *,
        covariance: Literal["spherical", "diagonal", "full"] = "diagonal",
        min_std: float | int = 1e-2,
    ):
        super().__init__(features, num_experts, covariance=covariance, min_std=min_std)
        check_positive("freedom", freedom)
        self.freedom = freedom

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, self.mean.shape[1])
        prior = self.prior.to(x).log_softmax(0)
        return gates.student_t_logits(x, self.mean.to(x), self.scale().to(x), self.freedom, prior)


class LaplaceScore(nn.Module):
    """l_i = -|x - a_i| / T, with the centres a_i learned and T fixed.

    Source: Han, Nguyen, Harris, Ho & Saria 2024 (FuseMoE), arXiv 2402.03226.
    """

    def __init__(self, features: int, num_experts: int, temperature: float | int = 1.0):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts)
        check_positive("temperature", temperature)
        self.num_experts, self.temperature = num_experts, temperature
        self.centres = nn.Parameter(torch.randn(num_experts, features))

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, self.centres.shape[1])
        return gates.laplace_logits(x, self.centres.to(x), self.temperature)


class PredictionErrorScore(nn.Module):
    """l_i = -q_i / 2 sigma^2, where q_i is the squared error of expert i's own prediction. Nothing is learned.

    The signal is q [tokens, experts]: the expert that predicts best gets the work.

    Source: survey, III-D (multiple model-based reinforcement learning).
    """

    def __init__(self, num_experts: int, sigma: float | int = 1.0):
        super().__init__()
        check_sizes(num_experts=num_experts)
        check_positive("sigma", sigma)
        self.num_experts, self.sigma = num_experts, sigma

    def forward(self, x: Float[Tensor, "tokens num_experts"]) -> Float[Tensor, "tokens num_experts"]:
        check_features(x, self.num_experts)
        return -x / (2 * self.sigma**2)
