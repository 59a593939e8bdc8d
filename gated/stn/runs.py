"""Many runs of a task at once: plain ones at fixed settings, self-tuned ones, and those that follow a hypergradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gated.stn.hyperparameters import Hyperparameters
from gated.stn.selftune import SelfTuned, selftune
from gated.stn.tasks import Data, Setting, Task
from gated.stn.theory import implicit_hypergradient, unrolled_hypergradient
from gated.stn.training import Trainer

COST = 2 + 4 / 3 / 2  # of a self-tuned run, in plain runs of as many steps
WARMUP, SIGMA, TAU = 100, 0.5, 1e-3
TOGETHER = 20  # runs in one ensemble: more no longer fit a cache


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
