"""What exits, gates and their training check. Each message names the argument, what came, and what would do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gated.gates._validation import check_number as check_number
from gated.gates._validation import is_number


def check_gates(gates: Tensor) -> None:
    if not gates.is_floating_point() or gates.ndim == 0 or gates.shape[-1] == 0:
        raise ValueError(f"gates must be floating point, shape (*batch, gates); got {gates.dtype} {tuple(gates.shape)}")
    if not torch.compiler.is_compiling() and not ((gates >= 0) & (gates <= 1)).all():
        raise ValueError("gates must lie in [0, 1]; got values outside or NaN")


def as_numbers(name: str, values: float | int | Sequence[float | int] | Tensor) -> Tensor:
    """A number, several, or a tensor, in float64."""
    given = values if isinstance(values, Sequence) else [values]
    if not isinstance(values, Tensor) and (isinstance(values, str) or not all(map(is_number, given))):
        raise ValueError(f"{name} must be a number or numbers; got {values!r}")
    return torch.as_tensor(values, dtype=torch.float64)


def check_costs(costs: Tensor, exits: int) -> None:
    """One positive cost an exit, each above the one before."""
    if costs.shape != (exits,) or not costs.is_floating_point():
        raise ValueError(f"costs must be floating point, shape ({exits},); got {costs.dtype} {tuple(costs.shape)}")
    if not (costs.isfinite().all() and costs[0] > 0 and (costs.diff() > 0).all()):
        raise ValueError(f"costs must be positive, finite and rise from exit to exit; got {costs.tolist()}")


def check_rows(name: str, tensor: Tensor, ndim: int, *, finite: bool = True) -> None:
    if tensor.ndim != ndim or not tensor.is_floating_point() or 0 in tensor.shape:
        raise ValueError(
            f"{name} must be floating point with {ndim} dimensions, none of them empty; "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if finite and not torch.compiler.is_compiling() and not _finite(tensor):
        raise ValueError(f"{name} must be finite everywhere; got NaN or infinity")


def _finite(tensor: Tensor) -> bool:
    """Whether all are. A sum is not finite where a term is not; as it may overflow too, only then each is looked at."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def check_classes(y: Tensor, rows: int, classes: int) -> None:
    if y.shape != (rows,) or y.dtype != torch.int64:
        raise ValueError(f"y must be int64, shape ({rows},); got {y.dtype} {tuple(y.shape)}")
    if not ((y >= 0) & (y < classes)).all():
        raise ValueError(f"y must hold classes 0 to {classes - 1}; got {int(y.min())} to {int(y.max())}")


def check_exits(exit: Tensor, rows: int, exits: int, name: str = "exit") -> None:
    if exit.shape != (rows,) or exit.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, shape ({rows},); got {exit.dtype} {tuple(exit.shape)}")
    if rows and not ((exit >= 0) & (exit < exits)).all():
        raise ValueError(f"{name} must lie in 0 to {exits - 1}; got {int(exit.min())} to {int(exit.max())}")


def check_correct(correct: Tensor) -> None:
    if correct.ndim != 2 or correct.dtype != torch.bool or 0 in correct.shape:
        raise ValueError(f"correct must be bool [batch, exits], not empty; got {correct.dtype} {tuple(correct.shape)}")
