"""Dropping whole experts in training, so that no token leans on one of them alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from gated.gates._validation import check_number
from gated.moe.routing import Routing, Slots

__all__ = ["ExpertDropout"]


class ExpertDropout(nn.Module):
    """A gate before which each expert is missing with probability p, for a whole call: the mask shuts it.

    The gate chooses among those that are left, and its softmax gives them the weight of the missing, so evaluation
    needs no scaling. One expert always stays; a token that its own mask leaves none of the kept ones keeps its own.
    Experts are dropped in training only, and from `generator` only.

    Args:
        gate: any gate of `gated.moe.gates`. p: 0 <= p < 1.

    Raises:
        ValueError: p out of range, a gate without num_experts.

    Source: survey, II-D; Irsoy & Alpaydin 2021, Dropout regularization in hierarchical mixture of experts.

    Example:
        >>> from gated.moe.gates import TopKGate
        >>> from gated.moe.scores import LinearScore
        >>> gate = ExpertDropout(TopKGate(LinearScore(8, 4), k=1), p=0.5).eval()
        >>> gate(torch.randn(6, 8)).load().sum().item()
        6
    """

    def __init__(self, gate: nn.Module, p: float):
        super().__init__()
        check_number("p", p, "[0, 1)")
        num_experts = getattr(gate, "num_experts", None)
        if not isinstance(num_experts, int):
            raise ValueError(f"gate must be a module with num_experts, such as TopKGate; got {gate!r}")
        self.gate, self.p, self.num_experts = gate, p, num_experts
        self.per_sequence = getattr(gate, "per_sequence", False)

    def forward(
        self,
        x: Tensor,
        mask: Bool[Tensor, "tokens num_experts"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing | Slots:
        if self.training and self.p and generator is not None:
            draw = torch.rand(self.num_experts, generator=generator, device=x.device)
            kept = ((draw >= self.p) | (draw == draw.max())).expand(len(x), -1)
            if mask is not None:
                both = kept & mask
                kept = torch.where(both.any(-1, keepdim=True), both, mask)
            mask = kept
        return self.gate(x, mask, generator)
