"""G13, gates that learn nothing: by a hash of the token's id, at random, or as they are told. Mandatory baselines."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gated import gates
from gated.gates._validation import check_axes, check_count, check_floats, check_int, check_sizes
from gated.moe._validation import check_ids, check_k, check_mask
from gated.moe.routing import Routing

__all__ = ["HashGate", "OracleGate", "RandomGate"]


class HashGate(nn.Module):
    """G13: experts by a hash of the token's id, so that an id always meets the same experts. Weights 1 / k.

    Each pair (id, expert) gets a pseudo-random rank from the id, the expert and `seed`; the k best that the mask
    allows work. No table, any id.

    Source: Roller et al. 2021, Hash layers, arXiv 2106.04426 (which hashes to one expert).
    """

    def __init__(self, num_experts: int, k: int = 1, *, seed: int = 0):
        super().__init__()
        check_sizes(num_experts=num_experts)
        check_count("seed", seed, least=0)
        self.num_experts, self.k, self.seed = num_experts, check_k(k, num_experts), seed

    def forward(
        self,
        ids: Int[Tensor, "tokens"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        check_ids(ids)
        expert = torch.arange(self.num_experts, device=ids.device)
        rank = _mix(_mix(ids.long()[:, None] + self.seed * 0x632BE59B) + expert)
        return _equal((rank >> 11).double(), self.k, mask)


class RandomGate(nn.Module):
    """G13: k experts at random for every token, in evaluation too. Weights 1 / k.

    The draw comes from `generator`, or from `seed`, which draws alike in every call.
    """

    def __init__(self, num_experts: int, k: int = 1, *, seed: int = 0):
        super().__init__()
        check_sizes(num_experts=num_experts)
        check_count("seed", seed, least=0)
        self.num_experts, self.k, self.seed = num_experts, check_k(k, num_experts), seed

    def forward(
        self,
        x: Float[Tensor, "tokens features"] | Int[Tensor, "tokens"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        if isinstance(x, Tensor) and x.is_floating_point():
            check_floats("tokens features", x=x)
        else:
            check_int("x", x)
            check_axes("tokens", x=x)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(self.seed)
        shape = (len(x), self.num_experts)
        rank = torch.rand(shape, generator=generator, device=x.device, dtype=torch.float64)
        return _equal(rank, self.k, mask)


class OracleGate(nn.Module):
    """G13: the expert that the signal names (a true cluster, a task). A pair that the mask forbids is left out."""

    def __init__(self, num_experts: int):
        super().__init__()
        check_sizes(num_experts=num_experts)
        self.num_experts = num_experts

    def forward(
        self,
        ids: Int[Tensor, "tokens"],
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        check_ids(ids)
        check_mask(mask, len(ids), self.num_experts)
        if ((ids < 0) | (ids >= self.num_experts)).any():
            raise ValueError(f"ids must lie in 0..{self.num_experts - 1}; got {int(ids.min())}..{int(ids.max())}")
        weights = F.one_hot(ids.long(), self.num_experts).float()
        weights = weights if mask is None else weights * mask
        return Routing.from_dense(weights, 1, logits=None, probability=weights)


def _equal(rank: Tensor, k: int, mask: Bool[Tensor, "tokens num_experts"] | None) -> Routing:
    """The k best ranks that the mask allows, with equal weights."""
    check_mask(mask, *rank.shape)
    chosen = gates.topk_mask(rank if mask is None else rank.masked_fill(~mask, -torch.inf), k)
    weights = chosen.float() / chosen.sum(-1, keepdim=True)
    return Routing.from_dense(weights, k, logits=None, probability=weights)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers without visible pattern (the finaliser of splitmix64, wrapping)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift(x, shift)) * factor
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # logical: torch's shift keeps the sign
