"""Four ways to compute y_t = sum_j w_tj E_(e_tj)(x_t), and Soft MoE's; they differ in cost, not in the result.

| here                | what it does                                                   | beyond the chosen experts  |
|---------------------|----------------------------------------------------------------|----------------------------|
| `dense_dispatch`    | every expert on every token, weighed by the dense gate         | N/k - 1 times their work   |
| `loop_dispatch`     | expert by expert: select its tokens, run it, add the result    | N small calls              |
| `sorted_dispatch`   | tokens in expert order once, all experts in one call, add back | 2 k T d numbers moved      |
| `capacity_dispatch` | one-hot tensors [T, N, C] carry tokens to buffers [N, C, d]    | 4 T N C d operations       |
| `slots_dispatch`    | Soft MoE: each of N S slots holds a mixture of all tokens      | 4 T N S d operations       |

T tokens of d numbers, N experts, k choices a token, buffers of C rows. A dispatch is a function `(x, routing, experts)`
with x [T, d]. Experts are a callable `experts(rows, offsets)` on rows in expert order, expert i's from offsets[i] up to
offsets[i + 1]; `loop_dispatch` also wants `experts.each()`, one function an expert. See `gated.moe.experts`.

A token without any expert gets zeros, which is what "overflow passes through the residual connection" needs. No
dispatch drops a choice by itself: `gated.moe.capacity` does that beforehand, and counts.

Source: survey, II-E; Shazeer et al. 2017 (arXiv 1701.06538) for sorting by expert; Lepikhin et al. 2020 (GShard, arXiv
2006.16668), algorithm 2, for the einsums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_float, holds_anywhere
from gated.moe._validation import check_routing, check_slots
from gated.moe.routing import Routing, Slots

__all__ = ["capacity_dispatch", "dense_dispatch", "loop_dispatch", "slots_dispatch", "sorted_dispatch"]


Experts = Callable[[Tensor, Tensor], Tensor]


def sorted_dispatch(
    x: Float[Tensor, "tokens dim"], routing: Routing, experts: Experts
) -> Float[Tensor, "tokens dim_out"]:
    """Each choice becomes a row; rows in expert order go through all experts in one call.

    Raises:
        ValueError: x, routing and experts that do not fit together.

    Example:
        >>> r = Routing(torch.ones(2, 1), torch.tensor([[1], [0]]), num_experts=2)
        >>> experts, x = FFNExperts(2, 4, 8), torch.randn(2, 4)
        >>> torch.allclose(sorted_dispatch(x, r, experts), dense_dispatch(x, r, experts), atol=1e-6)
        True
    """
    _check(x, routing, experts)
    order, offsets = routing.sort()
    token = order // routing.experts.shape[1]
    rows = experts(x.index_select(0, token), offsets)
    # Weighed here, not in the experts' last product: as fast on the CPU, and experts need not know of weights.
    weight = routing.weights.flatten().index_select(0, order).to(rows.dtype)
    return rows.new_zeros(len(x), rows.shape[1]).index_add(0, token, weight[:, None] * rows)


def loop_dispatch(
    x: Float[Tensor, "tokens dim"], routing: Routing, experts: Experts
) -> Float[Tensor, "tokens dim_out"]:
    """Expert by expert: its tokens, itself, its results added to the sum.

    Raises:
        ValueError: experts without `each()`; as in `sorted_dispatch`.

    Example:
        >>> r = Routing(torch.ones(2, 1), torch.tensor([[1], [0]]), num_experts=2)
        >>> experts, x = FFNExperts(2, 4, 8), torch.randn(2, 4)
        >>> torch.allclose(loop_dispatch(x, r, experts), sorted_dispatch(x, r, experts), atol=1e-6)
        True
    """
    _check(x, routing, experts)
    if not hasattr(experts, "each"):
        raise ValueError(f"experts must have each(), one function an expert; got {type(experts).__name__}")
    y = None
    for i, expert in enumerate(experts.each()):
        token, slot = torch.where(routing.experts == i)
        rows = expert(x.index_select(0, token))
        y = rows.new_zeros(len(x), rows.shape[1]) if y is None else y
        y = y.index_add(0, token, routing.weights[token, slot].to(rows.dtype)[:, None] * rows)
    assert y is not None
    return y


def dense_dispatch(
    x: Float[Tensor, "tokens dim"], routing: Routing, experts: Experts
) -> Float[Tensor, "tokens dim_out"]:
    """All experts on all tokens, then y_t = sum_i G_ti E_i(x_t) with G = `routing.dense()`. No expert starves of rows,
    and the work does not depend on the data.

    Raises:
        ValueError: as in `sorted_dispatch`.

    Example:
        >>> r = Routing(torch.tensor([[0.5, 0.5]]), torch.tensor([[0, 1]]), num_experts=2)
        >>> same = ModuleExperts([torch.nn.Identity(), torch.nn.Identity()])
        >>> dense_dispatch(torch.ones(1, 3), r, same).tolist()
        [[1.0, 1.0, 1.0]]
    """
    _check(x, routing, experts)
    tokens, num_experts = len(x), routing.num_experts
    offsets = tokens * torch.arange(num_experts + 1, device=x.device)
    rows = experts(x.expand(num_experts, *x.shape).flatten(0, 1), offsets)
    return torch.einsum("tn,ntd->td", routing.dense().to(rows.dtype), rows.unflatten(0, (num_experts, tokens)))


def capacity_dispatch(
    x: Float[Tensor, "tokens dim"], routing: Routing, experts: Experts
) -> Float[Tensor, "tokens dim_out"]:
    """Buffers of C rows an expert, filled and read by products with one-hot tensors D and G of shape [T, N, C]:
    buffer_ic = sum_t D_tic x_t,  y_t = sum_ic G_tic E_i(buffer)_c.  Shapes depend on C alone, as compilers for
    accelerators want it.

    C is `routing.capacity`, which a limited routing has; else the load of the fullest expert (capacity factor inf).

    Raises:
        ValueError: as in `sorted_dispatch`.

    Example:
        >>> r = Routing(torch.ones(2, 1), torch.tensor([[1], [0]]), num_experts=2)
        >>> experts, x = FFNExperts(2, 4, 8), torch.randn(2, 4)
        >>> torch.allclose(capacity_dispatch(x, r, experts), sorted_dispatch(x, r, experts), atol=1e-6)
        True
    """
    _check(x, routing, experts)
    num_experts, capacity = routing.num_experts, routing.capacity
    if capacity is None:
        capacity = int(routing.load().max())
    place = routing.position()
    if x.device.type == "cpu" and holds_anywhere(place >= capacity):
        raise ValueError(f"capacity must be at least the fullest expert's load, {int(place.max()) + 1}; got {capacity}")
    # Empty slots go to a column of their own, which is cut off: with C = 0 there is no other.
    column = routing.experts * capacity + place
    column = column.masked_fill(routing.experts < 0, num_experts * capacity)

    def one_hot(values: Tensor) -> Tensor:
        table = values.new_zeros(len(x), num_experts * capacity + 1).scatter_add(1, column, values)
        return table[:, :-1].unflatten(1, (num_experts, capacity))

    buffers = torch.einsum("tnc,td->ncd", one_hot(torch.ones_like(routing.weights, dtype=x.dtype)), x)
    offsets = capacity * torch.arange(num_experts + 1, device=x.device)
    rows = experts(buffers.flatten(0, 1), offsets)
    combine = one_hot(routing.weights.to(rows.dtype))
    return torch.einsum("tnc,ncd->td", combine, rows.unflatten(0, (num_experts, capacity)))


def slots_dispatch(x: Float[Tensor, "tokens dim"], routing: Slots, experts: Experts) -> Float[Tensor, "tokens dim_out"]:
    """Soft MoE: y_t = sum_is combine_tis E_i(sum_u dispatch_uis x_u). All tokens in all slots: one sequence a call.

    Raises:
        ValueError: a `Routing`, or shapes that do not fit.

    Example:
        >>> one = Slots(torch.ones(4, 1, 1) / 4, torch.ones(4, 1, 1))  # one slot reads the mean of all tokens
        >>> x = torch.arange(4.0)[:, None]
        >>> slots_dispatch(x, one, ModuleExperts([torch.nn.Identity()])).flatten().tolist()
        [1.5, 1.5, 1.5, 1.5]
    """
    if not isinstance(routing, Slots):
        raise ValueError(
            f"routing must be Slots, from SoftMoEGate; got {type(routing).__name__}: take another dispatch"
        )
    check_slots(routing)
    num_experts, slots = routing.dispatch.shape[1:]
    _check_sizes(x, len(routing.dispatch), num_experts, experts)
    buffers = torch.einsum("tns,td->nsd", routing.dispatch, x)
    offsets = slots * torch.arange(num_experts + 1, device=x.device)
    rows = experts(buffers.flatten(0, 1), offsets)
    return torch.einsum("tns,nsd->td", routing.combine.to(rows.dtype), rows.unflatten(0, (num_experts, slots)))


def _check(x: Tensor, routing: Routing, experts: Experts) -> None:
    if not isinstance(routing, Routing):
        raise ValueError(f"routing must be a Routing; got {type(routing).__name__}. For Slots take slots_dispatch")
    check_routing(routing)
    _check_sizes(x, len(routing.weights), routing.num_experts, experts)


def _check_sizes(x: Tensor, tokens: int, num_experts: int, experts: Experts) -> None:
    check_float("x", x)
    if x.ndim != 2 or len(x) != tokens:
        raise ValueError(f"x must have shape (tokens, dim), {tokens} tokens as in routing; got {tuple(x.shape)}")
    if (given := getattr(experts, "num_experts", num_experts)) != num_experts:
        raise ValueError(f"experts must be as many as the gate chooses from, {num_experts}; got {given}")
