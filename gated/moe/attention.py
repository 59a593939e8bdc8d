"""Attention heads as experts: every token chooses its heads.

    y_t = sum_j w_tj softmax(x_t Q_i K^T / sqrt(D)) V O_i,    i = e_tj,    K = x W_k, V = x W_v

Keys and values [time, D] are computed once and shared by all heads; head i owns the matrices Q_i [d, D] and O_i [D, d].
With k of N heads a token the cost is that of k heads and the parameters are those of N.

Source: survey, II-B; Zhang et al. 2022 (Mixture of Attention Heads, arXiv 2210.05144), section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_sizes
from gated.moe.dispatch import sorted_dispatch
from gated.moe.expert_parallel import ExpertParallel
from gated.moe.experts import LinearExperts
from gated.moe.routing import Routing

__all__ = ["MixtureOfHeads"]


class MixtureOfHeads(nn.Module):
    """Mixes x over time with the heads that the gate chooses for each token; returns (y, routing).

    Args:
        gate: a gate over `num_experts` heads that returns a `Routing`.
        num_experts, dim, head_dim: N, d and D.
        causal: a token looks at itself and earlier ones only.
        dispatch: one of `gated.moe.dispatch` that takes a `Routing`. All heads live here, so not an `ExpertParallel`.

    Raises:
        ValueError: sizes below 1; an `ExpertParallel`; x of another shape.
    """

    def __init__(
        self,
        gate: nn.Module,
        num_experts: int,
        dim: int,
        head_dim: int,
        *,
        causal: bool = True,
        dispatch: Callable[[Tensor, Routing, nn.Module], Tensor] = sorted_dispatch,
    ):
        super().__init__()
        check_sizes(num_experts=num_experts, dim=dim, head_dim=head_dim)
        if isinstance(dispatch, ExpertParallel):
            raise ValueError("dispatch must keep all heads in one process; got an ExpertParallel")
        self.gate, self.causal, self.dispatch = gate, causal, dispatch
        self.query = LinearExperts(num_experts, dim, head_dim, bias=False)
        self.output = LinearExperts(num_experts, head_dim, dim, bias=False)
        self.key = nn.Linear(dim, head_dim, bias=False)
        self.value = nn.Linear(dim, head_dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch time dim"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Routing]:
        """y and the routing of `x.flatten(0, 1)`."""
        dim = self.key.in_features
        if x.ndim != 3 or x.shape[2] != dim:
            raise ValueError(f"x must have shape (batch, time, {dim}); got {tuple(x.shape)}")
        routing = self.gate(x.flatten(0, 1), None, generator)
        # Each choice is a token of its own with one expert, on the way in (unweighted) and on the way out.
        slots = routing.experts.shape[1]
        way_out = Routing(routing.weights.view(-1, 1), routing.experts.view(-1, 1), routing.num_experts)
        way_in = way_out._replace(weights=torch.ones_like(way_out.weights))
        q = self.dispatch(x.flatten(0, 1).repeat_interleave(slots, 0), way_in, self.query)
        q = rearrange(q, "(b t s) c -> b s t c", b=len(x), s=slots)
        k, v = (y[:, None].expand(-1, slots, -1, -1) for y in (self.key(x), self.value(x)))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y = self.dispatch(rearrange(o, "b s t c -> (b t s) c"), way_out, self.output)
        return rearrange(y, "(b t s) d -> b t s d", b=len(x), s=slots).sum(2), routing
