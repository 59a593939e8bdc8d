"""The study of the chapter: which networks are trained how, and what is measured of each.

An *arm* is a network and a way to train it. All arms of a seed draw from the same sequence of minibatches (`turns`
gives its experts every second one) and are attacked on the same signals; another seed has another start, another
order and other test signals.

| arm                          | network                              | a step                                  |
|------------------------------|--------------------------------------|-----------------------------------------|
| `dense`, `half`, `equal`     | plain, of width 1, r, r sqrt(N)      | TRADES                                  |
| `joint`, `joint twice`       | N experts, a router in each layer    | TRADES of routers and experts together  |
| `frozen`                     | the same; routers stay as they began | TRADES of the experts                   |
| `turns`, `turns, one router` | the same; one router for all layers  | `advmoe_step`                           |
| `parity`, `random classes`   | one router for all layers            | `released_step`; a random partition     |
| `parity, one rate`           | the same                             | the same, routers at the experts' rate  |
| `half, standard`             | plain, of width r                    | cross-entropy                           |
| `standard`                   | a router in each layer               | cross-entropy                           |
| `robust routers`             | what `standard` ended with           | TRADES of the routers                   |
| `robust experts`             | what `standard` ended with           | TRADES of the experts                   |

`equal` stores nearly as many weights as the experts do together (93 %). `joint twice` spends what `turns` spends.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gated.advmoe.attacks import attack_panel, frozen_path_attack, released_attack, ste_attack
from gated.advmoe.measures import (
    churn,
    load_entropy,
    route_label_information,
    route_robustness,
    routes_of,
    with_router_of,
)
from gated.advmoe.networks import MoECNN, RoutedNetwork
from gated.advmoe.search import random_search
from gated.advmoe.training import (
    Batch,
    Trades,
    advmoe_step,
    evaluating,
    joint_step,
    optimizers,
    released_step,
    standard_step,
)

N, RATIO, CLASSES, BATCH = 2, 0.5, 10, 128
LR, ROUTER_LR = 0.05, 0.005  # with one rate for both the scores of routers in each layer grow without bound
PLAIN = {"dense": 1.0, "half": RATIO, "equal": RATIO * N**0.5}
TAUGHT = ("parity", "parity, one rate", "random classes")
HALVES = ("standard", "robust routers", "robust experts")
EPOCH = 31  # steps; so many batches are in the training part


class Signals(NamedTuple):
    """Inputs [signals, 1, length] and labels; `test` is cut into one part for each seed."""

    train: Batch
    validation: Batch
    test: Batch


def network(arm: str, seed: int) -> MoECNN:
    """The network of an arm as it begins. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arm.removesuffix(", standard") in PLAIN:
            return MoECNN(1, CLASSES, num_experts=1, ratio=PLAIN[arm.removesuffix(", standard")])
        one = arm in ("turns, one router", *TAUGHT)
        return MoECNN(1, CLASSES, num_experts=N, ratio=RATIO, routing="global" if one else "layer")


def groups(arm: str, seed: int) -> Tensor:
    """The expert that each class is assigned to: its parity, or a random half."""
    order = torch.arange(CLASSES)
    if arm == "random classes":
        order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(3000 + seed))
    return order % N


def minibatches(data: Batch, seed: int) -> Iterator[Batch]:
    """Endless; whole minibatches, in a new order each epoch."""
    x, y = data
    order = torch.Generator().manual_seed(1000 + seed)
    while True:
        for i in torch.randperm(len(x), generator=order)[: len(x) // BATCH * BATCH].split(BATCH):
            yield x[i], y[i]


def train(
    model: MoECNN,
    arm: str,
    data: Batch,
    *,
    eps: float,
    steps: int,
    seed: int,
    each_epoch: Callable[[MoECNN], Any] | None = None,
) -> list[Any]:
    """Trains in place, with a cosine to 0 on both rates. Returns what `each_epoch` said after each epoch."""
    steps *= 2 if arm == "joint twice" else 1
    experts, routers = optimizers(model, lr=LR, router_lr=LR if arm == "parity, one rate" else ROUTER_LR)
    moved: dict[str, list[Any]] = {"frozen": [experts], "robust experts": [experts], "robust routers": [routers]}
    every = [o for o in moved.get(arm, [experts, routers]) if o is not None]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in every]
    batches, noise = minibatches(data, seed), torch.Generator().manual_seed(2000 + seed)
    trades, said = Trades(eps), []
    for step in range(1, steps + 1):
        batch = next(batches)
        if arm.endswith("standard"):
            standard_step(model, every, batch)
        elif arm.startswith("turns"):
            assert routers is not None
            advmoe_step(model, experts, routers, batch, next(batches), trades, noise)
        elif arm in TAUGHT:
            assert routers is not None
            released_step(model, experts, routers, batch, trades, noise, partition=groups(arm, seed))
        else:
            joint_step(model, every, batch, trades, noise)
        for schedule in schedules:
            schedule.step()
        if each_epoch is not None and step % EPOCH == 0:
            said.append(each_epoch(model))
    return said


def measure(model: MoECNN, arm: str, x: Tensor, y: Tensor, eps: float, seed: int) -> dict[str, Any]:
    """Accuracies under the panel and its members, and what becomes of the routes."""
    noise = torch.Generator().manual_seed(4000 + seed)
    panel = attack_panel(model, x, y, eps, generator=noise)
    found: dict[str, Any] = {"clean": panel.accuracy("clean"), "union": panel.accuracy()}
    found |= {member: panel.accuracy(member) for member in panel.found}
    found["blind"] = sum(panel.blind(member) for member in panel.found)
    if model.num_experts == 1:
        return found
    routes = routes_of(model, x)
    found["own path"] = 1 - frozen_path_attack(model, x, y, eps, generator=noise).broken.double().mean().item()
    found["routes kept"] = route_robustness(model, x, eps, steps=10, generator=noise)
    found["load entropy"] = load_entropy(routes, N) / math.log(N)
    found["information"] = route_label_information(routes, y, N) / math.log(N)
    with evaluating(model), torch.no_grad():
        found["largest score"] = model.trace(x).scores.abs().amax().item()
    if model.router is None or arm == "turns, one router":
        return found
    group = groups(arm, seed)[y]
    wrong_way = routes[0] != group
    right = ~panel.clean
    found["group right"] = 1 - wrong_way.double().mean().item()
    found["group robust"] = 1 - ste_attack(model.router, x, group, eps, generator=noise).broken.double().mean().item()
    found["right the wrong way"] = (right & wrong_way).double().mean().item()
    if arm == "parity":
        found["released attack"] = 1 - released_attack(model, x, y, eps, generator=noise).broken.double().mean().item()
    return found


def own_path(model: RoutedNetwork, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """Share that survives with the clean routes in force: as many starts as the panel has in all, and its search."""
    noise = torch.Generator().manual_seed(6000 + seed)
    broken = frozen_path_attack(model, x, y, eps, restarts=12, generator=noise).broken
    with evaluating(model):
        with torch.no_grad():
            clean = model.trace(x).routes

        def margin(x_adv: Tensor, i: Tensor) -> Tensor:
            logits = model.trace(x_adv, routes=clean[:, i]).logits
            return logits.gather(1, y[i][:, None])[:, 0] - logits.scatter(1, y[i][:, None], -torch.inf).amax(1)

        return 1 - (broken | random_search(margin, x, eps, generator=noise).broken).double().mean().item()


def quick(model: RoutedNetwork, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """Robust accuracy by one start of PGD, for comparisons of a network with itself."""
    noise = torch.Generator().manual_seed(5000 + seed)
    return 1 - ste_attack(model, x, y, eps, restarts=1, generator=noise).broken.double().mean().item()


def signals_of(seed: int, signals: Signals, examples: int) -> Batch:
    """The test signals of a seed."""
    first = seed * examples % (len(signals.test[0]) - examples + 1)
    x, y = (part[first : first + examples] for part in signals.test)
    return x, y


def run_own_path(arm: str, seed: int, signals: Signals, *, eps: float, steps: int, examples: int) -> dict[str, float]:
    """`own_path` of an arm, trained again, on the signals that `run` attacks."""
    model = network(arm, seed)
    train(model, arm, signals.train, eps=eps, steps=steps, seed=seed)
    return {"own path": own_path(model, *signals_of(seed, signals, examples), eps, seed)}


def run(arm: str, seed: int, signals: Signals, *, eps: float, steps: int, examples: int) -> dict[str, Any]:
    """One arm (or "halves", the three that belong together), trained and measured on its part of the test signals."""
    x, y = signals_of(seed, signals, examples)
    fit: dict[str, Any] = {"data": signals.train, "eps": eps, "steps": steps, "seed": seed}
    if arm == "halves":
        model = network("standard", seed)
        found: dict[str, Any] = {}
        for half in HALVES:
            part = copy.deepcopy(model) if half != "standard" else model
            train(part, half, **fit)
            found[half] = measure(part, half, x, y, eps, seed)
        return found
    model, held = network(arm, seed), signals.validation[0]
    if arm not in ("joint", "turns"):
        train(model, arm, **fit)
        return measure(model, arm, x, y, eps, seed)
    ages = train(model, arm, **fit, each_epoch=lambda m: (copy.deepcopy(m), routes_of(m, held)))
    found = measure(model, arm, x, y, eps, seed)
    found["churn"] = [churn(a[1], b[1]) for a, b in itertools.pairwise(ages)]
    found["swapped"] = [
        quick(with_router_of(model, ages[-1 - age][0]), x, y, eps, seed) for age in (0, 1, 2, 4) if age < len(ages)
    ]
    return found


def choose_radius(signals: Signals, radii: list[float], steps: int, seeds: list[int], examples: int) -> Tensor:
    """RA / SA of the plain net of width r on validation signals [radii, seeds], before any mixture is trained."""
    x, y = (part[:examples] for part in signals.validation)
    kept = torch.empty(len(radii), len(seeds))
    for i, eps in enumerate(radii):
        for j, seed in enumerate(seeds):
            model = network("half", seed)
            train(model, "half", signals.train, eps=eps, steps=steps, seed=seed)
            panel = attack_panel(model, x, y, eps, generator=torch.Generator().manual_seed(seed))
            kept[i, j] = panel.accuracy() / panel.accuracy("clean")
    return kept
