"""Gated linear attention one step at a time: the definition that every faster form is held to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def naive_recurrent_gla(
    q: Float[Tensor, "batch time heads key"],
    k: Float[Tensor, "batch time heads key"],
    v: Float[Tensor, "batch time heads value"],
    g: Float[Tensor, "batch time heads key"] | None = None,
    gv: Float[Tensor, "batch time heads value"] | None = None,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key value"] | None = None,
) -> tuple[Float[Tensor, "batch time heads value"], Float[Tensor, "batch heads key value"]]:
    """Run S_t = (e^{g_t} e^{gv_t}ᵀ) ⊙ S_{t-1} + k_tᵀ v_t and o_t = scale · q_t S_t in a Python loop.

    Everything is computed in the dtype of `q` (float64 in, float64 out), and plain autograd goes through it,
    so that this is the oracle of the tests and the peer of the benchmarks. It is slow and keeps one state a step.

    Args:
        q, k: queries and keys.
        v: values.
        g: log of the key gate α_t, at most 0; −∞ empties the row. None means no decay.
        gv: log of the value gate β_t, likewise. The paper fixes β = 1.
        scale: factor on the output; None means key**-0.5.
        initial_state: S_0; None means zeros.

    Returns:
        The outputs and the last state.

    Source: Yang et al. 2024 (arXiv 2312.06635), the recurrent form of the gated linear attention layer.

    Example:
        >>> x = torch.ones(1, 3, 1, 1)  # with k = v = 1 and no gate the memory counts
        >>> naive_recurrent_gla(x, x, x, scale=1.0)[0].flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, _, heads, key = q.shape
    state = q.new_zeros(batch, heads, key, v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    # Unbound once: the gradient of indexing q[:, t] at every step would fill a tensor as long as q each time.
    steps = [q.unbind(1)] + [[None] * q.shape[1] if y is None else y.unbind(1) for y in (k, v, g, gv)]
    for qt, kt, vt, gt, gvt in zip(*steps, strict=True):
        if gt is not None:
            state = gt.exp().unsqueeze(-1) * state
        if gvt is not None:
            state = gvt.exp().unsqueeze(-2) * state
        state = state + kt.unsqueeze(-1) * vt.unsqueeze(-2)
        outputs.append(scale * (qt.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1), state
