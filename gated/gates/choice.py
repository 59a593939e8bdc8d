"""Selections beyond a fixed k per row: a share of probability, by columns, by Gaussian noise, into slots."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import Temperature, check_count, check_logits, check_number, check_positive
from gated.gates.soft import softmax_gate
from gated.gates.topk import topk_mask


def top_p_gate(
    logits: Float[Tensor, "*batch gates"],
    threshold: float | int,
    temperature: Temperature = 1.0,
    *,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """p = softmax(l/T); w_i = p_i on the shortest prefix of the sorted p whose sum is above P, else 0.

    Sure rows keep few gates, unsure rows many, and one at least. Weights are not rescaled, so rows sum to more
    than P (to one if the prefix is all). Ties go to the lower index.

    Args:
        logits, temperature, check_finite: as in `softmax_gate`.
        threshold: P, 0 <= P <= 1. 0 keeps the largest alone, 1 keeps all.

    Raises:
        ValueError: P outside [0, 1], and as in `softmax_gate`.

    Source: Huang et al. 2024, Harder tasks need more experts, arXiv 2403.07652.

    Example:
        >>> top_p_gate(torch.tensor([0.5, 0.3, 0.2]).log(), threshold=0.6)
        tensor([0.5000, 0.3000, 0.0000])
    """
    check_number("threshold", threshold, "[0, 1]")
    weights = softmax_gate(logits, temperature, check_finite=check_finite)
    order = torch.sort(logits.detach(), dim=-1, descending=True, stable=True).indices
    ranked = weights.detach().gather(-1, order)
    before = torch.cat([torch.zeros_like(ranked[..., :1]), ranked.cumsum(-1)[..., :-1].clamp(max=1)], -1)
    dropped = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before > threshold)
    return weights.masked_fill(dropped, 0)


def expert_choice_gate(
    logits: Float[Tensor, "*batch tokens gates"], capacity: int, *, check_finite: bool = False
) -> Float[Tensor, "*batch tokens gates"]:
    """p = softmax(l) by rows; each gate (column) takes its `capacity` rows of largest p, w = p there, else 0.

    Every gate has the same load. A row may be taken by several gates, or by none. Which rows are taken depends
    on all rows, later ones too: not for causal models.

    Args:
        logits: l, tokens by gates. A gate at -inf does not take that row.
        capacity: C, 1..tokens.
        check_finite: as in `softmax_gate`.

    Raises:
        ValueError: C out of range, logits without a token axis, and as in `softmax_gate`.

    Source: Zhou et al. 2022, Mixture-of-experts with expert choice routing, arXiv 2202.09368.

    Example:
        >>> w = expert_choice_gate(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), capacity=1)
        >>> (w > 0).int().tolist()
        [[0, 0], [1, 0], [0, 1]]
    """
    check_logits(logits, check_finite)
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (*batch, tokens, gates); got {tuple(logits.shape)}")
    check_count("capacity", capacity)
    if capacity > logits.shape[-2]:
        raise ValueError(f"capacity must be at most the number of tokens, {logits.shape[-2]}; got {capacity}")
    # Rank log p: p underflows, and would tie, where log p still differs.
    taken = topk_mask(logits.log_softmax(-1).mT, capacity).mT
    return softmax_gate(logits).masked_fill(~taken, 0)


def probit_gate(
    logits: Float[Tensor, "*batch gates"], noise_std: float | int = 1.0, *, check_finite: bool = False
) -> Float[Tensor, "*batch gates"]:
    """w_i = P(i = argmax_j l_j + s e_j), e ~ N(0, 1): multinomial probit. (With Gumbel e it is softmax.)

    Two gates: w_1 = Phi((l_1 - l_2) / (s sqrt 2)), exactly. More: the integral over u of
    phi(u - l_i/s) prod_{j != i} Phi(u - l_j/s), by the trapezoid rule, whose error is below 1e-10 for up to 64
    gates; rows are divided by their sum. No randomness.

    Args:
        logits: l; -inf shuts a gate.
        noise_std: s > 0.
        check_finite: as in `softmax_gate`.

    Raises:
        ValueError: s <= 0, and as in `softmax_gate`.

    Source: Thurstone 1927 (two gates); McFadden 1981, Econometric models of probabilistic choice.

    Example:
        >>> probit_gate(torch.tensor([0.0, 0.0, 0.0]))
        tensor([0.3333, 0.3333, 0.3333])
    """
    check_logits(logits, check_finite)
    check_positive("noise_std", noise_std)
    if logits.shape[-1] == 2:
        return torch.special.ndtr((logits - logits.flip(-1)) / (noise_std * math.sqrt(2)))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shut = wide.isneginf()
    # The winner's value lies near the largest mean or above; its density beyond 10 deviations does not count.
    centred = ((wide - wide.detach().amax(-1, keepdim=True)) / noise_std).masked_fill(shut, 0)
    u = torch.linspace(-10, 10, 201, dtype=wide.dtype, device=wide.device) - centred[..., None]
    log_below = torch.special.log_ndtr(u).masked_fill(shut[..., None], 0)
    log_density = log_below.sum(-2, keepdim=True) - log_below - u.square() / 2
    weights = torch.logsumexp(log_density, -1).masked_fill(shut, -torch.inf).softmax(-1)
    return weights.to(logits.dtype)


def soft_moe_gate(
    logits: Float[Tensor, "*batch tokens slots"], *, check_finite: bool = False
) -> tuple[Float[Tensor, "*batch tokens slots"], Float[Tensor, "*batch tokens slots"]]:
    """Soft MoE's two gates: dispatch D = softmax over *tokens*, combine C = softmax over *slots*.

    A slot's input is D^T X, a mixture of tokens; the output is C times the slots' results. So columns of D and
    rows of C sum to one. A slot (column) that is -inf for all tokens gets the weight 0. D depends on all tokens:
    not for causal models.

    Args:
        logits: l, tokens by slots, slots of all experts. -inf keeps a token and a slot apart.
        check_finite: as in `softmax_gate`.

    Raises:
        ValueError: logits without a token axis, and as in `softmax_gate`.

    Source: Puigcerver et al. 2024, From sparse to soft mixtures of experts, arXiv 2308.00951, section 2.

    Example:
        >>> dispatch, combine = soft_moe_gate(torch.zeros(4, 2))
        >>> dispatch[:, 0].tolist(), combine[0].tolist()
        ([0.25, 0.25, 0.25, 0.25], [0.5, 0.5])
    """
    check_logits(logits, check_finite)
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (*batch, tokens, slots); got {tuple(logits.shape)}")
    unused = logits.isneginf().all(-2, keepdim=True) if logits.shape[-2] else logits.new_zeros(()).bool()
    dispatch = logits.masked_fill(unused, 0).softmax(-2).masked_fill(unused, 0)
    return dispatch, softmax_gate(logits)
