"""Gumbel noise turns softmax into sampling: of one gate, or of k without replacement (Plackett-Luce)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated.gates._validation import Temperature, check_int, check_k, check_logits, check_rows, holds_anywhere
from gated.gates.binary import straight_through
from gated.gates.noise import add_gumbel_noise
from gated.gates.soft import softmax_gate
from gated.gates.topk import topk_mask


def gumbel_softmax_gate(
    logits: Float[Tensor, "*batch gates"],
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    generator: torch.Generator | None,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """w = softmax((l + g) / T), g_i ~ Gumbel(0, 1): gate i is the largest with probability softmax(l)_i.

    Args:
        logits, temperature, check_finite: as in `softmax_gate`.
        hard: one-hot forward, gradient of the soft sample (straight-through).
        generator: where the noise comes from; None leaves it out (evaluation).

    Raises:
        ValueError: as in `softmax_gate`.

    Source: Jang, Gu & Poole 2017, arXiv 1611.01144; Maddison, Mnih & Teh 2017, arXiv 1611.00712.

    Example:
        >>> gumbel_softmax_gate(torch.tensor([0.0, 1.0]), hard=True, generator=None).tolist()
        [0.0, 1.0]
    """
    check_logits(logits, check_finite)
    noisy = add_gumbel_noise(logits, generator)
    weights = softmax_gate(noisy, temperature)
    return straight_through(topk_mask(noisy, 1).to(weights), weights) if hard else weights


def gumbel_topk_sample(
    logits: Float[Tensor, "*batch gates"],
    k: int,
    *,
    generator: torch.Generator | None,
    check_finite: bool = False,
) -> Int[Tensor, "*batch k"]:
    """Indices of the k largest l + g, largest first: k draws from softmax(l) without replacement.

    Args:
        logits: l; gates at -inf come last, so let at least k be open.
        k: 1..gates.
        generator: where g_i ~ Gumbel(0, 1) comes from; None gives the most probable order.

    Raises:
        ValueError: k out of range, and as in `softmax_gate`.

    Source: Kool, van Hoof & Welling 2019, arXiv 1903.06059; the law of the order is Plackett-Luce.

    Example:
        >>> gumbel_topk_sample(torch.tensor([0.0, 2.0, 1.0]), 2, generator=None).tolist()
        [1, 2]
    """
    check_logits(logits, check_finite)
    check_k(k, logits.shape[-1])
    noisy = add_gumbel_noise(logits.detach(), generator)
    return torch.sort(noisy, dim=-1, descending=True, stable=True).indices[..., :k]


def plackett_luce_log_prob(
    logits: Float[Tensor, "*batch gates"], order: Int[Tensor, "*batch k"]
) -> Float[Tensor, "*batch"]:
    """log P(i_1, ..., i_k) = sum_j [l_{i_j} - log sum_{m not in i_1..i_{j-1}} exp l_m], in nats.

    Args:
        logits: l, finite where `order` points.
        order: indices, first drawn first, as from `gumbel_topk_sample`. A repeated index gives -inf.

    Raises:
        ValueError: logits not floating point or without gates; `order` not integer, of another batch, or k
            out of range.

    Source: Plackett 1975; Kool, van Hoof & Welling 2019, arXiv 1903.06059.

    Example:
        >>> plackett_luce_log_prob(torch.zeros(3), torch.tensor([2, 0])).exp()  # 1/3 times 1/2
        tensor(0.1667)
    """
    check_rows("logits", logits)
    check_int("order", order)
    gates = logits.shape[-1]
    if (
        order.dtype not in (torch.int64, torch.int32)
        or order.shape[:-1] != logits.shape[:-1]
        or not 1 <= order.shape[-1] <= gates
    ):
        raise ValueError(
            f"order must be an integer tensor of shape {(*logits.shape[:-1], f'1..{gates}')}, as the logits are; "
            f"got {order.dtype} {tuple(order.shape)}"
        )
    if holds_anywhere((order < 0) | (order >= gates)):
        raise ValueError(f"order must hold gates from 0 to {gates - 1}; got {order}")
    chosen = order[..., None] == torch.arange(gates, device=order.device)
    gone = chosen.cumsum(-2) - chosen.to(torch.long) > 0
    left = logits[..., None, :].masked_fill(gone, -torch.inf)
    return (left.gather(-1, order[..., None]).squeeze(-1) - left.logsumexp(-1)).sum(-1)


def gumbel_topk_gate(
    logits: Float[Tensor, "*batch gates"],
    k: int,
    temperature: Temperature = 1.0,
    *,
    generator: torch.Generator | None,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """1 at the k largest l + g, else 0; gradient of softmax((l + g) / T) (straight-through, so biased).

    Args, Raises: as in `gumbel_topk_sample`; temperature as in `softmax_gate`.

    Source: Kool, van Hoof & Welling 2019, arXiv 1903.06059 (the draw);
        Jang, Gu & Poole 2017, arXiv 1611.01144 (the gradient, for k = 1).

    Example:
        >>> gumbel_topk_gate(torch.tensor([0.0, 2.0, 1.0]), 2, generator=None).tolist()
        [0.0, 1.0, 1.0]
    """
    check_logits(logits, check_finite)
    noisy = add_gumbel_noise(logits, generator)
    soft = softmax_gate(noisy, temperature)
    return straight_through(topk_mask(noisy, k).to(soft), soft)
