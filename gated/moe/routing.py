"""What a gate hands to a dispatch: which experts each token takes and how much of each.

`Routing` is the sparse form, k slots a token; `Slots` is Soft MoE's, where slots take mixtures of tokens.

Source: survey, II-A and II-E (the permutation by expert that every sparse dispatch starts with).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad


class Routing(NamedTuple):
    """Each token's experts and their weights. An empty slot holds expert -1 and weight 0.

    `logits` and `probability`, where the gate has them, are what the z loss and the balance losses look at.

    Raises:
        ValueError: slots out of range; in `join`, parts that choose from other experts.

    Example:
        >>> r = Routing(torch.tensor([[0.75, 0.25]]), torch.tensor([[2, 0]]), num_experts=3)
        >>> r.dense().tolist(), r.load().tolist()
        ([[0.25, 0.0, 0.75]], [1, 0, 1])
    """

    weights: Float[Tensor, "tokens slots"]
    experts: Int[Tensor, "tokens slots"]
    num_experts: int
    logits: Float[Tensor, "tokens num_experts"] | None = None
    probability: Float[Tensor, "tokens num_experts"] | None = None
    capacity: int | None = None
    """No expert has more choices than this, because `gated.moe.capacity` saw to it; None: no limit was set."""
    dropped: Int[Tensor, ""] | None = None
    """How many choices the limit cost."""

    @classmethod
    def from_dense(
        cls,
        weights: Float[Tensor, "tokens num_experts"],
        slots: int | None = None,
        *,
        logits: Float[Tensor, "tokens num_experts"] | None = None,
        probability: Float[Tensor, "tokens num_experts"] | None = None,
    ) -> Routing:
        """The largest `slots` weights of each row, zeros left out; None takes as many slots as the fullest row has.

        Raises:
            ValueError: more slots than experts.
        """
        tokens, num_experts = weights.shape
        if slots is None:
            slots = max(1, int((weights != 0).sum(-1).amax())) if tokens else 1
        if not 1 <= slots <= num_experts:
            raise ValueError(f"slots must be from 1 to the number of experts, {num_experts}; got {slots}")
        kept, experts = weights.topk(slots, dim=-1)
        return cls(kept, experts.masked_fill(kept == 0, -1), num_experts, logits, probability)

    @classmethod
    def join(cls, parts: Sequence[Routing]) -> Routing:
        """One routing of the tokens of several, one after the other. Limits and drops add up.

        Raises:
            ValueError: no parts, or parts that choose from different numbers of experts.
        """
        if len({part.num_experts for part in parts}) != 1:
            raise ValueError(f"parts must choose from the same experts; got {[part.num_experts for part in parts]}")
        slots = max(part.experts.shape[1] for part in parts)
        widen = [(0, slots - part.experts.shape[1]) for part in parts]

        def rows(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if any(v is None for v in values) else torch.cat(values)

        def total(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if any(v is None for v in values) else sum(values)

        return cls(
            torch.cat([pad(part.weights, by) for part, by in zip(parts, widen, strict=True)]),
            torch.cat([pad(part.experts, by, value=-1) for part, by in zip(parts, widen, strict=True)]),
            parts[0].num_experts,
            rows("logits"),
            rows("probability"),
            total("capacity"),
            total("dropped"),
        )

    def dense(self) -> Float[Tensor, "tokens num_experts"]:
        """The weights with a column for each expert, 0 where it is not taken."""
        zeros = self.weights.new_zeros(len(self.weights), self.num_experts)
        return zeros.scatter_add(1, self.experts.clamp_min(0), self.weights.masked_fill(self.experts < 0, 0))

    def load(self) -> Int[Tensor, " num_experts"]:
        """How many slots each expert fills."""
        return self._count()[1:]

    def sort(self) -> tuple[Int[Tensor, " choices"], Int[Tensor, " bounds"]]:
        """The filled slots in the order of their experts (tokens in order within one), and where each expert starts.

        A slot is numbered token * slots + slot. Expert i's slots are `order[offsets[i] : offsets[i + 1]]`.
        """
        flat, offsets = self.experts.flatten(), pad(self.load().cumsum(0), (1, 0))
        return flat.argsort(stable=True)[len(flat) - int(offsets[-1]) :], offsets

    def position(self) -> Int[Tensor, "tokens slots"]:
        """Each choice's place among its expert's, from 0, in the order of `sort`; -1 in an empty slot."""
        flat, count = self.experts.flatten(), self._count()
        order = flat.argsort(stable=True)
        start = (count.cumsum(0) - count)[flat[order] + 1]
        place = torch.empty_like(flat).scatter(0, order, torch.arange(len(flat), device=flat.device) - start)
        return place.masked_fill(flat < 0, -1).view_as(self.experts)

    def _count(self) -> Tensor:
        """How many slots are empty, and how many each expert fills. Shapes depend on no values, for compilers' sake."""
        flat = self.experts.flatten() + 1
        return flat.new_zeros(self.num_experts + 1).scatter_add(0, flat, torch.ones_like(flat))


class Slots(NamedTuple):
    """Soft MoE: a slot reads sum_t dispatch X_t, a token gets sum over all slots of combine E(slot).

    Example:
        >>> Slots(torch.ones(4, 2, 1) / 4, torch.ones(4, 2, 1) / 2).dispatch.sum(0).flatten().tolist()
        [1.0, 1.0]
    """

    dispatch: Float[Tensor, "tokens num_experts slots"]
    """Sums to one over the tokens."""
    combine: Float[Tensor, "tokens num_experts slots"]
    """Sums to one over experts and slots."""
