"""Small quadratic programs in two variables, a batch at a time: the control that a barrier filter lets through.

    u* = argmin |u - w|^2 + xi max(0, c.u + d)^2     with  a_l.u >= b_l  for all rows l,  |u_x|, |u_y| <= limit

w is a control that one would like (`nominal`, 0 if not given), c.u + d <= 0 a wish that may be broken at the price xi
(progress to a goal), and the rows are barriers that may not. With a slack variable in place of the hinge this is the
usual program of a control Lyapunov function and control barrier functions in three variables; the hinge is never
larger than what it pays, so that the third one can be eliminated.

The optimum is found by enumeration. It is the optimum without rows, w - xi max(0, c.w + d) c / (1 + xi |c|^2), or it
lies on the line of some row, and there it is the line's own optimum moved into the interval that all other rows leave
of that line: 1 + m candidates for m rows, m^2 divisions. No candidate means that no u fulfils the rows, because the box
bounds what they leave. The derivative is that of the winning candidate's closed form: with no active row, one, or two.

    reference.py   the definition: 1 + 2m + m(m - 1)/2 candidates, meeting points of rows among them
    cpu.py         the line of the row that is broken most, certified by its multiplier; all lines where that fails
    inductor.py    one row after another in machine code, m^2 / 2 divisions
    gpu.py         Triton: rows of a block of problems in registers, a loop over the lines

One `torch.library` operator forward and one backward, `gated::barrier_qp` and `gated::barrier_qp_backward`, for
autograd, fake tensors, vmap and `torch.compile(fullgraph=True)`. `torch.func.grad` takes no such operator.

Source: Gao, Yang and Prorok 2023 (arXiv 2303.04313) for online barrier functions; Wang, Ames and Egerstedt 2017 (arXiv
1609.00651) for pairwise barriers of many agents. The solver is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.barrier_qp import cpu, inductor
from gated.kernels.barrier_qp.reference import naive_barrier_qp

__all__ = ["BarrierQP", "barrier_qp", "naive_barrier_qp"]


class BarrierQP(NamedTuple):
    """What the rows leave of the wish. Where no u fulfils them: u = 0, value inf, active -1, and no gradient.

    Example:
        >>> row = torch.tensor([[1.0, 0.0]]), torch.tensor([9.0])  # asks for u_x >= 9
        >>> answer = barrier_qp(*row, limit=1.0)
        >>> answer.u.tolist(), answer.feasible.item()
        ([0.0, 0.0], False)
    """

    u: Float[Tensor, "*batch 2"]
    value: Float[Tensor, "*batch"]  # |u - w|^2 + xi max(0, c.u + d)^2
    active: Int[Tensor, "*batch 2"]  # the rows that hold u, ascending, then -1; limits follow the rows
    feasible: Bool[Tensor, "*batch"]


def barrier_qp(
    a: Float[Tensor, "*batch rows 2"],
    b: Float[Tensor, "*batch rows"],
    *,
    limit: float | int,
    c: Float[Tensor, "*batch 2"] | None = None,
    d: Float[Tensor, "*batch"] | None = None,
    xi: float | int = 1.0,
    nominal: Float[Tensor, "*batch 2"] | None = None,
    compiled: bool = False,
) -> BarrierQP:
    """Solves every problem of the batch exactly; gradients of u and of the value reach a, b, c, d and nominal.

    Args:
        a, b: rows a_l.u >= b_l, of any length that is a finite number; 0 rows will do. A row a = 0 is fulfilled by
            every u if b <= 0 (fill up with b = -1), and by none otherwise.
        limit: bound on |u_x| and |u_y|, above 0. As active rows u_x >= -limit, u_x <= limit, u_y >= -limit and
            u_y <= limit have the numbers rows, rows + 1, rows + 2 and rows + 3.
        c, d: the wish c.u + d <= 0, both or neither.
        xi: price of breaking it, at least 0.
        nominal: w, 0 if None; may lie outside of the box.
        compiled: on a CPU, by PyTorch's Inductor, for up to 10 rows and two problems or more: half a minute of
            compilation for 6 rows, once for each number of rows and dtype. The same verdicts; at a tie the active
            rows may be others. A warning, and no effect, where Inductor finds no C++ compiler or a space in the
            environment's path.

    Returns:
        Float64 where a is float64, else float32; all is computed in that dtype, under autocast too. A row counts as
        fulfilled up to a distance of 1e-9 limit (float32: 1e-5 limit).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, c without d, xi or limit out of range; float64 on a
            GPU; on a CPU also NaN and infinite values.
        NotImplementedError: a forward-mode derivative is asked for; `naive_barrier_qp` has one.

    First order only: a second derivative is an error. A kink (a row that just touches the optimum) takes the
    derivative of one side.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
        >>> barrier_qp(a, b, limit=1.0, nominal=torch.tensor([-1.0, 0.25])).u.tolist()
        [0.5, 0.25]
    """
    _check({"a": a, "b": b, "c": c, "d": d, "nominal": nominal}, limit, xi)
    refuse_tangents("barrier_qp", "naive_barrier_qp", a, b, c, d, nominal)
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    lead, m = a.shape[:-2], a.shape[-2]
    zero = a.new_zeros((), dtype=dtype)
    c, d, w = (
        zero.expand((*lead, *end)) if y is None else y.to(dtype) for y, end in ((c, (2,)), (d, ()), (nominal, (2,)))
    )
    a, b = a.to(dtype), b.to(dtype)
    n = math.prod(lead)
    flat = (a.reshape(n, m, 2), b.reshape(n, m), c.reshape(n, 2), d.reshape(n), w.reshape(n, 2))
    out = torch.ops.gated.barrier_qp(*flat, float(xi), float(limit), compiled)
    return BarrierQP(*(y.view((*lead, *y.shape[1:])) for y in out))


def _check(given: dict[str, object], limit: object, xi: object) -> None:
    a = given["a"]
    if not isinstance(a, Tensor) or a.dim() < 2 or a.shape[-1] != 2:
        raise ValueError(f"a must be a tensor [..., rows, 2]; got {_what(a)}")
    lead = tuple(a.shape[:-2])
    if (given["c"] is None) != (given["d"] is None):
        missing = "c" if given["c"] is None else "d"
        raise ValueError(f"{missing} must be given where {'d' if missing == 'c' else 'c'} is: the wish is c.u + d <= 0")
    shapes = {"a": a.shape, "b": a.shape[:-1], "c": (*lead, 2), "d": lead, "nominal": (*lead, 2)}
    for name, y in given.items():
        if y is None and name in ("c", "d", "nominal"):
            continue
        if not isinstance(y, Tensor) or tuple(y.shape) != tuple(shapes[name]):
            raise ValueError(f"{name} must be a tensor {list(shapes[name])}, by the shape of a; got {_what(y)}")
        if not y.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype; got {y.dtype}. Convert it, e.g. {name}.float()")
        if y.device != a.device:
            raise ValueError(f"{name} is on {y.device} but a is on {a.device}; move one of them")
    for name, number, low in (("limit", limit, "above 0"), ("xi", xi, "at least 0")):
        fits = not isinstance(number, bool) and isinstance(number, (float, int)) and 0 <= number < math.inf
        if not fits or (name == "limit" and number == 0):
            raise ValueError(f"{name} must be a finite number {low}; got {number!r}")
    if a.is_cuda and a.dtype == torch.float64:
        raise ValueError("a is float64 on a GPU, whose kernels compute in float32; use a.float(), or a.cpu()")


def _what(y: object) -> str:
    return str(list(y.shape)) if isinstance(y, Tensor) else type(y).__name__


# The operators ------------------------------------------------------------------------------------------------------

_PROBLEM = "Tensor a, Tensor b, Tensor c, Tensor d, Tensor w"


def _solve_gpu(a, b, c, d, w, xi, limit, compiled=False):
    from gated.kernels.barrier_qp import gpu

    return gpu.forward(a, b, c, d, w, xi, limit)


_solve = torch.library.custom_op(
    "gated::barrier_qp",
    _solve_gpu,
    mutates_args=(),
    device_types="cuda",
    schema=f"({_PROBLEM}, float xi, float limit, bool compiled=False) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_solve.register_kernel("cpu")
def _solve_cpu(a, b, c, d, w, xi, limit, compiled=False):
    out = inductor.forward(a, b, c, d, w, xi, limit) if compiled else None
    if out is not None:
        return out
    given = {"a": a, "b": b, "c": c, "d": d, "nominal": w}
    if not math.isfinite(sum(float(y.sum()) for y in given.values())):
        for name, y in given.items():
            if not y.isfinite().all():
                raise ValueError(f"{name} must be finite; got NaN or infinite values")
    return cpu.forward(a, b, c, d, w, xi, limit)


@_solve.register_fake
def _solve_fake(a, b, c, d, w, xi, limit, compiled=False):
    active, feasible = w.new_empty(w.shape, dtype=torch.int64), d.new_empty(d.shape, dtype=torch.bool)
    return w.new_empty(w.shape), d.new_empty(d.shape), active, feasible


def _backward_gpu(a, b, c, d, w, u, active, du, xi):
    from gated.kernels.barrier_qp import gpu

    return gpu.backward(a, b, c, d, w, u, active, du, xi)


_solve_backward = torch.library.custom_op(
    "gated::barrier_qp_backward",
    _backward_gpu,
    mutates_args=(),
    device_types="cuda",
    schema=f"({_PROBLEM}, Tensor u, Tensor active, Tensor du, float xi) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_solve_backward.register_kernel("cpu")
def _backward_cpu(a, b, c, d, w, u, active, du, xi):
    return cpu.backward(a, b, c, d, w, u, active, du, xi)


@_solve_backward.register_fake
def _backward_fake(a, b, c, d, w, u, active, du, xi):
    return tuple(y.new_empty(y.shape) for y in (a, b, c, d, w))


def _setup_context(ctx, inputs, output):
    problem, ctx.xi = inputs[:5], inputs[5]
    u, _, active, feasible = output
    ctx.save_for_backward(*problem, u, active, feasible)
    ctx.mark_non_differentiable(active, feasible)
    ctx.set_materialize_grads(False)


def _autograd(ctx, du, dvalue, *_):
    *problem, u, active, feasible = ctx.saved_tensors
    here = feasible[:, None]
    du = torch.zeros_like(u) if du is None else du * here  # u = 0 where nothing is feasible
    if dvalue is None:
        return *torch.ops.gated.barrier_qp_backward(*problem, u, active, du, ctx.xi), None, None, None
    # the value by u, then by what else it depends on
    _, _, c, d, w = problem
    away = 2 * (u - w) * (dvalue[:, None] * here)
    over = 2 * ctx.xi * ((c * u).sum(1) + d).clamp_min(0) * (dvalue * feasible)
    du = du + away + over[:, None] * c
    da, db, dc, dd, dw = torch.ops.gated.barrier_qp_backward(*problem, u, active, du, ctx.xi)
    return da, db, dc + over[:, None] * u, dd + over, dw - away, None, None, None


_solve.register_autograd(_autograd, setup_context=_setup_context)


# A batch of runs is a longer batch -----------------------------------------------------------------------------------


def _fold(y, dim, runs):
    y = y.unsqueeze(0).expand(runs, *y.shape) if dim is None else y.movedim(dim, 0)
    return y.flatten(0, 1)


def _vmap(info, dims, *inputs):
    """Not for the backward operator: autograd stands outside of `vmap`, as torch.func.grad takes no such operators."""
    tensors = [_fold(y, dim, info.batch_size) for y, dim in zip(inputs[:5], dims[:5], strict=True)]
    out = torch.ops.gated.barrier_qp(*tensors, *inputs[5:])
    return tuple(y.unflatten(0, (info.batch_size, -1)) for y in out), (0, 0, 0, 0)


_solve.register_vmap(_vmap)
