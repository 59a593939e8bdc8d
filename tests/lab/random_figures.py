"""Every figure in a random state, by its name: what the tests of all figures draw from."""

from __future__ import annotations

import math
import random

import torch

from gated.lab.explorables import (
    BarrierExplorable,
    BoardExplorable,
    CellsExplorable,
    ConsensusExplorable,
    DecayExplorable,
    DialExplorable,
    ExitsExplorable,
    GateExplorable,
    OffloadExplorable,
    ParticleExplorable,
    PlaneExplorable,
    RayExplorable,
    ResponseExplorable,
    RouterExplorable,
)
from gated.lab.explorables.decay import T
from gated.lab.explorables.exits_trace import synthetic_trace
from gated.lab.explorables.ray import NAMES
from gated.lab.explorables.router import PRIORITIES, SCORES, SELECTIONS, SPAN
from gated.ninformer import Sizes, build
from gated.pregated.simulate import DESIGNS

BARRIER_PLACES = ("agent", "neighbour", "goal", "obstacle")


def random_gates(rng: random.Random) -> GateExplorable:
    return GateExplorable(
        logits=[round(rng.uniform(-4, 4), 2) for _ in range(8)],
        temperature=float(f"{0.05 * 400 ** rng.random():.3g}"),
        k=rng.randint(1, 8),
        noise=rng.choice([0.0, round(rng.uniform(0, 3), 2)]),
        order=rng.choice(["topk-softmax", "softmax-topk"]),
        expert=rng.randrange(8),
        seed=rng.randrange(100),
    )


def random_decay(rng: random.Random) -> DecayExplorable:
    return DecayExplorable(
        z=[round(rng.uniform(-20, 8), 1) for _ in range(T)],
        temperature=float(f"{64 ** rng.random():.3g}"),
        chunk=rng.randint(1, T),
        subchunk=rng.randint(1, T),
        repeats=rng.randint(1, 200),
        token=rng.randrange(T),
    )


def random_offload(rng: random.Random) -> OffloadExplorable:
    return OffloadExplorable(
        bandwidth=float(f"{64 ** rng.random():.3g}"),
        size=float(f"{100 ** rng.random():.3g}"),
        num_experts=2 ** rng.randint(4, 8),
        active=rng.randint(1, 16),
        blocks=rng.randint(1, 12),
        block=float(f"{0.1 * 100 ** rng.random():.3g}"),
        dense=round(rng.uniform(0, 5), 2),
        look_ahead=rng.randint(1, 3),
        guessed=round(rng.random(), 2),
        design=rng.choice(DESIGNS),
    )


def random_router(rng: random.Random) -> RouterExplorable:
    return RouterExplorable(
        anchors=[round(rng.uniform(-SPAN, SPAN), 2) for _ in range(12)],
        score=rng.choice(SCORES),
        selection=rng.choice(SELECTIONS),
        top_k=rng.randint(1, 4),
        temperature=float(f"{0.05 * 100 ** rng.random():.3g}"),
        noise=rng.choice([0.0, round(rng.uniform(0, 2), 2)]),
        threshold=round(rng.uniform(0.05, 0.95), 2),
        capacity=rng.randint(1, 12) / 4,
        priority=rng.choice(PRIORITIES),
        bias=[round(rng.uniform(-0.4, 0.4), 2) for _ in range(6)],
        seed=rng.randrange(100),
    )


def random_cells(rng: random.Random) -> CellsExplorable:
    return CellsExplorable(
        top_k=rng.randint(1, 3),
        slope=rng.choice([25.0, round(rng.uniform(-2, 26), 1)]),
        delta=rng.choice([0.0, rng.randint(1, 18) / 20]),
        compensate=rng.random() < 0.5,
        halve=rng.random() < 0.5,
        rank=rng.choice(["slope", "logit"]),
    )


def random_ray(rng: random.Random) -> RayExplorable:
    return RayExplorable(
        activation=rng.choice(list(NAMES)),
        c=float(f"{0.1 * 100 ** rng.random():.3g}"),
        beta1=rng.randint(5, 50) / 10,
        n=float(f"{100 * 10_000 ** rng.random():.3g}"),
    )


def random_dial(rng: random.Random) -> DialExplorable:
    widths = {f"{name}_hidden": rng.randint(3, 12) for name in ("token", "channel", "ffn")}
    sizes = Sizes.of_image((1, 8, 8), 2, dim=rng.randint(3, 12), outputs=10, **widths)
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    net = build("ninformer", sizes, depth=rng.randint(2, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return DialExplorable(
        net,
        torch.rand(3, 1, 8, 8, generator=generator),
        torch.tensor([4, 0, 9]),
        [rng.random() for _ in range(11)],
        gate_mix=rng.choice([0.0, 1.0, round(rng.random(), 2)]),
        digit=rng.randrange(3),
        block=rng.randrange(len(net.blocks)),
        channel=rng.randrange(sizes.dim),
        paint=[rng.choice([0, 0, 0, 0, 1, -1]) if rng.random() < 0.3 else 0 for _ in range(64)],
        tokens=rng.randint(4, 4096),
        hidden=16 * rng.randint(1, 128),
        dim=32 * rng.randint(1, 32),
    )


def random_plane(rng: random.Random) -> PlaneExplorable:
    return PlaneExplorable(
        point=[round(rng.uniform(-1.4, 1.4), 2) for _ in range(2)],
        eps=rng.randint(0, 30) / 50,
        angle=rng.randint(-90, 90),
        router=rng.choice(["standard", "robust"]),
        experts=rng.choice(["standard", "robust"]),
        label=rng.choice([-1, 1]),
    )


def random_consensus(rng: random.Random) -> ConsensusExplorable:
    return ConsensusExplorable(
        lambda_p=rng.randint(-20, 20) / 20,
        lambda_a=rng.randint(0, 20) / 20,
        gain=rng.randint(0, 20) / 20,
        spread=rng.randint(0, 20) / 10,
        steps=rng.choice([400, rng.randint(0, 400)]),
        modes=rng.choice(["one", "two"]),
        gates=rng.choice(["soft", "hard"]),
        logits=rng.choice([None, [round(rng.gauss(0, 2), 2) for _ in range(2400)]]),
    )


def random_particle(rng: random.Random) -> ParticleExplorable:
    return ParticleExplorable(
        gamma=rng.randint(0, 95) / 100,
        h=float(f"{0.01 * 100 ** rng.random():.3g}"),
        curvature=rng.choice([0, rng.randint(-16, 48) / 4, rng.randint(1, 8) / 4]),
        coupling=rng.choice([0, rng.randint(0, 40) / 10]),
        temperature=rng.randint(0, 60) / 20,
        noise=rng.choice(["released", "exact"]),
        integrator=rng.choice(["euler", "symplectic", "baoab"]),
        start=[round(rng.uniform(-3, 3), 2) for _ in range(2)],
        step=rng.randint(0, 120),
        seed=rng.randrange(100),
    )


def random_response(rng: random.Random) -> ResponseExplorable:
    return ResponseExplorable(
        lam=rng.randint(-60, 60) / 10,
        sigma=float(f"{0.05 * 80 ** rng.random():.3g}"),
        tau=float(f"{1e-4 * 1000 ** rng.random():.3g}"),
        noise=rng.choice([0.0, rng.randint(1, 20) / 200]),
        method=rng.choice(["stn", "delta", "exact"]),
        steps=rng.choice([0, rng.randint(0, 100)]),
        spectrum=rng.choice([(3, 2, 1, 0, -1, -2), [round(rng.uniform(-5, 5), 1) for _ in range(6)]]),
        mode=rng.randrange(6),
        seed=rng.randrange(100),
    )


def random_exits(rng: random.Random) -> ExitsExplorable:
    exits = rng.randint(3, 8)
    trace = synthetic_trace(rng.randint(20, 50), exits, seed=rng.randrange(1000))
    return ExitsExplorable(
        trace,
        sample=rng.randrange(20),
        gates=rng.choice([None, [rng.random() for _ in range(exits - 1)]]),
        composition=rng.choice(["clip", "stick", "cdf"]),
        rule=rng.choice(["hard", "expected"]),
        policy=rng.choice(["gates", "confidence", "entropy", "patience"]),
        trade_off=rng.choice([*trace["gates"]]),
        threshold=round(rng.random(), 3),
        patience=rng.randint(1, exits),
        hopeless=rng.choice(["none", "added", "marked"]),
    )


def random_barrier(rng: random.Random) -> BarrierExplorable:
    while True:
        places = {key: [round(rng.uniform(-1.4, 1.4), 2), round(rng.uniform(-0.9, 0.9), 2)] for key in BARRIER_PLACES}
        gaps = [math.dist(places["obstacle"], places[key]) for key in ("agent", "neighbour", "goal")]
        if min(gaps) > 0.56 and math.dist(places["agent"], places["neighbour"]) > 0.31:
            break
    steps = torch.randn(rng.randint(2, 201), 2, 2, generator=torch.Generator().manual_seed(rng.randrange(1000)))
    return BarrierExplorable(
        rng.choice(["barrier", "doorway", "braking"]),
        **places,
        **{key: float(f"{0.2 * 100 ** rng.random():.3g}") for key in ("zeta", "zeta_o")},
        **{key: float(f"{0.5 * 40 ** rng.random():.3g}") for key in ("zeta_1", "zeta_2")},
        eta=rng.choice([1, 3]),
        mode=rng.choice(["share", "full"]),
        objective=rng.choice(["nominal", "clf"]),
        speed=rng.randint(0, 20) / 20,
        sigma=rng.choice([0, 0.001, 0.003, 0.01, 0.03, 0.1]),
        time=rng.randint(0, 200),
        run=rng.choice(["", "", "recorded"]),
        runs={"recorded": torch.tensor([[-1.2, 0.5], [-1.2, -0.5]]) + 0.02 * steps.cumsum(0)},
        alpha=rng.randint(10, 120) / 20,
        v0=rng.randint(6, 40) / 20,
        brake=rng.randint(6, 40) / 20,
    )


def random_board(rng: random.Random) -> BoardExplorable:
    *cells, prey = rng.sample(range(25), 7)
    return BoardExplorable(
        world=rng.choice(["pcp", "scout"]),
        k=rng.randint(1, 5),
        logits=[rng.randint(-40, 40) / 10 for _ in range(36)],
        edge=rng.choice([edge for edge in range(36) if edge % 7]),
        penalty=rng.choice([0, rng.randint(1, 60) / 20]),
        step=rng.randint(0, 20),
        temperature=float(f"{0.1 * 100 ** rng.random():.3g}"),
        draw=rng.randrange(20),
        symbols=rng.randint(2, 8),
        cells=cells,
        prey=prey,
    )


RANDOM = {
    "board": random_board,
    "barrier": random_barrier,
    "exits": random_exits,
    "response": random_response,
    "consensus": random_consensus,
    "plane": random_plane,
    "particle": random_particle,
    "dial": random_dial,
    "ray": random_ray,
    "gates": random_gates,
    "decay": random_decay,
    "offload": random_offload,
    "router": random_router,
    "cells": random_cells,
}
