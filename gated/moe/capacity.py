"""Capacity: at most C choices an expert. What does not fit is dropped, and counted.

`limit` is a function Routing -> Routing, so it stands in front of any dispatch; `Capacity` wraps a gate with it. A
dropped choice becomes an empty slot. A token that loses all of its choices gets zeros from the layer, so that the
residual connection hands it on unchanged. Weights that remain are not rescaled.

Who comes first: all tokens' first choices before all second choices, and so on (GShard); among equal ranks the
earlier token, so that a plain order drops the end of the batch, or with a priority the token of larger weight (batch
priority routing, V-MoE), so that it drops the least sure.

Uniform random routing of 1,024 tokens (k = 1) with capacity factor 1 drops 3.3 % of the choices at 8 experts, 9.8 % at
64, 13.9 % at 128.

Source: survey, II-D; Lepikhin et al. 2020 (GShard, arXiv 2006.16668), algorithm 1; Riquelme et al. 2021 (V-MoE, arXiv
2106.05974), section 4 and appendix C.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gated.gates._validation import check_axes, check_choice, check_count, check_number, check_sizes
from gated.moe._validation import check_routing
from gated.moe.routing import Routing

__all__ = ["Capacity", "Priority", "expert_capacity", "limit", "token_order"]

Priority = Literal["order", "max", "sum"]


def expert_capacity(tokens: int, k: int, num_experts: int, factor: float | int) -> int:
    """C = ceil(factor k T / N).

    Raises:
        ValueError: a factor that is negative or not finite, tokens below 0, k or experts below 1.

    Example:
        >>> expert_capacity(tokens=100, k=2, num_experts=8, factor=1.25)
        32
    """
    check_count("tokens", tokens, least=0)
    check_sizes(k=k, num_experts=num_experts)
    check_number("factor", factor, "[0, inf)")
    return math.ceil(factor * k * tokens / num_experts)


def token_order(weights: Float[Tensor, "tokens slots"], priority: Priority = "order") -> Int[Tensor, " tokens"]:
    """Tokens in the order in which they fill the buffers: as they come ("order"), or the largest first by their largest
    weight ("max") or the sum of their weights ("sum"); ties go to the earlier token.

    Raises:
        ValueError: another priority, weights that are not [tokens, slots].

    Example:
        >>> token_order(torch.tensor([[0.6], [0.9], [0.7]]), "max").tolist()
        [1, 2, 0]
    """
    check_choice("priority", priority, get_args(Priority))
    check_axes("tokens slots", weights=weights)
    if priority == "order":
        return torch.arange(len(weights), device=weights.device)
    score = weights.detach().amax(-1) if priority == "max" else weights.detach().sum(-1)
    return score.argsort(descending=True, stable=True)


def limit(routing: Routing, capacity: int, priority: Priority = "order") -> Routing:
    """The routing with at most `capacity` choices an expert; `dropped` counts the others (on top of an earlier count).

    Args:
        capacity: C >= 0. priority: see `token_order`.

    Raises:
        ValueError: a negative capacity, another priority.

    Example:
        >>> r = Routing(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), num_experts=2)
        >>> limit(r, capacity=2).dropped.item()  # three tokens want the first expert
        1
    """
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0:
        raise ValueError(f"capacity must be an integer of at least 0; got {capacity!r}")
    check_routing(routing)
    order = token_order(routing.weights, priority)
    # In a routing with one slot, whose "tokens" are the choices in the order of their rank, position is rank.
    queue = routing.experts[order].T.reshape(-1, 1)
    place = Routing(routing.weights.new_zeros(queue.shape), queue, routing.num_experts).position()
    rank = torch.empty_like(routing.experts)
    rank[order] = place.view(routing.experts.shape[1], -1).T
    over = rank >= capacity
    dropped = over.sum() if routing.dropped is None else routing.dropped + over.sum()
    return routing._replace(
        weights=routing.weights.masked_fill(over, 0),
        experts=routing.experts.masked_fill(over, -1),
        capacity=capacity,
        dropped=dropped,
    )


class Capacity(nn.Module):
    """A gate whose routing is limited to C choices an expert, in training and in evaluation.

    Args:
        gate: a gate that returns a `Routing`, with k slots.
        factor: C = ceil(factor k T / N) for the T tokens of a call.
        size: C itself, instead of a factor.
        priority: who comes first, see `token_order`.
        per_sequence: count each sequence on its own (Switch Transformers), not all tokens of the batch together.

    Raises:
        ValueError: both or none of factor and size, or one below 0; another priority.

    Example:
        >>> from gated.moe.gates import TopKGate
        >>> from gated.moe.scores import LinearScore
        >>> gate = Capacity(TopKGate(LinearScore(8, 4), k=1), factor=1.0)
        >>> gate(torch.randn(100, 8)).load().max().item() <= 25
        True
    """

    def __init__(
        self,
        gate: nn.Module,
        factor: float | int | None = None,
        *,
        size: int | None = None,
        priority: Priority = "order",
        per_sequence: bool = False,
    ):
        super().__init__()
        if (factor is None) == (size is None):
            raise ValueError(f"factor or size must be given, and not both; got {factor} and {size}")
        if factor is not None:
            expert_capacity(1, 1, 1, factor)
        elif isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"size must be an integer of at least 0; got {size!r}")
        check_choice("priority", priority, get_args(Priority))
        self.gate, self.factor, self.size, self.priority = gate, factor, size, priority
        self.num_experts = getattr(gate, "num_experts", None)
        self.per_sequence = per_sequence or getattr(gate, "per_sequence", False)

    def extra_repr(self) -> str:
        amount = f"size={self.size}" if self.factor is None else f"factor={self.factor}"
        return f"{amount}, priority={self.priority}, per_sequence={self.per_sequence}"

    def forward(
        self,
        x: Tensor,
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        routing = self.gate(x, mask, generator)
        tokens, slots = routing.experts.shape
        capacity = self.size
        if capacity is None:
            assert self.factor is not None
            capacity = expert_capacity(tokens, slots, routing.num_experts, self.factor)
        return limit(routing, capacity, self.priority)
