"""Training exits on a frozen backbone's features: warm-up, gates, inference modules, and their alternation.

All of it runs on `Features`, computed once: a run for another trade-off costs seconds.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_choice, check_positive, check_sizes
from gated.jeidnn._validation import check_number
from gated.jeidnn.exits import Causal, exit_distribution
from gated.jeidnn.labels import (
    Target,
    Weighting,
    exit_labels,
    exit_losses,
    gate_loss,
    gate_targets,
    inference_loss,
    positive_weights,
    regret,
)
from gated.jeidnn.network import ExitNetwork, Features

Phase = Literal["gates", "heads"]


class PhaseLoss(NamedTuple):
    """One batch of the alternation: whose turn it was, and the loss."""

    phase: Phase
    loss: float


def batches(n: int, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Indices of one epoch in a new order, the last batch smaller."""
    check_sizes(batch_size=size)
    yield from torch.randperm(n, generator=generator).split(size)


def warm_up(
    network: ExitNetwork,
    train: Features,
    validation: Features,
    *,
    epochs: int = 6,
    patience: int = 2,
    batch_size: int = 64,
    learning_rate: float | int = 0.01,
    weight_decay: float | int = 5e-4,
    generator: torch.Generator | None = None,
) -> list[list[float]]:
    """Trains the L - 1 heads on sum_l w_l CE_l, w_l = L, L - 1, ..., 2. Returns their validation accuracies by epoch.

    A head whose validation accuracy has not risen for `patience` epochs goes back to its best and rests; so do all
    at the end. SGD with momentum 0.9.

    Raises:
        ValueError: a count below 1, no samples, a loss that is not finite.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163.
    """
    check_sizes(epochs=epochs, patience=patience)
    check_samples(train=train, validation=validation)
    heads = list(network.heads)
    optimiser = sgd(network.heads, learning_rate, weight_decay)
    best, since = [-1.0] * len(heads), [0] * len(heads)
    kept = [{k: v.clone() for k, v in head.state_dict().items()} for head in heads]
    history: list[list[float]] = []
    for _ in range(epochs):
        awake = [l for l in range(len(heads)) if since[l] < patience]
        if not awake:
            break
        for rows in batches(len(train), batch_size, generator):
            batch = train.take(rows)
            ce = [(network.exits - l) * F.cross_entropy(heads[l](batch.z[l]), batch.y) for l in awake]
            descend(optimiser, torch.stack(ce).sum(), "the warm-up")
        with torch.no_grad():
            guess = network.exit_logits(validation)[:, :-1].argmax(-1)
        accuracy = (guess == validation.y[:, None]).double().mean(0).tolist()
        history.append(accuracy)
        for l in awake:
            since[l] += 1
            if accuracy[l] > best[l]:
                best[l], since[l] = accuracy[l], 0
                kept[l] = {k: v.clone() for k, v in heads[l].state_dict().items()}
            elif since[l] == patience:
                heads[l].load_state_dict(kept[l])
    for head, state in zip(heads, kept, strict=True):
        head.load_state_dict(state)
    return history


def alternate(
    network: ExitNetwork,
    train: Features,
    trade_off: float | int,
    *,
    held_out: Features | None = None,
    phases: Sequence[Phase] = ("gates", "heads"),
    epochs: int = 15,
    period: int = 200,
    weighting: Weighting = "detached",
    target: Target = "subsequent",
    composition: Causal = "clip",
    balance: bool = True,
    cost_sensitive: bool = False,
    batch_size: int = 64,
    learning_rate: float | int = 0.01,
    weight_decay: float | int = 5e-4,
    generator: torch.Generator | None = None,
) -> list[PhaseLoss]:
    """Alternates gates and heads: `period` batches each, beginning each epoch with the first of `phases`.

    A gate batch lowers the weighted BCE to the surrogate labels with the heads fixed; a head batch lowers the
    weighted CE with the exit distribution fixed. Both learn with one SGD each, momentum 0.9, learning rate falling
    along a cosine to a fiftieth; who rests does not move.

    Args:
        network: after `warm_up`.
        train: what the heads learn from, and the gates unless `held_out` is given.
        trade_off: lambda >= 0, nats for one run of the whole network.
        held_out: other samples for the gates; labels from samples that the backbone was trained on look too late.
        phases: ("gates",) fits post-hoc gates on fixed heads.
        epochs, batch_size: passes over `train`; of a phase that has its own samples, as many batches.
        weighting, target, composition: see `inference_loss`, `gate_targets`, `exit_distribution`.
        balance: weigh positive targets by `positive_weights` of the gates' samples, taken anew each epoch.
        cost_sensitive: weigh each target by its `regret`.

    Returns:
        One `PhaseLoss` a batch.

    Raises:
        ValueError: trade_off negative or not finite, unknown options, no samples, a loss that is not finite.

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163.
    """
    check_number("trade_off", trade_off, "[0, inf)")
    for phase in phases:
        check_choice("phases", phase, get_args(Phase))
    check_choice("weighting", weighting, get_args(Weighting))
    check_choice("composition", composition, get_args(Causal))
    if not phases:
        raise ValueError(f"phases must name at least one of {get_args(Phase)}, got none")
    check_sizes(epochs=epochs, period=period, batch_size=batch_size)
    gate_data = train if held_out is None else held_out
    check_samples(train=train, held_out=gate_data)
    optimisers = {
        "gates": sgd(network.gates, learning_rate, weight_decay),
        "heads": sgd(network.heads, learning_rate, weight_decay),
    }
    data: dict[str, Features] = {"gates": gate_data, "heads": train}
    total = epochs * math.ceil(len(train) / batch_size)
    history: list[PhaseLoss] = []
    for _ in range(epochs):
        positive = None
        if balance and "gates" in phases:
            with torch.no_grad():
                losses = exit_losses(network.exit_logits(gate_data), gate_data.y)
            positive = positive_weights(exit_labels(losses, network.costs, trade_off), network.exits)
        supply = {
            phase: endless(len(data[phase]), batch_size, generator) for phase in phases
        }  # each side sees its own samples in its own order
        for i in range(math.ceil(len(train) / batch_size)):
            phase = phases[(i // period) % len(phases)]
            batch = data[phase].take(next(supply[phase]))
            loss = (
                gate_phase(network, batch, trade_off, target, positive, cost_sensitive)
                if phase == "gates"
                else head_phase(network, batch, weighting, composition)
            )
            rate = learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * len(history) / total)) / 2)
            for group in optimisers[phase].param_groups:
                group["lr"] = rate
            descend(optimisers[phase], loss, f"the {phase} phase, batch {len(history)}")
            history.append(PhaseLoss(phase, float(loss.detach())))
    return history


def gate_phase(
    network: ExitNetwork,
    batch: Features,
    trade_off: float | int,
    target: Target = "subsequent",
    positive: Float[Tensor, "gates"] | None = None,
    cost_sensitive: bool = False,
) -> Float[Tensor, ""]:
    """The gates' loss on a batch: BCE to the labels argmin_l loss_l + lambda c_l. No gradient reaches the heads.

    Args:
        trade_off: lambda.
        cost_sensitive: weigh each target by its `regret`.

    Raises:
        ValueError: an unknown target, a trade_off that is negative or not finite.
    """
    check_choice("target", target, get_args(Target))
    with torch.no_grad():
        logits = network.exit_logits(batch)
        losses = exit_losses(logits, batch.y)
        targets = gate_targets(exit_labels(losses, network.costs, trade_off), network.exits, target)
        if cost_sensitive:
            weight = targets.weight.to(losses) * regret(losses + trade_off * network.costs.to(losses))
            targets = targets._replace(weight=weight)
    return gate_loss(network.gate_logits(batch, logits), targets, positive)


def head_phase(
    network: ExitNetwork, batch: Features, weighting: Weighting = "detached", composition: Causal = "clip"
) -> Float[Tensor, ""]:
    """The heads' loss on a batch: their CE weighted by where the gates send each sample. No gradient to the gates."""
    logits = network.exit_logits(batch)
    with torch.no_grad():
        p = exit_distribution(network.gate_logits(batch, logits).sigmoid(), composition)
    return inference_loss(exit_losses(logits, batch.y)[:, :-1], p[:, :-1], weighting)


def joint_loss(network: ExitNetwork, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """Sum over all exits of the CE, equal weights, for a network that is not frozen.

    Source: Teerapittayanon, McDanel & Kung 2016, arXiv 1709.01686 (BranchyNet).
    """
    return exit_losses(network(x), y).sum(1).mean()


def sgd(module: nn.Module, learning_rate: float | int, weight_decay: float | int) -> torch.optim.SGD:
    check_positive("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay, "[0, inf)")
    return torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, where: str) -> None:
    """One step. A loss that is not finite stops the training before it reaches a parameter."""
    if not loss.isfinite():
        raise ValueError(f"learning_rate or the features do not suit: the loss of {where} is {float(loss.detach())}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def endless(n: int, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    while True:
        yield from batches(n, size, generator)


def check_samples(**features: Features) -> None:
    for name, given in features.items():
        if not len(given):
            raise ValueError(f"{name} must hold at least one sample, got none")
        if not all(z.isfinite().all() for z in (*given.z, given.last)):
            raise ValueError(f"{name} must hold finite features and logits; got NaN or infinity")
