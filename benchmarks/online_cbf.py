"""How many environments a core drives: steps of whole arenas against the batch and the number of agents.

Cost model: a step of an environment is N problems of m = N - 1 + M + 4 rows (others, obstacles, the box). Most are
settled by one line, in time proportional to m, the others by all lines, m^2: a step's time grows with N^2 to N^3, and
`nearest` makes it N again. Small batches wait for the operators themselves, 100 a step beside the solver's own, so that
the time of a step hardly changes until there are some hundred problems.

Rows named "QP" are the solver alone, `rows` barriers beside the four limits, problems of a filter that shares the
pair's barrier (none is infeasible). The loops call the libraries themselves, a problem at a time, on arrays that are
made for the whole batch; their backward pass is the adjoint of the active rows, a small linear system for each problem.
Compiled, the solver does m^2 / 2 bounds for every problem and no longer waits for operators; its backward pass is that
of the other one. ProxQP's layer takes a batch, and builds and solves its problems one after another.

Rows named "drive" take 20 steps (`every` = 5) from the starts of a doorway. Environment steps per second are
environments * 20 / time; in races they stand among the sizes, in thousands (`ksteps_per_s`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import daqp
import numpy as np
import quadprog
import torch
from proxsuite.torch.qplayer import QPFunction
from torch import Tensor

from gated.kernels.barrier_qp import barrier_qp, naive_barrier_qp
from gated.lab import bench
from gated.online_cbf import Arena, GraphTuner, SafetyFilter, constant, crossing, doorway, log_uniform, ppo, rollout
from gated.online_cbf.rollout import Tuner

STEPS = 20


def doors(batch: int, agents: int) -> Arena:
    return doorway(batch, sigma=0.03, agents=agents, generator=torch.Generator().manual_seed(0))


def drive(a: Arena, policy: Tuner, rule: SafetyFilter) -> object:
    with torch.no_grad():
        return rollout(a, policy, rule, every=5, steps=STEPS)


def one_by_one(arenas: list[Arena], policy: Tuner, rule: SafetyFilter) -> object:
    return [drive(a, policy, rule) for a in arenas]


def growth(report: bench.Report, quick: bool) -> None:
    """Time of 20 steps against environments, and against agents."""
    rounds, rule, policy = (6 if quick else 8), SafetyFilter(), constant(3.0, 2.0)
    batches = (16, 64, 256) if quick else (16, 64, 256, 1024, 4096)
    for agents in (2, 4) if quick else (2, 4, 8):
        calls = {str(b): partial(drive, doors(b, agents), policy, rule) for b in batches}
        result = bench.race(calls, rounds=rounds)
        times = [result.median(str(b)) for b in batches]
        report.scaling(f"drive, {agents} agents", batches, times, over="environments")
    crowds = (2, 4, 8) if quick else (2, 4, 8, 16, 32)
    calls = {str(n): partial(drive, crossing(64, agents=n, sigma=0.0), policy, rule) for n in crowds}
    result = bench.race(calls, rounds=rounds)
    report.scaling("drive, 64 open crossings", crowds, [result.median(str(n)) for n in crowds], over="agents")


def races(report: bench.Report, quick: bool) -> None:
    """One batch beside one environment after another, and the six nearest beside all."""
    rounds, rule, policy = (6 if quick else 12), SafetyFilter(), constant(3.0, 2.0)
    batch = 32 if quick else 64
    for agents in (2, 4):
        a = doors(batch, agents)
        calls = {
            "one batch": partial(drive, a, policy, rule),
            "one environment after another": partial(one_by_one, [a[k : k + 1] for k in range(batch)], policy, rule),
        }
        race(report, "drive, in one batch", a, bench.race(calls, rounds=rounds))
    a = crossing(16 if quick else 64, agents=16, sigma=0.0)
    calls = {
        "the 6 nearest": partial(drive, a, policy, SafetyFilter(nearest=6)),
        "all others": partial(drive, a, policy, rule),
    }
    race(report, "drive, rows for the 6 nearest", a, bench.race(calls, rounds=rounds))
    a = doors(64, 2)
    calls = {
        "graph network": partial(drive, a, GraphTuner(), rule),
        "constants": partial(drive, a, policy, rule),
    }
    race(report, "drive, set online by the network", a, bench.race(calls, rounds=rounds))


def race(report: bench.Report, case: str, a: Arena, result: bench.Race) -> None:
    rate = len(a) * STEPS / result.median(next(iter(result.ms)))  # thousands a second
    report.race(case, {"environments": len(a), "agents": a.agents, "ksteps_per_s": round(rate)}, result)


def learn(tuner: GraphTuner, generator: torch.Generator, epochs: int) -> object:
    def problems(g: torch.Generator) -> Arena:
        return doorway(64, sigma=log_uniform((64,), 0.003, 0.1, g), generator=g)

    return ppo(tuner, problems, generator=generator, iterations=1, epochs=epochs)


def learning(report: bench.Report) -> None:
    """An iteration beside one that takes a single pass over its batch: how much is driving, how much learning."""
    calls = {}
    for name, epochs in (("PPO iteration, 4 epochs", 4), ("PPO iteration, 1 epoch", 1)):
        g = torch.Generator().manual_seed(0)
        calls[name] = partial(learn, GraphTuner(generator=g), g, epochs)
    report.race("PPO iteration, 64 doorways of two agents", {"environments": 64}, bench.race(calls, rounds=8))


XI, LIMIT = 10.0, 1.0


def problems(batch: int, rows: int) -> dict[str, Tensor]:
    """Others at distances from contact on, in all directions, and a goal."""
    g = torch.Generator().manual_seed(0)
    angle, far = (
        2 * torch.pi * torch.rand(batch, rows, generator=g).double(),
        torch.rand(batch, rows, generator=g).double(),
    )
    apart = 0.3 - 0.8 * far.clamp_min(1e-9).log()
    a = 2 * apart[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    c = 3 * torch.randn(batch, 2, generator=g).double()
    return {"a": a, "b": -1.5 * (apart**2 - 0.09), "c": c, "d": 0.5 * (c**2).sum(-1)}


def batched(form: Callable, given: dict[str, Tensor], backward: bool = False) -> object:
    if not backward:
        return form(**given, limit=LIMIT, xi=XI)
    leaves = {name: y.detach().requires_grad_() for name, y in given.items()}
    return torch.autograd.grad(form(**leaves, limit=LIMIT, xi=XI)[0].sum(), list(leaves.values()))


def three_variables(given: dict[str, Tensor]) -> tuple[np.ndarray, ...]:
    """Weight, rows of limits (two), barriers and wish, and what they are at least."""
    a, b, c, d = (y.numpy() for y in given.values())
    batch, m = b.shape
    rows, least = np.zeros((batch, m + 1, 3)), np.full((batch, m + 3), -LIMIT)
    rows[:, :m, :2], rows[:, m, :2], rows[:, m, 2] = a, -c, 1
    least[:, 2:-1], least[:, -1] = b, d
    return np.diag([2.0, 2.0, 2 * XI]), rows, least


def by_daqp(given: dict[str, Tensor], backward: bool = False) -> object:
    weight, rows, least = three_variables(given)
    batch, size = least.shape
    most, kind, zero = np.full(size, 1e30), np.zeros(size, np.int32), np.zeros(3)
    most[:2] = LIMIT
    u, slopes = np.zeros((batch, 2)), np.zeros((batch, size))
    for i in range(batch):
        x, _, flag, info = daqp.solve(weight, zero, rows[i], most, least[i], kind)
        if flag > 0:
            u[i] = x[:2]
            if backward:
                adjoint(weight, np.concatenate([np.eye(2, 3), rows[i]]), info["lam"] != 0, slopes[i])
    return u, slopes


def by_quadprog(given: dict[str, Tensor], backward: bool = False) -> object:
    weight, rows, least = three_variables(given)
    batch, size = least.shape
    box = np.broadcast_to(np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]), (batch, 4, 3))
    all_rows = np.ascontiguousarray(np.concatenate([box, rows], 1).transpose(0, 2, 1))
    all_least = np.concatenate([np.full((batch, 2), -LIMIT), least], 1)
    u, slopes, zero = np.zeros((batch, 2)), np.zeros((batch, size + 2)), np.zeros(3)
    for i in range(batch):
        try:
            x, _, _, _, force, _ = quadprog.solve_qp(weight, zero, all_rows[i], all_least[i])
        except ValueError:  # infeasible
            continue
        u[i] = x[:2]
        if backward:
            adjoint(weight, all_rows[i].T, force != 0, slopes[i])
    return u, slopes


def adjoint(weight: np.ndarray, rows: np.ndarray, active: np.ndarray, slopes: np.ndarray) -> None:
    """Derivative of u_x + u_y by what the active rows are at least; those by the rows themselves follow from it."""
    held = rows[active]
    k = len(held)
    system = np.zeros((3 + k, 3 + k))
    system[:3, :3], system[:3, 3:], system[3:, :3] = weight, held.T, held
    wanted = np.zeros(3 + k)
    wanted[:2] = 1
    slopes[active] = np.linalg.solve(system, wanted)[3:]


def by_proxqp_layer(given: dict[str, Tensor], backward: bool = False) -> object:
    """The layer for batches of the package proxsuite."""
    a, b, c, d = leaves = [y.detach().double().requires_grad_(backward) for y in given.values()]
    (batch, m), none = b.shape, b.new_zeros(len(b), 0)
    barriers = torch.cat([a, a.new_zeros(batch, m, 1)], 2)
    wish = torch.cat([-c, c.new_ones(batch, 1)], 1)[:, None]
    rows = torch.cat([torch.eye(2, 3, dtype=b.dtype).expand(batch, 2, 3), barriers, wish], 1)
    least = torch.cat([b.new_full((batch, 2), -LIMIT), b, d[:, None]], 1)
    most = torch.full_like(least, 1e20)
    most[:, :2] = LIMIT
    weight = torch.diag(b.new_tensor([2.0, 2.0, 2 * XI])).expand(batch, 3, 3)
    x, _, _ = QPFunction()(weight, b.new_zeros(batch, 3), b.new_zeros(batch, 0, 3), none, rows, least, most)
    return torch.autograd.grad(x[:, :2].sum(), leaves) if backward else x[:, :2]


def solvers(report: bench.Report, quick: bool) -> None:
    """The batched solver beside loops over problems, a layer for batches, and all candidates written down."""
    rounds = 6 if quick else 12
    sizes = [(1024, 6, 1)] if quick else [(1024, 6, 1), (1024, 6, 2), (1024, 10, 1), (1024, 10, 2), (4096, 6, 1)]
    for batch, rows, threads in sizes:
        given = problems(batch, rows)
        single = {name: y.float() for name, y in given.items()}
        for case, backward in (("forward", False), ("forward and backward", True)):
            loops = {"loop over DAQP": partial(by_daqp, given, backward)}
            loops["loop over quadprog"] = partial(by_quadprog, given, backward)
            both = {"all candidates": partial(batched, naive_barrier_qp, given, backward)}
            both["ProxQP's layer"] = partial(by_proxqp_layer, given, backward)
            for name, y in (("", given), (", float32", single)):
                calls = {"barrier_qp": partial(batched, barrier_qp, y, backward), **loops, **({} if name else both)}
                result = bench.race(calls, rounds=rounds, threads=threads, min_ms=20)  # as in a loop of steps
                report.race(f"QP, {case}{name}", {"batch": batch, "rows": rows, "m": rows + 4}, result)
            if not quick:  # half a minute to compile, more for 10 rows
                calls = {"barrier_qp, compiled": partial(batched, partial(barrier_qp, compiled=True), given, backward)}
                calls |= {"barrier_qp": partial(batched, barrier_qp, given, backward), **loops}
                result = bench.race(calls, rounds=rounds, threads=threads, min_ms=20)
                report.race(f"QP, {case}, compiled", {"batch": batch, "rows": rows, "m": rows + 4}, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("online_cbf")
    solvers(report, quick)
    growth(report, quick)
    races(report, quick)
    if not quick:
        learning(report)
    return report.rows
