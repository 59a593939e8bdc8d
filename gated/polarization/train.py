"""One pass: the weights train under moving gates, the gates freeze, and the same weights train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from gated.backbones import ResNet
from gated.gates._validation import check_axes, check_float, check_int, check_number, check_sizes, is_number
from gated.polarization.cost import costs, gate_macs
from gated.polarization.losses import activation_loss, check_cost, check_share, polarization_loss
from gated.polarization.network import GatedResNet, check_images


class StepLoss(NamedTuple):
    """The parts of a step's loss, without weights and without gradients, and the open share of the cost.

    Args:
        task, activation, polarization: cross-entropy, the price of open gates, the push to agree.
        open_share: of the cost that gates decide about.
    """

    task: Tensor
    activation: Tensor
    polarization: Tensor
    open_share: Tensor


class OnePass(NamedTuple):
    """What a run of `one_pass` did."""

    losses: list[StepLoss]
    """Of each step."""
    dissent: list[tuple[int, float]]
    """(step, sum of d_l on the held-out inputs) wherever it was asked."""
    frozen_at: int
    """Steps that ran with moving gates."""
    changed: float
    """Share of the held-out inputs with a gate against the frozen pattern, at the moment of freezing."""
    macs: int
    """Multiply-adds of the training's forward passes, gates included, and a third of those of the questions.

    A question to the held-out inputs is a forward pass without the backward one, which costs about twice that.
    """


class Evaluation(NamedTuple):
    """Accuracy, and multiply-adds an input in the mean: of the opened branches, stem, head, and gates.

    Args:
        accuracy, macs: see above.
    """

    accuracy: float
    macs: float


def train_step(
    model: GatedResNet,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    activation: float | int,
    polarization: float | int,
    cost: Float[Tensor, " gates"] | Sequence[float | int] | None = None,
    target: float | int | None = None,
    soft: bool = True,
    generator: torch.Generator | None = None,
    temperature: float | int = 1.0,
) -> StepLoss:
    """One step on L = L_CE + activation L_act + polarization L_pol.

    Args:
        activation, polarization: the weights. A negative weight of polarization asks for gates that differ.
        cost, target: of `activation_loss`.
        soft: both losses of the gates read the probabilities p; else the hard gates, through the estimator.
        generator, temperature: of `GatedResNet.forward`; with a generator, gates are drawn.

    Raises:
        ValueError: a loss or weight that is not finite, y that is no class, and as the parts. No weight is changed
            then; the norms' running statistics may be.
    """
    check_number("activation", activation)
    check_number("polarization", polarization)
    check_int("y", y)
    output = model(x, generator, temperature)
    check_axes("batch classes, batch", logits=output.logits, y=y)
    if bool(((y < 0) | (y >= output.logits.shape[1])).any()):
        raise ValueError(f"y must hold classes 0 to {output.logits.shape[1] - 1}; got others")
    gates = output.probability if soft else output.gates
    task = F.cross_entropy(output.logits, y)
    act, pol = activation_loss(gates, cost, target), polarization_loss(gates)
    loss = task + activation * act + polarization * pol
    if not loss.isfinite():
        raise ValueError(f"loss must be finite, got {loss.item()}: lower the learning rate, or look at x")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    open_share = activation_loss(output.gates, cost)
    return StepLoss(*(part.detach() for part in (task, act, pol, open_share)))


def one_pass(
    model: GatedResNet,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    held_out: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    activation: float | int,
    polarization: float | int,
    target: float | int | None = None,
    soft: bool = True,
    generator: torch.Generator | None = None,
    warmup: float | int = 0.1,
    noisy: float | int = 0.5,
    latest: float | int = 0.8,
    every: int = 10,
) -> OnePass:
    """Trains for `steps` steps and leaves `model` frozen, to be pruned without dissent.

    Shares of the run, with r = step / steps: for r < warmup the gates' losses have weight 0; from there on L_act has
    its full weight, and that of L_pol grows linearly to its own at `latest`. With a generator, gates are drawn for
    r < noisy, and follow the threshold afterwards. From `noisy` on, the held-out inputs are asked every few steps: the
    gates freeze once all agree (and, with a target, agree on it), at the latest at `latest`. Not before: at the start
    all gates are open, which is a consensus too.

    Args:
        model, optimizer, activation, polarization, soft: as in `train_step`. L_act counts multiply-adds.
        batches: of (images, labels); at least `steps`.
        held_out: the inputs that are asked.
        target: open share of the branches' multiply-adds, 1 - sparsity. The frozen pattern is then the one of
            `freeze_pattern`, which meets it as nearly as whole gates can; without a target, the majority's. Between
            two patterns the squared distance to the target asks for a gate that dissents: a weight of L_pol well above
            2 activation times half a gate's share outweighs it.
        every: steps between two questions.

    Raises:
        ValueError: shares that are not 0 <= warmup <= noisy <= latest <= 1, steps or every below 1, too few batches, a
            model that is frozen already, and as the parts.
    """
    if not (all(map(is_number, (warmup, noisy, latest))) and 0 <= warmup <= noisy <= latest <= 1):
        raise ValueError(f"0 <= warmup <= noisy <= latest <= 1 must hold, got {warmup}, {noisy}, {latest}")
    check_sizes(steps=steps, every=every)
    check_images("held_out", held_out, model.net.in_channels)
    check_number("activation", activation)
    check_number("polarization", polarization)
    if target is not None:
        check_share("target", target)
    if model.frozen is not None:
        raise ValueError("model must not be frozen yet")
    size = costs(model.net, *held_out.shape[2:])
    cost = size.per_gate(model).to(held_out.device)
    losses, history, used, frozen_at, changed = [], [], 0, steps, 0.0
    source = iter(batches)
    for step in range(steps + 1):
        if model.frozen is None and (step >= latest * steps or (step >= noisy * steps and step % every == 0)):
            gates, probability = _ask(model, held_out)
            used += len(held_out) * (size.total_macs + gate_macs(model)) // 3
            share = gates.double().mean(0)
            history.append((step, float(torch.minimum(share, 1 - share).sum())))
            pattern = share >= 0.5 if target is None else freeze_pattern(probability.mean(0), target, cost)
            changed = float((gates != pattern).any(1).double().mean())
            if not changed or step >= latest * steps:
                model.freeze(pattern)
                frozen_at = step
        if step == steps:
            break
        x, y = pair("batches", _next(source, step, steps))
        ramp = min(1.0, (step / steps - warmup) / (latest - warmup)) if latest > warmup else 1.0
        started = step >= warmup * steps
        losses.append(
            train_step(
                model,
                optimizer,
                x,
                y,
                activation=activation if started else 0.0,
                polarization=polarization * ramp if started else 0.0,
                cost=cost,
                target=target,
                soft=soft,
                generator=generator if step < noisy * steps else None,
            )
        )
        shut = 0.0 if model.frozen is None or model.groups else float((cost * ~model.frozen).sum())
        used += len(x) * (size.total_macs - round(shut) + (gate_macs(model) if model.frozen is None else 0))
    return OnePass(losses, history, frozen_at, changed, used)


def freeze_pattern(
    score: Float[Tensor, " gates"],
    target: float | int,
    cost: Float[Tensor, " gates"] | Sequence[float | int] | None = None,
) -> Bool[Tensor, " gates"]:
    """The gates with the highest score, as many as bring the open share of the cost nearest to `target`.

    At equal distance the smaller set, at equal score the earlier gate. The target is met within half of the most
    costly gate. With the mean probability as the score, a consensus that is nearest to the target stays as it is.
    Our own rule.

    Raises:
        ValueError: scores that are not one a gate; as `activation_loss`.
    """
    check_share("target", target)
    check_float("score", score)
    check_axes("gates", score=score)
    weight = check_cost(cost, score[None])
    order = score.argsort(descending=True, stable=True)
    reached = torch.cat([weight.new_zeros(1), (weight / weight.sum())[order].cumsum(0)])
    number = int((reached - target).abs().argmin())
    pattern = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    pattern[order[:number]] = True
    return pattern


def pair(name: str, batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch."""
    if isinstance(batch, str | Tensor) or not isinstance(batch, Sequence) or len(batch) < 2:
        raise ValueError(f"{name} must give pairs of images and labels; got {type(batch).__name__}")
    return batch[0], batch[1]


@torch.no_grad()
def evaluate(model: GatedResNet | ResNet, loader: Iterable[Any]) -> Evaluation:
    """Accuracy in evaluation mode over batches of (images, labels), and the mean cost of an input.

    For a gated model this is the dynamic network at its mean cost, as if each branch ran only where it is open; that
    time follows takes `GatedResNet.skip`. Raises ValueError for an empty loader.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    right, number, used = 0, 0, 0.0
    try:
        for batch in loader:
            x, y = pair("loader", batch)
            net = model.net if isinstance(model, GatedResNet) else model
            size = costs(net, *x.shape[2:])
            logits, spent = model(x), float(size.total_macs)
            if isinstance(model, GatedResNet):
                logits, gates, _ = logits
                share = gates.double().mean(0).cpu() @ size.per_gate(model).double()
                spent = size.fixed_macs + float(share) + (gate_macs(model) if model.frozen is None else 0)
            right += int((logits.argmax(1) == y).sum())
            number, used = number + len(x), used + spent * len(x)
    finally:
        for m, mode in modes:
            m.training = mode
    if not number:
        raise ValueError("loader must yield at least one input, got none")
    return Evaluation(right / number, used / number)


@torch.no_grad()
def _ask(model: GatedResNet, x: Tensor) -> tuple[Tensor, Tensor]:
    modes = [(m, m.training) for m in model.modules()]
    output = model.eval()(x)
    for m, mode in modes:
        m.training = mode
    return output.gates > 0.5, output.probability


def _next(source: Iterator[Any], step: int, steps: int) -> Any:
    try:
        return next(source)
    except StopIteration:
        raise ValueError(f"batches must yield at least steps={steps} batches, got {step}") from None
