"""What the particle costs: its loop over time in several forms, and a training step beside networks without it.

Cost model: about 30 floating-point operations for each latent and step, so T serial steps are bound by the operators'
overhead, not by arithmetic or memory; compiled, a call is 20 steps, and what remains is new memory for the path, the
calls and the arithmetic. Taking the force from autograd builds and differentiates a second graph in every
step. In a whole training step the decoder's matrix products dominate: at the published size 82 % of the parameters are
the decoder's, and .001 % the potential's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gated.kernels.langevin_scan import langevin_scan, naive_langevin_scan
from gated.lab import bench
from gated.langevinflow import (
    ConvPotential,
    GRUTransformer,
    GRUVae,
    LangevinFlow,
    MaskedTransformer,
    Trainer,
    exact_noise,
    match_parameters,
    released_noise,
    simulate,
)

GAMMA, STEP = 0.55, 0.01


def by_autograd(potential: ConvPotential, z: Tensor) -> Tensor:
    """The slope as the published code takes it: the energy differentiated, and that graph kept for the backward."""
    return torch.autograd.grad(potential.energy(z).sum(), z, create_graph=True)[0]


Slope = Callable[[ConvPotential, Tensor], Tensor]


def looped(slope: Slope, potential: ConvPotential, z: Tensor, v: Tensor, noise: Tensor) -> object:
    how = {"step": STEP, "decay": 1 - GAMMA, "scale": released_noise(GAMMA)}
    path, _ = simulate(partial(slope, potential), z, v, noise, **how, scheme="euler")  # type: ignore[arg-type]
    return torch.autograd.grad(path.sum(), [z, v, *potential.parameters()])


def fused(potential: ConvPotential, z: Tensor, v: Tensor, noise: Tensor) -> object:
    how = {"step": STEP, "decay": 1 - GAMMA}
    path, _ = langevin_scan(z, v, noise, stiffness=potential.hessian(), **how, scheme="released")  # type: ignore[arg-type]
    return torch.autograd.grad(path.sum(), [z, v, *potential.parameters()])


def path_races(report: bench.Report, batch: int, time: int, dim: int, rounds: int) -> None:
    """The published step on the published potential, forward and backward, gradients of the potential included."""
    gen = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    potential = ConvPotential(dim)
    z, v = (torch.randn(batch, dim, generator=gen).requires_grad_() for _ in range(2))
    noise = torch.randn(batch, time, dim, generator=gen)
    calls = {
        "fused scan": partial(fused, potential, z, v, noise),
        "loop, force in closed form": partial(looped, ConvPotential.gradient, potential, z, v, noise),
        "loop, force by autograd": partial(looped, by_autograd, potential, z, v, noise),
    }
    for result in report.run(calls, rounds=rounds, uncompared={}):
        report.race("published flow, forward and backward", {"B": batch, "T": time, "d": dim}, result)


Form = Callable[..., tuple[Tensor, Tensor]]


def energy(z: Tensor, stiffness: Tensor, coupling: Tensor | None = None, quartic: Tensor | None = None) -> Tensor:
    """Of a chain of oscillators, for the loop that differentiates it."""
    total = (stiffness * z**2).sum() / 2
    if coupling is not None:
        total = total + (coupling * (z[..., :-1] - z[..., 1:]) ** 2).sum() / 2
    return total if quartic is None else total + (quartic * z**4).sum() / 4


def loop_by_autograd(
    z: Tensor, v: Tensor, noise: Tensor, *, step: float, decay: float, scheme: str, **potential: Tensor
) -> tuple[Tensor, Tensor]:
    def slope(z: Tensor) -> Tensor:
        return torch.autograd.grad(energy(z, **potential), z, create_graph=True)[0]

    return simulate(slope, z, v, noise, step=step, decay=decay, scale=exact_noise(decay), scheme=scheme)  # type: ignore[arg-type]


def along(form: Form, potential: dict[str, Tensor], z: Tensor, v: Tensor, noise: Tensor, scheme: str) -> object:
    """A path and the gradients of its potential and of where it starts."""
    path, velocity = form(z, v, noise, **potential, step=0.1, decay=0.9, scheme=scheme)
    return torch.autograd.grad(path.sum() + velocity.sum(), [z, v, *potential.values()])


def oscillators(batch: int, time: int, dim: int, chain: bool) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    potential = {"stiffness": 0.5 + torch.rand(dim, generator=gen)}
    if chain:
        potential |= {"coupling": torch.rand(dim - 1, generator=gen), "quartic": torch.rand(dim, generator=gen)}
    z, v, noise = (torch.randn(*shape, generator=gen) for shape in ((batch, dim), (batch, dim), (batch, time, dim)))
    return {n: y.requires_grad_() for n, y in potential.items()}, z.requires_grad_(), v.requires_grad_(), noise


def scan_races(report: bench.Report, batch: int, time: int, dim: int, chain: bool, rounds: int, quick: bool) -> None:
    """BAOAB for uncoupled modes, whose chunks run side by side, and for a chain with a quartic, step after step."""
    given = oscillators(batch, time, dim, chain)
    calls = {
        "fused scan, compiled": partial(along, partial(langevin_scan, compiled=True), *given, "baoab"),
        "fused scan": partial(along, langevin_scan, *given, "baoab"),
        "loop, force in closed form": partial(along, naive_langevin_scan, *given, "baoab"),
        "loop, force by autograd": partial(along, loop_by_autograd, *given, "baoab"),
    }
    name = f"BAOAB on {'a quartic chain' if chain else 'modes'}, forward and backward"
    # several calls a turn: what one case gives back to the system is not mapped anew on another's account
    for result in report.run(calls, (1,) if quick else (1, 2), rounds=rounds, min_ms=20, uncompared={}):
        report.race(name, {"B": batch, "T": time, "d": dim}, result)


def scan_scaling(report: bench.Report, batch: int, dim: int, chain: bool, rounds: int) -> None:
    """The lengths take turns in one race; none of them is a race's above."""
    times = [64, 128, 256, 384]
    for name, compiled in (("fused scan, compiled,", True), ("fused scan", False)):
        form = partial(langevin_scan, compiled=compiled)
        calls = {str(time): partial(along, form, *oscillators(batch, time, dim, chain), "baoab") for time in times}
        (result,) = report.run(calls, rounds=rounds)
        ms = [result.median(str(time)) for time in times]
        case = f"{name} on {'a quartic chain' if chain else 'modes'}, forward and backward"
        report.scaling(case, times, ms, settled=True)


def step_races(report: bench.Report, batch: int, bins: int, dim: int, rounds: int) -> None:
    """A whole training step beside networks of equal size (within 5 %) without a particle."""
    gen = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    targets = torch.poisson(torch.full((batch, bins, 40), 0.2), generator=gen)
    spikes = targets[:, : bins * 5 // 6, :30]
    ours = LangevinFlow(30, 40, bins, dim=dim, hidden=2 * dim)
    size = sum(p.numel() for p in ours.parameters())
    nets: dict[str, nn.Module] = {
        "LangevinFlow": ours,
        "LangevinFlow with pushes": LangevinFlow(30, 40, bins, dim=dim, hidden=2 * dim, mode="controlled"),
        "GRU and Transformer without a particle": match_parameters(
            lambda width: GRUTransformer(30, 40, bins, dim=width, hidden=2 * dim), size
        ),
        "GRU-VAE": match_parameters(lambda width: GRUVae(30, 40, bins, dim=width), size),
        "masked Transformer": match_parameters(lambda width: MaskedTransformer(30, 40, bins, dim=width), size),
    }
    calls = {name: partial(Trainer(net, spikes, targets, seed=0, batch=batch).run, 1) for name, net in nets.items()}
    other = dict.fromkeys(list(calls)[1:], "another network")
    for result in report.run(calls, rounds=rounds, uncompared=other):
        report.race("training step", {"B": batch, "T": bins, "d": dim}, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("langevinflow", tries=1 if quick else 3)
    for time in (45,) if quick else (45, 100, 512):
        path_races(report, 64, time, 64, 8 if quick else 15)
    for chain in (False, True):
        for time in (100,) if quick else (45, 100, 512):
            scan_races(report, 64, time, 64, chain, 6 if quick else 15, quick)
        scan_scaling(report, 16 if quick else 64, 16 if quick else 64, chain, 6 if quick else 15)
    step_races(report, 64, 60, 32, 8 if quick else 15)
    return report.rows
