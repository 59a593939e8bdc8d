"""The chapter's study: one network that tunes itself, beside all that could have been done with the same work.

    task = signals(pool, test)                           data, network, hyperparameters, their ranges and starts
    tuned = tune(task, seeds, steps, rates)              self-tuned runs, and their schedules
    fixed(task, seeds, settings, steps, rate)            plain networks at fixed settings, or along given schedules

All runs of a call are trained together. Each seed has its own split of the pool into training and validation examples;
runs of one seed share it, and the order of batches. The test set is read once, at the end of each run.

Cost is counted in runs of a plain network of the same number of steps (`COST`), by the multiply-adds of products: 3
units for a plain training step (forward, weights, inputs), 6 for a self-tuned one, and 4 for its validation step, which
needs no gradient of the weights and takes place after each second training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gated.stn.runs import COST, fixed, implicit, tune
from gated.stn.tasks import Setting, Task
from gated.stn.tasks import Windows as Windows
from gated.stn.tasks import characters as characters
from gated.stn.tasks import holes as holes
from gated.stn.tasks import signals as signals

RATES = (0.01, 0.02, 0.05)
HYPER_RATES = (0.01, 0.03, 0.1)
DROPOUTS, DECAYS = (0.0, 0.15, 0.3, 0.45, 0.6), (1e-5, 1e-4, 1e-3)
STARTS = (0.05, 0.3, 0.5, 0.7, 0.9 - 1e-3)


def grid(task: Task) -> list[dict[str, float | int]]:
    """One rate for both hidden dropouts, five values, times three weight decays; the rest as at the start.

    For holes: all 37 settings that differ.
    """
    if any(h.name == "holes" for h in task.hyper):
        cuts = [(0, 1)] + [(k, length) for k in (1, 2, 3) for length in range(1, 13)]
        return [{"holes": k, "length": length} for k, length in cuts]
    return [{"first": p, "second": p, "decay": d} for p in DROPOUTS for d in DECAYS]


def choose(task: Task, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """The rates of plain and of self-tuned networks by mean validation loss, on seeds that the study does not use.

    A plain network's rate is the one at which the best of four settings is best.
    """
    settings = [{"first": p, "second": p, "decay": d} for p in (0.15, 0.45) for d in (1e-5, 1e-3)]
    plain: dict[float, float] = {}
    tuned: dict[tuple[float, float], float] = {}
    for rate in RATES:
        runs = fixed(task, [s for _ in settings for s in seeds], [c for c in settings for _ in seeds], steps, rate)
        plain[rate] = min(_mean(runs[i : i + len(seeds)]) for i in range(0, len(runs), len(seeds)))
        for hyper_rate in HYPER_RATES:
            tuned[rate, hyper_rate] = _mean(tune(task, seeds, steps, (rate, hyper_rate))[0])
    return {
        "plain": min(plain, key=lambda k: plain[k]),
        "tuned": min(tuned, key=lambda k: tuned[k]),
        "losses": {"plain": list(plain.values()), "tuned": list(tuned.values())},
    }


def choose_delta(task: Task, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """The rates of the follow-up's form, from the same grid."""
    tried = {
        (rate, hyper_rate): _mean(tune(task, seeds, steps, (rate, hyper_rate), centred=True, linearised=True)[0])
        for rate in RATES
        for hyper_rate in HYPER_RATES
    }
    return {"tuned": min(tried, key=lambda k: tried[k]), "losses": list(tried.values())}


def _mean(runs: Sequence[Mapping[str, Any]]) -> float:
    return sum(r["valid"][-1] for r in runs) / len(runs)


def controls(task: Task, seeds: Sequence[int], steps: int, plain: float, tuned: Sequence[float]) -> dict[str, Any]:
    """Self-tuned, fixed and replayed runs of each seed. "best": the grid's best of that seed by validation loss."""
    n, settings = len(seeds), grid(task)
    stn, raw = tune(task, seeds, steps, tuned, checkpoints=3)
    short, _ = tune(task, seeds, round(steps / COST), tuned)
    flat = fixed(task, [s for s in seeds for _ in settings], settings * n, steps, plain)
    tried = [flat[i * len(settings) : (i + 1) * len(settings)] for i in range(n)]
    chosen = [min(range(len(settings)), key=lambda j: runs[j]["valid"][-1]) for runs in tried]
    best = [settings[j] for j in chosen]
    order = [torch.randperm(steps, generator=torch.Generator().manual_seed(s)) for s in seeds]
    final = raw[:, -1:].expand(-1, steps, -1)
    run = lambda how, rate=plain, **options: fixed(task, seeds, how, steps, rate, **options)  # noqa: E731
    twice = _twice(task)
    return {
        "tuned": stn,
        "tuned, short": short,
        "grid": tried,
        "chosen": chosen,
        "best": [runs[j] for runs, j in zip(tried, chosen, strict=True)],
        "start": run([{}] * n),
        "replay": run(raw),
        "replay, its rate": run(raw, tuned[0]),
        "best, its rate": run(best, tuned[0]),
        "final": run(final),
        "reversed": run(raw.flip(1)),
        "shuffled": run(torch.stack([r[o] for r, o in zip(raw, order, strict=True)])),
        "best, noise": run(best, noise=True),
        "best, twice": run(best, width=twice),
        "start, both": run([{}] * n, both=True),
        "best, both": run(best, both=True),
        "width of twice": twice,
    }


def settled(
    task: Task,
    seeds: Sequence[int],
    steps: int,
    rates: Sequence[float],
    settings: Sequence[Setting] | None = None,
    checkpoints: int = 1,
) -> list[list[list[dict[str, Any]]]]:
    """Plain networks at fixed settings (default: the grid), several rates of the weights: [rates][seeds][settings]."""
    each = grid(task) if settings is None else list(settings)
    found = []
    for rate in rates:
        flat = fixed(task, [s for s in seeds for _ in each], each * len(seeds), steps, rate, checkpoints=checkpoints)
        found.append([flat[i : i + len(each)] for i in range(0, len(flat), len(each))])
    return found


def pair(task: Task, seeds: Sequence[int], steps: int, plain: float, tuned: Sequence[float]) -> dict[str, Any]:
    """Two of the arms alone."""
    return {
        "tuned": tune(task, seeds, steps, tuned)[0],
        "start": fixed(task, seeds, [{}] * len(seeds), steps, plain),
    }


def _twice(task: Task) -> int:
    """The width at which a plain network has as many weights as the self-tuned one."""
    count = lambda width: sum(p.numel() for p in task.body(width).parameters())  # noqa: E731
    return min(range(task.width, 2 * task.width + 1), key=lambda w: abs(count(w) - 2 * count(task.width)))


def starts(task: Task, seeds: Sequence[int], steps: int, tuned: Sequence[float]) -> list[list[dict[str, Any]]]:
    """Self-tuned from five rates of both hidden dropouts: [starts][seeds]."""
    begin = [{"first": p, "second": p} for p in STARTS for _ in seeds]
    found, _ = tune(task, list(seeds) * len(STARTS), steps, tuned, starts=begin)
    return [found[i : i + len(seeds)] for i in range(0, len(found), len(seeds))]


def scales(task: Task, seeds: Sequence[int], steps: int, tuned: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Perturbations of fixed and of learned width."""
    found = {
        f"sigma {s}": tune(task, seeds, steps, tuned, scale=s, tune_scale=False)[0] for s in (0.05, 0.2, 0.5, 1.0, 2.0)
    }
    return found | {f"tau {t}": tune(task, seeds, steps, tuned, tau=t)[0] for t in (0.0, 1e-4, 1e-3, 1e-2)}


def delta(
    task: Task, seeds: Sequence[int], steps: int, tuned: Sequence[float | int], changed: Sequence[float | int]
) -> dict[str, list[dict[str, Any]]]:
    """The follow-up's changes, one after the other; `changed`: its own rates."""
    run = lambda rates, **options: tune(task, seeds, steps, rates, **options)[0]  # noqa: E731
    return {
        "as published": run(tuned),
        "centred": run(tuned, centred=True),
        "centred, linearised": run(tuned, centred=True, linearised=True),
        "Δ-STN, its rates": run(changed, centred=True, linearised=True),
    }


def cutouts(task: Task, seeds: Sequence[int], steps: int, plain: float, tuned: Sequence[float]) -> dict[str, list[Any]]:
    """Whole-numbered holes: self-tuned, and all 37 fixed settings that differ."""
    settings = grid(task)
    return {
        "settings": [[c["holes"], c["length"]] for c in settings],
        "fixed": settled(task, seeds, steps, [plain])[0],
        "tuned": tune(task, seeds, steps, tuned)[0],
    }


def gradients(
    task: Task, seeds: Sequence[int], steps: int, plain: float, tuned: Sequence[float]
) -> dict[str, list[Any]]:
    """Noise and decay alone, tuned by gates, by the implicit function theorem and through unrolled steps."""
    return {
        "start": fixed(task, seeds, [{}] * len(seeds), steps, plain),
        "gates": tune(task, seeds, steps, tuned)[0],
        "implicit": implicit(task, seeds, steps, (plain, tuned[1]), "implicit"),
        "unrolled": implicit(task, seeds, steps, (plain, tuned[1]), "unrolled"),
    }


def rounded(value: Any) -> Any:
    """Five digits are more than 1,000 test examples can tell."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
