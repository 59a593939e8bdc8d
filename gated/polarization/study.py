"""The chapter's experiment: one way to half of a network beside others, at one budget of training multiply-adds.

A residual network of twelve blocks has to end with about half of the multiply-adds of its branches. Each way gets the
budget that the one pass used with the same seed, counted in forward multiply-adds, and the same grid of learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gated.backbones import ResNet
from gated.polarization.cost import costs, gate_macs
from gated.polarization.losses import polarization_loss
from gated.polarization.network import GatedResNet, Source
from gated.polarization.prune import audit, prune, slice_blocks
from gated.polarization.train import evaluate, freeze_pattern, one_pass, train_step

RATES = (0.005, 0.0125, 0.03)
"""Learning rates that every way is tried with, on a seed and a validation set of their own."""
GATE_RATE = 0.03
"""Of the gates' parameters, in all ways that have gates: under Adam it is how far a logit may go in a step."""
CUTS = (0.5, 0.8)
"""When the ways that train and cut are to cut: the share of the one pass's steps, or of the budget."""
ACTIVATION, POLARIZATION = 20.0, 2.0
"""lambda_a of the squared distance to the target, and lambda_p, of the one pass."""


class Task(NamedTuple):
    """Images [n, channels, height, width] and labels, in three parts."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Setting(NamedTuple):
    """Of the full network and of its training."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    steps: int
    batch: int = 64
    target: float | int = 0.5


def build(task: Task, setting: Setting, seed: int, blocks: Sequence[int] | None = None) -> ResNet:
    """The full network, or one with so many blocks in each stage, at the weights of a seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ResNet(
            blocks or setting.blocks,
            setting.widths,
            in_channels=task.train[0].shape[1],
            num_classes=int(task.train[1].max()) + 1,
        )


def gate(net: ResNet, seed: int, source: Source = "input") -> GatedResNet:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed + 1000)
        return GatedResNet(net, source=source)


def size(task: Task, net: ResNet) -> Any:
    return costs(net, *task.train[0].shape[2:])


def adam(model: ResNet | GatedResNet, rate: float | int, gate_rate: float | int = GATE_RATE) -> torch.optim.Adam:
    """Without weight decay, so that nothing pulls at a shut block."""
    if isinstance(model, ResNet):
        return torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    groups: list[dict[str, Any]] = [
        {"params": model.net.parameters(), "lr": rate},
        {"params": model.gates.parameters(), "lr": gate_rate},
    ]
    return torch.optim.Adam(groups, fused=True)


def batches(
    task: Task, setting: Setting, seed: int, optimizer: torch.optim.Optimizer, steps: int, decay: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches; with `decay` the rates are set before each one, from their first value down half a cosine."""
    x, y = task.train
    gen = torch.Generator().manual_seed(seed)
    first = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2 if decay else rate
        chosen = torch.randint(len(x), (setting.batch,), generator=gen)
        yield x[chosen], y[chosen]


def fit(task: Task, setting: Setting, net: ResNet, seed: int, rate: float | int, budget: float | int) -> int:
    """Trains a plain network for as many steps as the budget pays for; returns what was used."""
    each = setting.batch * size(task, net).total_macs
    steps = int(budget // each)
    optimizer = adam(net, rate)
    for x, y in batches(task, setting, seed, optimizer, steps):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    return steps * each


def fit_gated(
    task: Task,
    setting: Setting,
    model: GatedResNet,
    seed: int,
    rate: float | int,
    weights: Callable[[float], tuple[float, float]],
    *,
    steps: int,
    drawn: float | int,
    target: float | int | None = None,
    decay: bool = True,
) -> list[float]:
    """Trains with gates that stay dynamic, and returns the open share of each step.

    `weights` gives lambda_a and lambda_p at each share of the run, the gates are drawn until `drawn`.
    """
    optimizer = adam(model, rate)
    noise = torch.Generator().manual_seed(seed + 1)
    cost = size(task, model.net).per_gate(model)
    shares = []
    for step, (x, y) in enumerate(batches(task, setting, seed, optimizer, steps, decay)):
        activation, polarization = weights(step / steps)
        parts = train_step(
            model.train(),
            optimizer,
            x,
            y,
            activation=activation,
            polarization=polarization,
            cost=cost,
            target=target,
            generator=noise if step < drawn * steps else None,
        )
        shares.append(float(parts.open_share))
    return shares


def judged(task: Task, net: ResNet, used: int) -> dict[str, Any]:
    """What is kept of a plain network."""
    own = size(task, net)
    return {
        "valid": evaluate(net, [task.valid]).accuracy,
        "test": evaluate(net, [task.test]).accuracy,
        "macs": own.total_macs,
        "parameters": own.total_parameters,
        "used": used,
    }


def pass_once(
    task: Task,
    setting: Setting,
    seed: int,
    rate: float | int,
    cut: float | int,
    *,
    source: Source = "input",
    gate_rate: float | int = GATE_RATE,
    polarization: float | int = POLARIZATION,
) -> dict[str, Any]:
    """The method: gates at work, drawn until 0.3 before the latest moment to freeze, then the tail, and slicing."""
    model = gate(build(task, setting, seed), seed, source)
    optimizer = adam(model, rate, gate_rate)
    run = one_pass(
        model.train(),
        optimizer,
        batches(task, setting, seed, optimizer, setting.steps),
        task.valid[0],
        steps=setting.steps,
        activation=ACTIVATION,
        polarization=polarization,
        target=setting.target,
        generator=torch.Generator().manual_seed(seed + 1),
        noisy=cut - 0.3,
        latest=cut,
    )
    assert model.frozen is not None
    net = prune(model, [task.valid[0]]).net
    with torch.no_grad():
        same = torch.equal(model.eval()(task.test[0]).logits, net(task.test[0]))
    return judged(task, net, run.macs) | {
        "pattern": model.frozen.tolist(),
        "frozen_at": run.frozen_at / setting.steps,
        "dissent": run.dissent[-1][1],
        "changed": run.changed,
        "same": same,
        "open": [float(part.open_share) for part in run.losses],
    }


def cut_by(task: Task, setting: Setting, score: Tensor) -> list[bool]:
    """The blocks of the full network with the highest scores, as many as meet the target."""
    net = build(task, setting, 0)
    return freeze_pattern(score, setting.target, size(task, net).per_gate(gate(net, 0))).tolist()


def from_scratch(
    task: Task,
    setting: Setting,
    seed: int,
    rate: float | int,
    budget: float | int,
    pattern: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """The full network, or those blocks of it, trained for the budget from the weights of the seed."""
    net = build(task, setting, seed)
    if pattern is not None:
        net = slice_blocks(net, pattern)
    return judged(task, net, fit(task, setting, net, seed, rate, budget))


def random_score(setting: Setting, seed: int) -> Tensor:
    return torch.rand(sum(setting.blocks), generator=torch.Generator().manual_seed(seed))


def train_cut_tune(
    task: Task,
    setting: Setting,
    seed: int,
    rate: float | int,
    budget: float | int,
    cut: float | int,
    lot: bool = False,
) -> dict[str, Any]:
    """Trains the full network, keeps the blocks with the largest weights, and tunes them with what is left.

    The score of a block is the mean size of its convolutions' weights, or, with `lot`, a random number.
    """
    net = build(task, setting, seed)
    used = fit(task, setting, net, seed, rate, cut * budget)
    pattern = cut_by(task, setting, random_score(setting, 10 * seed) if lot else weight_score(net.blocks))
    whole = evaluate(net, [task.test]).accuracy
    net = slice_blocks(net, pattern)
    raw = evaluate(net, [task.test]).accuracy
    used += fit(task, setting, net, seed + 2, rate, budget - used)
    return judged(task, net, used) | {"pattern": pattern, "whole": whole, "before_tuning": raw}


def weight_score(blocks: Any) -> Tensor:
    sizes = [[m.weight.detach().abs().mean() for m in (block.branch[0], block.branch[3])] for block in blocks]
    return torch.tensor(sizes).mean(1)


def dynamic(task: Task, setting: Setting, seed: int, rate: float | int, budget: float | int) -> dict[str, Any]:
    """Gates that stay dynamic and need not agree (lambda_p = 0), at the same target for their mean cost."""
    model = gate(build(task, setting, seed), seed)
    own = size(task, model.net)
    each = setting.batch * (own.total_macs + gate_macs(model))
    steps = int(budget // each)

    def weights(done: float | int) -> tuple[float, float]:
        return (ACTIVATION if done >= 0.1 else 0.0), 0.0

    fit_gated(task, setting, model, seed, rate, weights, steps=steps, drawn=0.5, target=setting.target)
    valid, test = (evaluate(model, [part]) for part in (task.valid, task.test))
    report = audit(model, [task.test])
    return {
        "valid": valid.accuracy,
        "test": test.accuracy,
        "macs": test.macs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "used": steps * each,
        "dissent": float(report.dissent.sum()),
    }


WAYS = ("full", "small", "tune", "lot", "dynamic", "free", "this", "unpolarized", "three")
CUT = ("tune", "lot", "free", "this", "unpolarized")
"""The ways that have a moment to cut or freeze."""


def choose(task: Task, setting: Setting, seed: int, way: str, rate: float | int, cut: float | int) -> float:
    """Validation accuracy of one way at one point of the grid."""
    own = size(task, build(task, setting, seed))
    budget = 0.8 * setting.steps * setting.batch * own.total_macs
    if way == "free":
        return pass_once(task, setting, seed, rate, cut, source="free")["valid"]
    if way in ("this", "unpolarized"):
        pull = POLARIZATION if way == "this" else 0.0
        return pass_once(task, setting, seed, rate, cut, polarization=pull)["valid"]
    if way in ("tune", "lot"):
        return train_cut_tune(task, setting, seed, rate, budget, cut, way == "lot")["valid"]
    if way == "dynamic":
        return dynamic(task, setting, seed, rate, budget)["valid"]
    if way == "three":
        return shallow(task, setting, seed, rate, budget, (1,) * len(setting.blocks))["valid"]
    pattern = None if way == "full" else cut_by(task, setting, random_score(setting, seed))
    return from_scratch(task, setting, seed, rate, budget, pattern)["valid"]


def shallow(
    task: Task, setting: Setting, seed: int, rate: float | int, budget: float | int, blocks: Sequence[int]
) -> dict[str, Any]:
    """A network with so many blocks in each stage from scratch."""
    net = build(task, setting, seed, blocks)
    return judged(task, net, fit(task, setting, net, seed, rate, budget))


def grid(way: str) -> list[tuple[float, float]]:
    return [(rate, cut) for rate in RATES for cut in (CUTS if way in CUT else CUTS[:1])]


def arms(
    task: Task, setting: Setting, seed: int, picked: dict[str, Sequence[float | int]], only: Sequence[str] | None = None
) -> dict[str, Any]:
    """All ways with one seed, or `only` some, at the budget of the one pass, with (rate, cut) as `picked`."""
    own = size(task, build(task, setting, seed))
    this = pass_once(task, setting, seed, *picked["this"])
    budget, mask = this["used"], this["pattern"]
    rate, small = picked["full"][0], picked["small"][0]
    draws = [cut_by(task, setting, random_score(setting, 10 * seed + i)) for i in range(3)]
    each = setting.batch * size(task, slice_blocks(build(task, setting, seed), draws[0])).total_macs
    common = task, setting, seed
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "this": lambda: this,
        "unpolarized": lambda: pass_once(*common, *picked["unpolarized"], polarization=0.0),
        "free": lambda: pass_once(*common, *picked["free"], source="free"),
        "free, fast": lambda: pass_once(*common, *picked["free"], source="free", gate_rate=10 * GATE_RATE),
        "full": lambda: from_scratch(*common, rate, budget),
        "full, all steps": lambda: from_scratch(*common, rate, setting.steps * setting.batch * own.total_macs),
        "random 0": lambda: from_scratch(*common, small, budget, draws[0]),
        "random 1": lambda: from_scratch(*common, small, budget, draws[1]),
        "random 2": lambda: from_scratch(*common, small, budget, draws[2]),
        "random, same steps": lambda: from_scratch(*common, small, setting.steps * each, draws[0]),
        "shallow": lambda: shallow(*common, small, budget, [n // 2 for n in setting.blocks]),
        "tune": lambda: train_cut_tune(*common, picked["tune"][0], budget, picked["tune"][1]),
        "lot": lambda: train_cut_tune(*common, picked["lot"][0], budget, picked["lot"][1], lot=True),
        "dynamic": lambda: dynamic(*common, picked["dynamic"][0], budget),
        "mask, same start": lambda: from_scratch(*common, small, budget, mask),
        "mask, new start": lambda: from_scratch(task, setting, seed + 500, small, budget, mask),
        "three": lambda: shallow(*common, picked["three"][0], budget, (1,) * len(setting.blocks)),
    }
    return {way: ways[way]() for way in (only or ways)}


def agreement(
    task: Task,
    setting: Setting,
    seed: int,
    rate: float | int,
    activation: float | int,
    polarization: float | int,
    first: float | int | None = None,
) -> dict[str, Any]:
    """Gates that stay dynamic to the end: how far the test inputs agree, and what slicing would change.

    The gates' losses are off for the first tenth. With `first` this is lambda_p in the first half of the run.
    """
    model = gate(build(task, setting, seed), seed)

    def weights(done: float | int) -> tuple[float, float]:
        now = first if first is not None and done < 0.5 else polarization
        return (activation, now) if done >= 0.1 else (0.0, 0.0)

    fit_gated(task, setting, model, seed, rate, weights, steps=setting.steps, drawn=0.25)
    report = audit(model, [task.test])
    sliced = slice_blocks(model.net, report.majority.tolist()).eval()
    with torch.no_grad():
        output, after = model.eval()(task.test[0]), sliced(task.test[0])
    cost = size(task, model.net).per_gate(model)
    return {
        "dissent": report.dissent.tolist(),
        "bound": report.bound,
        "path": report.path_dissent,
        "polarization": float(polarization_loss(output.gates)),
        "open": float((report.open_share * cost).sum() / cost.sum()),
        "halves": output.gates.view(2, -1, model.num_gates).mean(1).tolist(),  # two kinds of inputs, if there are
        "gated": evaluate(model, [task.test]).accuracy,
        "sliced": evaluate(sliced, [task.test]).accuracy,
        "changed": float((output.logits.argmax(1) != after.argmax(1)).double().mean()),
    }


def ramp(
    task: Task,
    setting: Setting,
    seed: int,
    rate: float | int,
    polarization: float | int,
    highest: float | int,
    after: int = 0,
) -> dict[str, Any]:
    """lambda_a rises to `highest` and falls again while the network trains at constant rates: the open shares.

    With `after` the price then stays at 0 for so many steps, with a new optimiser: also the open shares of these, and
    the gates' logits (of the mean probability) before them.
    """
    model = gate(build(task, setting, seed), seed)

    def weights(done: float | int) -> tuple[float, float]:
        return highest * (1 - abs(2 * done - 1)), polarization

    shares = fit_gated(task, setting, model, seed, rate, weights, steps=setting.steps, drawn=0.0, decay=False)
    found = {"open": shares, "test": evaluate(model, [task.test]).accuracy}
    if not after:
        return found
    with torch.no_grad():
        logits = model.eval()(task.test[0]).probability.mean(0).logit()
    longer = setting._replace(steps=after)
    again = fit_gated(
        task, longer, model, seed + 2, rate, lambda done: (0.0, polarization), steps=after, drawn=0.0, decay=False
    )
    return found | {"logits": logits.tolist(), "after": again}
