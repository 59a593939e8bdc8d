"""The model of both theory chapters: a softmax gate over linear experts with Gaussian noise.

    p(y | x) = sum_i pi_i(x) N(y; a_i^T x + b_i, nu_i)
    pi(x)    = softmax over the selected i of l_i(x),    l_i(x) = (sigma(beta_1i^T x) + beta_0i) / tau

with experts i = 1..k, inputs x in R^d, outputs y in R, *variances* nu_i (never standard deviations), one temperature
tau > 0 and an activation sigma, by default the identity. All k experts are selected, or the `top_k` with the largest
score sigma(beta_1i^T x) (`rank="slope"`, as the theory has it: the bias weighs but does not choose) or the largest
logit (`rank="logit"`, as routers do it). Ties go to the lower index, so that it is always exactly top_k.

A softmax does not change when one number is added to all logits. Fitted models therefore keep beta_0 = 0 and beta_1 = 0
in their last expert.

Leading axes of the parameters are models that are computed at once: replicates, sizes of a study, points of a path.

Sources: Nguyen, Akbarian, Yan and Ho 2024, "Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts"
(arXiv 2309.13850); Nguyen, Akbarian and Ho 2024, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of
Experts?" (arXiv 2401.13875).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_choice
from gated.kernels.gmoe_em.activations import ACTIVATIONS, ActivationName

Rank = Literal["slope", "logit"]


@dataclass(frozen=True)
class Gate:
    """The form of a gate: everything about it that is chosen, not estimated.

    Args:
        top_k: how many experts an input keeps; None keeps all.
        rank: what the selection goes by, "slope" or "logit". Without meaning where all are kept.
        activation: sigma, a key of `gated.kernels.gmoe_em.activations.ACTIVATIONS`.

    Raises:
        ValueError: top_k below 1, an unknown rank or activation.

    Example:
        >>> Gate(top_k=1).top_k
        1
    """

    top_k: int | None = None
    rank: Rank = "logit"
    activation: ActivationName = "identity"

    def __post_init__(self) -> None:
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1
        ):
            raise ValueError(f"top_k must be None or an integer of at least 1; got {self.top_k!r}")
        check_choice("rank", self.rank, get_args(Rank))
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class GaussianMoE:
    """Parameters of one model or of many, and the densities they mean.

    Raises:
        ValueError: shapes that do not fit together, top_k above the number of experts.
    """

    beta0: Float[Tensor, "*models experts"]
    beta1: Float[Tensor, "*models experts dim"]
    a: Float[Tensor, "*models experts dim"]
    b: Float[Tensor, "*models experts"]
    variance: Float[Tensor, "*models experts"]
    tau: Float[Tensor, "*models"]
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        shape = self.beta0.shape
        if not shape or shape[-1] == 0:
            raise ValueError(f"beta0 must have shape (*models, experts), experts >= 1; got {tuple(shape)}")
        for name in ("b", "variance"):
            if (given := getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have beta0's shape {tuple(shape)}; got {tuple(given)}")
        for name in ("beta1", "a"):
            given = getattr(self, name).shape
            if given[:-1] != shape or given != self.beta1.shape:
                raise ValueError(f"{name} must have shape (*{tuple(shape)}, dim), one dim for both; got {tuple(given)}")
        if self.tau.shape != shape[:-1]:
            raise ValueError(f"tau must have shape {tuple(shape[:-1])}, one temperature a model; got {self.tau.shape}")
        if self.gate.top_k is not None and self.gate.top_k > shape[-1]:
            raise ValueError(f"top_k must be at most the number of experts, {shape[-1]}; got {self.gate.top_k}")

    @classmethod
    def of(
        cls,
        beta0: Sequence[float | int],
        beta1: Sequence[float | int],
        a: Sequence[float | int],
        b: Sequence[float | int],
        variance: Sequence[float | int],
        tau: float | int = 1.0,
        gate: Gate | None = None,
    ) -> GaussianMoE:
        """One model with inputs in R^1 from numbers, in float64."""
        row = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
        column = lambda values: row(values)[:, None]  # noqa: E731
        return cls(row(beta0), column(beta1), column(a), row(b), row(variance), row(tau), gate or Gate())

    # Many models -----------------------------------------------------------------------------------------------------

    @property
    def num_experts(self) -> int:
        return self.beta0.shape[-1]

    @property
    def dim(self) -> int:
        return self.beta1.shape[-1]

    @property
    def models(self) -> torch.Size:
        return self.tau.shape

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name, without the gate's form."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "gate"}

    def map(self, function: Callable[[Tensor], Tensor]) -> GaussianMoE:
        """`function` of every parameter tensor: a device, a dtype, an index into the leading axes."""
        return GaussianMoE(**{name: function(tensor) for name, tensor in self.tensors().items()}, gate=self.gate)

    def __getitem__(self, index: Any) -> GaussianMoE:
        """The models at `index` of the leading axes."""
        return self.map(lambda tensor: tensor[index])

    def expand(self, *models: int) -> GaussianMoE:
        """The same model `models` times (for one model)."""
        return self.map(lambda tensor: tensor.expand(*models, *tensor.shape).clone())

    def with_gate(self, gate: Gate) -> GaussianMoE:
        return replace(self, gate=gate)

    def free_parameters(self, *, free_tau: bool = False) -> int:
        """How many numbers a fit estimates: gates of all but the last expert, all experts, and tau if it is free."""
        k, d = self.num_experts, self.dim
        return (k - 1) * (1 + d) + k * (d + 2) + free_tau

    # The gate --------------------------------------------------------------------------------------------------------

    def scores(self, x: Float[Tensor, "*models n dim"]) -> Float[Tensor, "*models n experts"]:
        """sigma(beta_1i^T x)."""
        return ACTIVATIONS[self.gate.activation].value(x @ self.beta1.mT)

    def logits(self, x: Float[Tensor, "*models n dim"]) -> Float[Tensor, "*models n experts"]:
        """l_i(x) = (sigma(beta_1i^T x) + beta_0i) / tau."""
        return (self.scores(x) + self.beta0[..., None, :]) / self.tau[..., None, None]

    def selected(self, x: Float[Tensor, "*models n dim"]) -> Bool[Tensor, "*models n experts"]:
        """Which experts each input keeps: exactly top_k of them, ties to the lower index."""
        by = self.scores(x) if self.gate.rank == "slope" else self.logits(x)
        if self.gate.top_k is None or self.gate.top_k == self.num_experts:
            return torch.ones_like(by, dtype=torch.bool)
        order = by.argsort(dim=-1, descending=True, stable=True)[..., : self.gate.top_k]
        return torch.zeros_like(by, dtype=torch.bool).scatter(-1, order, True)

    def log_gate(self, x: Float[Tensor, "*models n dim"]) -> Float[Tensor, "*models n experts"]:
        """log pi_i(x); -inf where expert i is not selected."""
        logits = self.logits(x)
        if self.gate.top_k is not None:
            logits = logits.masked_fill(~self.selected(x), -math.inf)
        return logits.log_softmax(-1)

    # The density -----------------------------------------------------------------------------------------------------

    def means(self, x: Float[Tensor, "*models n dim"]) -> Float[Tensor, "*models n experts"]:
        """a_i^T x + b_i."""
        return x @ self.a.mT + self.b[..., None, :]

    def log_experts(
        self, x: Float[Tensor, "*models n dim"], y: Float[Tensor, "*models n"]
    ) -> Float[Tensor, "*models n experts"]:
        """log N(y; a_i^T x + b_i, nu_i)."""
        variance = self.variance[..., None, :]
        return -0.5 * ((y[..., None] - self.means(x)).square() / variance + torch.log(2 * math.pi * variance))

    def log_density(
        self, x: Float[Tensor, "*models n dim"], y: Float[Tensor, "*models n"]
    ) -> Float[Tensor, "*models n"]:
        """log p(y | x)."""
        return (self.log_gate(x) + self.log_experts(x, y)).logsumexp(-1)

    def mean(self, x: Float[Tensor, "*models n dim"]) -> Float[Tensor, "*models n"]:
        """E[y | x] = sum_i pi_i(x) (a_i^T x + b_i)."""
        return (self.log_gate(x).exp() * self.means(x)).sum(-1)

    def sample(self, x: Float[Tensor, "*models n dim"], generator: torch.Generator) -> Float[Tensor, "*models n"]:
        """One y for each x: an expert is drawn from pi(x), then its Gaussian."""
        pi = self.log_gate(x).exp()
        uniform = torch.rand(pi.shape[:-1], dtype=pi.dtype, device=pi.device, generator=generator)
        # The count of partial sums below u is the expert drawn; an expert with pi = 0 has an empty stretch. (The last
        # partial sum may be rounded below 1, so it is left out of the count.)
        expert = (pi.cumsum(-1)[..., :-1] <= uniform[..., None]).sum(-1, keepdim=True)
        noise = torch.randn(uniform.shape, dtype=pi.dtype, device=pi.device, generator=generator)
        mean = self.means(x).gather(-1, expert)[..., 0]
        std = self.variance.sqrt()[..., None, :].expand_as(pi).gather(-1, expert)[..., 0]
        return mean + std * noise
