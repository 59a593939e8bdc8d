"""The Gaussian mixture of experts as a scikit-learn regressor.

`import gated.gaussian_moe` does not need scikit-learn; this file does.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gated.gaussian_moe import em
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.kernels.gmoe_em import Points

EXPECTED_FAILED_CHECKS = {
    "check_regressors_no_decision_function": "it wants no predict_proba in a regressor; here that is the gate"
}


class GaussianMoERegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """p(y | x) = sum_i pi_i(x) N(y; a_i^T x + b_i, nu_i), fitted by maximum likelihood from several random starts.

    A start draws `n_experts` of the points and gives each point to the nearest of them, in (x, y) with all columns in
    units of their standard deviation. The experts are least squares lines through their points; the gate is that of
    normal distributions around their inputs. The start whose fit has the greatest likelihood is kept.

    Data are fitted in units of their standard deviations, and the model is then written in yours. No variance falls
    below `min_variance` times that of y, and no slope of the gate exceeds 200 in these units; without bounds the
    likelihood is infinite. With `top_k=1` only the experts are fitted: the gate has no gradient and stays as a start
    has it, so that a large `n_init` is a search over gates.

    Of scikit-learn's `check_estimator`, all pass but `check_regressors_no_decision_function`, which wants no
    `predict_proba` in a regressor. Here that is the gate, under the name that users look for.
    `EXPECTED_FAILED_CHECKS` can be given to `check_estimator`.

    Args:
        n_experts: k.
        top_k: how many experts an input keeps; None keeps all.
        rank: what they are chosen by, "logit" or "slope".
        activation: what the gate's linear scores go through, a key of `gated.kernels.gmoe_em.ACTIVATIONS`.
        free_tau: whether tau is estimated; otherwise it is 1. With a homogeneous activation, such as the identity,
            the data say nothing about it.
        n_init: how many starts.
        max_iter: most passes over the data in one fit.
        tol: a fit ends when an iteration gains less log-likelihood (the sum over points).
        min_variance: least variance of an expert, as a part of the variance of y (of 1 where all y are equal).
        random_state: seed or generator of the starts.

    Attributes:
        model_: the fitted `GaussianMoE`, in float64. The last expert's gate is 0.
        log_likelihood_: sum of log p(y | x) over the data it was fitted to.
        n_iter_: passes over the data that the kept fit took. converged_: whether it stopped by itself.
        n_dormant_: experts that no training point selects or that explain none. at_bound_: whether a bound was met.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    # scikit-learn asks that a constructor takes whatever it is given; `fit` judges it
    def __init__(
        self,
        n_experts: Any = 2,
        *,
        top_k: Any = None,
        rank: Any = "logit",
        activation: Any = "identity",
        free_tau: Any = False,
        n_init: Any = 8,
        max_iter: Any = 2000,
        tol: Any = 1e-7,
        min_variance: Any = 1e-3,
        random_state: Any = None,
    ) -> None:
        self.n_experts = n_experts
        self.top_k = top_k
        self.rank = rank
        self.activation = activation
        self.free_tau = free_tau
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.min_variance = min_variance
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> GaussianMoERegressor:
        """Fits to X [samples, features] and y [samples].

        Raises:
            ValueError: an argument out of range; fewer samples than experts; what scikit-learn's validation refuses,
                such as NaN and infinite values.
        """
        for name in ("n_experts", "n_init"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        if not 0 < self.min_variance <= 1:
            raise ValueError(f"min_variance must be above 0 and at most 1; got {self.min_variance!r}")
        gate = Gate(self.top_k, self.rank, self.activation)
        k = int(self.n_experts)
        if gate.top_k is not None and gate.top_k > k:
            raise ValueError(f"top_k must be at most n_experts={k}; got {gate.top_k}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=1)
        n = len(y)
        if n < k:
            raise ValueError(f"n_samples={n} must be at least n_experts={k}: fewer experts or more data")
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31)))

        x, target = torch.tensor(X), torch.tensor(np.asarray(y, dtype=np.float64))
        units = _Units.of(
            x, target, centred=gate.activation == "identity" and not (gate.top_k and gate.rank == "slope")
        )
        x, target = units.inside(x, target)
        starts = _starts(x, target, k, gate, int(self.n_init), self.min_variance, generator)
        many = Points.pack(
            x.repeat(self.n_init, 1),
            target.repeat(self.n_init),
            torch.arange(0, n * self.n_init + 1, n),
            length=min(n, 256),
        )
        fitted = em.fit(
            many,
            starts,
            free_tau=bool(self.free_tau),
            tolerance=self.tol,
            max_iterations=self.max_iter,
            min_variance=self.min_variance,
            polish="lbfgs",
        )
        best = int(fitted.log_likelihood.argmax())
        self.model_ = units.outside(fitted.model[best])
        self.log_likelihood_ = float(fitted.log_likelihood[best]) - n * float(units.y_scale.log())
        self.n_iter_ = int(fitted.iterations[best])
        self.converged_ = bool(fitted.converged[best])
        self.n_dormant_ = int(fitted.dormant[best])
        self.at_bound_ = bool(fitted.at_bound[best])
        if not self.converged_:
            warnings.warn(f"no convergence in max_iter={self.max_iter} passes", ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """E[y | x] = sum_i pi_i(x) (a_i^T x + b_i)."""
        x = self._inputs(X)
        return self.model_.mean(x).numpy()

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The gate pi(x), [samples, n_experts]: which expert is at work. (Not a distribution of y.)"""
        x = self._inputs(X)
        return self.model_.log_gate(x).exp().numpy()

    def log_density(self, X: Any, y: Any) -> NDArray[np.float64]:
        """log p(y | x) for each sample. `score` is the usual R^2 of `predict`."""
        check_is_fitted(self)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
        return self.model_.log_density(torch.tensor(X), torch.tensor(np.asarray(y, dtype=np.float64))).numpy()

    def sample(self, X: Any, random_state: Any = None) -> NDArray[np.float64]:
        """One y for each x, drawn from p(y | x)."""
        x = self._inputs(X)
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31)))
        return self.model_.sample(x, generator).numpy()

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return torch.tensor(validate_data(self, X, dtype=np.float64, reset=False))


class _Units:
    """Inputs and outputs in units of their spread, and models back in the units of the data.

    Inputs are centred where the gate allows it: sigma(beta^T (x - mean)) is no function of the model for a curved
    sigma, and a rank by slope has no place for beta^T mean.
    """

    def __init__(self, x_mean: Tensor, x_scale: Tensor, y_mean: Tensor, y_scale: Tensor):
        self.x_mean, self.x_scale, self.y_mean, self.y_scale = x_mean, x_scale, y_mean, y_scale

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, centred: bool) -> _Units:
        mean = x.mean(0) if centred else torch.zeros_like(x[0])
        # A column that does not vary (but for rounding) has no spread to measure by.
        x_scale, y_scale = (x - mean).square().mean(0).sqrt(), y.std(correction=0)
        flat_x, flat_y = x_scale <= 1e-12 * x.abs().amax(0), y_scale <= 1e-12 * y.abs().amax()
        return cls(mean, x_scale.masked_fill(flat_x, 1.0), y.mean(), y_scale.masked_fill(flat_y, 1.0))

    def inside(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.x_mean) / self.x_scale, (y - self.y_mean) / self.y_scale

    def outside(self, model: GaussianMoE) -> GaussianMoE:
        beta1, a = model.beta1 / self.x_scale, self.y_scale * model.a / self.x_scale
        return replace(
            model,
            beta0=model.beta0 - beta1 @ self.x_mean,
            beta1=beta1,
            a=a,
            b=self.y_mean + self.y_scale * model.b - a @ self.x_mean,
            variance=model.variance * self.y_scale**2,
        )


def _starts(
    x: Tensor, y: Tensor, k: int, gate: Gate, starts: int, floor: float, generator: torch.Generator
) -> GaussianMoE:
    """Experts and gates from points that are dealt to the nearest of k that are drawn."""
    n, d = x.shape
    joint = torch.cat([x, y[:, None]], 1)
    drawn = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(starts)])
    near = torch.stack([torch.cdist(joint, joint[row]).argmin(1) for row in drawn])
    r = torch.nn.functional.one_hot(near, k).to(x)  # [starts, n, k]
    r = r + 1e-3  # an expert that no point is nearest to (duplicates) begins as the line through all
    total = r.sum(1)
    z = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    moment = torch.einsum("snk,ni,nj->skij", r, z, z) + 1e-3 * torch.eye(d + 1, dtype=x.dtype)
    line = torch.linalg.solve(moment, torch.einsum("snk,ni,n->ski", r, z, y))
    error = (y[:, None] - z @ line.mT).square()
    variance = ((r * error).sum(1) / total).clamp(min=floor)
    mean = torch.einsum("snk,nd->skd", r, x) / total[..., None]
    within = torch.einsum("snk,sknd->sd", r, (x - mean[:, :, None]).square()) / n
    slope = mean / (within + 1e-2)[:, None]
    bias = (total / total.sum(1, keepdim=True)).log() - 0.5 * (slope * mean).sum(-1)
    return GaussianMoE(
        beta0=bias - bias[:, -1:],
        beta1=slope - slope[:, -1:],
        a=line[..., 1:],
        b=line[..., 0],
        variance=variance,
        tau=x.new_ones(starts),
        gate=gate,
    )
