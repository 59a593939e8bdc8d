"""How many environments a core drives: steps of whole arenas against the batch and the number of agents.

Cost model: a step of an environment is N problems of m = N - 1 + M + 4 rows (others, obstacles, the box). Most are
settled by one line, in time proportional to m, the others by all lines, m^2: a step's time grows with N^2 to N^3, and
`nearest` makes it N again. Small batches wait for the operators themselves, 100 a step beside the solver's own, so that
the time of a step hardly changes until there are some hundred problems.

Rows named "QP" are the solver alone, `rows` barriers beside the four limits, problems of a filter that shares the
pair's barrier (none is infeasible). The loops call the libraries themselves, a problem at a time, on arrays that are
made for the whole batch; their backward pass is the adjoint of the active rows, a small linear system for each problem,
and gives the slopes of what rows are at least, so that these are what results are compared by.
Compiled, the solver does m^2 / 2 bounds for every problem and no longer waits for operators; its backward pass is that
of the other one. ProxQP's layer takes a batch, and builds and solves its problems one after another; it could solve
them on half of the processor's cores. All three compute in float64, beside ours in float32 too, and run on one thread
when ours has two: their names say so.

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


def drive(a: Arena, policy: Tuner, rule: SafetyFilter) -> Tensor:
    """Where everybody went."""
    with torch.no_grad():
        return rollout(a, policy, rule, every=5, steps=STEPS).position


def one_by_one(arenas: list[Arena], policy: Tuner, rule: SafetyFilter) -> Tensor:
    return torch.cat([drive(a, policy, rule) for a in arenas], 1)


def growth(report: bench.Report, quick: bool) -> None:
    """Time of 20 steps against environments, and against agents."""
    rounds, rule, policy = (6 if quick else 9), SafetyFilter(), constant(3.0, 2.0)
    batches = (12, 48, 192) if quick else (12, 48, 192, 768, 3072)  # none of them a race's below
    for agents in (2, 4) if quick else (2, 4, 8):
        calls = {str(b): partial(drive, doors(b, agents), policy, rule) for b in batches}
        (result,) = report.run(calls, rounds=rounds)
        times = [result.median(str(b)) for b in batches]
        report.scaling(f"drive, {agents} agents", batches, times, over="environments", settled=True)
    crowds = (2, 4, 8) if quick else (2, 4, 8, 16, 32)
    calls = {str(n): partial(drive, crossing(48, agents=n, sigma=0.0), policy, rule) for n in crowds}
    (result,) = report.run(calls, rounds=rounds)
    times = [result.median(str(n)) for n in crowds]
    report.scaling("drive, 48 open crossings", crowds, times, over="agents", settled=True)


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
        # twenty steps among obstacles multiply the roundings
        race(report, "drive, in one batch", a, report.run(calls, rounds=rounds, uncompared={}, tolerance=1e-2)[0])
    a = crossing(16 if quick else 64, agents=16, sigma=0.0)
    calls = {
        "the 6 nearest": partial(drive, a, policy, SafetyFilter(nearest=6)),
        "all others": partial(drive, a, policy, rule),
    }
    why = {"all others": "more rows, another control"}
    race(report, "drive, rows for the 6 nearest", a, report.run(calls, rounds=rounds, uncompared=why)[0])
    a = doors(128, 2)
    calls = {
        "graph network": partial(drive, a, GraphTuner(), rule),
        "constants": partial(drive, a, policy, rule),
    }
    why = {"constants": "another tuner"}
    race(report, "drive, set online by the network", a, report.run(calls, rounds=rounds, uncompared=why)[0])


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
    why = {"PPO iteration, 1 epoch": "it learns less"}
    (result,) = report.run(calls, rounds=9, uncompared=why)
    report.race("PPO iteration, 64 doorways of two agents", {"environments": 64}, result)


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
        return form(**given, limit=LIMIT, xi=XI)[0]
    leaves = {name: y.detach().requires_grad_() for name, y in given.items()}
    _, b, _, d = torch.autograd.grad(form(**leaves, limit=LIMIT, xi=XI)[0].sum(), list(leaves.values()))
    return b, d


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
    return (slopes[:, 2:-1], slopes[:, -1]) if backward else u


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
    return (slopes[:, 4:-1], slopes[:, -1]) if backward else u


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
    return torch.autograd.grad(x[:, :2].sum(), leaves)[1::2] if backward else x[:, :2]


ROUGH = {"ProxQP's layer, float64, one thread": "some programs end before their optimum, and slopes are regularised"}


def solvers(report: bench.Report, quick: bool) -> None:
    """The batched solver beside loops over problems, a layer for batches, and all candidates written down."""
    rounds = 6 if quick else 12
    settings = [(1024, 6)] if quick else [(1024, 6), (1024, 10), (4096, 6)]
    for batch, rows in settings:
        given = problems(batch, rows)
        single = {name: y.float() for name, y in given.items()}
        sizes = {"batch": batch, "rows": rows, "m": rows + 4}
        for case, backward in (("forward", False), ("forward and backward", True)):
            compiled = partial(barrier_qp, compiled=True)
            calls = {
                "barrier_qp": partial(batched, barrier_qp, given, backward),
                "loop over DAQP, float64, one thread": partial(by_daqp, given, backward),
                "loop over quadprog, float64, one thread": partial(by_quadprog, given, backward),
                "all candidates": partial(batched, naive_barrier_qp, given, backward),
                "ProxQP's layer, float64, one thread": partial(by_proxqp_layer, given, backward),
                "barrier_qp, float32": partial(batched, barrier_qp, single, backward),
            }
            if not quick:  # half a minute to compile, more for 10 rows
                calls["barrier_qp, compiled"] = partial(batched, compiled, given, backward)
            ours, daqp, quadprog, *_ = calls
            threads = (1,) if quick or batch > 1024 else (1, 2)
            # one race for all, each with all the times: as in a loop of steps
            found = report.run(calls, threads, rounds=rounds, min_ms=20, uncompared=ROUGH)
            for result in found:
                report.race(f"QP, {case}", sizes, result.among(*list(calls)[:5]))
                report.race(f"QP, {case}, float32", sizes, result.among("barrier_qp, float32", daqp, quadprog))
                if not quick:
                    among = result.among("barrier_qp, compiled", ours, daqp, quadprog)
                    report.race(f"QP, {case}, compiled", sizes, among)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("online_cbf", tries=1 if quick else 3)
    solvers(report, quick)
    growth(report, quick)
    races(report, quick)
    if not quick:
        learning(report)
    return report.rows
