"""Maximum likelihood of `GaussianMoE` by EM, thousands of data sets at once.

One pass over the points (`gated.kernels.gmoe_em`) gives all that an iteration needs at the current parameters. The
experts have a closed form, weighted least squares; the gate takes one step of Fisher scoring with the selected experts
held fixed (`gated.gaussian_moe.steps`). What the step has gained is known after the next pass. Where the likelihood
fell, because the gate went too far or experts were selected anew, that data set's gate step is halved and in the end
left out. What is left is an exact EM step of the experts, which cannot lower it.

Steps of the gate are damped, and damping shortens steps; it pulls no parameter anywhere. Along a direction in which the
likelihood is constant nothing moves, and where such a fit ends is where it started.

EM is slow where experts are redundant: its rate of convergence tends to 1. `polish="lbfgs"` then goes on with a
quasi-Newton method that takes EM's matrix for its initial inverse Hessian. Each step has to raise the likelihood, and
where it finds no such step it starts anew from EM.

Sources: Dempster, Laird and Rubin 1977, section 1 (generalised EM); Jordan and Jacobs 1994 (mixtures of experts);
Jamshidian and Jennrich 1997 (quasi-Newton acceleration of EM, doi 10.1111/1467-9868.00083).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated.gates._validation import check_count, check_number, check_positive, is_number
from gated.gaussian_moe.model import GaussianMoE
from gated.gaussian_moe.steps import EMPTY, Layout, quasi_newton, step_from
from gated.kernels.gmoe_em import Points, Statistics

MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers
POLISH_BELOW = 0.1  # L-BFGS takes over when EM gains less than this in an iteration

Polish = Literal["lbfgs"]


class Fit(NamedTuple):
    """Fitted models, one a data set, and how the fit went. No data set is ever left out."""

    model: GaussianMoE
    log_likelihood: Float[Tensor, " datasets"]
    iterations: Int[Tensor, " datasets"]  # passes over the data after the first, shortened steps included
    converged: Bool[Tensor, " datasets"]  # stopped by itself, not by max_iterations
    dormant: Int[Tensor, " datasets"]  # experts that no point selects, or responsible for under 1e-8 of the points
    at_bound: Bool[Tensor, " datasets"]  # a variance, bias, slope or temperature ended at its bound
    history: Float[Tensor, "iterations+1 datasets"] | None  # log-likelihood, the last value repeated after the end


def fit(
    points: Points,
    start: GaussianMoE,
    *,
    free_tau: bool = False,
    tolerance: float | int = 1e-7,
    max_iterations: int = 2000,
    min_variance: float | int | Float[Tensor, " datasets"] | None = None,
    max_slope: float | int = 200.0,
    max_bias: float | int = math.inf,
    min_tau: float | int = 1e-3,
    polish: Polish | None = None,
    compiled: bool = False,
    record: bool = False,
) -> Fit:
    """The maximum of sum log p(y | x) near `start`, for each data set by itself, under bounds that keep it finite.

    Args:
        points: of all data sets, float64, none empty. On a GPU each pass computes in float32, which blurs the
            log-likelihood by some 1e-4 at 1,000 points: set the tolerance to match.
        start: one model a data set. A beta0 of the last expert is subtracted from all, and so is its beta1 where the
            activation is the identity, since the density does not change. With top_k = 1 the gate stays as it is:
            a softmax of one expert is 1 and has no gradient.
        free_tau: whether tau is estimated.
        tolerance: a data set stops when an iteration gains less log-likelihood than this (with polish: three in a row).
        max_iterations: passes over the data after the first, > 0.
        min_variance: least nu_i; None is a thousandth of the variance of the data set's y.
        max_slope: greatest |beta_1|. max_bias: greatest |beta_0|, infinite by default; both where the last expert's
            are 0. With a finite one no expert's weight can go to zero, as theory on compact sets assumes.
        min_tau: least tau, where it is estimated.
        polish: "lbfgs" goes on where EM has become slow; None is EM alone.
        compiled: see `gmoe_em`.
        record: whether the history is kept.

    Raises:
        ValueError: an empty data set, points that are not float64 or not finite, a start that does not fit or is not
            finite or has zero likelihood, or an argument out of range.
    """
    layout = Layout(start.num_experts, start.dim, start.gate)
    floor = _check(points, start, min_variance, tolerance, max_iterations, max_slope, max_bias, min_tau, polish)
    theta = layout.pack(_gauge(start))
    low, high = layout.bounds(theta, floor, free_tau, max_slope, min_tau, max_bias)
    theta = theta.clamp(low, high)
    s = layout.statistics(points, theta, compiled)
    if not s.log_likelihood.isfinite().all():
        bad = (~s.log_likelihood.isfinite()).nonzero()[:5, 0].tolist()
        raise ValueError(f"start must give a finite likelihood; data sets {bad} do not: scale x and y or start nearer")

    step = step_from(s, layout, theta, (low, high), free_tau)
    datasets = len(theta)
    zeros = torch.zeros(datasets, dtype=torch.int64, device=theta.device)
    none, memory = zeros.bool(), theta.new_zeros(datasets, MEMORY if polish else 0, theta.shape[1])
    # One row a data set that is still computed. What ends in _at belongs to the current parameters, theta.
    now = {
        "index": torch.arange(datasets, device=theta.device),
        "theta": theta,
        "low": low,
        "high": high,
        "size": points.sizes().to(theta),
        "value_at": s.log_likelihood,
        "gradient_at": step.gradient,
        "em_at": step.em,
        "dormant_at": _dormant(s),
        "direction": step.em,
        "length": theta.new_ones(datasets),  # of the step: of all of L-BFGS's, of the gate's part of EM's
        "quasi": none,  # whether the direction is L-BFGS's
        "polishing": none,
        "small": zeros,  # gains below the tolerance in a row
        "failures": zeros,  # of L-BFGS
        "wait": zeros,  # so many steps of EM before it is tried again
        "active": ~none,
        "steps": memory,
        "changes": memory,
    }
    fitted, likelihood, dormant = theta.clone(), s.log_likelihood.clone(), now["dormant_at"].clone()
    iterations, converged = zeros.clone(), none.clone()
    history = [likelihood.clone()] if record else None

    for iteration in range(1, max_iterations + 1):
        index, active, quasi, length = now["index"], now["active"], now["quasi"], now["length"]
        scale = torch.where(quasi, length, 1.0)[:, None].expand_as(now["theta"]).clone()
        scale[:, : layout.parts[0]] = length[:, None]
        trial = (now["theta"] + scale * now["direction"]).clamp(now["low"], now["high"])
        move = trial - now["theta"]
        s = layout.statistics(points, trial, compiled)
        step = step_from(s, layout, trial, (now["low"], now["high"]), free_tau)

        gain = s.log_likelihood - now["value_at"]
        rounding = 1e-13 * (now["size"] + now["value_at"].abs())
        least = torch.where(quasi, 1e-4 * (move * now["gradient_at"]).sum(1).clamp(min=0), 0.0)
        accepted = active & (gain >= least - rounding)
        rejected = active & ~accepted
        small = accepted & (gain < tolerance)
        now["small"] = torch.where(small, now["small"] + 1, torch.where(accepted, 0, now["small"]))
        if polish:
            now["polishing"] = now["polishing"] | accepted & (gain < POLISH_BELOW)
            remember = accepted & now["polishing"]
            _remember(now, remember, move, now["gradient_at"] - step.gradient)
        # A small gain says little after a shortened step (the next is a whole one) or from a single step of L-BFGS.
        needed = torch.where(now["polishing"], 3, torch.where(length < 1, 2, 1))
        done = small & (now["small"] >= needed) | rejected & (length == 0)

        at = {
            "theta": trial,
            "value_at": s.log_likelihood,
            "gradient_at": step.gradient,
            "em_at": step.em,
            "dormant_at": _dormant(s),
        }
        now |= {name: torch.where(_like(accepted, new), new, now[name]) for name, new in at.items()}

        # L-BFGS goes nowhere: EM again, with an empty memory. At the jumps of a selection that happens again and again.
        restart = rejected & quasi & (length < 2**-6)
        shorter = torch.where(~quasi & (length <= 2**-6), 0.0, length / 2)
        longer = torch.where(small | quasi, 1.0, (2 * length).clamp(2**-5, 1.0))
        now["length"] = torch.where(accepted, longer, torch.where(restart, 1.0, shorter))
        if polish:
            for name in ("steps", "changes"):
                now[name] = now[name].masked_fill(_like(restart, now[name]), 0)
            now["failures"] = now["failures"] + restart
            waiting = (now["wait"] - accepted.long()).clamp(min=0)
            now["wait"] = torch.where(restart, 2 ** now["failures"].clamp(max=10), waiting)
            uphill = quasi_newton(step, layout, now["steps"], now["changes"], now["theta"])
            usable = now["polishing"] & ((uphill * step.gradient).sum(1) > 0) & uphill.isfinite().all(1)
            usable &= now["changes"][:, -1].any(1) & (now["wait"] == 0)
            now["quasi"] = torch.where(accepted, usable, quasi & ~restart)
            now["length"] = torch.where(accepted & usable, 1.0, now["length"])
            fresh = torch.where((accepted & usable)[:, None], uphill, now["em_at"])
            now["direction"] = torch.where((accepted | restart)[:, None], fresh, now["direction"])
        else:
            now["direction"] = now["em_at"]

        now["active"] = active & ~done
        iterations[index[active]] = iteration
        converged[index[done]] = True
        fitted[index], likelihood[index], dormant[index] = now["theta"], now["value_at"], now["dormant_at"]
        if history is not None:
            history.append(likelihood.clone())
        if done.any():
            left = now["active"].nonzero()[:, 0]
            if not len(left):
                break
            if 4 * now["size"][left].sum() < 3 * now["size"].sum():
                points, now = points.select(left), {name: tensor[left] for name, tensor in now.items()}

    at_bound = ((low < high) & ((fitted <= low) | (fitted >= high))).any(1)
    kept = None if history is None else torch.stack(history)
    return Fit(layout.unpack(fitted), likelihood, iterations, converged, dormant, at_bound, kept)


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (tensor.dim() - 1))


def _dormant(s: Statistics) -> Tensor:
    total = s.moment[..., 0, 0]
    return ((s.selected == 0) | (total < EMPTY * total.sum(1, keepdim=True))).sum(1)


def _remember(now: dict[str, Tensor], where: Tensor, move: Tensor, change: Tensor) -> None:
    """Keeps a step and the fall of the gradient over it, where they show the curvature of a maximum."""
    curved = (move * change).sum(1) > 1e-12 * move.norm(dim=1) * change.norm(dim=1)
    for name, new in (("steps", move), ("changes", change)):
        shifted = torch.cat([now[name][:, 1:], new[:, None]], 1)
        now[name] = torch.where(_like(where & curved, shifted), shifted, now[name])


def _gauge(model: GaussianMoE) -> GaussianMoE:
    """The same densities with 0 for the last expert's gate."""
    beta0 = model.beta0 - model.beta0[:, -1:]
    return replace(model, beta0=beta0, beta1=model.beta1 - model.beta1[:, -1:])


def _check(
    points: Points,
    start: GaussianMoE,
    min_variance: float | int | Tensor | None,
    tolerance: float | int,
    max_iterations: int,
    max_slope: float | int,
    max_bias: float | int,
    min_tau: float | int,
    polish: Polish | None,
) -> Tensor:
    """The least variance of each data set."""
    points.check()
    for name, number in (("tolerance", tolerance), ("max_slope", max_slope), ("min_tau", min_tau)):
        check_positive(name, number)
    check_number("max_bias", max_bias, "(0, inf]")
    check_count("max_iterations", max_iterations)
    if polish not in (None, *get_args(Polish)):
        raise ValueError(f"polish must be None or one of {get_args(Polish)}; got {polish!r}")
    if start.models != (points.segments,) or start.dim != points.x.shape[1]:
        raise ValueError(
            f"start must be {points.segments} models of {points.x.shape[1]} inputs, one a data set; got models "
            f"{tuple(start.models)} of {start.dim}"
        )
    if points.y.dtype != torch.float64 or start.tau.dtype != torch.float64:
        raise ValueError(f"points and start must be float64; got {points.y.dtype} and {start.tau.dtype}")
    sizes = points.sizes()
    if not (sizes > 0).all():
        raise ValueError(f"points must leave no data set empty; {(sizes == 0).nonzero()[:5, 0].tolist()} are")
    if not (points.x.isfinite().all() and points.y.isfinite().all()):
        raise ValueError("points must be finite; got NaN or infinite values: leave them out")
    for name, tensor in start.tensors().items():
        if not tensor.isfinite().all() or (name in ("variance", "tau") and not (tensor > 0).all()):
            positive = " and above 0" if name in ("variance", "tau") else ""
            raise ValueError(f"start's {name} must be finite{positive}; got values that are not")
    if start.gate.activation != "identity" and start.beta1[:, -1].any():
        raise ValueError("start's last expert must have beta1 = 0: only with the identity can it be shifted there")
    if min_variance is not None:
        if not isinstance(min_variance, Tensor) and not is_number(min_variance):
            raise ValueError(f"min_variance must be a number, or one for each data set; got {min_variance!r}")
        floor = torch.as_tensor(min_variance, dtype=torch.float64, device=points.y.device)
        if floor.shape not in ((), (points.segments,)):
            raise ValueError(f"min_variance must be one number, or {points.segments}; got {tuple(floor.shape)}")
        floor = floor.expand(points.segments)
        if not (floor.isfinite() & (floor > 0)).all():
            raise ValueError(f"min_variance must be above 0 and finite; got {min_variance}")
        return floor
    sums = lambda values: sizes.new_zeros(len(sizes)).to(values).index_add(0, points.segment, values.sum(1))  # noqa: E731
    mean = sums(points.y) / sizes
    real = torch.arange(points.y.shape[1], device=sizes.device) < points.count[:, None]
    spread = sums((points.y - mean[points.segment, None]).square() * real) / sizes
    # Outputs that are all equal have no scale of their own but their size.
    floor = (1e-3 * spread).maximum(1e-12 * mean.square())
    return torch.where(floor > 0, floor, 1e-12)
