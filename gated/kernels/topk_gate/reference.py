"""The definition, a choice at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def naive_topk_gate(
    logits: Float[Tensor, "tokens experts"], k: int, *, renormalise: bool = True
) -> tuple[
    Float[Tensor, "tokens k"], Int[Tensor, "tokens k"], Int[Tensor, "tokens k"], Int[Tensor, " bounds"]
]:
    """Weights, experts, positions and offsets of `topk_gate`, by Python loops; plain autograd goes through it.

    Args:
        renormalise: divide by the sum over the k kept.

    Example:
        >>> weights, experts, positions, offsets = naive_topk_gate(torch.tensor([[0.0, 1.0, 1.0]]), k=2)
        >>> weights.tolist(), experts.tolist(), offsets.tolist()
        ([[0.5, 0.5]], [[1, 2]], [0, 0, 1, 2])
    """
    count = [0] * logits.shape[1]
    weights, experts, position = [], [], []
    for row in logits:
        values = row.tolist()
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
        kept = [i for i in order if values[i] > -torch.inf]
        empty = [-1] * (k - len(kept))
        of = row[kept] if renormalise else row
        weights += [*(row[i] - of.logsumexp(0) for i in kept), *(row.new_tensor(-torch.inf) for _ in empty)]
        experts += kept + empty
        position += [count[i] for i in kept] + empty
        for i in kept:
            count[i] += 1
    shape = (logits.shape[0], k)
    flat = torch.stack(weights).exp() if weights else logits.new_empty(0)
    taken, place = (torch.tensor(y, dtype=torch.int64).view(shape) for y in (experts, position))
    return flat.view(shape), taken, place, torch.tensor([0, *count]).cumsum(0)
