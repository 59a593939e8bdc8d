"""The parts of a pre-gated decoder: routes, attention, experts, layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gated.kernels.grouped_gemm import grouped_gemm

ExpertWeights = tuple[Float[Tensor, "dim hidden"], Float[Tensor, "hidden dim"]]
"""W1 and W2 of one expert, applied from the right: relu(h @ W1) @ W2."""


class Route(NamedTuple):
    """Which experts each token takes and how much of each; `position` and `offsets` as in `kernels.topk_gate`."""

    weights: Float[Tensor, "tokens k"]
    experts: Int[Tensor, "tokens k"]
    position: Int[Tensor, "tokens k"]
    offsets: Int[Tensor, " bounds"]
    logits: Float[Tensor, "tokens num_experts"]

    @property
    def probability(self) -> Float[Tensor, "tokens num_experts"]:
        return self.logits.softmax(-1)

    def distinct(self) -> list[int]:
        return distinct(self.offsets)

    def turns(self) -> list[Turn]:
        """For each expert that somebody takes: who does. On a GPU the host waits for the gate here."""
        return [Turn(i, *(self.experts == i).nonzero(as_tuple=True)) for i in self.distinct()]


class Turn(NamedTuple):
    """An expert, the tokens that take it, and as which of their k choices."""

    expert: int
    token: Int[Tensor, " taken"]
    slot: Int[Tensor, " taken"]


def distinct(offsets: Int[Tensor, " bounds"]) -> list[int]:
    """The experts that somebody takes, from where each one's choices start. On a GPU this waits for the gate alone."""
    bounds = offsets.tolist()
    return [i for i, (start, stop) in enumerate(pairwise(bounds)) if stop > start]


class Attention(nn.Module):
    """Causal multi-head self-attention, over a whole sequence or one more step of it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def step(
        self, x: Float[Tensor, "batch dim"], past: Float[Tensor, "2 batch heads context head_dim"], position: int
    ) -> Float[Tensor, "batch dim"]:
        """Attends from `position` to all up to it, whose keys and values are `past[:, :, :, : position + 1]`."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x).chunk(3, -1))
        past[0, :, :, position], past[1, :, :, position] = k, v
        keys, values = past[:, :, :, : position + 1]
        return self.out(F.scaled_dot_product_attention(q[:, :, None], keys, values).flatten(1))


class Dense(nn.Module):
    """A layer without a gate: attention and W2 ReLU(W1 h)."""

    def __init__(self, dim: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.w_in, self.w_out = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def feed(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x + self.w_out(F.relu(self.w_in(self.norm(x))))

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        return self.feed(x + self.attention(self.attention_norm(x)))


class Experts(nn.Module):
    """E networks W2 ReLU(W1 h)."""

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.w_out = nn.Parameter(torch.empty(num_experts, hidden, dim))

    def forward(self, h: Float[Tensor, "tokens dim"], route: Route) -> Float[Tensor, "tokens dim"]:
        """sum over a token's experts of p E(h): tokens are laid in expert order, multiplied, and added back."""
        destination = (route.offsets[route.experts] + route.position).flatten()
        choice = torch.empty_like(destination).scatter_(0, destination, torch.arange(len(destination), device=h.device))
        token = choice // route.experts.shape[1]
        hidden = F.relu(grouped_gemm(h[token], self.w_in, route.offsets))
        y = grouped_gemm(hidden, self.w_out, route.offsets, row_weight=route.weights.flatten()[choice])
        return torch.zeros_like(h).index_add(0, token, y)


class Mixture(nn.Module):
    """A layer with experts, the gates that live in it, and the dense layers behind it."""

    def __init__(
        self, dim: int, hidden: int, num_experts: int, heads: int, between: int, *, own: bool, ahead: bool
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.own = nn.Linear(dim, num_experts, bias=False) if own else None
        self.ahead = nn.Linear(dim, num_experts, bias=False) if ahead else None
        self.experts = Experts(num_experts, dim, hidden)
        layers = nn.ModuleList(Dense(dim, hidden, heads) for _ in range(between))
        self.between: Sequence[Dense] = layers  # type: ignore[assignment]
