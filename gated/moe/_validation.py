"""What gates and layers check about their arguments. All raise a `ValueError` that names the argument."""

import torch
from torch import Tensor

from gated.gates._validation import check_axes, check_count, check_float, check_int, holds_anywhere
from gated.moe.routing import Routing, Slots


def check_mask(mask: Tensor | None, tokens: int, num_experts: int) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != (tokens, num_experts):
        raise ValueError(
            f"mask must be boolean, shape ({tokens}, {num_experts}); got {mask.dtype}, {tuple(mask.shape)}"
        )
    if not torch.compiler.is_compiling() and not mask.any(-1).all():
        raise ValueError("mask must leave each token an expert; got a row of False only")


def check_features(x: Tensor, width: int) -> None:
    if x.ndim != 2 or not x.is_floating_point() or x.shape[-1] != width:
        raise ValueError(f"x must be floating point, shape (tokens, {width}); got {x.dtype}, {tuple(x.shape)}")


def check_ids(ids: Tensor) -> None:
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers, shape (tokens,); got {ids.dtype}, {tuple(ids.shape)}")


def check_k(k: int, num_experts: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_experts:
        raise ValueError(f"k must be an integer from 1 to the experts to choose from, {num_experts}; got {k!r}")
    return k


def check_routing(routing: Routing) -> None:
    """What a routing says fits together. The experts' numbers are looked at on a CPU only, where that does not wait."""
    weights, experts, n = routing.weights, routing.experts, routing.num_experts
    check_float("weights", weights)
    check_int("experts", experts)
    if experts.shape != weights.shape or experts.ndim != 2:
        raise ValueError(
            f"routing must have weights and experts of one shape [tokens, slots]; got {tuple(weights.shape)} and "
            f"{tuple(experts.shape)}"
        )
    check_count("num_experts", n)
    for name, given in (("logits", routing.logits), ("probability", routing.probability)):
        if given is not None and given.shape != (len(weights), n):
            raise ValueError(f"{name} must have shape {(len(weights), n)}, as weights has; got {tuple(given.shape)}")
    if routing.dropped is not None and routing.dropped.ndim:
        raise ValueError(f"dropped must be one number, of shape (); got {tuple(routing.dropped.shape)}")
    if routing.capacity is not None and not torch.compiler.is_compiling():
        check_count("capacity", routing.capacity, 0)
    if experts.device.type == "cpu" and holds_anywhere((experts < -1) | (experts >= n)):
        raise ValueError(f"experts must lie in 0..{n - 1}, or be -1 in an empty slot; got others")


def check_slots(routing: Slots) -> None:
    check_float("dispatch", routing.dispatch)
    check_float("combine", routing.combine)
    axes = "tokens num_experts slots"
    check_axes(f"{axes}, {axes}", dispatch=routing.dispatch, combine=routing.combine)
