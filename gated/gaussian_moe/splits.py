"""One expert made two, and what that changes: how the density hides a second expert, measured without any data.

Split expert i into two halves at theta_i + delta and theta_i - delta, each with half its weight e^(beta_0 / tau). To
first order in delta the halves cancel, and the density moves by O(delta^2): an estimate from n points, which sees
differences of n^-1/2, cannot tell delta = n^-1/4 from 0. Halves at b +- delta add delta^2 to the variance of y. Take
it off their own variance, and the density moves by O(delta^4) only: n^-1/8 hides.

Source: the orders are those behind the rates of Nguyen, Akbarian, Yan and Ho 2024 (arXiv 2309.13850).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gaussian_moe.model import Gate, GaussianMoE

Parameter = Literal["beta1", "a", "b", "variance"]


def split(
    model: GaussianMoE,
    expert: int,
    parameter: Parameter,
    delta: float | int | Float[Tensor, "*deltas"],
    *,
    compensate: bool = False,
) -> GaussianMoE:
    """Two halves of one expert at `parameter` + delta and - delta, in places `expert` and `expert` + 1.

    The gate keeps its form: a top-K gate now chooses K among k + 1. The last expert's beta_0 may no longer be 0.

    Args:
        model: one model.
        expert: which, from 0.
        parameter: what the halves differ in; the first entry of beta1 and a.
        delta: in the parameter's unit; its axes become those of the result.
        compensate: for "b" only, variance - delta^2 in both halves, which keeps the mean square of y.

    Raises:
        ValueError: many models, an expert that is not there, an unknown parameter, compensation of another one than b,
            a delta that leaves no variance.
    """
    if parameter not in get_args(Parameter):
        raise ValueError(f"parameter must be one of {get_args(Parameter)}; got {parameter!r}")
    if compensate and parameter != "b":
        raise ValueError(f'compensate is for the parameter "b"; got {parameter!r}')
    d = torch.as_tensor(delta, dtype=model.tau.dtype, device=model.tau.device)
    halves = _twice(model, expert, halve=True)
    halves = halves.map(lambda tensor: tensor.broadcast_to((*d.shape, *tensor.shape)).clone())
    entry = (..., 0) if parameter in ("beta1", "a") else (...,)
    moved = getattr(halves, parameter)[entry]  # views: what is added here is added to the model
    moved[..., expert] += d
    moved[..., expert + 1] -= d
    if compensate:
        halves.variance[..., expert : expert + 2] -= d.square()[..., None]
    if not (halves.variance > 0).all():
        raise ValueError(f"delta must leave both halves a variance above 0; got {d.tolist()}")
    return halves


def duplicate(
    model: GaussianMoE, expert: int, slope: float | int, *, halve: bool = True, gate: Gate | None = None
) -> GaussianMoE:
    """One more expert, in place `expert` + 1: a copy whose gate has the slope `slope` (the first entry).

    Args:
        model: one model.
        expert: which, from 0.
        halve: both copies have half the weight; otherwise each has all of it.
        gate: the form of the new gate; None keeps the model's.

    Raises:
        ValueError: many models, an expert that is not there.
    """
    twice = _twice(model, expert, halve=halve)
    twice.beta1[expert + 1, 0] = slope
    return replace(twice, gate=gate or twice.gate)


def _twice(model: GaussianMoE, expert: int, *, halve: bool) -> GaussianMoE:
    """The expert in two places next to each other."""
    if model.models:
        raise ValueError(f"model must be one model; got {tuple(model.models)} of them")
    if not 0 <= expert < model.num_experts:
        raise ValueError(f"expert must be from 0 to {model.num_experts - 1}; got {expert}")
    order = [*range(expert + 1), *range(expert, model.num_experts)]
    beta0 = model.beta0[order]
    if halve:
        beta0[expert : expert + 2] -= model.tau * math.log(2)
    return replace(
        model,
        beta0=beta0,
        beta1=model.beta1[order],
        a=model.a[order],
        b=model.b[order],
        variance=model.variance[order],
    )
