"""What it costs that a network tunes itself, in steps of the plain network.

Counted in products of a batch with a layer's weights: a plain step has 3 (forward, gradient of x, gradient of the
weights), a self-tuning one 6 (the same with twice the rows), a validation step 4 (no gradient of the weights), or 3
where all examples share the hyperparameters. Two training steps and a validation step are 16 products, 5.3 plain
steps: 2.7 for each training step. Every race has ours first, so a ratio below 1 is the share of our time that the peer
takes: 0.4 is 2.5 times the plain step. All steps end with SGD with momentum, ours begins with the perturbation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from gated.lab import bench
from gated.stn import Hyperparameter, Hyperparameters, SelfTuned, StnLinear, Trainer, selftune

SIZES = {256: (784, 256), 1024: (784, 1024)}
SMALL = (40, 128)
BATCH = 128
MIN_MS = 20
CASES = ("input rate", "rate 1", "rate 2", "noise", "decay")


class TwoProducts(nn.Module):
    """The same layer by its definition: a product for each of the two weight matrices."""

    def __init__(self, layer: StnLinear) -> None:
        super().__init__()
        self.w_0, self.w_1 = (nn.Parameter(w.detach().clone()) for w in layer.weight)
        assert layer.bias is not None
        self.b_0, self.b_1 = (nn.Parameter(b.detach().clone()) for b in layer.bias)
        self.v, self.c = (nn.Parameter(g.detach().clone()) for g in layer.gate)
        self.source = layer.source

    def forward(self, x: Tensor) -> Tensor:
        raw: Any = self.source.raw
        return F.linear(x, self.w_0, self.b_0) + (raw @ self.v.T) * F.linear(x, self.w_1) + (raw @ self.c.T) * self.b_1


def plain(inputs: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*layers)


def tuned(inputs: int, width: int, respond: bool = True) -> SelfTuned:
    hyperparameters = Hyperparameters([Hyperparameter(name, 0, 0.9, 0.1) for name in CASES])
    return selftune(plain(inputs, width), hyperparameters, respond=respond)


def two_products(inputs: int, width: int) -> SelfTuned:
    model = tuned(inputs, width)
    model.net = nn.Sequential(*(TwoProducts(m) if isinstance(m, StnLinear) else m for m in model.net.children()))
    return model


def examples(inputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, inputs, generator=torch.Generator().manual_seed(0)), torch.arange(BATCH) % 10


def step(forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer, y: Tensor) -> Tensor:
    loss = F.cross_entropy(forward(), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def training(net: nn.Module, inputs: int, each: bool = False) -> Callable[[], Tensor]:
    """A training step; `each` makes the weights of every example, by vmap over one-example batches.

    Some steps are made at once: a network has no response to hyperparameters before it has learned one.
    """
    x, y = examples(inputs)
    if not isinstance(net, SelfTuned):
        return begun(partial(step, partial(net, x), sgd(net), y))
    hyper, generator = net.hyperparameters, torch.Generator().manual_seed(0)

    def forward() -> Tensor:
        raw = hyper.perturb(BATCH, generator).detach()
        return vmap(lambda a, r: net(a[None], r)[0])(x, raw) if each else net(x, raw)

    return begun(partial(step, forward, sgd(net.net), y))


def begun(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    for _ in range(5):
        call()
    return call


def validation(model: SelfTuned, inputs: int, shared: bool) -> Callable[[], object]:
    """The gradient of the hyperparameters alone, and an Adam step with it."""
    x, y = examples(inputs)
    hyper, generator = model.hyperparameters, torch.Generator().manual_seed(0)
    moved = [hyper.raw] if shared else [hyper.raw, hyper.rho]
    optimizer = torch.optim.Adam(moved, lr=3e-3)
    phi = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("hyperparameters")}

    def call() -> object:
        raw = hyper.raw if shared else hyper.perturb(BATCH, generator)
        loss = F.cross_entropy(functional_call(model, phi, (x, raw)), y) - 1e-3 * hyper.entropy()
        for p, g in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            p.grad = g
        optimizer.step()
        return loss

    return call


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, fused=True)  # one pass over memory, for all sides


def cycle(inputs: int, width: int, respond: bool) -> Callable[[], object]:
    """`Trainer`, with all it records: two training steps and a validation step, or one plain training step."""
    x, y = examples(inputs)
    many = (x.repeat(8, 1), y.repeat(8))
    held = (many[0] + 1, many[1]) if respond else None
    trainer = Trainer(tuned(inputs, width, respond), many, held, batch=BATCH, perturb=respond)
    return partial(trainer.run, 2 if respond else 1)


def step_races(report: bench.Report, inputs: int, width: int, threads: Sequence[int], quick: bool) -> None:
    """All steps in one race, and its rows: a training step, a validation step, and what `Trainer` makes of both."""
    plain_step, two, alone, shared = "plain network", "two products a layer", "validation", "validation, one setting"
    calls = {
        "self-tuning": training(tuned(inputs, width), inputs),
        plain_step: training(plain(inputs, width), inputs),
        two: training(two_products(inputs, width), inputs),
        alone: validation(tuned(inputs, width), inputs, shared=False),
        shared: validation(tuned(inputs, width), inputs, shared=True),
        "self-tuning, two training steps and a validation step": cycle(inputs, width, respond=True),
        "plain network, a training step by the same trainer": cycle(inputs, width, respond=False),
    }
    both = list(calls)[-2:]
    why = {name: "it does something else" for name in calls if name not in ("self-tuning", two)}
    shape = {"inputs": inputs, "width": width, "batch": BATCH}
    for result in report.run(calls, threads, rounds=8 if quick else 20, min_ms=MIN_MS, uncompared=why):
        report.race("training step", shape, result.among("self-tuning", plain_step, two))
        report.race("validation step", shape, result.among(alone, plain_step))
        report.race("validation step, one setting for all", shape, result.among(shared, plain_step))
        report.race("two training steps and a validation step", shape, result.among(*both))


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer rounds, and examples' weights only small."""
    report, threads = bench.Report("stn", tries=1 if quick else 3), (1,) if quick else (1, 2)
    for sizes in SIZES.values():
        step_races(report, *sizes, threads, quick)
    for inputs, width in (SMALL,) if quick else (SMALL, SIZES[256]):
        calls = {
            "self-tuning": training(tuned(inputs, width), inputs),
            "weights of each example, by vmap": training(tuned(inputs, width), inputs, each=True),
        }
        shape = {"inputs": inputs, "width": width, "batch": BATCH}
        # losses of the next step
        for result in report.run(calls, threads, rounds=6 if quick else 9, warmup=1, min_ms=MIN_MS, uncompared={}):
            report.race("training step beside weights of each example", shape, result)
    return report.rows
