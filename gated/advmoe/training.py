"""Adversarial training: TRADES, its attack, and the steps that update experts and routers together or in turn.

    L(theta; x, y) = CE(f(x), y) + beta mean_b KL(softmax f(x_b) || softmax f(x'_b))

    joint_step      experts and routers in one update: AT(MoE), and every plain baseline
    advmoe_step     routers on one batch, then experts on another, each with a fresh attack
    released_step   the authors' program: one batch, experts first, and a router that is taught class mod N

x' is sought in evaluation mode, losses are taken in training mode. psi are the parameters of experts, stem, norms and
classifier, phi those of the routers; each optimiser holds one of the two lists (`optimizers`).

Sources: Zhang et al. 2019 (TRADES), arXiv 1901.08573; Zhang et al. 2023 (AdvMoE), arXiv 2308.10110.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.advmoe.exact import check_eps
from gated.advmoe.networks import RoutedNetwork
from gated.gates._validation import (
    check_axes,
    check_float,
    check_int,
    check_number,
    check_positive,
    holds_anywhere,
    is_number,
)

Bounds = tuple[float | int, float | int] | None
Batch = tuple[Tensor, Tensor]


class AttackError(RuntimeError):
    """An attack that did not attack: its gradients are not finite or vanish, or it left its start or its ball."""


@dataclass(frozen=True)
class Trades:
    """TRADES and its attack.

    Args:
        eps: >= 0, radius in every coordinate.
        steps: K >= 0 steps of the attack.
        alpha: step size; 5/8 eps unless given (5/255 for 8/255).
        beta: >= 0, weight of the divergence.
        bounds: (low, high) of valid inputs, or None. Pixels in [0, 1] want (0, 1).
        noise: standard deviation of the start; at x itself the divergence has gradient 0.

    Raises:
        ValueError: values out of range.
    """

    eps: float | int
    steps: int = 2
    alpha: float | int | None = None
    beta: float | int = 6.0
    bounds: Bounds = None
    noise: float | int = 1e-3

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps must be a whole number >= 0; got {self.steps!r}")
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        for name, value in (("beta", self.beta), ("noise", self.noise)):
            check_number(name, value, "[0, inf)")
        check_bounds(self.bounds)


# Pieces --------------------------------------------------------------------------------------------------------------


def kl(
    p_logits: Float[Tensor, "batch classes"], q_logits: Float[Tensor, "batch classes"], *, log_space: bool = True
) -> Float[Tensor, " batch"]:
    """KL(softmax p || softmax q) = sum_c p_c (log p_c - log q_c) for each row; gradients to both arguments.

    Args:
        log_space: False takes log(softmax p), as the usual library call with a differentiable target does. Once an
            entry of softmax p underflows to 0 (float32: logits about 104 apart) its gradient is NaN; log space gives 0.

    Raises:
        ValueError: logits that are not floating point, or of two shapes.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> kl(logits, logits).tolist(), bool(kl(logits, -logits) > 0)
        ([0.0], True)
    """
    check_float("p_logits", p_logits)
    check_float("q_logits", q_logits)
    check_axes("batch classes, batch classes", p_logits=p_logits, q_logits=q_logits)
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    if log_space:
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return F.kl_div(log_q, p_logits.softmax(-1), reduction="none").sum(-1)


def trades_loss(
    clean: Float[Tensor, "batch classes"],
    adversarial: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    beta: float | int = 6.0,
) -> Float[Tensor, ""]:
    """CE(clean, y) + beta mean KL(clean || adversarial). Neither side is detached, as in TRADES.

    Raises:
        ValueError: shapes that do not fit, y that is no class, a beta that is negative or not finite.
    """
    check_number("beta", beta, "[0, inf)")
    check_float("clean", clean)
    check_float("adversarial", adversarial)
    check_int("y", y)
    check_axes("batch classes, batch classes, batch", clean=clean, adversarial=adversarial, y=y)
    if holds_anywhere((y < 0) | (y >= clean.shape[1])):
        raise ValueError(f"y must hold classes 0 to {clean.shape[1] - 1}; got others")
    return F.cross_entropy(clean, y) + beta * kl(clean, adversarial).mean()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradients within; each module's and parameter's own state after.

    So an attack neither uses nor touches batch statistics, and pays for the gradient of its input alone.
    """
    modes = {m: m.training for m in model.modules()}
    learned = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for p in learned:
            p.requires_grad_()


def project(x_adv: Tensor, x: Tensor, eps: float | int, bounds: Bounds = None) -> Tensor:
    """The nearest point of the box of half-width eps around x, and of `bounds`.

    Args:
        x_adv: the point that is moved.

    Raises:
        ValueError: eps negative or not finite, bounds that are no (low, high).

    Example:
        >>> project(torch.tensor([0.7, -0.3]), torch.tensor([0.5, 0.0]), eps=0.125, bounds=(0, 1)).tolist()
        [0.625, 0.0]
    """
    check_eps(eps)
    check_bounds(bounds)
    check_float("x_adv", x_adv)
    check_float("x", x)
    x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps)
    return x_adv if bounds is None else x_adv.clamp(*bounds)


def kl_attack(
    divergence: Callable[[Tensor], Float[Tensor, " batch"]],
    x: Float[Tensor, "batch ..."],
    trades: Trades,
    generator: torch.Generator | None,
) -> Float[Tensor, "batch ..."]:
    """x' <- P(x' + alpha sign(d/dx' sum_b divergence(x')_b)), K times from x + noise N(0, 1).

    K = 0 returns the start as it is; eps = 0 with K > 0 returns x. Call it in evaluation mode.

    Raises:
        AttackError: a gradient that is not finite, or 0 everywhere: sign(NaN) is 0, and the attack would stand still.
    """
    x = x.detach()
    x_adv = x + trades.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if trades.eps == 0 and trades.steps:
        return x.clone()
    alpha = 0.625 * trades.eps if trades.alpha is None else trades.alpha
    for _ in range(trades.steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(divergence(x_adv).sum(), x_adv)
        check_finite(grad)
        if not bool((grad != 0).any()):
            raise AttackError("the attack's gradient is 0 everywhere; it would train on inputs that did not move")
        x_adv = project(x_adv.detach() + alpha * grad.sign(), x, trades.eps, trades.bounds)
    return x_adv


def trades_attack(
    model: nn.Module, x: Float[Tensor, "batch ..."], trades: Trades, generator: torch.Generator | None = None
) -> Float[Tensor, "batch ..."]:
    """The input near x whose prediction is furthest from the prediction at x, by `kl_attack`, in evaluation mode."""
    with evaluating(model):
        with torch.no_grad():
            clean = model(x)
        return kl_attack(lambda x_adv: kl(clean, model(x_adv)), x, trades, generator)


def optimizers(
    model: RoutedNetwork, *, lr: float | int = 0.1, router_lr: float | int | None = None, **options: Any
) -> tuple[torch.optim.SGD, torch.optim.SGD | None]:
    """One SGD for psi and one for phi (None without routers); no parameter in both, none in neither.

    Args:
        lr, router_lr: of psi, and of phi (the same unless given).
        options: further arguments of SGD; momentum 0.9 and weight_decay 5e-4 unless given.

    Raises:
        ValueError: a parameter that belongs to both or to neither, a learning rate that is negative or not finite.
    """
    check_number("lr", lr, "[0, inf)")
    if router_lr is not None:
        check_number("router_lr", router_lr, "[0, inf)")
    options = {"momentum": 0.9, "weight_decay": 5e-4} | options
    psi, phi = model.expert_parameters(), model.router_parameters()
    if len({id(p) for p in psi + phi}) != len(psi) + len(phi) or len(psi) + len(phi) != len(list(model.parameters())):
        raise ValueError("model must have each parameter in exactly one of expert and router parameters")
    second = torch.optim.SGD(phi, lr=lr if router_lr is None else router_lr, **options) if phi else None
    return torch.optim.SGD(psi, lr=lr, **options), second


# Steps ---------------------------------------------------------------------------------------------------------------


def standard_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer | None], batch: Batch
) -> float:
    """One update by CE(f(x), y) alone. Returns the loss."""
    model.train()
    return _update(F.cross_entropy(model(batch[0]), batch[1]), optimizer)


def joint_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer | None],
    batch: Batch,
    trades: Trades,
    generator: torch.Generator | None = None,
) -> float:
    """One update by TRADES of whatever the optimiser (or each of a list of them) holds. Returns the loss.

    AT(MoE) with both optimisers, AT(Dense) and AT(S-Dense) on networks of one expert; a list without the routers'
    optimiser keeps the routers as they are.

    Raises:
        FloatingPointError: a loss that is not finite; nothing was updated.
        AttackError: as `kl_attack`.
    """
    x, y = batch
    x_adv = trades_attack(model, x, trades, generator)
    model.train()
    return _update(trades_loss(model(x), model(x_adv), y, trades.beta), optimizer)


def advmoe_step(
    model: RoutedNetwork,
    experts: torch.optim.Optimizer,
    routers: torch.optim.Optimizer,
    router_batch: Batch,
    expert_batch: Batch,
    trades: Trades,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """min_psi L(psi, phi*(psi)), phi*(psi) = argmin_phi L(psi, phi), by one step of each: phi first, then psi.

    Both levels use TRADES of the whole model, each on its own batch with its own attack. The routers learn through
    the gate's straight-through gradient; no gradient passes through phi*(psi). Returns the losses (phi's, psi's).

    Running statistics of norms, also those in a global router, move in both forward passes.

    Raises: as `joint_step`.

    Source: Zhang et al. 2023, arXiv 2308.10110, abstract (adapted in turn); the two levels and the
    form of the step are ours.
    """
    return (
        joint_step(model, routers, router_batch, trades, generator),
        joint_step(model, experts, expert_batch, trades, generator),
    )


def released_step(
    model: RoutedNetwork,
    experts: torch.optim.Optimizer,
    routers: torch.optim.Optimizer,
    batch: Batch,
    trades: Trades,
    generator: torch.Generator | None = None,
    *,
    partition: Int[Tensor, " classes"] | None = None,
    router_weight: float | int = 6.0,
) -> tuple[float, float]:
    """The step of the authors' program, with divergences in log space. Returns the losses (phi's, psi's).

    R is the global router. Both attacks maximise KL(f(x) || f(x')) + KL(R(x) || R(x')).

        psi:  CE(f(x), y) + beta KL(f(x) || f(x'))
        phi:  router_weight CE(R(x), group(y)) + beta KL(R(x) || R(x')),    on a second attack

    group(y) = y mod N: the router is taught the class, modulo the number of experts, and never sees the classifier's
    loss. The program keeps R(x) of training mode as the attack's target; here it is computed anew in evaluation mode,
    so that the divergence is 0 at x' = x.

    Args:
        partition: the expert of each class instead of class mod N.

    Raises:
        ValueError: a model without a global router, a partition that names an expert that does not exist, or has no
            entry for some label.
        FloatingPointError, AttackError: as `joint_step`.

    Source: the program of Zhang et al. 2023, arXiv 2308.10110.
    """
    check_number("router_weight", router_weight, "[0, inf)")
    if model.router is None:
        raise ValueError("model must have a global router (routing='global', several experts); got none")
    x, y = batch
    check_int("y", y)
    group = y % model.num_experts
    if partition is not None:
        check_int("partition", partition)
        if partition.ndim != 1 or not len(partition):
            raise ValueError(f"partition must be [classes], one expert each; got shape {tuple(partition.shape)}")
        if not 0 <= int(partition.min()) <= int(partition.max()) < model.num_experts or int(y.max()) >= len(partition):
            raise ValueError(
                f"partition must name an expert in 0..{model.num_experts - 1} for each class; got {partition.tolist()}"
            )
        group = partition[y]

    def attack() -> Tensor:
        with evaluating(model):
            with torch.no_grad():
                clean = model.trace(x)

            def divergence(x_adv: Tensor) -> Tensor:
                now = model.trace(x_adv)
                return kl(clean.logits, now.logits) + kl(clean.scores[0], now.scores[0])

            return kl_attack(divergence, x, trades, generator)

    x_adv = attack()
    model.train()
    psi_loss = _update(trades_loss(model(x), model(x_adv), y, trades.beta), experts)
    x_adv = attack()
    model.train()
    clean, adversarial = model.router(x), model.router(x_adv)
    loss = router_weight * F.cross_entropy(clean, group) + trades.beta * kl(clean, adversarial).mean()
    return _update(loss, routers), psi_loss


def _update(loss: Tensor, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer | None]) -> float:
    """Gradients of exactly the optimisers' parameters, so that nothing accumulates in the others, and a step."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; nothing was updated")
    every = [o for o in ([optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer) if o is not None]
    params = [p for o in every for group in o.param_groups for p in group["params"]]
    for p, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
        p.grad = grad
    for o in every:
        o.step()
        o.zero_grad()
    return loss.item()


def check_finite(grad: Tensor) -> None:
    if not torch.isfinite(grad).all():
        raise AttackError("the attack's gradient is not finite; its steps would stand still and look like robustness")


def check_bounds(bounds: Bounds) -> None:
    if bounds is not None and not (len(bounds) == 2 and all(map(is_number, bounds)) and bounds[0] < bounds[1]):
        raise ValueError(f"bounds must be (low, high) with low < high, or None; got {bounds!r}")
