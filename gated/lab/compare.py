"""Whether two programs compute the same: the largest difference of their results, and what is too large."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def difference(found: Any, reference: Any) -> float:
    """The largest difference between the tensors or arrays of two results, relative to the reference's largest value.

    It is infinite where the shapes, or whole numbers, or the places of infinities differ.
    """
    pairs = list(zip(_tensors(found), _tensors(reference), strict=True))
    return max((_apart(a.detach(), b.detach()) for a, b in pairs), default=float("inf"))


def agreement(
    results: Mapping[str, Any], uncompared: Collection[str] = (), tolerance: float | int | None = None
) -> dict[str, float]:
    """How far each result is from the first; those in `uncompared` are left out.

    Raises:
        AssertionError: one differs by more than `tolerance`. If that is None, half of the digits of the less precise
            of the two must agree: 3e-4 in float32, 1.5e-8 in float64.
    """
    (_, first), *others = results.items()
    apart = {}
    for name, result in others:
        if name in uncompared:
            continue
        apart[name] = difference(result, first)
        kinds = {x.dtype for x in (*_tensors(first), *_tensors(result)) if x.is_floating_point()}
        digits = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
        allowed = digits**0.5 if tolerance is None else tolerance
        if not apart[name] <= allowed:
            raise AssertionError(f"{name} and ours differ by {apart[name]:.2g}, above {allowed:.2g}")
    return apart


def _tensors(result: Any) -> list[Tensor]:
    return [torch.as_tensor(leaf) for leaf in tree_leaves(result) if isinstance(leaf, (Tensor, np.ndarray))]


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu(), b.cpu()
    if a.shape != b.shape or (not b.is_floating_point() and not torch.equal(a.long(), b.long())):
        return float("inf")
    a, b = a.double(), b.double()
    gap = torch.where(a == b, 0.0, (a - b).abs())  # two equal infinities are no difference
    if not gap.numel() or not gap.any():
        return 0.0
    return float(gap.max() / b[b.isfinite()].abs().max().clamp_min(1e-30)) if gap.isfinite().all() else float("inf")
