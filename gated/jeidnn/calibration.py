"""Is a probability what it says? Calibration error, reliability, temperature, conformal sets, and bias at exits.

Nothing here knows about exits but the last two sections: scores and answers come in, whoever made them.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gated.gates._validation import check_choice, check_sizes
from gated.jeidnn._validation import check_classes, check_exits, check_number, check_rows

Variant = Literal["general", "gated-all", "strict"]


class Reliability(NamedTuple):
    """Mean confidence, accuracy and number of samples of each bin, from the least confident bin up."""

    confidence: Float[Tensor, "bins"]
    accuracy: Float[Tensor, "bins"]
    number: Int64[Tensor, "bins"]


def reliability(confidence: Float[Tensor, "batch"], correct: Bool[Tensor, "batch"], bins: int = 15) -> Reliability:
    """Bins of equal mass: the samples in order of confidence, cut into `bins` parts whose sizes differ by one at most.

    In float64. Fewer samples than bins make one bin each.
    """
    check_confidence(confidence, correct)
    check_sizes(bins=bins)
    order = confidence.argsort(stable=True)
    parts = [part for part in order.tensor_split(bins) if len(part)]
    return Reliability(
        torch.stack([confidence[part].double().mean() for part in parts]),
        torch.stack([correct[part].double().mean() for part in parts]),
        torch.tensor([len(part) for part in parts], device=confidence.device),
    )


def calibration_error(
    confidence: Float[Tensor, "batch"],
    correct: Bool[Tensor, "batch"],
    bins: int = 15,
    *,
    debiased: bool = False,
) -> float:
    """ECE = sum_b (n_b / n) |conf_b - acc_b| over bins of equal mass.

    The plain form is above 0 even for a perfect predictor: a bin's accuracy is a mean of n_b coin flips.

    Args:
        confidence, correct: the probability given to the answer, and whether it was right.
        bins: number of bins.
        debiased: subtracts what normal noise of the flips would add, E|N(gap_b, s_b^2)| - |gap_b| with
            s_b^2 = acc_b (1 - acc_b) / (n_b - 1): an approximation, two fifths of the excess of a perfect predictor.
            At least 0. Needs two samples in each bin.

    Raises:
        ValueError: confidence outside [0, 1], no samples, bins of one sample with `debiased`.

    Source: Naeini, Cooper & Hauskrecht 2015 (ECE); Kumar, Liang & Ma 2019, arXiv 1909.10155 (the debiased forms).

    Example:
        >>> calibration_error(torch.tensor([0.5, 0.5]), torch.tensor([True, False]), bins=1)
        0.0
    """
    conf, acc, count = reliability(confidence, correct, bins)
    share, gap = count / count.sum(), (conf - acc).abs()
    if not debiased:
        return float((share * gap).sum())
    if count.min() < 2:
        raise ValueError(f"bins must be at most {len(confidence) // 2}, 2 a bin, with debiased={debiased}; got {bins}")
    variance = acc * (1 - acc) / (count - 1)
    # the mean of |N(gap, s^2)|: s sqrt(2/pi) exp(-gap^2 / 2 s^2) + gap erf(gap / s sqrt 2); gap itself where s is 0
    scale = (2 * variance).sqrt().clamp(min=1e-300)
    folded = scale / math.pi**0.5 * torch.exp(-((gap / scale) ** 2)) + gap * torch.erf(gap / scale)
    return max(0.0, float((share * (2 * gap - folded)).sum()))


def brier(probabilities: Float[Tensor, "batch classes"], y: Int64[Tensor, "batch"]) -> float:
    """Mean over samples of sum_k (p_k - 1[k = y])^2, from 0 to 2. Source: Brier 1950.

    Example:
        >>> brier(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
        0.25
    """
    check_rows("probabilities", probabilities, 2)
    check_classes(y, len(probabilities), probabilities.shape[1])
    return float(
        (probabilities.double() - torch.nn.functional.one_hot(y, probabilities.shape[1])).square().sum(1).mean()
    )


def fit_temperature(logits: Float[Tensor, "batch classes"], y: Int64[Tensor, "batch"]) -> float:
    """T in [1e-3, 1e3] that minimises the mean CE of softmax(logits / T); an end of that range if the CE still falls.

    The CE is convex in 1/T with slope mean(E_p[logit] - logit_y): bisection finds where it vanishes.

    Source: Guo et al. 2017, arXiv 1706.04599.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)  # 88 of 100, it says
        >>> T = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))  # 75 of 100, it is
        >>> round(float((logits / T).softmax(1)[0, 0]), 4)
        0.75
    """
    check_rows("logits", logits, 2)
    check_classes(y, len(logits), logits.shape[1])
    logits = logits.double()
    right = logits.gather(1, y[:, None]).mean()
    low, high = math.log(1e-3), math.log(1e3)  # of 1/T
    for _ in range(60):
        middle = (low + high) / 2
        p = (logits * math.exp(middle)).softmax(1)
        if (p * logits).sum(1).mean() < right:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


# Conformal sets ----------------------------------------------------------------------------------------------------


def conformal_quantile(scores: Float[Tensor, "batch"], alpha: float | int) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score: a new one lies at or under it with probability >= 1 - alpha.

    Infinity where that rank is n + 1: so few samples promise nothing smaller.

    Source: Vovk, Gammerman & Shafer 2005; split-conformal prediction.

    Example:
        >>> conformal_quantile(torch.arange(1.0, 10.0), alpha=0.2)
        8.0
    """
    check_number("alpha", alpha, "[0, 1]")
    check_rows("scores", scores, 1)
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)  # less what rounding may have added to a whole number
    if rank > n:
        return math.inf
    return float(scores.sort().values[max(rank, 1) - 1])


def conformal_thresholds(
    probabilities: Float[Tensor, "batch exits classes"],
    y: Int64[Tensor, "batch"],
    exit: Int64[Tensor, "batch"],
    alpha: float | int,
    variant: Variant = "strict",
) -> Float[Tensor, "exits"]:
    """One threshold q an exit for the score 1 - p[y], from samples that no part of the model was trained on.

    general    one q for all, from what each sample was answered: valid over all samples together
    strict     from the samples that left at this exit, and 1 - alpha where nobody did: valid at each exit that
               somebody took
    gated-all  from all samples at this exit, whoever left: another population than the one it is used on, not valid

    Valid means: if gates and heads were fixed before, and new samples come as these did. In float64.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163 (the variants, from its code).
    """
    check_choice("variant", variant, get_args(Variant))
    check_rows("probabilities", probabilities, 3)
    n, exits, classes = probabilities.shape
    check_classes(y, n, classes)
    check_exits(exit, n, exits)
    scores = 1 - probabilities.double().gather(2, y[:, None, None].expand(-1, exits, 1)).squeeze(2)
    if variant == "general":
        q = conformal_quantile(scores.gather(1, exit[:, None]).squeeze(1), alpha)
        return scores.new_full((exits,), q)
    thresholds = scores.new_empty(exits)
    for l in range(exits):
        here = exit == l
        if variant == "strict" and not here.any():
            thresholds[l] = 1 - alpha
            continue
        thresholds[l] = conformal_quantile(scores[:, l] if variant == "gated-all" else scores[here, l], alpha)
    return thresholds


def conformal_sets(
    probabilities: Float[Tensor, "batch classes"], thresholds: Float[Tensor, "batch"]
) -> Bool[Tensor, "batch classes"]:
    """Classes k with 1 - p_k <= q, each sample with the q of the exit that it took; may be empty, or all.

    Raises:
        ValueError: not one threshold a sample, or NaN.

    Example:
        >>> conformal_sets(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0.85])).tolist()
        [[True, True, False]]
    """
    check_rows("probabilities", probabilities, 2)
    if thresholds.shape != probabilities.shape[:1] or thresholds.isnan().any():
        raise ValueError(f"thresholds must have shape ({len(probabilities)},), no NaN; got {tuple(thresholds.shape)}")
    return 1 - probabilities.double() <= thresholds[:, None]


class SetQuality(NamedTuple):
    """Mean number of classes in a set, and the share of sets without the right one."""

    size: float
    miss: float


def set_quality(sets: Bool[Tensor, "batch classes"], y: Int64[Tensor, "batch"]) -> SetQuality:
    """Size of the sets, and how often the right class y is not in them.

    Raises:
        ValueError: sets that are not truth values [batch, classes], or a y that is none of the classes.
    """
    if not isinstance(sets, Tensor) or sets.dtype != torch.bool or sets.ndim != 2:
        raise ValueError("sets must be truth values [batch, classes], as `conformal_sets` gives them")
    check_classes(y, *sets.shape)
    return SetQuality(float(sets.sum(1).double().mean()), float((~sets.gather(1, y[:, None])).double().mean()))


# Bias at exits -----------------------------------------------------------------------------------------------------


class ExitBias(NamedTuple):
    """Mean of confidence minus correctness at each exit, and how many left there; 0 where nobody did."""

    bias: Float[Tensor, "exits"]
    number: Int64[Tensor, "exits"]


def exit_bias(
    confidence: Float[Tensor, "batch"],
    correct: Bool[Tensor, "batch"],
    exit: Int64[Tensor, "batch"],
    exits: int,
) -> ExitBias:
    """E[max p - 1[correct] | exit at l] for each exit: above 0 where who leaves is less right than it says."""
    check_confidence(confidence, correct)
    check_sizes(exits=exits)
    check_exits(exit, len(confidence), exits)
    count = torch.bincount(exit, minlength=exits)
    gap = torch.bincount(exit, weights=confidence.double() - correct.double(), minlength=exits)
    return ExitBias(gap / count.clamp(min=1), count)


def check_confidence(confidence: Tensor, correct: Tensor) -> None:
    check_rows("confidence", confidence, 1)
    if ((confidence < 0) | (confidence > 1 + 1e-6)).any():
        raise ValueError("confidence must be probabilities in [0, 1]; got values outside (logits?)")
    if correct.shape != confidence.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"correct must be boolean, shape {tuple(confidence.shape)}; got {correct.dtype} {tuple(correct.shape)}"
        )
