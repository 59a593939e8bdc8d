"""Grouped matrix product: rows sorted by group, each group with a matrix of its own.

    y_m = r_m · x_m W_{g(m)},        offsets[g] <= m < offsets[g + 1]

This is the arithmetic of a mixture of experts once its tokens stand in expert order: no padding, no capacity, and
r, the gate's weight, is applied while the result is still in registers.

    reference.py   the definition, a row at a time
    cpu.py         one BLAS call a group, straight into its rows of the result
    gpu.py         Triton: one launch over the tiles of all groups

Two `torch.library` operators, `gated::grouped_gemm` and `gated::grouped_gemm_weight` (x_gᵀ dy_g for each group). Each
is the other's gradient, so derivatives of any order exist. The gradient of r needs no product of its own: with
u = dy Wᵀ, which dx = r u needs anyway, dr_m = <x_m, u_m>.

Cost: 2 · rows · inner · outer operations forward and twice that backward, however many groups there are. A group of m
rows reads inner · outer numbers of its matrix and does 2 m operations with each: few rows a group make it a matter of
memory and of calls. So rows a group decide, not groups. Measured on a CPU for two products with a ReLU between, 4,096
rows, 128 to 256 channels and back, beside dense products of as many operations: 1.06, 1.12, 1.19 and 1.3 times as long
for 1,024, 256, 128 and 64 rows a group on one thread, with gradients too; 1.1, 1.2, 1.35 and 1.65 times on two, where
BLAS divides a small product badly. At 64 rows half of the loss on one thread is matrices that no cache holds and that
BLAS packs for 64 rows only: groups of equal size in one `torch.bmm` still take 1.12 times as long.

Source: Gale, Narayanan, Young and Zaharia 2023 (MegaBlocks, arXiv 2211.15841), where experts need no capacity. The
kernels are ours.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.grouped_gemm import cpu
from gated.kernels.grouped_gemm.reference import naive_grouped_gemm

__all__ = ["grouped_gemm", "naive_grouped_gemm"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def grouped_gemm(
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "groups inner outer"],
    offsets: Int[Tensor, " bounds"],
    *,
    row_weight: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "rows outer"]:
    """y_m = r_m · x_m W_g for the rows m of each group g; sums in float32 (float64 for float64).

    Args:
        x: rows in group order.
        weight: W, one matrix a group, of x's dtype; any strides, so that the transposed view of an [N, outer, inner]
            parameter costs no copy.
        offsets: int64 [groups + 1], from 0 up to rows; a group may be empty.
        row_weight: r; 1 unless given.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on a CPU also offsets that do not run from 0 to rows or
            that fall. (On a GPU their values are not looked at: that would make every call wait for the device.)
        NotImplementedError: a forward-mode derivative is asked for; `naive_grouped_gemm` has one.

    Example:
        >>> x = torch.ones(3, 2)
        >>> weight = torch.stack([torch.eye(2), 5 * torch.eye(2)])
        >>> grouped_gemm(x, weight, torch.tensor([0, 1, 3])).tolist()
        [[1.0, 1.0], [5.0, 5.0], [5.0, 5.0]]
    """
    _check(x, weight, offsets, row_weight)
    refuse_tangents("grouped_gemm", "naive_grouped_gemm", x, weight, row_weight)
    return _gemm(x, weight, offsets, row_weight)


def _check(x: Tensor, weight: Tensor, offsets: Tensor, row_weight: Tensor | None) -> None:
    for name, tensor, dims in (("x", x, 2), ("weight", weight, 3), ("row_weight", row_weight, 1)):
        if tensor is None and name == "row_weight":
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor; got {type(tensor).__name__}")
        if tensor.ndim != dims:
            raise ValueError(f"{name} must have {dims} dimensions; got shape {tuple(tensor.shape)}")
        if tensor.dtype not in _FLOATS or tensor.dtype != x.dtype:
            raise ValueError(f"{name} must have x's dtype, one of {_FLOATS}; got {tensor.dtype} with x {x.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}; got {tensor.device}")
    if x.is_cuda and x.dtype == torch.float64:
        raise ValueError("x is float64 on a GPU, whose kernels sum in float32; use x.float(), or x.cpu()")
    if weight.shape[1] != x.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"weight must be [groups > 0, {x.shape[1]}, outer] for x {tuple(x.shape)}; got {tuple(weight.shape)}"
        )
    if not isinstance(offsets, Tensor):
        raise ValueError(f"offsets must be an int64 tensor; got {type(offsets).__name__}")
    if offsets.dtype != torch.int64 or offsets.shape != (weight.shape[0] + 1,) or offsets.device != x.device:
        raise ValueError(
            f"offsets must be int64 of shape ({weight.shape[0] + 1},), by weight, on {x.device}; got {offsets.dtype} "
            f"{tuple(offsets.shape)} on {offsets.device}"
        )
    if row_weight is not None and row_weight.shape != x.shape[:1]:
        raise ValueError(f"row_weight must have shape ({x.shape[0]},); got {tuple(row_weight.shape)}")


# The operators ------------------------------------------------------------------------------------------------------


def _gemm_gpu(x, weight, offsets, row_weight):
    from gated.kernels.grouped_gemm import gpu

    return gpu.gemm(x, weight, offsets, row_weight)


def _weight_gpu(x, dy, offsets):
    from gated.kernels.grouped_gemm import gpu

    return gpu.gemm_weight(x, dy, offsets)


_gemm = torch.library.custom_op(
    "gated::grouped_gemm",
    _gemm_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor weight, Tensor offsets, Tensor? row_weight) -> Tensor",
)
_weight = torch.library.custom_op(
    "gated::grouped_gemm_weight",
    _weight_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor dy, Tensor offsets) -> Tensor",
)


@_gemm.register_kernel("cpu")
def _gemm_cpu(x, weight, offsets, row_weight):
    return cpu.gemm(x, weight, _bounds(offsets, x.shape[0]), row_weight)


@_weight.register_kernel("cpu")
def _weight_cpu(x, dy, offsets):
    return cpu.gemm_weight(x, dy, _bounds(offsets, x.shape[0]))


def _bounds(offsets: Tensor, rows: int) -> list[int]:
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(b < a for a, b in pairwise(bounds)):
        raise ValueError(f"offsets must run from 0 to rows = {rows} and never fall; got {bounds}")
    return bounds


@_gemm.register_fake
def _gemm_fake(x, weight, offsets, row_weight):
    return x.new_empty(x.shape[0], weight.shape[2])


@_weight.register_fake
def _weight_fake(x, dy, offsets):
    return x.new_empty(offsets.shape[0] - 1, x.shape[1], dy.shape[1])


def _gemm_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gemm_backward(ctx, dy):
    x, weight, offsets, row_weight = ctx.saved_tensors
    dx = dweight = drow = None
    weighted = dy if row_weight is None else row_weight[:, None] * dy
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
        u = torch.ops.gated.grouped_gemm(dy, weight.transpose(1, 2), offsets, None)
        dx = u if row_weight is None else row_weight[:, None] * u
        drow = None if row_weight is None else (x * u).sum(-1)
    if ctx.needs_input_grad[1]:
        dweight = torch.ops.gated.grouped_gemm_weight(x, weighted, offsets)
    return dx, dweight, None, drow


def _weight_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _weight_backward(ctx, dw):
    x, dy, offsets = ctx.saved_tensors
    return (
        torch.ops.gated.grouped_gemm(dy, dw.transpose(1, 2), offsets, None),
        torch.ops.gated.grouped_gemm(x, dw, offsets, None),
        None,
    )


_gemm.register_autograd(_gemm_backward, setup_context=_gemm_context)
_weight.register_autograd(_weight_backward, setup_context=_weight_context)


@register_flop_formula(torch.ops.gated.grouped_gemm)
def _gemm_flops(x, weight, *_, out_shape=None, **__) -> int:
    return 2 * x[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.gated.grouped_gemm_weight)
def _weight_flops(x, dy, *_, out_shape=None, **__) -> int:
    return 2 * x[0] * x[1] * dy[1]
