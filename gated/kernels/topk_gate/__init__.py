"""A gate for a mixture of experts in one pass: softmax, the k largest, and each choice's place among its expert's.

    w_tj = e^{l_ti} / sum e^{l_ti'},   i = i_tj the j-th largest of row t,   i' over the k kept or over all
    position_tj = how many tokens s < t chose expert i_tj too,   offsets_i = how many choices fell on experts < i

so that `destination = offsets[experts] + position` sorts the choices by expert and within an expert by token: a
counting sort, and nothing else has to be sorted before experts can run. A token takes an expert at most once.

    reference.py   the definition, a choice at a time
    cpu.py         k rounds of row maxima, then a running sum of the [experts, tokens] table of choices
    gpu.py         Triton: scores and ranks in parts of the rows, a scan over the parts, their sum

One `torch.library` operator, `gated::topk_gate`. Its backward is a few elementwise products in PyTorch, so it can be
differentiated again. Cost: (k + 3) operations a logit, each logit read once: memory is what it waits for.

Source: Shazeer et al. 2017 (arXiv 1701.06538), eqs. 3 and 5 (`renormalise=True`); Fedus, Zoph and Shazeer 2021 (arXiv
2101.03961), section 2.1 (`renormalise=False`, k = 1). A choice's place in its expert's buffer: Lepikhin et al. 2020
(GShard, arXiv 2006.16668), algorithm 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.topk_gate import cpu
from gated.kernels.topk_gate.reference import naive_topk_gate

__all__ = ["TopK", "naive_topk_gate", "topk_gate"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class TopK(NamedTuple):
    """Which k experts each token takes. Slots that -inf leaves empty hold weight 0, expert -1 and position -1.

    Example:
        >>> topk_gate(torch.tensor([[0.0, float("-inf")]]), k=2).experts.tolist()
        [[0, -1]]
    """

    weights: Float[Tensor, "tokens k"]
    experts: Int[Tensor, "tokens k"]  # the largest logit first
    position: Int[Tensor, "tokens k"]
    offsets: Int[Tensor, " bounds"]  # [experts + 1], from 0 to the number of choices


def topk_gate(logits: Float[Tensor, "tokens experts"], k: int, *, renormalise: bool = True) -> TopK:
    """The k largest logits of each row (ties go to the lower index, -inf is never taken), weighed by a softmax.

    Computed in float32 (float64 for float64), weights rounded to the dtype of the logits; indices are int64. Gradients
    flow from the weights into the logits. With k = 1 and `renormalise` the weight is the constant 1 and nothing flows.

    Args:
        logits: any number of tokens, 0 too. A row of -inf alone takes no expert.
        k: 1..experts; the loops are made for the few that gates use.
        renormalise: divide by the sum over the k kept (rows sum to 1), not over all experts.

    Raises:
        ValueError: wrong rank or dtype, k out of range; on a CPU also NaN or +inf. (On a GPU the values are not looked
            at: that would make every call wait for the device.)
        NotImplementedError: a forward-mode derivative is asked for; `naive_topk_gate` has one.

    Example:
        >>> taken = topk_gate(torch.tensor([[0.0, 1.0, 1.0]]), k=2)
        >>> taken.experts.tolist(), taken.weights.tolist()
        ([[1, 2]], [[0.5, 0.5]])
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.dtype not in _FLOATS:
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits must be a floating tensor [tokens, experts]; got {got}")
    if logits.is_cuda and logits.dtype == torch.float64:
        raise ValueError("logits is float64 on a GPU, whose kernels compute in float32; use .float(), or .cpu()")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be an integer in 1..{logits.shape[1]}, the number of experts; got {k}")
    refuse_tangents("topk_gate", "naive_topk_gate", logits)
    return TopK(*_topk_gate(logits, k, renormalise))


def _topk_gate_gpu(logits, k, renormalise):
    from gated.kernels.topk_gate import gpu

    return gpu.forward(logits, k, renormalise)


_topk_gate = torch.library.custom_op(
    "gated::topk_gate",
    _topk_gate_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor logits, int k, bool renormalise) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_topk_gate.register_kernel("cpu")
def _topk_gate_cpu(logits, k, renormalise):
    return cpu.forward(logits, k, renormalise)


@_topk_gate.register_fake
def _topk_gate_fake(logits, k, renormalise):
    tokens, experts = logits.shape
    index = [logits.new_empty(tokens, k, dtype=torch.int64) for _ in range(2)]
    return logits.new_empty(tokens, k), *index, logits.new_empty(experts + 1, dtype=torch.int64)


def _setup_context(ctx, inputs, output):
    logits, _, ctx.renormalise = inputs
    weights, *indices = output
    ctx.save_for_backward(logits, weights, indices[0])
    ctx.mark_non_differentiable(*indices)


def _autograd(ctx, dweights, *_):
    logits, weights, experts = ctx.saved_tensors
    exact = torch.promote_types(logits.dtype, torch.float32)
    weights, product = weights.to(exact), weights.to(exact) * dweights.to(exact)
    total = product.sum(1, keepdim=True)
    if ctx.renormalise:
        rows, everywhere = product - weights * total, 0.0
    else:  # a row of -inf alone has no softmax; its total is 0
        rows, everywhere = product, total * logits.to(exact).masked_fill(experts[:, :1] < 0, 0).softmax(1)
    if torch.compiler.is_compiling():
        # Inductor's CPU backend (torch 2.13) may read the target of a scatter before the scatter: zeros, silently.
        column = torch.arange(logits.shape[1], device=logits.device)
        chosen = torch.where(experts[..., None] == column, rows[..., None], 0).sum(1)
    else:
        chosen = torch.zeros_like(logits, dtype=exact).scatter_add(1, experts.clamp_min(0), rows)
    return (chosen - everywhere).to(logits.dtype), None, None


_topk_gate.register_autograd(_autograd, setup_context=_setup_context)


@register_flop_formula(torch.ops.gated.topk_gate)
def _flops(logits, k, *_, out_shape=None, **__) -> int:
    """Subtract, exponential and sum a logit, and a comparison a round."""
    return logits[0] * logits[1] * (k + 3)
