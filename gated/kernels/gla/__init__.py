"""Gated linear attention: exact chunked and recurrent forms, forward and backward, on CPU and GPU.

    S_t = Diag(e^{g_t}) S_{t-1} + k_tᵀ v_t,      o_t = scale · q_t S_t

with S a key × value memory a head and g_t ≤ 0 the log of the gate: how much of each key channel's row survives step
t. The write of step t is read in step t and is not decayed by α_t. Names and layout are those that users of
flash-linear-attention know ([B, T, H, K], log-space gates), so that swapping the import is enough.

    reference.py   the definition, a step at a time
    cpu.py         chunks of batched matrix products
    gpu.py         Triton kernels with secondary chunking

Both paths stand behind one `torch.library` operator each for the forward and the backward (`gated::gla`,
`gated::gla_backward`), which autograd, fake tensors and `torch.compile(fullgraph=True)` understand.

Source: Yang, Wang, Shen, Panda and Kim 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training"
(arXiv 2312.06635): the recurrent, parallel and chunkwise forms, and the closed-form gate gradient.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.gla import cpu
from gated.kernels.gla.packing import Packing, checked_bounds, sequences
from gated.kernels.gla.reference import naive_recurrent_gla

__all__ = ["chunk_gla", "fused_recurrent_gla", "naive_recurrent_gla"]

_GATE = {"chunk": "g", "recurrent": "gk"}  # what each form calls its gate argument
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def chunk_gla(
    q: Float[Tensor, "batch time heads key"],
    k: Float[Tensor, "batch time heads key"],
    v: Float[Tensor, "batch time heads value"],
    g: Float[Tensor, "batch time heads key"],
    scale: float | None = None,
    initial_state: Float[Tensor, "sequences heads key value"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: Int[Tensor, " bounds"] | None = None,
) -> tuple[Float[Tensor, "batch time heads value"], Float[Tensor, "sequences heads key value"] | None]:
    """Gated linear attention over whole sequences, in time and memory linear in their length.

    Args:
        q, k, v: queries, keys and values, all of one floating dtype.
        g: log of the forget gate, natural logarithm, at most 0 (0 keeps all, −∞ empties the row exactly). May be
            of higher precision than q. Pass `logsigmoid(z) / temperature`, not `sigmoid(z)`.
        scale: factor on the output; None means key**-0.5.
        initial_state: the memory before the first step of each sequence; None means empty.
        output_final_state: also return the memory after the last step of each sequence.
        cu_seqlens: bounds [0, …, T] of the sequences packed in a batch of one; the memory starts anew at each.

    Returns:
        The outputs, in the dtype of v, and the last states (float32, or float64 for float64 inputs) or None.

    Raises:
        ValueError: wrong rank, shape, dtype or device; an empty sequence; bounds that do not cover T; on a CPU also
            a positive or NaN gate and NaN anywhere else. (On a GPU the values are not looked at: that would make
            every call wait for the device.)
        NotImplementedError: a forward-mode derivative is asked for; `naive_recurrent_gla` has one.

    Gradients reach q, k, v, g and initial_state, from the outputs and from the final state: reverse mode, first
    order. The backward stores one state a segment of chunks and computes the rest again.

    Source: Yang et al. 2024 (arXiv 2312.06635), chunkwise parallel form.

    Example:
        >>> q, k, v = (torch.randn(1, 64, 2, 8) for _ in range(3))
        >>> g = -torch.rand(1, 64, 2, 8)
        >>> o, memory = chunk_gla(q, k, v, g, output_final_state=True)
        >>> o.shape, memory.shape
        (torch.Size([1, 64, 2, 8]), torch.Size([1, 2, 8, 8]))
    """
    _check_shapes(q, k, v, g, initial_state, cu_seqlens, "g")
    return _run("chunk", q, k, v, g, scale, initial_state, output_final_state, cu_seqlens)


def fused_recurrent_gla(
    q: Float[Tensor, "batch time heads key"],
    k: Float[Tensor, "batch time heads key"],
    v: Float[Tensor, "batch time heads value"],
    gk: Float[Tensor, "batch time heads key"] | None = None,
    gv: Float[Tensor, "batch time heads value"] | None = None,
    scale: float | None = None,
    initial_state: Float[Tensor, "sequences heads key value"] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Int[Tensor, " bounds"] | None = None,
) -> tuple[Float[Tensor, "batch time heads value"], Float[Tensor, "sequences heads key value"] | None]:
    """Gated linear attention a step at a time: the form for decoding and very short sequences.

    Arguments, results and errors are those of `chunk_gla`, and so are the gradients (its backward is used).

    Args:
        gk: log of the key gate (`g` of `chunk_gla`); None means no decay.
        gv: log of a value gate β: S_t = (α_tᵀ β_t) ⊙ S_{t-1} + k_tᵀ v_t. The paper fixes β = 1. A call with value
            gates runs the reference loop, for short sequences only.
        reverse: walk each sequence from its end to its start.

    Example:
        >>> q, k, v = (torch.randn(1, 16, 2, 8) for _ in range(3))
        >>> g = -torch.rand(1, 16, 2, 8)
        >>> o, _ = fused_recurrent_gla(q, k, v, g)
        >>> torch.allclose(o, chunk_gla(q, k, v, g)[0], atol=1e-5)
        True
    """
    _check_shapes(q, k, v, q if gk is None else gk, initial_state, cu_seqlens, "gk")
    if gv is not None and not (
        isinstance(gv, Tensor) and gv.shape == v.shape and gv.dtype in FLOATS and gv.device == v.device
    ):
        got = f"{tuple(gv.shape)}, {gv.dtype}, {gv.device}" if isinstance(gv, Tensor) else type(gv).__name__
        raise ValueError(f"gv must be a floating tensor like v, {tuple(v.shape)} on {v.device}; got {got}")
    gk = torch.zeros_like(q) if gk is None else gk
    if reverse:
        flip = _reversal(q, cu_seqlens)
        q, k, v, gk = (y.index_select(1, flip) for y in (q, k, v, gk))
        gv = None if gv is None else gv.index_select(1, flip)
    if gv is None:
        o, state = _run("recurrent", q, k, v, gk, scale, initial_state, output_final_state, cu_seqlens)
    else:
        o, state = _run_value_gated(q, k, v, gk, gv, scale, initial_state, output_final_state, cu_seqlens)
    return (o.index_select(1, flip) if reverse else o), state


def _run(form, q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
    if scale is not None and not (isinstance(scale, (float, int)) and -math.inf < scale < math.inf):
        raise ValueError(f"scale must be a finite number or None; got {scale}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    # Where nothing is recorded the operator's dispatch is left out: decoding calls this once a token and layer.
    watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    plain = type(q) is Tensor and q.is_cpu and not watched
    if form == "chunk" or not plain:  # the plain recurrence is PyTorch's operators alone, which have that derivative
        name = "chunk_gla" if form == "chunk" else "fused_recurrent_gla"
        refuse_tangents(name, "naive_recurrent_gla", q, k, v, g, initial_state)
    o, state, _ = (_gla_cpu if plain else torch.ops.gated.gla)(q, k, v, g, scale, initial_state, cu_seqlens, form)
    return o, (state if output_final_state else None)


def _run_value_gated(q, k, v, gk, gv, scale, initial_state, output_final_state, cu_seqlens):
    if q.is_cpu:
        _check_gate(gk, "gk")
        _check_gate(gv, "gv")
    exact = _state_dtype(q)
    bounds = list(pairwise(checked_bounds(cu_seqlens, q.shape[1])))
    if initial_state is None:
        initial_state = q.new_zeros(sequences(q, cu_seqlens), *q.shape[2:], v.shape[3])
    states = initial_state.to(exact).chunk(len(bounds))  # one sequence each, or the whole batch
    outputs, last = [], []
    for (i, j), state in zip(bounds, states, strict=True):
        qi, ki, vi, gki, gvi = (y[:, i:j].to(exact) for y in (q, k, v, gk, gv))
        o, state = naive_recurrent_gla(qi, ki, vi, gki, gvi, scale, state)
        outputs.append(o)
        last.append(state)
    o, state = torch.cat(outputs, 1), torch.cat(last)
    if q.is_cpu:
        _check_results(o, state, q=q, k=k, v=v, initial_state=initial_state)
    return o.to(v.dtype), (state if output_final_state else None)


def _reversal(q: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Index of the time axis that turns every sequence around."""
    bounds = pairwise(checked_bounds(cu_seqlens, q.shape[1]))
    return torch.cat([torch.arange(j - 1, i - 1, -1, device=q.device) for i, j in bounds])


# What is checked ----------------------------------------------------------------------------------------------------


def _check_shapes(q, k, v, g, initial_state, cu_seqlens, gate) -> None:
    for name, y in (("q", q), ("k", k), ("v", v), (gate, g)):
        if not isinstance(y, Tensor) or y.dim() != 4:
            shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"{name} must be a tensor [batch, time, heads, channels]; got {shape}")
        if y.dtype not in FLOATS:
            raise ValueError(f"{name} must be of a floating dtype; got {y.dtype}. Convert it, e.g. {name}.float()")
        if y.device != q.device:
            raise ValueError(f"{name} is on {y.device} but q is on {q.device}; move one of them")
    if q.is_cuda and q.dtype == torch.float64:
        raise ValueError("q is float64 on a GPU, whose kernels compute in float32; use q.float(), or q.cpu()")
    for name, y in (("k", k), ("v", v)):
        if y.dtype != q.dtype:
            raise ValueError(f"{name} must have the dtype of q, {q.dtype}; got {y.dtype}")
    for name, y in (("k", k), (gate, g)):
        if y.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {tuple(q.shape)}; got {tuple(y.shape)}")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must share batch, time and heads with q, {tuple(q.shape[:3])}; got {tuple(v.shape[:3])}")
    for name, y in (("q", q), ("v", v)):
        if 0 in y.shape:
            raise ValueError(f"{name} must not be empty; got shape {tuple(y.shape)}. Drop empty sequences")
    sequences = q.shape[0]
    if cu_seqlens is not None:
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens packs sequences along time and needs a batch of 1 in q; got {q.shape[0]}")
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
            raise ValueError(f"cu_seqlens must be a tensor of at least two bounds [0, …, T]; got {cu_seqlens}")
        if cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"cu_seqlens must be int32 or int64; got {cu_seqlens.dtype}")
        sequences = cu_seqlens.numel() - 1
    if initial_state is not None:
        want = (sequences, q.shape[2], q.shape[3], v.shape[3])
        if not isinstance(initial_state, Tensor) or tuple(initial_state.shape) != want:
            got = tuple(initial_state.shape) if isinstance(initial_state, Tensor) else type(initial_state).__name__
            raise ValueError(f"initial_state must be [sequences, heads, key, value] = {want}; got {got}")
        if initial_state.dtype not in FLOATS:
            raise ValueError(f"initial_state must be of a floating dtype; got {initial_state.dtype}")
        if initial_state.device != q.device:
            raise ValueError(f"initial_state is on {initial_state.device} but q is on {q.device}; move one of them")


def _check_results(o: Tensor, state: Tensor, **inputs: Tensor) -> None:
    """Name the input whose NaN reached the results. NaN outlives every decay, so that looking at them is enough."""
    if (o.sum() + state.sum()).isnan():
        for name, y in inputs.items():
            if y.isnan().any():
                raise ValueError(f"{name} holds NaN at {_first(y.isnan())}; mask or repair it before the call")


def _check_gate(g: Tensor, name: str) -> None:
    if not bool(g.amax() <= 0):
        wrong = ~(g <= 0)
        where = _first(wrong)
        raise ValueError(
            f"{name} is the log of a gate and must be at most 0 (−inf is a reset) and not NaN; got {g[where].item()} "
            f"at {where}. Pass logsigmoid(z), not sigmoid(z)"
        )


def _first(wrong: Tensor) -> tuple[int, ...]:
    return tuple(wrong.nonzero()[0].tolist())


# The operators ------------------------------------------------------------------------------------------------------


def _state_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


_SCHEMA = "(Tensor q, Tensor k, Tensor v, Tensor g, float scale, Tensor? initial_state, Tensor? cu_seqlens"


def _gla_gpu(q, k, v, g, scale, initial_state, cu_seqlens, form):
    """Outputs, last states, and the states that the backward starts from (none on a GPU: it computes them again)."""
    from gated.kernels.gla import gpu

    packing = Packing(q, cu_seqlens, 1 if form == "recurrent" else gpu.CHUNK)
    forward = gpu.recurrent_forward if form == "recurrent" else gpu.chunk_forward
    h0 = None if initial_state is None else initial_state.float().contiguous()
    q, k, v, g = (packing.pack(y) for y in (q, k, v, g.float()))
    o, state = forward(q, k, v, g, scale, h0, packing.offsets)
    return packing.unpack(o), state, state.new_empty(0)


_gla = torch.library.custom_op(
    "gated::gla",
    _gla_gpu,
    mutates_args=(),
    device_types="cuda",
    schema=f"{_SCHEMA}, str form) -> (Tensor, Tensor, Tensor)",
)


@_gla.register_kernel("cpu")
def _gla_cpu(q, k, v, g, scale, initial_state, cu_seqlens, form):
    _check_gate(g, _GATE[form])
    bounds, exact = checked_bounds(cu_seqlens, q.shape[1]), _state_dtype(q)
    if initial_state is None:
        initial_state = q.new_zeros(sequences(q, cu_seqlens), *q.shape[2:], v.shape[3])
    inputs, first = (y.to(exact) for y in (q, k, v, g)), initial_state.to(exact)
    with torch.autocast("cpu", enabled=False):
        o, state, entering = cpu.forward(
            *inputs, state=first, scale=scale, bounds=bounds, recurrent=form == "recurrent"
        )
    _check_results(o, state, q=q, k=k, v=v, initial_state=initial_state)
    return o.to(v.dtype), state, entering


@_gla.register_fake
def _gla_fake(q, k, v, g, scale, initial_state, cu_seqlens, form):
    state = q.new_empty(sequences(q, cu_seqlens), *q.shape[2:], v.shape[3], dtype=_state_dtype(q))
    if q.device.type == "cuda":
        return torch.empty_like(v, memory_format=torch.contiguous_format), state, state.new_empty(0)
    most = cpu.most_segments(q.shape, state.shape[0])
    entering = state.new_empty(most, state.shape[0] if cu_seqlens is None else 1, *state.shape[1:])
    return torch.empty_like(v, memory_format=torch.contiguous_format), state, entering


def _gla_backward_gpu(q, k, v, g, scale, initial_state, cu_seqlens, entering, do, dstate):
    """Gradients of q, k, v, g and of the initial state."""
    from gated.kernels.gla import gpu

    packing = Packing(q, cu_seqlens, gpu.CHUNK)
    h0 = None if initial_state is None else initial_state.float().contiguous()
    dtypes = [y.dtype for y in (q, k, v, g)]
    q, k, v, g, do = (packing.pack(y) for y in (q, k, v, g.float(), do))
    *grads, dinitial = gpu.chunk_backward(q, k, v, g, scale, h0, packing.offsets, do, dstate.contiguous())
    return *(packing.unpack(y).to(dtype) for y, dtype in zip(grads, dtypes, strict=True)), dinitial


_gla_backward = torch.library.custom_op(
    "gated::gla_backward",
    _gla_backward_gpu,
    mutates_args=(),
    device_types="cuda",
    schema=f"{_SCHEMA}, Tensor entering, Tensor do, Tensor dstate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_gla_backward.register_kernel("cpu")
def _gla_backward_cpu(q, k, v, g, scale, initial_state, cu_seqlens, entering, do, dstate):
    bounds, exact = checked_bounds(cu_seqlens, q.shape[1]), _state_dtype(q)
    inputs = (y.to(exact) for y in (q, k, v, g, do))
    states = {"dstate": dstate.to(exact), "entering": entering}
    with torch.autocast("cpu", enabled=False):
        *grads, dinitial = cpu.backward(*inputs, **states, scale=scale, bounds=bounds)
    return *(y.to(x.dtype) for y, x in zip(grads, (q, k, v, g), strict=True)), dinitial


@_gla_backward.register_fake
def _gla_backward_fake(q, k, v, g, scale, initial_state, cu_seqlens, entering, do, dstate):
    return *(torch.empty_like(y, memory_format=torch.contiguous_format) for y in (q, k, v, g)), torch.empty_like(dstate)


def _setup_context(ctx, inputs, output):
    q, k, v, g, ctx.scale, initial_state, cu_seqlens, _ = inputs
    ctx.save_for_backward(q, k, v, g, initial_state, cu_seqlens, output[2])
    ctx.mark_non_differentiable(output[2])


def _autograd(ctx, do, dstate, _):
    q, k, v, g, initial_state, cu_seqlens, entering = ctx.saved_tensors
    grads = torch.ops.gated.gla_backward(q, k, v, g, ctx.scale, initial_state, cu_seqlens, entering, do, dstate)
    dinitial = None if initial_state is None else grads[4].to(initial_state.dtype)
    return *grads[:4], None, dinitial, None, None


_gla.register_autograd(_autograd, setup_context=_setup_context)


@register_flop_formula(torch.ops.gated.gla)
def _flops(q, k, v, g, scale, initial_state, cu_seqlens, form, out_shape=None, **_) -> int:
    """The chapter's cost model: two operations a multiply-add, the triangle of scores counted as half a square."""
    batch, time, heads, key = q
    chunk = min(cpu.CHUNK, time) if form == "chunk" else 1
    return batch * time * heads * (4 * key * v[3] + chunk * (key + v[3]))


@register_flop_formula(torch.ops.gated.gla_backward)
def _flops_backward(q, k, v, g, *_, out_shape=None, **__) -> int:
    """The scores and the states once more, and two products for each of the forward's four."""
    batch, time, heads, key = q
    chunk, value = min(cpu.CHUNK, time), v[3]
    return batch * time * heads * (2 * key * value + chunk * key) + 2 * _flops(q, k, v, g, 1.0, None, None, "chunk")
