"""What the gates are taught, and how the inference modules are weighted: the two sides of the alternation."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from gated.gates._validation import check_axes, check_choice, check_positive, check_sizes
from gated.jeidnn._validation import check_classes, check_costs, check_exits, check_number, check_rows

Target = Literal["subsequent", "one-hot", "hazard"]
Weighting = Literal["plain", "detached", "released", "unweighted"]


def exit_losses(
    logits: Float[Tensor, "batch exits classes"], y: Int64[Tensor, "batch"]
) -> Float[Tensor, "batch exits"]:
    """Loss of each exit on each sample, -log p[y] in nats."""
    check_rows("logits", logits, 3)
    check_classes(y, len(logits), logits.shape[2])
    return -logits.log_softmax(-1).gather(2, y[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)


def exit_labels(
    losses: Float[Tensor, "batch exits"], costs: Float[Tensor, "exits"], trade_off: float | int
) -> Int64[Tensor, "batch"]:
    """l* = argmin_l loss_l + lambda c_l, the earliest at ties. Never later for a larger lambda = `trade_off`.

    Raises:
        ValueError: trade_off negative or not finite, losses not finite, costs that do not rise.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163 (the surrogate labels of the gates).

    Example:
        >>> losses, costs = torch.tensor([[1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.25, 1.0])
        >>> exit_labels(losses, costs, trade_off=1.0).tolist()
        [0, 1]
    """
    check_number("trade_off", trade_off, "[0, inf)")
    check_rows("losses", losses, 2)
    check_costs(costs, losses.shape[1])
    total = losses + trade_off * costs.to(losses)
    index = torch.arange(losses.shape[1], device=losses.device).expand_as(losses)
    return index.masked_fill(total > total.amin(1, keepdim=True), losses.shape[1]).amin(1)


class GateTargets(NamedTuple):
    """What each gate should say, and how much each answer counts."""

    target: Float[Tensor, "batch gates"]
    weight: Float[Tensor, "batch gates"]


def gate_targets(labels: Int64[Tensor, "batch"], exits: int, kind: Target = "subsequent") -> GateTargets:
    """Binary targets t_l of the L - 1 gates from the best exit l*; all 0 where l* is the last exit.

    subsequent  t_l = 1[l >= l*]: g_l learns P(l* <= l), a distribution function (the released choice)
    one-hot     t_l = 1[l = l*]: g_l learns P(l* = l), a mass
    hazard      t_l = 1[l = l*], and gates after l* do not count: g_l learns P(l* = l | l* >= l)

    They belong to the compositions "cdf", "clip" and "stick", in this order. The released code spends the first as
    the second. In float32 on the labels' device.

    Raises:
        ValueError: an unknown kind, labels beyond the exits.

    Example:
        >>> gate_targets(torch.tensor([1, 3]), exits=4).target.tolist()
        [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    check_choice("kind", kind, get_args(Target))
    check_sizes(exits=exits)
    check_axes("batch", labels=labels)
    check_exits(labels, len(labels), exits, "labels")
    gate = torch.arange(exits - 1, device=labels.device)
    after, here = (gate > labels[:, None]).float(), (gate == labels[:, None]).float()
    if kind == "subsequent":
        return GateTargets(here + after, torch.ones_like(here))
    return GateTargets(here, 1 - after if kind == "hazard" else torch.ones_like(here))


def regret(totals: Float[Tensor, "batch exits"]) -> Float[Tensor, "batch gates"]:
    """|J_l - min_{k>l} J_k| with J_l = loss_l + lambda c_l: what the wrong answer of gate l costs this sample.

    With two exits, as a weight of the targets, it turns the vote on labels into a comparison of means. With more, the
    best later exit is known only with the label, and the weight then favours going on.

    Example:
        >>> regret(torch.tensor([[1.0, 3.0, 2.0]])).tolist()
        [[1.0, 1.0]]
    """
    check_rows("totals", totals, 2)
    later = totals.flip(1).cummin(1).values.flip(1)[:, 1:]
    return (totals[:, :-1] - later).abs()


def positive_weights(labels: Int64[Tensor, "batch"], exits: int, cap: float | int = 5) -> Float[Tensor, "gates"]:
    """pi_l = min(cap, (n - n_l) / max(n_l, 0.1)), n_l the samples with label l; `cap` for a label that nobody has.

    Raises:
        ValueError: labels beyond the exits, a cap that is not positive and finite.
    """
    check_positive("cap", cap)
    check_sizes(exits=exits)
    check_axes("batch", labels=labels)
    check_exits(labels, len(labels), exits, "labels")
    count = torch.bincount(labels, minlength=exits)[: exits - 1].float()
    return ((len(labels) - count) / count.clamp(min=0.1)).clamp(max=cap)


def gate_loss(
    gate_logits: Float[Tensor, "batch gates"],
    targets: GateTargets,
    positive: Float[Tensor, "gates"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over samples and gates of w_l BCE(sigma(s_l), t_l), with pi_l (`positive`) times that where t_l = 1.

    Raises:
        ValueError: targets of another shape, `positive` that is not one a gate.
    """
    check_rows("gate_logits", gate_logits, 2, finite=False)
    target, weight = (x.to(gate_logits) for x in targets)
    if not target.shape == weight.shape == gate_logits.shape:
        raise ValueError(f"targets must have the shape {tuple(gate_logits.shape)}, got {tuple(target.shape)}")
    if positive is not None and positive.shape != gate_logits.shape[1:]:
        raise ValueError(f"positive must be one for each of {gate_logits.shape[1]} gates; got {tuple(positive.shape)}")
    positive = None if positive is None else positive.to(gate_logits)
    return F.binary_cross_entropy_with_logits(gate_logits, target, weight, pos_weight=positive)


def inference_loss(
    losses: Float[Tensor, "batch exits"], p: Float[Tensor, "batch exits"], weighting: Weighting = "detached"
) -> Float[Tensor, ""]:
    """Mean over samples of r_i sum_l p_l loss_l, l below L; p is held fixed.

    Args:
        losses: of the inference modules, with gradients.
        p: where the gates send each sample; the same shape.
        weighting: what r_i is. "plain": the number of modules, so that even p give the unweighted sum. "detached":
            sum_l loss_l / sum_l p_l loss_l as a number; the gradient is then that of log sum_l p_l loss_l, times
            sum_l loss_l. "released": the same with its gradient; the product is then sum_l loss_l whatever p is,
            value and gradient. "unweighted": sum_l loss_l, written directly.
            Where a sample's p are all 0, or its losses under p vanish, the ratio would be 0/0: it counts unweighted.

    Raises:
        ValueError: shapes that differ, negative or non-finite losses, an unknown weighting.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163; "released" is what its code computes.
    """
    check_choice("weighting", weighting, get_args(Weighting))
    check_rows("losses", losses, 2)
    if p.shape != losses.shape:
        raise ValueError(f"p must have the shape of losses, {tuple(losses.shape)}; got {tuple(p.shape)}")
    if (losses < 0).any():
        raise ValueError("losses must be at least 0; got negative values")
    total, sent = losses.sum(1), (p.detach() * losses).sum(1)
    if weighting == "unweighted":
        return total.mean()
    if weighting == "plain":
        return losses.shape[1] * sent.mean()
    empty = sent <= torch.finfo(sent.dtype).tiny
    ratio = total / sent.masked_fill(empty, 1)
    if weighting == "detached":
        ratio = ratio.detach()
    return torch.where(empty, total, sent * ratio).mean()
