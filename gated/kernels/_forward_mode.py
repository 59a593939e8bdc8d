"""What an operator says to forward-mode derivatives, of which PyTorch lets it know nothing.

`torch.library` has no formula for them: an operator of ours would drop a tangent, and the derivative would be 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(operator: str, instead: str, *given: object) -> None:
    """Raises NotImplementedError where a tensor among `given` has a tangent; not looked at while compiling."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(isinstance(y, Tensor) and _has_tangent(y) for y in given):
        raise NotImplementedError(
            f"{operator} has no forward-mode derivative, as torch.func.jvp asks for; use {instead}, which has one, or "
            "reverse mode"
        )


def _has_tangent(y: Tensor) -> bool:
    """At any level: `vmap` and each `jvp` wrap what they get, and a tangent is seen from the level that gave it."""
    from torch._C import _functorch  # private, so only asked for where somebody differentiates forwards
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    batched = _functorch.is_batchedtensor(y)
    if not batched and forward_ad.unpack_dual(y).tangent is not None:
        return True
    if not _functorch.is_functorch_wrapped_tensor(y):
        return False
    here = retrieve_current_functorch_interpreter()
    with here.lower():
        return _has_tangent(_functorch.get_unwrapped(y) if _functorch.maybe_get_level(y) == here.level() else y)
