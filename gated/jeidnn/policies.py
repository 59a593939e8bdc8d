"""Who leaves at an exit: the learned gates, a threshold, patience, or a plan made before.

A policy sees the logits of the samples that are still there and a state with one row each, which travels with them
when the batch is compacted. All of them can stop the network early.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from gated.gates._validation import check_choice, check_count, check_floats, check_sizes
from gated.jeidnn._validation import as_numbers, check_rows
from gated.jeidnn.exits import Causal, Rule, leaves, spend

Score = Literal["confidence", "entropy", "margin"]
Statistic = Literal["confidence", "entropy", "margin", "squared entropy"]


@runtime_checkable
class Policy(Protocol):
    """`start` gives the state of a batch of n samples; `__call__` tells who leaves at exit `l`, and the next state."""

    def start(self, n: int, like: Tensor) -> Tensor: ...

    def __call__(self, l: int, logits: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]: ...


def uncertainty(
    logits: Float[Tensor, "*batch classes"], statistics: Sequence[Statistic] = get_args(Statistic)
) -> Float[Tensor, "*batch statistics"]:
    """(max p, H(p), p_(1) - p_(2), H(p^2 / sum p^2)) of p = softmax(logits), or some of them; entropies in nats.

    The last is the entropy at temperature 1/2. Uniform p gives (1/K, ln K, 0, ln K), one-hot p (1, 0, 1, 0).
    With two classes the margin is 2 max p - 1 and tells nothing new.

    Args:
        statistics: which of them, by name, in this order; the others are not computed.

    Raises:
        ValueError: logits not finite, fewer than two classes; unknown or no statistics.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163 (what its gates see).

    Example:
        >>> uncertainty(torch.zeros(4)).tolist()[0::2]  # largest p and margin
        [0.25, 0.0]
    """
    if not statistics:
        raise ValueError("statistics must name at least one, got none")
    for name in statistics:
        check_choice("statistics", name, get_args(Statistic))
    check_rows("logits", logits, logits.ndim)
    if logits.shape[-1] < 2:
        raise ValueError(f"logits must have at least 2 classes, got {logits.shape[-1]}")
    # In half precision the entropies of confident answers would be rounding noise.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found: dict[str, Tensor] = {}
    if not {"confidence", "margin"}.isdisjoint(statistics):
        top = logits.topk(2, -1).values
        peak = top[..., :1]
        total = (logits - peak).exp().sum(-1, keepdim=True).log() + peak  # logsumexp, whose maximum is known already
        first, second = (top - total).exp().unbind(-1)
        found = {"confidence": first, "margin": first - second}
    spreads = [name for name in ("entropy", "squared entropy") if name in statistics]
    if spreads:
        log_p = logits.log_softmax(-1)
        powers = [log_p if name == "entropy" else (2 * log_p).log_softmax(-1) for name in spreads]
        found.update(zip(spreads, spread(torch.stack(powers)), strict=True))
    return torch.stack([found[name] for name in statistics], -1)


def spread(log_p: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Entropy from finite log-probabilities: no logarithm of 0, so nothing has to be masked in this hot loop."""
    return -(log_p.exp() * log_p).sum(-1)


def score(logits: Float[Tensor, "*batch classes"], kind: Score = "confidence") -> Float[Tensor, "*batch"]:
    """High where an answer looks safe: max p, -H(p) or the margin p_(1) - p_(2).

    Example:
        >>> score(torch.tensor([[0.0, 0.0]])).tolist(), score(torch.tensor([[0.0, 0.0]]), "margin").tolist()
        ([0.5], [0.0])
    """
    check_choice("kind", kind, get_args(Score))
    found = uncertainty(logits, (kind,))[..., 0]
    return -found if kind == "entropy" else found


class UncertaintyGate(nn.Module):
    """s = v . u + b, g = sigmoid(s): one logistic unit on statistics of an exit's answer, 5 parameters by default.

    Arguments:
        statistics: which of `uncertainty`, by name.
        layer: width of the exit's features z if the gate shall see them too (d more parameters); 0 if not.

    Neither the statistics nor z carry a gradient back.

    Raises:
        ValueError: no statistics where the gate does not see the layer.

    Example:
        >>> UncertaintyGate()(torch.randn(3, 10), torch.randn(3, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        statistics: Sequence[Statistic] = get_args(Statistic),
        layer: int = 0,
    ) -> None:
        super().__init__()
        for name in statistics:
            check_choice("statistics", name, get_args(Statistic))
        check_count("layer", layer, least=0)
        if not statistics and not layer:
            raise ValueError("statistics must name at least one where the gate does not see the layer")
        self.statistics, self.layer = tuple(statistics), layer
        self.linear = nn.Linear(len(self.statistics) + layer, 1)

    def forward(self, logits: Float[Tensor, "batch classes"], z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch"]:
        """s, the logit of g."""
        check_floats(f"batch classes, batch {self.layer or 'dim'}", logits=logits, z=z)
        seen = [uncertainty(logits.detach(), self.statistics).to(z)] if self.statistics else []
        seen += [z.detach()] if self.layer else []
        return self.linear(seen[0] if len(seen) == 1 else torch.cat(seen, 1)).squeeze(1)


class GatePolicy:
    """The hard rule of the learned gates. The state is the mass m that is left."""

    def __init__(self, gates: nn.ModuleList, composition: Causal = "clip", rule: Rule = "conditional") -> None:
        check_choice("composition", composition, get_args(Causal))
        check_choice("rule", rule, get_args(Rule))
        self.gates, self.composition, self.rule = gates, composition, rule

    def start(self, n: int, like: Tensor) -> Tensor:
        return like.new_ones(n)

    def __call__(
        self,
        l: int,
        logits: Float[Tensor, "batch classes"],
        z: Float[Tensor, "batch dim"],
        state: Float[Tensor, "batch"],
    ) -> tuple[Bool[Tensor, "batch"], Float[Tensor, "batch"]]:
        p = spend(self.gates[l](logits, z).sigmoid(), state, self.composition)
        return leaves(p, state, self.rule), (state - p).clamp(min=0)


class ThresholdPolicy:
    """Leave at the first exit whose score reaches its threshold: one number for all exits, or one each.

    Args:
        kind: the `score` that is compared.

    Raises:
        ValueError: a threshold that is NaN or of more than one axis, an unknown kind.

    Example:
        >>> network = ExitNetwork(ResidualMLP(4, 3, dim=8, depth=3), torch.randn(1, 4))
        >>> network.decide(torch.randn(2, 4), ThresholdPolicy(0.0)).exit.tolist()
        [0, 0]
    """

    def __init__(self, threshold: float | int | Sequence[float | int] | Tensor, kind: Score = "confidence") -> None:
        check_choice("kind", kind, get_args(Score))
        self.threshold, self.kind = as_numbers("threshold", threshold), kind
        if self.threshold.ndim > 1 or self.threshold.isnan().any():
            raise ValueError(f"threshold must be a number, or one an exit, and not NaN; got {threshold!r}")

    def start(self, n: int, like: Tensor) -> Tensor:
        return like.new_empty(n, 0)

    def __call__(
        self,
        l: int,
        logits: Float[Tensor, "batch classes"],
        z: Float[Tensor, "batch dim"],
        state: Float[Tensor, "batch 0"],
    ) -> tuple[Bool[Tensor, "batch"], Float[Tensor, "batch 0"]]:
        threshold = self.threshold if self.threshold.ndim == 0 else self.threshold[l]
        return score(logits, self.kind).double() >= threshold.to(logits.device), state


class PatiencePolicy:
    """Leave once `patience` exits in a row give the same class; 1 leaves at the first exit.

    The state is the last class and the length of its run.

    Source: Zhou et al. 2020, arXiv 2006.04152 (there the counter starts one lower).

    Example:
        >>> network = ExitNetwork(ResidualMLP(4, 3, dim=8, depth=3), torch.randn(1, 4))
        >>> network.decide(torch.randn(2, 4), PatiencePolicy(1)).exit.tolist()
        [0, 0]
    """

    def __init__(self, patience: int) -> None:
        check_sizes(patience=patience)
        self.patience = patience

    def start(self, n: int, like: Tensor) -> Tensor:
        return torch.tensor([-1, 0], device=like.device).repeat(n, 1)

    def __call__(
        self,
        l: int,
        logits: Float[Tensor, "batch classes"],
        z: Float[Tensor, "batch dim"],
        state: Int64[Tensor, "batch 2"],
    ) -> tuple[Bool[Tensor, "batch"], Int64[Tensor, "batch 2"]]:
        guess = logits.argmax(-1)
        run = torch.where(guess == state[:, 0], state[:, 1], 0) + 1
        return run >= self.patience, torch.stack([guess, run], 1)


class PlanPolicy:
    """Each sample leaves at the exit planned for it, whatever the network says: for timing, and for the oracle.

    Raises:
        ValueError: a plan that is not int64 [batch], or of another batch.

    Example:
        >>> network = ExitNetwork(ResidualMLP(4, 3, dim=8, depth=3), torch.randn(1, 4))
        >>> network.decide(torch.randn(2, 4), PlanPolicy(torch.tensor([0, 2]))).exit.tolist()
        [0, 2]
    """

    def __init__(self, plan: Int64[Tensor, "batch"]) -> None:
        if plan.ndim != 1 or plan.dtype != torch.int64 or (plan < 0).any():
            raise ValueError(f"plan must be int64, shape (batch,), at least 0; got {plan.dtype} {tuple(plan.shape)}")
        self.plan = plan

    def start(self, n: int, like: Tensor) -> Tensor:
        if n != len(self.plan):
            raise ValueError(f"plan must have one exit a sample, {n}; got {len(self.plan)}")
        return self.plan.to(like.device)

    def __call__(
        self,
        l: int,
        logits: Float[Tensor, "batch classes"],
        z: Float[Tensor, "batch dim"],
        state: Int64[Tensor, "batch"],
    ) -> tuple[Bool[Tensor, "batch"], Int64[Tensor, "batch"]]:
        return state == l, state
