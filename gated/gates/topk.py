"""Hard selection of k gates among N, with softmax weights on the survivors; with and without noise."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gated.gates._validation import (
    Temperature,
    check_count,
    check_float,
    check_k,
    check_logits,
    check_noise_std,
    check_positive,
    check_rows,
    check_same_shape,
)
from gated.gates.noise import add_gaussian_noise
from gated.gates.soft import softmax_gate


def topk_mask(scores: Float[Tensor, "*batch gates"], k: int) -> Bool[Tensor, "*batch gates"]:
    """True at the k largest scores of each row, exactly k of them; ties go to the lower index.

    A score of -inf is never taken: a row with fewer than k open gates selects just those. No gradient.

    Raises:
        ValueError: k outside 1..gates; scores not floating point or without gates.

    Example:
        >>> topk_mask(torch.tensor([1.0, 3.0, 3.0, 2.0]), k=2).tolist()
        [False, True, True, False]
    """
    check_rows("scores", scores)
    check_k(k, scores.shape[-1])
    order = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :k], True) & ~scores.isneginf()


def topk_gate(
    logits: Float[Tensor, "*batch gates"],
    k: int,
    temperature: Temperature = 1.0,
    *,
    ranking: Float[Tensor, "*batch gates"] | None = None,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """Top-k, then softmax: w = softmax(l'/T), l' = l at the k largest of `ranking`, -inf elsewhere.

    Rows sum to one. With k = 1 the weight is the constant 1 and no gradient reaches the logits;
    `softmax_topk_gate` keeps one.

    Args:
        logits, temperature, check_finite: as in `softmax_gate`. A gate at -inf stays shut.
        k: gates kept per row, 1..gates; k = gates is `softmax_gate`.
        ranking: what decides who stays; the logits unless given. No gradient flows into it.

    Raises:
        ValueError: k out of range; `ranking` of another shape; as in `softmax_gate`.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eqs. 3 and 5.

    Example:
        >>> topk_gate(torch.tensor([0.0, 0.0, -1.0]), k=2).tolist()
        [0.5, 0.5, 0.0]
    """
    check_logits(logits, check_finite)
    if ranking is not None:
        check_float("ranking", ranking)
        check_same_shape("ranking", ranking, "logits", logits)
    kept = topk_mask(logits if ranking is None else ranking, k)
    return softmax_gate(logits.masked_fill(~kept, -torch.inf), temperature)


def softmax_topk_gate(
    logits: Float[Tensor, "*batch gates"],
    k: int,
    temperature: Temperature = 1.0,
    *,
    renormalise: bool = False,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """Softmax, then top-k: w_i = p_i at the k largest p = softmax(l/T), else 0. Rows sum to at most one.

    With `renormalise` the kept weights are divided by their sum, which makes it equal to `topk_gate`.

    Args, Raises: as in `topk_gate`.

    Source: Fedus, Zoph & Shazeer 2021, arXiv 2101.03961, section 2.1 (k = 1);
        Riquelme et al. 2021, arXiv 2106.05974.

    Example:
        >>> softmax_topk_gate(torch.tensor([0.5, 0.3, 0.2]).log(), k=1)
        tensor([0.5000, 0.0000, 0.0000])
    """
    weights = softmax_gate(logits, temperature, check_finite=check_finite)
    # Rank the logits, not the weights: rounding makes weights tie where the logits still differ.
    weights = weights.masked_fill(~topk_mask(logits, k), 0)
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights


def selection_probability(
    logits: Float[Tensor, "*batch gates"],
    noisy_logits: Float[Tensor, "*batch gates"],
    noise_std: float | int | Float[Tensor, "*batch gates"],
    k: int,
) -> Float[Tensor, "*batch gates"]:
    """P_i = Phi((l_i - kth_excluding(H, k, i)) / s_i): how likely i is in the top k if its noise is redrawn.

    kth_excluding(H, k, i) is the k-th largest noisy logit without i. The sum of P over the rows is a smooth
    stand-in for the load (`load_loss`). Rows do not sum to k in general. Gradients flow into l, H and s.

    Args:
        logits: l; a gate at -inf has P = 0.
        noisy_logits: H = `add_gaussian_noise(l, s)`, the draw that was used.
        noise_std: s > 0, as in `add_gaussian_noise`.
        k: 1..gates; k = gates gives P = 1.

    Raises:
        ValueError: k out of range, shapes that differ, s <= 0.

    Source: Shazeer et al. 2017, arXiv 1701.06538, appendix A.

    Example:
        >>> l = torch.tensor([1.0, 1.0])
        >>> selection_probability(l, l, noise_std=1.0, k=1).tolist()
        [0.5, 0.5]
    """
    check_rows("logits", logits)
    check_float("noisy_logits", noisy_logits)
    check_same_shape("noisy_logits", noisy_logits, "logits", logits)
    check_noise_std(noise_std, logits)
    kept = topk_mask(noisy_logits, k)
    ranked = F.pad(noisy_logits.sort(dim=-1, descending=True).values, (0, 1), value=-torch.inf)
    # Without a kept gate the next one moves up to rank k; without another gate rank k stays.
    threshold = torch.where(kept, ranked[..., k : k + 1], ranked[..., k - 1 : k])
    shut, unrivalled = logits.isneginf(), threshold.isneginf()
    settled = shut | unrivalled  # kept out of the quotient: infinities there would make NaN gradients
    margin = (logits.masked_fill(settled, 0) - threshold.masked_fill(settled, 0)) / noise_std
    return torch.where(settled, (~shut).to(logits.dtype), torch.special.ndtr(margin))


def noisy_topk_gate(
    logits: Float[Tensor, "*batch gates"],
    noise_std: float | int | Float[Tensor, "*batch gates"],
    k: int,
    *,
    generator: torch.Generator | None,
) -> Float[Tensor, "*batch gates"]:
    """Noisy top-k: w = `topk_gate(H, k)`, H = `add_gaussian_noise(l, s)`; generator None leaves noise out.

    Args, Raises: as in `add_gaussian_noise` and `topk_gate`.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eqs. 3 to 5.

    Example:
        >>> noisy_topk_gate(torch.tensor([0.0, 1.0, 2.0]), 1.0, k=1, generator=None).tolist()
        [0.0, 0.0, 1.0]
    """
    if generator is not None:
        logits = add_gaussian_noise(logits, noise_std, generator=generator)
    return topk_gate(logits, k)


class NoisyTopKGate(nn.Module):
    """Noisy top-k on features x: l = x W_gate, s = softplus(x W_noise) + `min_noise_std`.

    `forward(x, generator)` returns the weights, and the selection probabilities for `load_loss`. In
    evaluation there is no noise and the second is the selection itself, 0 or 1. Both matrices start at zero.
    `min_noise_std` > 0 is ours: it keeps the estimator finite.

    Raises:
        ValueError: sizes below 1, k out of range, x of another width; in training, no generator.

    Source: Shazeer et al. 2017, arXiv 1701.06538, section 2.1 and appendix A.

    Example:
        >>> gate = NoisyTopKGate(features=8, gates=4, k=2)
        >>> weights, probability = gate(torch.randn(5, 8), torch.Generator().manual_seed(0))
        >>> weights.shape, (weights > 0).sum(1).tolist()
        (torch.Size([5, 4]), [2, 2, 2, 2, 2])
    """

    def __init__(self, features: int, gates: int, k: int, *, min_noise_std: float | int = 1e-2):
        super().__init__()
        check_count("features", features)
        check_count("gates", gates)
        check_k(k, gates)
        check_positive("min_noise_std", min_noise_std)
        self.k, self.min_noise_std = k, min_noise_std
        self.gate_weight = nn.Parameter(torch.zeros(features, gates))
        self.noise_weight = nn.Parameter(torch.zeros(features, gates))

    def forward(
        self, x: Float[Tensor, "*batch features"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "*batch gates"], Float[Tensor, "*batch gates"]]:
        check_float("x", x)
        if x.ndim == 0 or x.shape[-1] != self.gate_weight.shape[0]:
            raise ValueError(f"x must have shape (*batch, {self.gate_weight.shape[0]}); got {tuple(x.shape)}")
        logits = x @ self.gate_weight
        if not self.training:
            return topk_gate(logits, self.k), topk_mask(logits, self.k).to(logits.dtype)
        if generator is None:
            raise ValueError("generator must be a torch.Generator in training; got None")
        noise_std = F.softplus(x @ self.noise_weight) + self.min_noise_std
        noisy = add_gaussian_noise(logits, noise_std, generator=generator)
        return topk_gate(noisy, self.k), selection_probability(logits, noisy, noise_std, self.k)
