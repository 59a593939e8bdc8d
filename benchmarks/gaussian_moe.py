"""One iteration of EM for 40 data sets at once beside its peers, its growth, its share of the bandwidth, whole fits.

Cost model. A point is 8 (d + 1) bytes, read once. Two experts take two exponentials, a logarithm and a division a point
and some 150 multiplications and additions for 24 sums; every further expert adds at least one exponential and nine
sums. That is far more time than the bytes take: the row that is named "reading x and y" tells how much more, by its
ratio, the share of the bandwidth that is used. Arithmetic binds, on any number of threads.

An iteration is the pass over the points, weighted least squares for the experts and a Newton step for the gate. The
peers are NumPy, a data set after another and vectorised over its points, twice: with tables [points, experts] and
einsum, as it is most often written, and with a row of points an expert and products of matrices, which takes a fraction
of that; PyTorch operator after operator on whole tensors; and, for whole fits to equal likelihood, SciPy's L-BFGS with
the faster NumPy's gradient. NumPy's products of matrices get as many threads as PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from gated.gaussian_moe.em import fit
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.truths import DENSE, SPARSE, SYMMETRIC, UNIT, uniform
from gated.kernels.gmoe_em import Points, Statistics, gmoe_em
from gated.lab import bench

REPLICATES, POINTS = 40, 16_000
READING = "reading x and y, nothing else"
LENGTH = 1000  # of a block: long ones are faster, and below 1,022 two experts need one logarithm a block


class Problem(NamedTuple):
    name: str
    truth: GaussianMoE
    interval: tuple[float, float]
    temperature: bool


PROBLEMS = (
    Problem("2 experts, all kept", DENSE, UNIT, False),
    Problem("2 of 3 experts, tanh and temperature", SPARSE.with_gate(Gate(2, "slope", "tanh")), SYMMETRIC, True),
)


def data(problem: Problem, points: int, replicates: int = REPLICATES) -> tuple[Tensor, Tensor, GaussianMoE]:
    """x, y [replicates, points] and parameters near the truth, different in every replicate."""
    generator = torch.Generator().manual_seed(0)
    x = uniform(problem.interval, replicates, points, generator=generator)
    truth = problem.truth.expand(replicates)
    y = truth.sample(x, generator)
    start = truth.map(lambda t: t * (1 + 0.05 * torch.rand(t.shape, dtype=t.dtype, generator=generator)))
    return x[..., 0], y, start


# The Newton step and least squares, the same for all ---------------------------------------------------------------


def maximise(model: GaussianMoE, s: Statistics, temperature: bool) -> list[Tensor]:
    """New a, b, variance and gate numbers from the sums."""
    ridge = 1e-9 * torch.eye(2, dtype=torch.float64)
    change = torch.linalg.solve(s.moment + ridge, s.cross)
    mass = s.moment[..., 0, 0]
    variance = (s.square - (change * s.cross).sum(-1)) / mass
    free = s.gram.shape[-1] - (not temperature)
    gram = s.gram[:, :free, :free]
    step = torch.linalg.solve(gram + 1e-9 * torch.eye(free, dtype=torch.float64), s.gradient[:, :free])
    return [model.a + change[..., 1:], model.b + change[..., 0], variance, step]


def fused(points: Points, model: GaussianMoE, temperature: bool, compiled: bool) -> list[Tensor]:
    gate = model.gate
    form = {"top_k": gate.top_k, "rank": gate.rank, "activation": gate.activation}
    return maximise(model, gmoe_em(points, *model.tensors().values(), **form, compiled=compiled), temperature)


# NumPy as it is most often written: a data set after another, tables [points, experts] -----------------------------


def logsumexp(values: np.ndarray) -> np.ndarray:
    top = values.max(-1, keepdims=True)
    return top + np.log(np.exp(values - top).sum(-1, keepdims=True))


def plain_sums(x: np.ndarray, y: np.ndarray, p: list[np.ndarray], gate: Gate) -> list[np.ndarray]:
    """log likelihood, moment, cross, square, gradient, gram by einsum; x, y are [points]."""
    beta0, beta1, a, b, variance, tau = p
    n, k = len(x), len(beta0)
    z = x[:, None] * beta1
    score = np.tanh(z) if gate.activation == "tanh" else z
    logits = kept = (score + beta0) / tau
    if gate.top_k is not None and gate.top_k < k:
        order = np.argsort(-(score if gate.rank == "slope" else logits), axis=-1, kind="stable")
        kept = np.full_like(logits, -np.inf)
        chosen = order[:, : gate.top_k]
        np.put_along_axis(kept, chosen, np.take_along_axis(logits, chosen, -1), -1)
    log_pi = kept - logsumexp(kept)
    error = y[:, None] - (x[:, None] * a + b)
    joint = log_pi - 0.5 * error**2 / variance - 0.5 * np.log(2 * math.pi * variance)
    total = logsumexp(joint)
    pi, r = np.exp(log_pi), np.exp(joint - total)
    one = np.stack([np.ones_like(x), x], -1)
    weighted = r[:, :, None] * one[:, None]  # einsum of all three at once takes four times as long
    moment = np.einsum("nku,nv->kuv", weighted, one, optimize=True)
    cross = np.einsum("nku,nk->ku", weighted, error, optimize=True)
    square = np.einsum("nk,nk,nk->k", r, error, error, optimize=True)
    if gate.activation == "tanh":
        steep = np.stack([np.ones_like(z), x[:, None] * (1 - score**2)], -1)[:, :-1]
    else:  # the same for all experts
        steep = np.broadcast_to(one[:, None], (n, k - 1, 2))
    gradient = np.einsum("nk,nku->ku", (r - pi)[:, :-1], steep, optimize=True)
    own = pi[:, :-1, None] * steep
    size = 2 * (k - 1)
    gram = np.zeros((size + 1, size + 1))
    gram[:-1, :-1] = -np.einsum("niu,njv->iujv", own, own, optimize=True).reshape(size, size)
    by_expert = np.einsum("niu,niv->iuv", own, steep, optimize=True)
    for i in range(k - 1):
        gram[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += by_expert[i]
    by_tau = 0.0
    if gate.activation == "tanh":  # the temperature is estimated
        centred = logits - (pi * logits).sum(-1, keepdims=True)
        gram[:-1, -1] = gram[-1, :-1] = -np.einsum("niu,ni->iu", own, centred[:, :-1], optimize=True).ravel()
        gram[-1, -1] = np.einsum("nk,nk,nk->", pi, centred, centred, optimize=True)
        by_tau = -np.einsum("nk,nk->", r - pi, logits, optimize=True)
    return [total.sum(), moment, cross, square, np.append(gradient, by_tau) / tau, gram / tau**2]


# NumPy with less to do: a row an expert [experts, points], sums by products of matrices ----------------------------


def softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along the experts, with the logarithm of the sum."""
    top = logits.max(0)
    e = np.exp(logits - top)
    total = e.sum(0)
    e /= total
    return e, top + np.log(total)


def numpy_sums(power: np.ndarray, y: np.ndarray, p: list[np.ndarray], gate: Gate) -> list[np.ndarray]:
    """log likelihood, moment, cross, square, gradient, gram; `power` is [points, 3], 1, x, x^2."""
    beta0, beta1, a, b, variance, tau = p
    x, k = power[:, 1], len(beta0)
    z = beta1[:, None] * x
    tanh = gate.activation == "tanh"
    score = np.tanh(z) if tanh else z
    slope = 1 - score * score if tanh else None
    logits = (score + beta0[:, None]) / tau
    if gate.top_k is not None and gate.top_k < k:
        order = np.argsort(-(score if gate.rank == "slope" else logits), axis=0, kind="stable")
        logits_kept = logits.copy()
        np.put_along_axis(logits_kept, order[gate.top_k :], -np.inf, 0)
    else:
        logits_kept = logits
    pi, log_total = softmax(logits_kept)
    error = y - a[:, None] * x - b[:, None]
    joint = logits_kept - (0.5 / variance)[:, None] * error * error - (0.5 * np.log(2 * math.pi * variance))[:, None]
    r, log_joint = softmax(joint)
    weighted = r * error
    out = [np.array((log_joint - log_total).sum()), r @ power, weighted @ power[:, :2], (weighted * error).sum(1)]
    difference = (r - pi)[:-1]
    steep = difference if slope is None else difference * slope[:-1]
    gradient = np.stack([difference.sum(1), steep @ x], 1).ravel()
    size = 2 * (k - 1) + 1
    gram = np.zeros((size, size))
    for i in range(k - 1):
        for j in range(i, k - 1):
            h = pi[i] * ((i == j) - pi[j])
            if slope is None:
                one, left, both = h @ power
                right = left
            else:
                by = h * slope[i]
                one, left, right, both = h.sum(), by @ x, (h * slope[j]) @ x, (by * slope[j]) @ power[:, 2]
            gram[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = [[one, right], [left, both]]
            gram[2 * j : 2 * j + 2, 2 * i : 2 * i + 2] = [[one, left], [right, both]]
    if tanh:  # the temperature is estimated
        mean = (pi * logits).sum(0)
        centred = pi * (mean - logits)
        last = np.stack([centred[:-1].sum(1), (centred * slope)[:-1] @ x], 1).ravel()
        gram[-1, :-1] = gram[:-1, -1] = last
        gram[-1, -1] = -(centred * logits).sum()
        gradient = np.append(gradient, -((r - pi) * logits).sum())
    else:
        gradient = np.append(gradient, 0.0)
    out[1] = out[1][:, [[0, 1], [1, 2]]]
    return [*out, gradient / tau, gram / tau**2]


def numpy_iterations(
    sums: Callable[..., list[np.ndarray]], xs: np.ndarray, ys: np.ndarray, model: GaussianMoE, temperature: bool
) -> object:
    """All data sets, one after another."""
    tensors = [t.numpy() for t in model.tensors().values()]
    tensors[1:3] = [t[..., 0] for t in tensors[1:3]]
    out = []
    for s, (x, y) in enumerate(zip(xs, ys, strict=True)):
        p = [t[s] for t in tensors]
        _, moment, cross, square, gradient, gram = sums(x, y, p, model.gate)
        change = np.linalg.solve(moment + 1e-9 * np.eye(2), cross[..., None])[..., 0]
        variance = (square - (change * cross).sum(1)) / moment[:, 0, 0]
        free = len(gradient) - (not temperature)
        step = np.linalg.solve(gram[:free, :free] + 1e-9 * np.eye(free), gradient[:free])
        out.append([(p[2] + change[:, 1])[:, None], p[3] + change[:, 0], variance, step])
    return [np.stack(column) for column in zip(*out, strict=True)]


# PyTorch on whole tensors [data sets, experts, points] -------------------------------------------------------------


def eager(power: Tensor, y: Tensor, model: GaussianMoE, temperature: bool) -> list[Tensor]:
    x = power[..., 1]
    one = x[..., None]
    k, tau = model.num_experts, model.tau[:, None]
    z = model.beta1 * x[:, None]
    logits = model.logits(one).mT
    log_pi = model.log_gate(one).mT
    log_joint = log_pi + model.log_experts(one, y).mT
    pi, r = log_pi.exp(), log_joint.softmax(1)
    error = y[:, None] - model.means(one).mT
    weighted = r * error
    moment = (r @ power)[..., [[0, 1], [1, 2]]]
    steep = 1 - z.tanh().square() if model.gate.activation == "tanh" else torch.ones_like(z)
    gram = x.new_zeros(len(x), 2 * k - 1, 2 * k - 1)
    gradient = x.new_zeros(len(x), 2 * k - 1)
    difference = r - pi
    gradient[:, 0:-1:2] = difference[:, :-1].sum(-1)
    gradient[:, 1:-1:2] = ((difference * steep)[:, :-1] @ one)[..., 0]
    for i in range(k - 1):
        h = pi[:, i : i + 1] * (torch.eye(k, dtype=x.dtype)[i, :, None] - pi)
        by = h * steep[:, i : i + 1]
        for j in range(k - 1):
            gram[:, 2 * i, 2 * j] = h[:, j].sum(-1)
            gram[:, 2 * i, 2 * j + 1] = (h[:, j] * steep[:, j] * x).sum(-1)
            gram[:, 2 * i + 1, 2 * j] = (by[:, j] * x).sum(-1)
            gram[:, 2 * i + 1, 2 * j + 1] = (by[:, j] * steep[:, j] * power[..., 2]).sum(-1)
    if temperature:
        centred = pi * ((pi * logits).sum(1, keepdim=True) - logits)
        gradient[:, -1] = -(difference * logits).sum((1, 2))
        gram[:, -1, 0:-1:2] = gram[:, 0:-1:2, -1] = centred[:, :-1].sum(-1)
        gram[:, -1, 1:-1:2] = gram[:, 1:-1:2, -1] = ((centred * steep)[:, :-1] @ one)[..., 0]
        gram[:, -1, -1] = -(centred * logits).sum((1, 2))
    total = log_joint.logsumexp(1).sum(-1)
    square, cross = (weighted * error).sum(-1), weighted @ power[..., :2]
    sums = Statistics(total, moment, cross, square, gradient / tau, gram / tau[..., None] ** 2, square)
    return maximise(model, sums, temperature)


# Races ---------------------------------------------------------------------------------------------------------------


def cases(problem: Problem, points: int) -> dict[str, Callable[[], object]]:
    x, y, model = data(problem, points)
    packed = Points.pack(x.reshape(-1, 1), y.reshape(-1), torch.arange(len(x) + 1) * points, length=LENGTH)
    power = torch.stack([torch.ones_like(x), x, x * x], -1)
    rest = y.numpy(), model, problem.temperature
    return {
        "gmoe_em, compiled": partial(fused, packed, model, problem.temperature, True),
        "gmoe_em, not compiled": partial(fused, packed, model, problem.temperature, False),
        "NumPy, [points, experts] tables": partial(numpy_iterations, plain_sums, x.numpy(), *rest),
        "NumPy, a table an expert": partial(numpy_iterations, numpy_sums, power.numpy(), *rest),
        "PyTorch, operators on whole tensors": partial(eager, power, y, model, problem.temperature),
        READING: lambda: (packed.x.sum(), packed.y.sum()),
    }


def iteration(report: bench.Report, quick: bool) -> None:
    points = POINTS // 4 if quick else POINTS
    for problem in PROBLEMS:
        peers = cases(problem, points)
        found = report.run(
            peers,
            (1,) if quick else (1, 2),
            within=threadpool_limits,
            uncompared={READING: "it computes nothing"},
            tolerance=1e-6,  # the sums of all points, and the solution of two systems
            rounds=6 if quick else 9,
            warmup=1,
        )
        sizes = {"R": REPLICATES, "n": points, "k": problem.truth.num_experts}
        for result in found:
            report.race(f"EM, an iteration, {problem.name}", sizes, result)


def growth(report: bench.Report, quick: bool) -> None:
    sizes = [3000 * 2**i for i in range(4 if quick else 6)]  # none of them the race's above
    forms: dict[str, Callable[[], object]] = {}
    for n in sizes:
        x, y, model = data(PROBLEMS[0], n)
        packed = Points.pack(x.reshape(-1, 1), y.reshape(-1), torch.arange(len(x) + 1) * n, length=LENGTH)
        forms[str(n)] = partial(fused, packed, model, False, True)
    for result in report.run(forms, (1,) if quick else (1, 2), rounds=6 if quick else 9, warmup=1, min_ms=1):
        ms = [result.median(str(n)) for n in sizes]
        case = "EM, an iteration, 2 experts, all kept, R = 40"
        report.scaling(case, sizes, ms, over="n", threads=result.threads, settled=True)


def scipy_fits(powers: list[np.ndarray], ys: np.ndarray, model: GaussianMoE) -> np.ndarray:
    """Log-likelihoods by L-BFGS over gate, experts and log variances, a data set after another."""
    k, found = model.num_experts, []
    tensors = [t.numpy() for t in model.tensors().values()]
    for s, (power, y) in enumerate(zip(powers, ys, strict=True)):
        beta0, beta1, a, b, variance, tau = (t[s] for t in tensors)

        def negative(v: np.ndarray, power=power, y=y, tau=tau) -> tuple[float, np.ndarray]:
            gate, experts = np.append(v[: 2 * k - 2], [0, 0]).reshape(k, 2), v[2 * k - 2 :].reshape(3, k)
            nu = np.exp(experts[2])
            p = [gate[:, 0], gate[:, 1], experts[0], experts[1], nu, tau]
            total, moment, cross, square, gradient, _ = numpy_sums(power, y, p, model.gate)
            by = [cross[:, 1] / nu, cross[:, 0] / nu, 0.5 * (square / nu - moment[:, 0, 0])]
            return -float(total), -np.concatenate([gradient[:-1], *by])

        start = np.concatenate([np.stack([beta0, beta1[:, 0]], 1)[:-1].ravel(), a[:, 0], b, np.log(variance)])
        options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-5, "maxcor": 20}
        found.append(-minimize(negative, start, jac=True, method="L-BFGS-B", options=options).fun)
    return np.array(found)


def fits(report: bench.Report, quick: bool) -> None:
    """From the same starts to likelihoods that differ by less than 10^-3."""
    points, replicates = (1000, 8) if quick else (POINTS // 4, REPLICATES)
    x, y, start = data(PROBLEMS[0], points, replicates)
    packed = Points.pack(x.reshape(-1, 1), y.reshape(-1), torch.arange(len(x) + 1) * points, length=LENGTH)
    power = torch.stack([torch.ones_like(x), x, x * x], -1).numpy()
    peers: dict[str, Callable[[], object]] = {
        "gated.gaussian_moe.em.fit": partial(fit, packed, start, compiled=True),
        "SciPy, L-BFGS, a data set after another": partial(scipy_fits, list(power), y.numpy(), start),
    }
    ours, theirs = fit(packed, start, compiled=True).log_likelihood.numpy(), scipy_fits(list(power), y.numpy(), start)
    worst = float((theirs - ours).max())
    if worst > 1e-3:
        raise RuntimeError(f"SciPy's L-BFGS reached a log-likelihood that is higher by {worst:.3g}")
    found = report.run(
        peers,
        (1,) if quick else (1, 2),
        within=threadpool_limits,
        uncompared={list(peers)[1]: "it stops by a rule of its own; no likelihood of it is higher by 0.001"},
        rounds=6,
        warmup=1,
    )
    for result in found:
        report.race("whole fits, 2 experts, all kept", {"R": replicates, "n": points, "k": 2}, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for the engine of both theory chapters; `quick` takes smaller sizes."""
    report = bench.Report("topk_theory", tries=1 if quick else 3)
    iteration(report, quick)
    growth(report, quick)
    fits(report, quick)
    return report.rows
