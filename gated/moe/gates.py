"""All gates of the chapter behind one signature: `gate(signal, mask=None, generator=None) -> Routing`.

A gate is a score, features to logits, and a selection, logits to weights. The scores are in `gated.moe.scores`:
`LinearScore`, `CosineScore`, `GaussianScore`, `StudentTScore`, `LaplaceScore` and `PredictionErrorScore`; each learned
gate below takes any of them. The gates that learn nothing are in `gated.moe.baselines`. All can be had from here.
Notation: l: logits, p = softmax(l), s = sigmoid(l), S: the k largest. "beyond": not in the survey's first version.

| id  | here                                | weights                                        | source          |
|-----|-------------------------------------|------------------------------------------------|-----------------|
| G1a | `TopKGate(LinearScore(d, N), k)`    | softmax over S                                 | Shazeer 2017    |
| G1b | `SoftmaxTopKGate(LinearScore, k)`   | p on S                                         | Fedus 2021      |
| G2  | `NoisyTopKGate(d, N, k)`            | softmax over S of l + e softplus(x W')         | Shazeer 2017    |
| G3  | `SoftmaxTopKGate(CosineScore, k)`   | l_i = scale cos(P x, e_i), or perturbed        | Li 2023         |
| G4  | `SoftGate(GaussianScore(d, N))`     | p, l_i = log b_i N(x; mu_i, Sigma_i)           | Xu 1994         |
| G5  | `SoftGate(StudentTScore(d, N, v))`  | p, l_i = log b_i t_v(x; mu_i, Sigma_i)         | survey, II-A    |
| G6  | `SoftGate(LaplaceScore(d, N))`      | p, l_i = minus the distance from x to a_i, / T | Han 2024        |
| G7  | `ProbitGate(LinearScore)`           | P(i = argmax_j l_j + e_j)                      | survey, II-A    |
| G8  | `SoftMoEGate(d, N, slots)`          | softmax over tokens and over slots: `Slots`    | Puigcerver 2024 |
| G9  | `ExpertChoiceGate(LinearScore)`     | p where the token is in the expert's top C     | beyond: Zhou 22 |
| G10 | `TopPGate(LinearScore, P)`          | p on the shortest sorted prefix above P        | Huang 2024      |
| G11 | `DenseToSparseGate(LinearScore)`    | p of (l + Gumbel) / T where it is above c      | beyond: Nie 21  |
| G12 | `BiasedSigmoidGate(LinearScore, k)` | s / sum_S s, S ranks s + b                     | beyond: DeepSeek |
| G13 | `HashGate`, `RandomGate`, `OracleGate` | 1 / k                                       | baselines       |
| G14 | `SoftGate(PredictionErrorScore(N))` | p, l_i = -(error_i)^2 / 2 sigma^2              | survey, III-D   |

What all share. The signal is [tokens, features]; for hash and oracle gates it is integer ids, for G14 squared errors.
`mask` [tokens, experts] says which experts a token may use; each token needs one. Scores and softmax are computed in
single precision at least, whatever autocast says; weights come back in the signal's dtype. Noise is drawn in training
mode and from `generator` only; without one there is none. `Routing.logits` and `Routing.probability` are what the
z loss and the Switch loss want.

With k = 1 `TopKGate` weighs its expert by the constant 1, so a task's loss does not reach the router at all; take
`SoftmaxTopKGate`. `BiasedSigmoidGate` with k = 1 is constant too. `SoftMoEGate` and `ExpertChoiceGate` look at all
tokens: never in a causal model. They are for one sequence a call, which `gated.moe.MoE` sees to (`per_sequence`).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gated import gates
from gated.gates._validation import check_number, check_positive, check_sizes
from gated.kernels.topk_gate import topk_gate
from gated.moe._validation import check_features, check_k, check_mask
from gated.moe.baselines import HashGate, OracleGate, RandomGate
from gated.moe.routing import Routing, Slots
from gated.moe.scores import (
    CosineScore,
    GaussianScore,
    LaplaceScore,
    LinearScore,
    PredictionErrorScore,
    StudentTScore,
)

__all__ = [
    "BiasedSigmoidGate",
    "CosineScore",
    "DenseToSparseGate",
    "ExpertChoiceGate",
    "GaussianScore",
    "HashGate",
    "LaplaceScore",
    "LinearScore",
    "NoisyTopKGate",
    "OracleGate",
    "PredictionErrorScore",
    "ProbitGate",
    "RandomGate",
    "SoftGate",
    "SoftMoEGate",
    "SoftmaxTopKGate",
    "StudentTScore",
    "TopKGate",
    "TopPGate",
]


class SoftGate(nn.Module):
    """w = softmax(l / T): every expert that the mask allows. The base of the gates that select."""

    def __init__(self, score: nn.Module, *, temperature: float | int = 1.0):
        super().__init__()
        num_experts = getattr(score, "num_experts", None)
        if not isinstance(num_experts, int):
            raise ValueError(f"score must be a module with num_experts, such as LinearScore; got {score!r}")
        check_positive("temperature", temperature)
        self.score, self.temperature, self.num_experts = score, temperature, num_experts

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        """Logits to weights, 0 where shut."""
        return gates.softmax_gate(logits, self.temperature)

    def choose(
        self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "tokens slots"], Int[Tensor, "tokens slots"]]:
        """The weights that are not shut, and whose they are."""
        routing = Routing.from_dense(self.select(logits, generator), self.slots())
        return routing.weights, routing.experts

    def probability(self, logits: Float[Tensor, "tokens num_experts"]) -> Tensor:
        """What the balance losses see: the rows before the selection."""
        return gates.softmax_gate(logits, self.temperature)

    def slots(self) -> int | None:
        """The most experts that a token can have; None where it depends on the data."""
        return self.num_experts

    def forward(
        self,
        x: Float[Tensor, "tokens features"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        logits = _logits(self.score, x, mask, self.num_experts)
        weights, experts = self.choose(logits, generator if self.training else None)
        return Routing(weights.to(x.dtype), experts, self.num_experts, logits, self.probability(logits))


class TopKGate(SoftGate):
    """G1a: softmax over the k largest logits; rows sum to one. k = 1 gives the constant 1 and no gradient."""

    renormalise = True
    noise_std: float | int = 0.0

    def __init__(self, score: nn.Module, k: int, *, temperature: float | int = 1.0):
        super().__init__(score, temperature=temperature)
        self.k = check_k(k, self.num_experts)

    def choose(
        self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
        if self.noise_std and generator is not None:
            logits = gates.add_gaussian_noise(logits, self.noise_std, generator=generator)
        top = topk_gate(logits / self.temperature, self.k, renormalise=self.renormalise)
        return top.weights, top.experts


class SoftmaxTopKGate(TopKGate):
    """G1b: p at the k largest; rows sum to less than one, and k = 1 learns (Switch).

    Args:
        renormalise: divide by the sum, which makes it `TopKGate`.
        noise_std: s of the normal noise on the logits in training, 0 for none. V-MoE takes 1 / num_experts.
    """

    def __init__(
        self,
        score: nn.Module,
        k: int,
        *,
        temperature: float | int = 1.0,
        renormalise: bool = False,
        noise_std: float | int = 0.0,
    ):
        super().__init__(score, k, temperature=temperature)
        check_number("noise_std", noise_std, "[0, inf)")
        self.renormalise, self.noise_std = renormalise, noise_std


class NoisyTopKGate(nn.Module):
    """G2: `gated.gates.NoisyTopKGate` as a router: noise whose size is learned, both matrices start at zero.

    In training with a generator `Routing.probability` holds the selection probabilities P, for `load_loss`;
    without noise it holds p.
    """

    def __init__(self, features: int, num_experts: int, k: int, *, min_noise_std: float | int = 1e-2):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts)
        check_number("min_noise_std", min_noise_std, "(0, inf]")
        self.num_experts, self.k, self.min_noise_std = num_experts, check_k(k, num_experts), min_noise_std
        self.score = LinearScore(features, num_experts, zero=True)
        self.noise = LinearScore(features, num_experts, zero=True)

    def forward(
        self,
        x: Float[Tensor, "tokens features"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        logits = _logits(self.score, x, mask, self.num_experts)
        noisy, probability = logits, gates.softmax_gate(logits)
        if self.training and generator is not None:
            std = F.softplus(_logits(self.noise, x, None, self.num_experts)) + self.min_noise_std
            noisy = gates.add_gaussian_noise(logits, std, generator=generator)
            probability = gates.selection_probability(logits, noisy, std, self.k)
        top = topk_gate(noisy, self.k)
        return Routing(top.weights.to(x.dtype), top.experts, self.num_experts, logits, probability)


class ProbitGate(SoftGate):
    """G7: w_i = P(i has the largest l + s e), e normal; every expert works. `noise_std` is s."""

    def __init__(self, score: nn.Module, *, noise_std: float | int = 1.0):
        super().__init__(score)
        check_positive("noise_std", noise_std)
        self.noise_std = noise_std

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        return gates.probit_gate(logits, self.noise_std)

    def probability(self, logits: Float[Tensor, "tokens num_experts"]) -> Tensor:
        return gates.probit_gate(logits, self.noise_std)


class ExpertChoiceGate(SoftGate):
    """G9: each expert takes its top C = ceil(factor T / N) of the T tokens, T at most. Not causal."""

    per_sequence = True  # a layer calls it for one sequence at a time

    def __init__(self, score: nn.Module, *, capacity_factor: float | int = 1.0):
        super().__init__(score)
        check_positive("capacity_factor", capacity_factor)
        self.capacity_factor = capacity_factor

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        tokens = len(logits)
        if not tokens:
            return torch.zeros_like(logits)
        return gates.expert_choice_gate(
            logits, min(tokens, math.ceil(self.capacity_factor * tokens / self.num_experts))
        )

    def slots(self) -> int | None:
        return None


class TopPGate(SoftGate):
    """G10: as many experts as it takes to hold more than `threshold` of the probability; weights p."""

    def __init__(self, score: nn.Module, threshold: float | int = 0.4, *, temperature: float | int = 1.0):
        super().__init__(score, temperature=temperature)
        check_number("threshold", threshold, "[0, 1]")
        self.threshold = threshold

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        return gates.top_p_gate(logits, self.threshold, self.temperature)

    def slots(self) -> int | None:
        return None


class DenseToSparseGate(SoftGate):
    """G11: p of (l + Gumbel noise) / T where it is above `threshold`; T follows `schedule`, see `advance`."""

    def __init__(self, score: nn.Module, schedule: Callable[[int], float], threshold: float | int):
        super().__init__(score)
        self.selection = gates.DenseToSparseGate(schedule, threshold)

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        choice = self.selection
        return gates.dense_to_sparse_gate(logits, choice.threshold, choice.temperature, generator=generator)

    def probability(self, logits: Float[Tensor, "tokens num_experts"]) -> Tensor:
        return gates.softmax_gate(logits, self.selection.temperature)

    def advance(self) -> None:
        """Moves the temperature on by one step of the optimiser."""
        self.selection.advance()

    def slots(self) -> int | None:
        return None


class BiasedSigmoidGate(SoftGate):
    """G12: s = sigmoid(l); the k largest s + b work; w_i = scale s_i / sum_S s. b moves by `update` alone.

    Args:
        rate: how far `update` moves b. scale: what rows sum to.
        groups, keep_groups: experts in so many equal groups; only the `keep_groups` groups whose two largest
            s + b add up to most take part. One group is no limit.

    Raises:
        ValueError: k or the groups do not fit.

    Source: DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2; Wang et al. 2024, arXiv 2408.15664.
    """

    def __init__(
        self,
        score: nn.Module,
        k: int,
        *,
        rate: float | int = 1e-3,
        scale: float | int = 1.0,
        groups: int = 1,
        keep_groups: int = 1,
    ):
        super().__init__(score)
        check_sizes(groups=groups, keep_groups=keep_groups)
        if self.num_experts % groups:
            raise ValueError(f"groups must divide the number of experts, {self.num_experts}; got {groups}")
        if keep_groups > groups:
            raise ValueError(f"keep_groups must be at most groups, {groups}; got {keep_groups}")
        check_k(k, self.num_experts // groups * keep_groups)
        self.k, self.groups, self.keep_groups = k, groups, keep_groups
        self.selection = gates.SelectionBias(self.num_experts, k, rate=rate, scale=scale)

    def select(self, logits: Float[Tensor, "tokens num_experts"], generator: torch.Generator | None) -> Tensor:
        if self.keep_groups < self.groups:
            ranked = (logits.sigmoid() + self.selection.bias).masked_fill(logits.isneginf(), -torch.inf)
            ranked = ranked.unflatten(-1, (self.groups, -1)).sort(-1, descending=True).values
            # A group with one open expert counts with that one; a group with none never wins.
            two = ranked[..., 0] + ranked[..., 1:2].masked_fill(ranked[..., 1:2].isneginf(), 0).sum(-1)
            kept = gates.topk_mask(two, self.keep_groups)
            shut = ~kept.repeat_interleave(self.num_experts // self.groups, -1)
            logits = logits.masked_fill(shut, -torch.inf)
        return self.selection(logits)

    def probability(self, logits: Float[Tensor, "tokens num_experts"]) -> Tensor:
        return torch.softmax(F.logsigmoid(logits).masked_fill(logits.isneginf(), -torch.inf), -1)

    def update(self, load: Float[Tensor, "num_experts"] | Int[Tensor, "num_experts"]) -> None:
        """b_i += rate sign(mean load - load_i). Once per optimiser step, with the global batch's counts."""
        self.selection.update(load.to(self.selection.bias.dtype))

    def slots(self) -> int | None:
        return self.k


class SoftMoEGate(nn.Module):
    """G8: every slot gets a mixture of all tokens, every token a mixture of all slots. Not causal.

    l = scale cos(x_t, phi_s) for the num_experts * slots vectors phi. Returns `Slots`, [tokens, experts, slots]:
    `dispatch` sums to one over tokens, `combine` over experts and slots.

    Source: Puigcerver et al. 2024, arXiv 2308.00951, section 2.
    """

    per_sequence = True  # a layer calls it for one sequence at a time

    def __init__(self, features: int, num_experts: int, slots: int = 1):
        super().__init__()
        check_sizes(features=features, num_experts=num_experts, slots=slots)
        self.num_experts, self.slots = num_experts, slots
        self.phi = nn.Parameter(torch.randn(num_experts * slots, features) * features**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self,
        x: Float[Tensor, "tokens features"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Slots:
        check_features(x, self.phi.shape[1])
        check_mask(mask, len(x), self.num_experts)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            logits = gates.cosine_logits(wide, self.phi.to(wide), self.scale.to(wide))
            if mask is not None:
                logits = logits.masked_fill(~mask.repeat_interleave(self.slots, -1), -torch.inf)
            dispatch, combine = gates.soft_moe_gate(logits)
        return Slots(*(w.to(x.dtype).unflatten(-1, (self.num_experts, self.slots)) for w in (dispatch, combine)))


def _logits(score: nn.Module, x: Tensor, mask: Bool[Tensor, "tokens num_experts"] | None, num_experts: int) -> Tensor:
    """The score in single precision at least, whatever autocast says, with -inf where the mask forbids."""
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating point, shape (tokens, features); got {x.dtype}, {tuple(x.shape)}")
    check_mask(mask, len(x), num_experts)
    with torch.autocast(x.device.type, enabled=False):
        logits = score(x.to(torch.promote_types(x.dtype, torch.float32)))
    return logits if mask is None else logits.masked_fill(~mask, -torch.inf)
