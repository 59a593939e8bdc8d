"""Meta-learning with a mixture of conditional neural processes, and a gate that is fitted, not trained.

A function f is drawn from one of several families; a few noisy points of it, the context, are seen, and its value at
other points is to be predicted. A conditional neural process encodes the context as r = mean_c enc(x_c, y_c) and
decodes (r, x) to a mean and a standard deviation. The mixture has K decoders and a gate pi(r) over them. One decoder
speaks for a whole function, so that the mixture is one of stochastic processes:

    p(y_1..y_T | context) = sum_k pi_k(r) prod_t N(y_t; mean_k(r, x_t), std_k(r, x_t)^2).

With K = 1 this is a conditional neural process (Garnelo et al., ICML 2018, arXiv 1807.01613). The mixture follows Wang
and van Hoof, "Learning Expressive Meta-Representations with Mixture of Expert Neural Processes", NeurIPS 2022, with
deterministic encoders. `least_squares_gate` follows the gate of MixER (Nzoyem et al. 2025).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FAMILIES = ("sinusoid", "line", "sawtooth", "step")


class Functions(NamedTuple):
    """Noisy points of several functions, and the family of each (an index into `FAMILIES`)."""

    x_context: Float[Tensor, "functions context"]
    y_context: Float[Tensor, "functions context"]
    x_target: Float[Tensor, "functions target"]
    y_target: Float[Tensor, "functions target"]
    family: Int[Tensor, " functions"]


def evaluate(
    family: Int[Tensor, " functions"],
    amplitude: Float[Tensor, " functions"],
    offset: Float[Tensor, " functions"],
    x: Float[Tensor, "functions points"],
) -> Float[Tensor, "functions points"]:
    """f(x) with amplitude a and offset c: sinusoid a sin(2 (x - c)), line a (x - c), sawtooth
    2a ((x - c) mod 1) - a, step a sign(x - c) with sign 0 = 1."""
    z = x - offset[:, None]
    shapes = torch.stack([(2 * z).sin(), z, 2 * z.remainder(1) - 1, 2 * (z >= 0).to(z.dtype) - 1])
    return amplitude[:, None] * shapes[family, torch.arange(len(family))]


def sample_functions(
    functions: int, context: int, target: int, generator: torch.Generator, *, noise: float | int = 0.05
) -> Functions:
    """Functions of uniform family, with a ~ U[0.5, 1.5], c ~ U[-1, 1], x ~ U[-2, 2] and normal noise on y.

    Raises:
        ValueError: functions, context or target below 1, or a negative noise.
    """
    for name, size in {"functions": functions, "context": context, "target": target}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0; got {noise}")
    family = torch.randint(len(FAMILIES), (functions,), generator=generator)
    amplitude = 0.5 + torch.rand(functions, generator=generator)
    offset = 2 * torch.rand(functions, generator=generator) - 1
    x = 4 * torch.rand(functions, context + target, generator=generator) - 2
    y = evaluate(family, amplitude, offset, x) + noise * torch.randn(x.shape, generator=generator)
    return Functions(x[:, :context], y[:, :context], x[:, context:], y[:, context:], family)


class Prediction(NamedTuple):
    """A mixture over whole functions."""

    log_weight: Float[Tensor, "functions experts"]
    mean: Float[Tensor, "functions experts target"]
    std: Float[Tensor, "functions experts target"]


class MixtureCNP(nn.Module):
    """K conditional neural processes with one encoder and a gate on its code.

    Args:
        num_experts: K; with 1 the gate is the constant 1 and has no parameters.
        code: width of r and of the encoder's hidden layer.
        hidden: width of the two hidden layers of each decoder.
        least_std: lower bound of the standard deviations, which keeps the likelihood bounded.

    Raises:
        ValueError: a size below 1 or least_std <= 0.
    """

    def __init__(self, num_experts: int = 4, code: int = 32, hidden: int = 32, *, least_std: float = 0.02) -> None:
        super().__init__()
        for name, size in {"num_experts": num_experts, "code": code, "hidden": hidden, "least_std": least_std}.items():
            if size <= 0:
                raise ValueError(f"{name} must be positive; got {size}")
        self.num_experts, self.least_std = num_experts, least_std
        self.encoder = nn.Sequential(nn.Linear(2, code), nn.ReLU(), nn.Linear(code, code), nn.ReLU())
        self.mixer = nn.Linear(code, code)
        self.gate = nn.Linear(code, num_experts) if num_experts > 1 else None
        widths = [(code + 1, hidden), (hidden, hidden), (hidden, 2)]
        scales = [(2 * torch.rand(num_experts, m + 1, n) - 1) / math.sqrt(m) for m, n in widths]
        self.decoder = nn.ParameterList(nn.Parameter(w) for w in scales)  # the last row is the bias

    def encode(
        self, x: Float[Tensor, "functions context"], y: Float[Tensor, "functions context"]
    ) -> Float[Tensor, "functions code"]:
        """r: the mean over the points of what the encoder makes of each, so that their order is nothing."""
        return self.mixer(self.encoder(torch.stack([x, y], -1)).mean(-2))

    def forward(
        self,
        x_context: Float[Tensor, "functions context"],
        y_context: Float[Tensor, "functions context"],
        x_target: Float[Tensor, "functions target"],
        log_weight: Float[Tensor, "functions experts"] | None = None,
    ) -> Prediction:
        """The mixture's prediction; `log_weight` replaces the gate's log pi (0 and -inf for a hard choice)."""
        r = self.encode(x_context, y_context)
        if log_weight is None:
            log_weight = r.new_zeros(len(r), 1) if self.gate is None else F.log_softmax(self.gate(r), -1)
        elif log_weight.shape != (len(r), self.num_experts):
            raise ValueError(f"log_weight must be {(len(r), self.num_experts)}; got {tuple(log_weight.shape)}")
        points = x_target.shape[1]
        h = torch.cat([r[:, None].expand(-1, points, -1), x_target[..., None]], -1).flatten(0, 1)
        h = h.expand(self.num_experts, *h.shape)
        for i, weight in enumerate(self.decoder):
            h = (F.relu(h) if i else h) @ weight[:, :-1] + weight[:, -1:]
        mean, raw = h.unflatten(1, (-1, points)).transpose(0, 1).unbind(-1)
        return Prediction(log_weight, mean, self.least_std + F.softplus(raw))


def expert_nll(prediction: Prediction, y: Float[Tensor, "functions target"]) -> Float[Tensor, "functions experts"]:
    """-sum_t log N(y_t; mean_k, std_k^2) of each expert alone, in nats."""
    z = (y[:, None] - prediction.mean) / prediction.std
    return (0.5 * z.square() + prediction.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def mixture_nll(prediction: Prediction, y: Float[Tensor, "functions target"]) -> Float[Tensor, " functions"]:
    """-log sum_k pi_k prod_t N(y_t; mean_k, std_k^2) of each function, in nats."""
    return -torch.logsumexp(prediction.log_weight - expert_nll(prediction, y), -1)


def least_squares_gate(
    contexts: Float[Tensor, "rows code"],
    losses: Float[Tensor, "rows experts"],
    generator: torch.Generator,
    *,
    iterations: int = 50,
) -> tuple[Float[Tensor, "code experts"], Int[Tensor, " rows"]]:
    """A linear gate without gradients: (W, expert of each row), to be used as logits = contexts W.

    K-means puts the rows into as many clusters as there are experts. Each cluster in turn takes the expert, among those
    not yet taken, with the lowest median loss on its rows. W is the least-squares fit of the chosen experts' one-hot
    rows (of minimum norm if there are many). There is no intercept; append a column of ones for one. The clusters start
    at a random row and, one by one, at the row farthest from all before.

    Raises:
        ValueError: contexts and losses with different numbers of rows, or fewer rows than experts.
    """
    rows, experts = losses.shape
    if len(contexts) != rows or rows < experts:
        raise ValueError(f"contexts and losses must share at least {experts} rows; got {len(contexts)} and {rows}")
    centres = contexts[torch.randint(rows, (1,), generator=generator)]
    while len(centres) < experts:
        farthest = torch.cdist(contexts, centres).amin(1).argmax()
        centres = torch.cat([centres, contexts[farthest, None]])
    for _ in range(iterations):
        cluster = torch.cdist(contexts, centres).argmin(1)
        member = F.one_hot(cluster, experts).to(contexts)
        moved = member.T @ contexts / member.sum(0).clamp(min=1)[:, None]
        centres = torch.where(member.sum(0)[:, None] > 0, moved, centres)
    cluster = torch.cdist(contexts, centres).argmin(1)
    expert_of: list[int] = []
    for c in range(experts):
        mine = losses[cluster == c]
        medians = mine.median(0).values if len(mine) else losses.median(0).values
        order = medians.argsort().tolist()
        expert_of.append(next(e for e in order if e not in expert_of))
    chosen = torch.tensor(expert_of, device=contexts.device)[cluster]
    target = F.one_hot(chosen, experts).to(contexts)
    return torch.linalg.pinv(contexts) @ target, chosen
