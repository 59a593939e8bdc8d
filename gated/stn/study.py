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

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gated.stn.hyperparameters import Hyperparameter, Hyperparameters
from gated.stn.selftune import SelfTuned, cutout, input_noise, selftune
from gated.stn.theory import implicit_hypergradient, unrolled_hypergradient
from gated.stn.training import Trainer

COST = 2 + 4 / 3 / 2  # of a self-tuned run, in plain runs of as many steps
WARMUP, SIGMA, TAU = 100, 0.5, 1e-3
TOGETHER = 20  # runs in one ensemble: more no longer fit a cache
Setting = Mapping[str, float | int]
Data = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """Examples, a network, and what is to be tuned."""

    pool: Data
    rows: Callable[[int], tuple[Tensor, Tensor, Tensor]]
    """seed -> training, validation and test rows of the pool."""
    body: Callable[[int], nn.Module]
    """width -> a network with dropouts."""
    width: int
    hyper: tuple[Hyperparameter, ...]
    rates: dict[str, str]
    augment: Callable[..., Tensor] | None
    batch: int = 32


def mlp(inputs: int, width: int, classes: int) -> nn.Sequential:
    """Three linear layers, with a dropout before each."""
    sizes = [inputs, width, width, classes]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Dropout(), nn.Linear(a, b)]
    return nn.Sequential(*layers)


def signals(pool: Data, test: Data, only: Sequence[str] = (), *, train: int = 1000, valid: int = 800) -> Task:
    """One-dimensional signals: 40-128-128-10 and five hyperparameters, or `only` some of them.

    Few examples to train on, so that the network overfits within 800 steps and has something to tune.
    """
    x, _ = pool
    both = torch.cat([x, test[0]]), torch.cat([pool[1], test[1]])

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return order[:train], order[train : train + valid], torch.arange(len(x), len(both[0]))

    hyper = [Hyperparameter(name, 0, 0.9, 0.05) for name in ("input", "first", "second")]
    hyper += [Hyperparameter("noise", 0, 1, 0.05), Hyperparameter("decay", 1e-6, 0.1, 1e-5, scale="log")]
    kept = tuple(h for h in hyper if not only or h.name in only)
    rates = {"0": "input", "3": "first", "6": "second"}
    chosen = {place: name for place, name in rates.items() if name in {h.name for h in kept}}
    body = lambda width: _without(mlp(x.shape[1], width, 10), set(rates) - set(chosen))  # noqa: E731
    noisy = lambda x, values, g: input_noise(x, values["noise"], g)  # noqa: E731
    return Task(both, rows, body, 128, kept, chosen, noisy)


def holes(pool: Data, test: Data) -> Task:
    """The signals, with two whole numbers to tune: how many holes (0 to 3) and how long (0 to 12)."""
    plain = signals(pool, test)
    hyper = (Hyperparameter("holes", 0, 4, 1, kind="discrete"), Hyperparameter("length", 0, 13, 3, kind="discrete"))
    cut = lambda x, values, g: cutout(x, values["holes"], values["length"], g, most=3)  # noqa: E731
    body = lambda width: _without(mlp(pool[0].shape[1], width, 10), {"0", "3", "6"})  # noqa: E731
    return plain._replace(hyper=hyper, rates={}, augment=cut, body=body)


class Windows(nn.Module):
    """Embeds 12 characters and lays them side by side."""

    def __init__(self, symbols: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x.long()).flatten(1)


def characters(tokens: Tensor, symbols: int, *, part: int = 6_000, span: int = 12, block: int = 500) -> Task:
    """The next character from 12: an embedding, 192-128-128-symbols, and four hyperparameters.

    Seed s has the s-th stretch of 3 `part` characters, cut into blocks that are dealt to training, validation and test,
    so that the three are alike.
    """
    stretches, blocks = len(tokens) // (3 * part), 3 * part // block

    def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)) * block
        starts = order + seed % stretches * 3 * part
        train, valid, test = (starts[:, None] + torch.arange(block - span)).chunk(3)
        return train.flatten(), valid.flatten(), test.flatten()

    hyper = tuple(Hyperparameter(name, 0, 0.9, 0.05) for name in ("input", "first", "second"))
    hyper += (Hyperparameter("decay", 1e-6, 0.1, 1e-5, scale="log"),)
    body = lambda width: nn.Sequential(Windows(symbols, 16), *mlp(16 * span, width, symbols))  # noqa: E731
    rates = {"1": "input", "4": "first", "7": "second"}
    pool = tokens.unfold(0, span, 1)[:-1], tokens[span:].long()
    return Task(pool, rows, body, 128, hyper, rates, None)


def _without(net: nn.Sequential, dropouts: set[str]) -> nn.Sequential:
    for name in dropouts:
        net[int(name)] = nn.Identity()
    return net


# Training -----------------------------------------------------------------------------------------------------------


class _Ensemble(Trainer):
    """A `Trainer` in which each run has its own rows of one pool."""

    def __init__(self, task: Task, models: list[SelfTuned], seeds: Sequence[int], both: bool, **options: Any) -> None:
        self.task = task
        parts = [task.rows(s) for s in seeds]
        train = torch.stack([torch.cat(p[:2]) if both else p[0] for p in parts])
        self.rows = {"train": train} | {k: torch.stack([p[i] for p in parts]) for i, k in ((1, "valid"), (2, "test"))}
        at = {name: (task.pool[0][rows[0]], task.pool[1][rows[0]]) for name, rows in self.rows.items()}
        valid = None if "schedule" in options else at["valid"]
        penalty = lambda model, raw, values: 0.5 * values["decay"] * model.squared_norm(raw)  # noqa: E731
        super().__init__(
            models,
            at["train"],
            valid,
            augment=task.augment,
            penalty=penalty if any(h.name == "decay" for h in task.hyper) else None,
            batch=task.batch,
            seed=list(seeds),
            **options,
        )

    def _batch(self, name: str) -> Data:
        rows = self.rows[name].gather(1, self.batches[name].next())
        return self.task.pool[0][rows], self.task.pool[1][rows]

    @torch.no_grad()
    def score(self, part: str, most: int = 4000) -> tuple[Tensor, Tensor]:
        """Loss and error of each run on its own rows, of at most so many of them."""
        self.objective.eval()
        rows = self.rows[part][:, :: -(-self.rows[part].shape[1] // most)]
        x, y = self.task.pool[0][rows], self.task.pool[1][rows]
        loss = self._call(x, y, None, "valid", True)[..., 0]
        wrong = lambda output, y: (output.argmax(-1) != y).float()  # noqa: E731
        return loss, self._call(x, y, None, "valid", True, wrong)[..., 0]


def _models(
    task: Task, seeds: Sequence[int], starts: Sequence[Setting], respond: bool, width: int, scale: float, centred: bool
) -> list[SelfTuned]:
    models = []
    for seed, start in zip(seeds, starts, strict=True):
        hyper = Hyperparameters(
            [dataclasses.replace(h, start=start.get(h.name, h.start)) for h in task.hyper], scale=scale
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            body = task.body(width)
        generator = torch.Generator().manual_seed(seed)
        models.append(selftune(body, hyper, rates=task.rates, respond=respond, centred=centred, generator=generator))
    return models


def _finish(trainer: _Ensemble, steps: int, checkpoints: int) -> list[dict[str, Any]]:
    """Trains, with the validation loss at equal distances, and scores."""
    curve = []
    for i in range(checkpoints):
        trainer.run(steps * (i + 1) // checkpoints - steps * i // checkpoints)
        curve.append(trainer.score("valid")[0])
    (train, _), (_, valid_error), (test, error) = (trainer.score(part) for part in ("train", "valid", "test"))
    return [
        {
            "valid": [float(c[i]) for c in curve],
            "valid error": float(valid_error[i]),
            "train": float(train[i]),
            "test": float(test[i]),
            "error": float(error[i]),
        }
        for i in range(len(trainer.models))
    ]


def _together(train: Callable[[list[int]], list[Any]], runs: Sequence[int], failed: Any) -> list[Any]:
    """`train` of the runs, some at a time. Where a loss is not finite the runs are parted, until one is alone."""
    found: list[Any] = []
    for i in range(0, len(runs), TOGETHER):
        some = list(runs[i : i + TOGETHER])
        try:
            found += train(some)
        except ValueError as error:
            if "finite" not in str(error):
                raise
            half = len(some) // 2
            parts = (some[:half], some[half:]) if half else ()
            found += [r for part in parts for r in _together(train, part, failed)] if half else [failed]
    return found


def _failed(task: Task, checkpoints: int) -> dict[str, Any]:
    """A network whose loss is not finite is worth a guess among all classes."""
    classes = int(task.pool[1].max()) + 1
    guess, wrong = math.log(classes), 1 - 1 / classes
    return {"valid": [guess] * checkpoints, "valid error": wrong, "train": guess, "test": guess, "error": wrong} | {
        "diverged": True
    }


def fixed(
    task: Task,
    seeds: Sequence[int],
    settings: Sequence[Setting] | Tensor,
    steps: int,
    rate: float | int,
    *,
    width: int | None = None,
    noise: bool = False,
    both: bool = False,
    checkpoints: int = 1,
) -> list[dict[str, Any]]:
    """Plain networks: a seed and a setting each, or raw [runs, steps, n], a schedule for each.

    `noise`: each example has its own raw around the setting. `both`: the validation examples are trained on, too.
    """

    def train(runs: list[int]) -> list[Any]:
        now = [seeds[i] for i in runs]
        models = _models(task, now, [{}] * len(now), False, width or task.width, SIGMA, False)
        if isinstance(settings, Tensor):
            schedule = settings[runs]
        else:
            raws = [m.hyperparameters.raw_of(_inside(task, settings[i])) for m, i in zip(models, runs, strict=True)]
            schedule = torch.stack(raws)[:, None].expand(-1, steps, -1)
        options: dict[str, Any] = {"schedule": schedule, "perturb": noise, "optimizer": lambda p: _sgd(p, rate)}
        return _finish(_Ensemble(task, models, now, both, **options), steps, checkpoints)

    return _together(train, range(len(seeds)), _failed(task, checkpoints))


def tune(
    task: Task,
    seeds: Sequence[int],
    steps: int,
    rates: Sequence[float | int],
    *,
    starts: Sequence[Setting] | None = None,
    scale: float | int = SIGMA,
    tune_scale: bool = True,
    tau: float | int = TAU,
    centred: bool = False,
    linearised: bool = False,
    checkpoints: int = 1,
) -> tuple[list[dict[str, Any]], Tensor]:
    """Self-tuned networks, a seed and a start each: what became of them, and raw [runs, steps, n].

    `rates`: of the weights (SGD, momentum 0.9) and of the hyperparameters (Adam).
    """
    begin = [{}] * len(seeds) if starts is None else starts
    keep = torch.linspace(0, steps - 1, min(steps, 31)).long()

    def train(runs: list[int]) -> list[Any]:
        now = [seeds[i] for i in runs]
        models = _models(task, now, [begin[i] for i in runs], True, task.width, scale, centred)
        options: dict[str, Any] = {"tune_scale": tune_scale, "linearised": linearised, "entropy": tau}
        options |= {"optimizer": lambda p: _sgd(p, rates[0]), "warmup": WARMUP}
        options["hyper_optimizer"] = lambda p: torch.optim.Adam(p, rates[1])
        trainer = _Ensemble(task, models, now, False, **options)
        done, record = _finish(trainer, steps, checkpoints), trainer.schedule
        values = models[0].hyperparameters.values(record.raw)
        for j, run in enumerate(done):
            run["schedule"] = {name: v[j, keep].tolist() for name, v in values.items()}
            run["scale"] = record.scale[j, keep[::5]].tolist()
        return list(zip(done, record.raw, strict=True))

    start = torch.tensor([h.place(h.start) for h in task.hyper]).expand(steps, -1)
    found = _together(train, range(len(seeds)), (_failed(task, checkpoints), start))
    return [run for run, _ in found], torch.stack([raw for _, raw in found])


def _sgd(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9)


def _inside(task: Task, setting: Setting) -> dict[str, float | int]:
    """Ends of a range are where raw would be infinite: a thousandth inside."""
    moved = dict(setting)
    for h in task.hyper:
        if h.name in setting and h.kind == "continuous" and h.high is not None:
            edge = 1e-3 * (h.high - h.low)
            low, high = (h.low * 1.001, h.high / 1.001) if h.scale == "log" else (h.low + edge, h.high - edge)
            moved[h.name] = min(max(setting[h.name], low), high)
    return moved


def implicit(
    task: Task, seeds: Sequence[int], steps: int, rates: Sequence[float | int], method: str
) -> list[dict[str, Any]]:
    """Plain networks whose hyperparameters follow hypergradients without gates, after each second training step.

    `method`: "implicit", five conjugate gradients with damping 0.1, or "unrolled", three steps of gradient descent. All
    hyperparameters must be strengths of noise or decay: the training loss is differentiated in them, so the network has
    no dropout.
    """
    models = _models(task, seeds, [{}] * len(seeds), False, task.width, SIGMA, False)
    net, hyper = models[0].net, models[0].hyperparameters
    shapes = {name: p.shape for name, p in net.named_parameters()}
    w = torch.stack([torch.cat([p.detach().flatten() for p in m.net.parameters()]) for m in models])
    raw = torch.stack([m.hyperparameters.raw.detach() for m in models])
    train_rows, valid_rows, test_rows = (torch.stack(r) for r in zip(*(task.rows(s) for s in seeds), strict=True))
    generator = torch.Generator().manual_seed(seeds[0])

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes.values()])
        named = {name: p.view(s) for (name, s), p in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(net, named, (x,)), y)

    matrices = torch.cat([torch.full((s.numel(),), float(len(s) > 1)) for s in shapes.values()])

    def training(w: Tensor, raw: Tensor, x: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        values = hyper.values(raw)
        return loss(w, x + values["noise"] * xi, y) + 0.5 * values["decay"] * (matrices * w * w).sum()

    def hyperslope(w: Tensor, raw: Tensor, x: Tensor, y: Tensor, xi: Tensor, xv: Tensor, yv: Tensor) -> Tensor:
        train = lambda w, raw: training(w, raw, x, y, xi)  # noqa: E731
        validate = lambda w, raw: loss(w, xv, yv)  # noqa: E731
        if method == "implicit":
            return implicit_hypergradient(train, validate, w, raw, iterations=5, damping=0.1)
        return unrolled_hypergradient(train, validate, w, raw, steps=3, rate=rates[0])

    def batch(rows: Tensor) -> Data:
        chosen = rows.gather(1, torch.randint(rows.shape[1], (len(seeds), task.batch), generator=generator))
        return task.pool[0][chosen], task.pool[1][chosen]

    velocity, raw_path = torch.zeros_like(w), []
    raw = raw.requires_grad_()
    adam = torch.optim.Adam([raw], rates[1])
    for step in range(steps):
        x, y = batch(train_rows)
        xi = torch.randn(x.shape, generator=generator)
        raw_path.append(raw.detach().clone())
        velocity = 0.9 * velocity + vmap(grad(training))(w, raw.detach(), x, y, xi)
        w = w - rates[0] * velocity
        if step >= WARMUP and step % 2:
            raw.grad = vmap(hyperslope)(w, raw.detach(), x, y, xi, *batch(valid_rows))
            adam.step()
    keep = torch.linspace(0, steps - 1, min(steps, 31)).long()
    values = hyper.values(torch.stack(raw_path, 1)[:, keep])
    valid, test = (vmap(loss)(w, task.pool[0][r], task.pool[1][r]) for r in (valid_rows, test_rows))
    return [
        {
            "valid": [float(valid[i])],
            "test": float(test[i]),
            "schedule": {name: v[i].tolist() for name, v in values.items()},
        }
        for i in range(len(seeds))
    ]


# Parts of the study ---------------------------------------------------------------------------------------------------

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
