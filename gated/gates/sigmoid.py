"""Sigmoid scores with a bias that takes part in the selection only: balance without an auxiliary loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_axes, check_count, check_k, check_logits, check_positive, check_rows
from gated.gates.topk import topk_mask


def biased_sigmoid_gate(
    logits: Float[Tensor, "*batch gates"],
    bias: Float[Tensor, "gates"],
    k: int,
    *,
    scale: float | int = 1.0,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """s = sigmoid(l); S = the k largest of s + b; w_i = scale s_i / sum_{j in S} s_j on S, else 0.

    Rows sum to `scale`. The bias selects, never weighs, and gets no gradient. With k = 1 the weight is
    constant.

    Args:
        logits: l; -inf shuts a gate whatever its bias.
        bias: b, one value per gate.
        k: gates kept per row, 1..gates.
        scale: > 0 (DeepSeek-V3 calls it the routed scaling factor).
        check_finite: as in `softmax_gate`.

    Raises:
        ValueError: k out of range, bias not of shape (gates,), scale <= 0, and as in `softmax_gate`.

    Source: DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2; Wang et al. 2024, arXiv 2408.15664.

    Example:
        >>> biased_sigmoid_gate(torch.zeros(3), bias=torch.tensor([0.0, 1.0, 2.0]), k=2)
        tensor([0.0000, 0.5000, 0.5000])
    """
    check_logits(logits, check_finite)
    check_rows("bias", bias)
    check_positive("scale", scale)
    if bias.shape != logits.shape[-1:]:
        raise ValueError(f"bias must have shape ({logits.shape[-1]},); got {tuple(bias.shape)}")
    scores = (logits.sigmoid() + bias).masked_fill(logits.isneginf(), -torch.inf)
    kept = topk_mask(scores, k)
    # s_i / sum s_j = softmax(log s)_i, which stays exact where every score underflows.
    return scale * torch.softmax(F.logsigmoid(logits).masked_fill(~kept, -torch.inf), -1)


class SelectionBias(nn.Module):
    """`biased_sigmoid_gate` with its bias as a buffer, and the rule that moves it.

    `update(load)`: b_i <- b_i + rate * sign(mean(load) - load_i). Call it once per optimiser step, with the
    counts of the whole global batch; leave it alone in evaluation.

    Args:
        scale: what rows sum to.

    Raises:
        ValueError: as in `biased_sigmoid_gate`; a load of another shape.

    Source: Wang et al. 2024, arXiv 2408.15664.

    Example:
        >>> gate = SelectionBias(2, k=1, rate=0.5)
        >>> gate.update(torch.tensor([3.0, 1.0]))
        >>> gate.bias
        tensor([-0.5000,  0.5000])
    """

    bias: Tensor

    def __init__(self, gates: int, k: int, *, rate: float | int = 1e-3, scale: float | int = 1.0):
        super().__init__()
        check_count("gates", gates)
        check_k(k, gates)
        check_positive("rate", rate)
        check_positive("scale", scale)
        self.k, self.rate, self.scale = k, rate, scale
        self.register_buffer("bias", torch.zeros(gates))

    def forward(self, logits: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch gates"]:
        check_axes(f"*batch {len(self.bias)}", logits=logits)
        return biased_sigmoid_gate(logits, self.bias, self.k, scale=self.scale)

    @torch.no_grad()
    def update(self, load: Float[Tensor, "gates"]) -> None:
        check_rows("load", load)
        if load.shape != self.bias.shape:
            raise ValueError(f"load must have shape {tuple(self.bias.shape)}; got {tuple(load.shape)}")
        self.bias += self.rate * torch.sign(load.mean() - load).to(self.bias)
