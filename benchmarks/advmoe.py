"""The hot loop of the chapter beside its peers: one convolution whose inputs choose among N experts.

Cost model: B inputs, experts of C -> w channels with k x k kernels, H x W outputs. An expert each costs B k^2 C w H W
multiply-adds, whatever N is, as many as the plain convolution of width w, which stands beside as a peer. Running all
experts and keeping one costs N times that. Sorting adds a copy of the input and one of the output, and N calls instead
of one. One grouped convolution with a kernel for each input reads B kernels instead of N.

The plain convolution is no floor, though: on a CPU the clock also counts fresh memory. Where the allocator takes the
pages of each copy from the system anew, their faults can cost as much as the copies, and smaller convolutions one after
another can be faster than one large one: the ratio moves with the allocator and with what ran before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gated.advmoe import MoECNN, MoEConv, expert_conv
from gated.lab import bench

BATCH = 128

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def all_then_mask(x: Tensor, weight: Tensor, routes: Tensor) -> Tensor:
    """All experts in one convolution; a mask of ones and zeros, and each input's own group of channels."""
    n = len(weight)
    y = F.conv2d(x, weight.flatten(0, 1), padding=1).unflatten(1, (n, -1))
    y = y * F.one_hot(routes, n).to(y.dtype)[:, :, None, None, None]
    return y[torch.arange(len(x)), routes]


def all_then_take(x: Tensor, weight: Tensor, routes: Tensor) -> Tensor:
    """All experts in one convolution, and each input's own group of channels: no mask."""
    y = F.conv2d(x, weight.flatten(0, 1), padding=1).unflatten(1, (len(weight), -1))
    return y[torch.arange(len(x)), routes]


def kernel_each(x: Tensor, weight: Tensor, routes: Tensor) -> Tensor:
    """One grouped convolution, a group and a gathered kernel for each input."""
    batch, channels, height, width = x.shape
    w = weight[routes].flatten(0, 1)
    y = F.conv2d(x.reshape(1, batch * channels, height, width), w, padding=1, groups=batch)
    return y.view(batch, -1, *y.shape[2:])


def one_for_all(x: Tensor, weight: Tensor, routes: Tensor) -> Tensor:
    """No choice: everybody takes expert 0."""
    return F.conv2d(x, weight[0], padding=1)


def call(form: Form, x: Tensor, weight: Tensor, routes: Tensor, gradients: bool) -> object:
    if not gradients:
        with torch.no_grad():
            return form(x, weight, routes)
    y = form(x, weight, routes)
    return torch.autograd.grad(y, [x, weight], torch.ones_like(y))


FORMS: dict[str, Form] = {
    "sorted": partial(expert_conv, padding=1),
    "all experts, mask": all_then_mask,
    "all experts, take one": all_then_take,
    "a kernel for each input": kernel_each,
}
PLAIN = "one expert for all, no choice"


def conv_races(report: bench.Report, quick: bool) -> None:
    settings = [(n, c, size) for n in (2, 4) for c, size in ((32, 32), (64, 16), (128, 8))] + [(8, 64, 16)]
    for n, c, size in [(2, 32, 16), (4, 32, 16)] if quick else settings:
        gen = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, c, size, size, generator=gen).requires_grad_()
        weight = MoEConv(c, c, 3, num_experts=n).weight
        routes = torch.randint(n, (BATCH,), generator=gen)
        for gradients in (False,) if quick else (False, True):
            forms = FORMS | ({PLAIN: one_for_all} if n == 2 else {})  # it has no N, so it is timed once
            cases = {name: partial(call, form, x, weight, routes, gradients) for name, form in forms.items()}
            name = "expert convolution, forward and backward" if gradients else "expert convolution, forward"
            sizes = {"N": n, "C": c, "w": c, "H": size, "B": BATCH}
            found = report.run(
                cases,
                (1,) if quick else (1, 2),
                rounds=6 if quick else 9,
                uncompared={PLAIN: "another function"} if PLAIN in cases else {},
            )
            for result in found:
                report.race(name, sizes, result)


def network_races(report: bench.Report, quick: bool) -> None:
    """The testbed of the chapter: a router in each layer, one for all, and the plain networks beside them."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 1, 40)
    networks: dict[str, nn.Module] = {
        "a router in each layer": MoECNN(1, 10),
        "one router": MoECNN(1, 10, routing="global"),
        "plain, width 1/2": MoECNN(1, 10, num_experts=1),
        "plain, full width": MoECNN(1, 10, num_experts=1, ratio=1),
    }

    def run(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(x)

    cases = {name: partial(run, model.eval()) for name, model in networks.items()}
    other = dict.fromkeys(list(cases)[1:], "another network")
    for result in report.run(cases, (1,) if quick else (1, 2), uncompared=other):
        report.race("network on signals, forward", {"N": 2, "B": BATCH, "T": 40}, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("advmoe", tries=1 if quick else 3)
    conv_races(report, quick)
    network_races(report, quick)
    return report.rows
