"""The two searches beneath every attack: by gradients, and without.

Both stop for an input once it breaks, and both refuse to stand still: a search whose gradients are not finite or
vanish, or that never leaves its start, raises `AttackError` instead of counting its inputs as robust.

Sources: Madry et al. 2018 (PGD), arXiv 1706.06083; Andriushchenko et al. 2020 (random search), arXiv 1912.00049.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.advmoe.exact import check_eps
from gated.advmoe.training import AttackError, Bounds, check_bounds, check_finite, project
from gated.gates._validation import check_float, check_positive, check_sizes

Objective = Callable[[Tensor, Tensor], Tensor]  # (inputs, their indices) -> what to maximise, [batch]
Verdict = Callable[[Tensor, Tensor], Tensor]  # (inputs, their indices) -> whether each is broken, [batch]


class Found(NamedTuple):
    """What one attack found.

    Attributes:
        broken: whether it succeeded, the clean input included.
        x_adv: the first success, the clean input where that is one already, else the last point tried.
        blind: survived, and every gradient seen was exactly 0: about these inputs the attack says nothing.
    """

    broken: Bool[Tensor, " batch"]
    x_adv: Float[Tensor, "batch ..."]
    blind: Bool[Tensor, " batch"]


@torch.no_grad()
def pgd(
    objective: Objective,
    broken: Verdict,
    x: Float[Tensor, "batch ..."],
    eps: float | int,
    *,
    steps: int = 20,
    alpha: float | int | None = None,
    restarts: int = 1,
    bounds: Bounds = None,
    generator: torch.Generator | None = None,
) -> Found:
    """x' <- P(x' + alpha sign(d objective / d x')) from uniform starts in the box; stops for an input once it breaks.

    Args:
        alpha: step size; eps / 4 unless given.
        bounds: (low, high) of valid inputs, or None.

    Raises:
        ValueError: eps negative or not finite, steps or restarts below 1, alpha <= 0, bounds out of order, x outside
            the bounds.
        AttackError: a gradient that is not finite; gradients of exactly 0 in every step for most of the inputs; most
            survivors closer than 0.9 eps to where they began although the steps were long enough.
    """
    check_attack(x, eps, bounds, steps=steps, restarts=restarts)
    if alpha is not None:
        check_positive("alpha", alpha)
    alpha = eps / 4 if alpha is None else alpha
    every = torch.arange(len(x), device=x.device)
    found, best = broken(x, every), x.clone()
    seen_slope, attacked = torch.zeros_like(found), (~found).sum()
    if eps == 0:
        return Found(found, best, seen_slope)
    for _ in range(restarts):
        alive = every[~found]
        start = torch.rand(x[alive].shape, generator=generator, dtype=x.dtype, device=x.device) * 2 - 1
        now = project(x[alive] + eps * start, x[alive], eps, bounds)
        for _ in range(steps):
            if not len(alive):
                break
            with torch.enable_grad():
                now.requires_grad_()
                (grad,) = torch.autograd.grad(objective(now, alive).sum(), now)
            check_finite(grad)
            seen_slope[alive] |= (grad != 0).flatten(1).any(1)
            now = project(now.detach() + alpha * grad.sign(), x[alive], eps, bounds)
            hit = broken(now, alive)
            best[alive], found[alive] = now, hit
            now, alive = now[~hit], alive[~hit]
    blind = ~found & ~seen_slope
    if 2 * int(blind.sum()) > int(attacked):
        raise AttackError(
            f"the attack's gradient was 0 in every step for {int(blind.sum())} of {int(attacked)} inputs; "
            "it stood still, which looks like robustness"
        )
    assert_used(best, x, ~found & ~blind, eps, checked=steps * alpha >= eps)
    return Found(found, best, blind)


@torch.no_grad()
def random_search(
    margin: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch channels *space"] | Float[Tensor, "batch dim"],
    eps: float | int,
    *,
    queries: int = 200,
    bounds: Bounds = None,
    generator: torch.Generator | None = None,
) -> Found:
    """Windows of the perturbation are set to +-eps (a sign for each channel); a change stays if `margin` falls.

    The start is +-eps at random. The window shrinks from half of the input to one entry over the queries. An input
    is broken once its margin is <= 0.

    Args:
        margin: (inputs, their indices) -> [batch]; positive while the input is right.
        queries: >= 1 evaluations for each input that has not broken yet.

    Raises: as `pgd`, but for gradients.

    Source: after Andriushchenko et al. 2020 (Square attack), arXiv 1912.00049; the schedule is ours.
    """
    check_attack(x, eps, bounds, queries=queries)
    every = torch.arange(len(x), device=x.device)
    found, best = margin(x, every) <= 0, x.clone()
    blind = torch.zeros_like(found)
    if eps == 0:
        return Found(found, best, blind)

    def signs(*shape: int) -> Tensor:
        return torch.randint(2, shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1

    alive = every[~found]
    value = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    # [batch, channels, *space]; a plain vector is one channel
    shape = x.shape[1:] if x.ndim > 2 else (1, *x.shape[1:])
    dims = len(shape) - 1
    for query in range(queries):
        if not len(alive):
            break
        base = x[alive]
        if query == 0:
            proposed = base + eps * signs(*base.shape)
        else:
            share = 0.5 ** (1 + 9 * query / queries)
            window = torch.ones(len(alive), 1, *[1] * dims, dtype=torch.bool, device=x.device)
            for axis, size in enumerate(shape[1:]):
                length = max(1, round(size * share ** (1 / dims)))
                first = torch.randint(size - length + 1, (len(alive), 1), generator=generator, device=x.device)
                place = torch.arange(size, device=x.device)
                inside = (place >= first) & (place < first + length)
                window = window & inside.view(len(alive), 1, *[size if a == axis else 1 for a in range(dims)])
            sign = eps * signs(len(alive), shape[0], *[1] * dims)
            current = best[alive].view(len(alive), *shape)
            proposed = torch.where(window, base.view_as(current) + sign, current).view_as(base)
        proposed = project(proposed, base, eps, bounds)
        new = margin(proposed, alive)
        if not torch.isfinite(new).all():
            raise AttackError("the margin is not finite; the search would stand still and look like robustness")
        better = new < value[alive]
        best[alive[better]], value[alive[better]] = proposed[better], new[better]
        found[alive] = value[alive] <= 0
        alive = alive[~found[alive]]
    assert_used(best, x, ~found, eps, checked=True)
    return Found(found, best, blind)


def assert_used(best: Tensor, x: Tensor, survived: Tensor, eps: float | int, *, checked: bool) -> None:
    moved = (best - x).flatten(1).abs().amax(1)
    if bool((moved > eps * (1 + 1e-4) + 8 * torch.finfo(x.dtype).eps * x.abs().amax()).any()):
        raise AttackError(f"the attack left its ball: {moved.max().item():.4g} for eps {eps:.4g}")
    if checked and bool(survived.any()) and (moved[survived] > 0.9 * eps).double().mean() < 0.5:
        raise AttackError(
            f"the attack did not use its ball: most survivors moved less than 0.9 eps "
            f"(median {moved[survived].median().item():.4g} for eps {eps:.4g})"
        )


def check_attack(x: Tensor, eps: float | int, bounds: Bounds, **counts: int) -> None:
    check_float("x", x)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x must be [batch, ...], not empty; got shape {tuple(x.shape)}")
    check_eps(eps)
    check_bounds(bounds)
    check_sizes(**counts)
    if bounds is not None and not bounds[0] <= x.min() <= x.max() <= bounds[1]:
        raise ValueError(f"x must lie within bounds {bounds}; got {x.min().item():.4g}..{x.max().item():.4g}")
