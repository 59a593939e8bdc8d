"""Alternating training: weights on perturbed training batches, hyperparameters on validation batches.

    T_train times:  raw_i = raw + sigma xi_i;  phi <- phi - a1 grad_phi  mean_i [loss(x_i; raw_i) + penalty_i]
    T_valid times:  evaluation mode, no penalty;  raw, rho <- Adam on  mean_i loss(x_i; raw_i) - tau H(sigma)

after a warm-up in which only phi moves. One loop serves all arms of a comparison: a `schedule` sets raw at each step
instead of the validation steps, and with `selftune(..., respond=False)` the network is a plain one, so that a fixed
value, a replayed, reversed or shuffled schedule, and noise without a response are settings of the same code.

Source: arXiv 1903.03088, algorithm 1; `linearised`: arXiv 2010.13514 (Delta-STN).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from gated.gates._validation import check_count, check_number, check_sizes
from gated.stn.hyperparameters import Hyperparameters
from gated.stn.layers import ResponseLayer
from gated.stn.selftune import SelfTuned

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Recorded(NamedTuple):
    """What a run recorded at each training step, before the step. Ensembles have a first axis [runs] everywhere."""

    raw: Tensor
    """[steps, n]: `Trainer(schedule=...)` takes it."""
    scale: Tensor
    """sigma, [steps, n]. Where the validation loss is not convex along the response it grows: look at it."""
    train_loss: Tensor
    """[steps], penalty included, at the perturbed hyperparameters."""
    valid_loss: Tensor
    """[steps]: the loss of the last validation step before it, nan before the first."""

    def values(self, hyperparameters: Hyperparameters) -> dict[str, Tensor]:
        """The values of the hyperparameters at each step, by name, [steps] or [runs, steps]."""
        return hyperparameters.values(self.raw)


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """SGD, 0.01, momentum 0.9: the weights' default."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam, 0.003: the hyperparameters' default."""
    return torch.optim.Adam(parameters, lr=3e-3)


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """-log p(y), for each example."""
    return F.cross_entropy(output, y, reduction="none")


class Trainer:
    """Trains one `SelfTuned` network, or an ensemble of runs at once (`torch.func.vmap` over stacked parameters).

    Arguments:
        model: a `SelfTuned`, trained in place; or a list of them, equal but for their values: an ensemble, a run each,
            to which `run` writes back.
        train, valid: (x, y) tensors, first axis the examples. Without valid there are no validation steps.
        loss: (output, y) -> [batch], a loss for each example; default cross-entropy.
        augment: (x, values, generator) -> x, in training only; values: by name, [batch] each or a single number.
        penalty: (model, raw, values) -> [batch] or a single number, added to the training loss only. Weight decay:
            lambda model, raw, values: values["decay"] * model.squared_norm(raw).
        batch: size of a training batch; valid_batch: of a validation batch (default the same, at most all).
        optimizer: list of tensors -> optimizer of the weights (default `sgd`). Not with weight decay: it would shrink
            the response, and with it the hypergradient. Put it in the penalty.
        hyper_optimizer: of raw and rho (default `adam`).
        warmup: training steps before the first validation step.
        train_steps, valid_steps: T_train, T_valid.
        perturb: draw raw_i in training steps; False uses raw for all. Default: unless there is a schedule.
        tune_scale: learn rho, and draw raw_i in validation steps too; False keeps sigma, and validation steps use raw
            for all examples (the response's weights are then made once).
        entropy: tau >= 0, weight of H.
        linearised: Delta-STN's objectives: W_0, b_0 and all other weights from the loss at raw, the response from the
            linearised network under perturbation. Needs a centred model.
        schedule: raw at each training step, [steps, n] or for ensembles also [runs, steps, n]; without valid.
        seed: one number, or for ensembles one for each run. Order of batches, perturbations, and what dropout and
            augmentation draw have generators of their own, so that two arms with the same seed see the same batches.

    Raises ValueError for settings that do not fit; warns (UserWarning) when most examples of valid also stand in
    train, with their answers.
    """

    def __init__(
        self,
        model: SelfTuned | Sequence[SelfTuned],
        train: tuple[Tensor, Tensor],
        valid: tuple[Tensor, Tensor] | None = None,
        *,
        loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
        augment: Callable[..., Tensor] | None = None,
        penalty: Callable[..., Tensor] | None = None,
        batch: int = 128,
        valid_batch: int | None = None,
        optimizer: Optimizer = sgd,
        hyper_optimizer: Optimizer = adam,
        warmup: int = 0,
        train_steps: int = 2,
        valid_steps: int = 1,
        perturb: bool | None = None,
        tune_scale: bool = True,
        entropy: float | int = 1e-3,
        linearised: bool = False,
        schedule: Float[Tensor, "*runs steps n"] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.models = [model] if isinstance(model, SelfTuned) else list(model)
        self.ensemble = not isinstance(model, SelfTuned)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        _check(self.models, self.ensemble, seeds, train, valid, schedule, linearised)
        check_sizes(batch=batch, train_steps=train_steps, valid_steps=valid_steps)
        if valid_batch is not None:
            check_sizes(valid_batch=valid_batch)
        check_count("warmup", warmup, least=0)
        check_number("entropy", entropy, "[0, inf)")
        self.loss, self.augment, self.penalty, self.entropy = loss, augment, penalty, entropy
        self.warmup, self.train_steps, self.valid_steps = warmup, train_steps, valid_steps
        self.perturb = schedule is None if perturb is None else perturb
        self.tune_scale, self.linearised = tune_scale, linearised
        objectives = [_Objective(m, loss, augment, penalty) for m in self.models]
        self.objective = objectives[0]
        if self.ensemble:
            params, self.buffers = stack_module_state(objectives)
            self.objective = copy.deepcopy(objectives[0])
        else:
            params, self.buffers = dict(self.objective.named_parameters()), {}
        hyper = "model.hyperparameters."
        self.raw, self.rho = params[hyper + "raw"], params[hyper + "rho"]
        self.phi = {k: p for k, p in params.items() if not k.startswith(hyper) and p.requires_grad}
        self.fixed = {k: p for k, p in params.items() if not k.startswith(hyper) and not p.requires_grad}
        self.optimizer = optimizer(list(self.phi.values()))
        self.hyper_optimizer = hyper_optimizer([self.raw, self.rho] if tune_scale else [self.raw])
        device, names = self.raw.device, ("train", "valid", "noise")
        self.generators = {
            name: [torch.Generator(device).manual_seed(4 * s + i) for s in seeds] for i, name in enumerate(names)
        }
        self.draws = torch.Generator(device).manual_seed(4 * seeds[0] + 3)
        self.data = {"train": train} if valid is None else {"train": train, "valid": valid}
        sizes = {"train": batch, "valid": min(batch, len(valid[0])) if valid and valid_batch is None else valid_batch}
        self.batches = {
            name: _Batches(name, len(x), sizes[name] or batch, self.generators[name])
            for name, (x, _) in self.data.items()
        }
        self.set_to = None if schedule is None else schedule.to(self.raw)
        self.steps = 0
        self.records: dict[str, list[Tensor]] = {name: [] for name in Recorded._fields}
        self.valid_loss = torch.full((len(seeds),) if self.ensemble else (), torch.nan, device=device)

    def run(self, steps: int) -> None:
        """`steps` training steps, with the validation steps between. Calls add up: run(2); run(3) is run(5).

        Raises ValueError for a loss that is not finite (that step changes no weight), or a schedule that ends.
        """
        check_sizes(steps=steps)
        for _ in range(steps):
            self.train_step()
            since = self.steps - self.warmup
            if "valid" in self.data and since > 0 and since % self.train_steps == 0:
                for _ in range(self.valid_steps):
                    self.valid_step()
        if self.ensemble:
            self._write_back()

    def train_step(self) -> Float[Tensor, "*runs"]:
        """One training step of the weights; returns the loss, penalty included."""
        self._follow()
        x, y = self._batch("train")
        xi = self._noise(x) if self.perturb else None
        self.objective.train()
        phi = list(self.phi.values())
        losses, grads = self._gradients(x, y, xi, self.linearised, phi)
        if self.linearised:
            at_centre, rest = self._gradients(x, y, None, False, phi)
            losses, grads = losses + 0 * at_centre, self._split(rest, grads)  # one check of both
        self._finite(losses)
        for name, value in zip(
            Recorded._fields, (self.raw, F.softplus(self.rho), losses, self.valid_loss), strict=True
        ):
            self.records[name].append(value.detach().clone())
        for p, g in zip(phi, grads, strict=True):
            p.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return losses

    def valid_step(self) -> Float[Tensor, "*runs"]:
        """One validation step: raw and rho move, nothing else does. Returns the loss, without entropy."""
        if "valid" not in self.data:
            raise ValueError("valid must be given for validation steps, got None")
        x, y = self._batch("valid")
        xi = self._noise(x) if self.tune_scale else None
        self.objective.eval()
        moved = [self.raw, self.rho] if self.tune_scale else [self.raw]
        parts = self._call(x, y, xi, "valid", constant=True)
        losses = parts[..., 0]
        self._finite(losses)
        total = (losses - self.entropy * parts[..., 1]).sum()
        for p, g in zip(moved, torch.autograd.grad(total, moved), strict=True):
            p.grad = g
        self.hyper_optimizer.step()
        self.hyper_optimizer.zero_grad(set_to_none=True)
        self.valid_loss = losses.detach()
        return self.valid_loss

    @property
    def schedule(self) -> Recorded:
        """What was recorded so far. Raises ValueError before the first step."""
        if not self.steps:
            raise ValueError("run must come first: nothing is recorded before the first step")
        return Recorded(*(torch.stack(self.records[name], int(self.ensemble)) for name in Recorded._fields))

    @torch.no_grad()
    def evaluate(
        self, data: tuple[Tensor, Tensor], metric: Callable[[Any, Tensor], Tensor] | None = None
    ) -> Float[Tensor, "*runs"]:
        """Mean of metric(output, y) -> [batch] (default the loss) at raw, in evaluation mode.

        Raises ValueError for no data.
        """
        x, y = data
        if not len(x):
            raise ValueError("data must hold at least one example, got none")
        self.objective.eval()
        total: Any = 0
        for a, b in zip(x.split(1024), y.split(1024), strict=True):
            part = (a.expand(len(self.models), *a.shape), b.expand(len(self.models), *b.shape))
            given = part if self.ensemble else (a, b)
            total = total + self._call(*given, None, "valid", True, metric)[..., 0] * len(a)
        return total / len(x)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: weights, hyperparameters, optimisers, generators, order, schedule."""
        return {
            "tensors": {k: p.detach().clone() for k, p in self._tensors().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "hyper_optimizer": copy.deepcopy(self.hyper_optimizer.state_dict()),
            "generators": {k: [g.get_state() for g in gs] for k, gs in self._generators().items()},
            "batches": {k: (b.order.clone(), b.position) for k, b in self.batches.items()},
            "records": {k: list(v) for k, v in self.records.items()},
            "valid_loss": self.valid_loss.clone(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as the saved run would have, bit for bit, given the same settings and data.

        Raises ValueError for a state of another network, ensemble, or data of another size.
        """
        tensors, saved = self._tensors(), state["tensors"]
        _same("weights", tensors, saved)
        _same("data", {k: b.order for k, b in self.batches.items()}, {k: v[0] for k, v in state["batches"].items()})
        with torch.no_grad():
            for k, t in tensors.items():
                t.copy_(saved[k])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.hyper_optimizer.load_state_dict(copy.deepcopy(state["hyper_optimizer"]))
        for k, gs in self._generators().items():
            for g, s in zip(gs, state["generators"][k], strict=True):
                g.set_state(s)
        for k, b in self.batches.items():
            order, b.position = state["batches"][k]
            b.order = order.clone()
        self.records = {k: list(v) for k, v in state["records"].items()}
        self.valid_loss, self.steps = state["valid_loss"].clone(), state["steps"]
        if self.ensemble:
            self._write_back()

    def _call(self, x: Tensor, y: Tensor, xi: Tensor | None, kind: str, constant: bool, metric: Any = None) -> Tensor:
        """The objective of each run; `constant`: without gradients to the weights."""
        if not self.ensemble and not constant:
            return self.objective(x, y, xi, self.draws, kind, metric)
        phi = {k: p.detach() for k, p in self.phi.items()} if constant else self.phi
        hyper = {"model.hyperparameters.raw": self.raw, "model.hyperparameters.rho": self.rho}
        params = {**phi, **self.fixed, **hyper, **self.buffers}
        if not self.ensemble:
            return functional_call(self.objective, params, (x, y, xi, self.draws, kind, metric))

        def one(params: dict[str, Tensor], x: Tensor, y: Tensor, xi: Tensor | None) -> Tensor:
            return functional_call(self.objective, params, (x, y, xi, self.draws, kind, metric))

        return vmap(one, (0, 0, 0, None if xi is None else 0), randomness="different")(params, x, y, xi)

    def _gradients(
        self, x: Tensor, y: Tensor, xi: Tensor | None, linearised: bool, phi: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        losses = self._call(x, y, xi, "linearised" if linearised else "train", False)
        return losses.detach(), torch.autograd.grad(losses.sum(), phi, allow_unused=True)

    def _split(
        self, at_centre: tuple[Tensor | None, ...], linearised: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        """Response parameters (V, C, W_1, b_1) take the second gradient, all others the first."""
        layers = {k for k, m in self.objective.named_modules() if isinstance(m, ResponseLayer)}
        out = []
        for name, a, b in zip(self.phi, at_centre, linearised, strict=True):
            layer, _, leaf = name.rpartition(".")
            if layer in layers and b is not None:
                axis = int(self.ensemble)
                first = torch.zeros_like(b) if a is None else a
                a = b if leaf == "gate" else torch.cat([first.narrow(axis, 0, 1), b.narrow(axis, 1, 1)], axis)
            out.append(a)
        return tuple(out)

    def _batch(self, name: str) -> tuple[Tensor, Tensor]:
        x, y = self.data[name]
        chosen = self.batches[name].next()
        chosen = chosen if self.ensemble else chosen[0]
        return x[chosen], y[chosen]

    def _noise(self, x: Tensor) -> Tensor:
        shape = (x.shape[int(self.ensemble)], self.raw.shape[-1])
        draws = [
            torch.randn(shape, generator=g, device=self.raw.device, dtype=self.raw.dtype)
            for g in self.generators["noise"]
        ]
        return torch.stack(draws) if self.ensemble else draws[0]

    def _follow(self) -> None:
        if self.set_to is None:
            return
        if self.steps >= self.set_to.shape[-2]:
            raise ValueError(f"schedule must last for all steps, it ends after {self.set_to.shape[-2]}")
        with torch.no_grad():
            self.raw.copy_(self.set_to[..., self.steps, :])

    def _finite(self, losses: Tensor) -> None:
        if not losses.isfinite().all():
            raise ValueError(f"loss must be finite, got {losses.tolist()}: lower the learning rate, or look at x")

    def _tensors(self) -> dict[str, Tensor]:
        buffers = self.buffers if self.ensemble else dict(self.objective.named_buffers())
        return {**self.phi, **self.fixed, "raw": self.raw, "rho": self.rho, **buffers}

    def _generators(self) -> dict[str, list[torch.Generator]]:
        return {**self.generators, "draws": [self.draws]}

    @torch.no_grad()
    def _write_back(self) -> None:
        hyper = {"model.hyperparameters.raw": self.raw, "model.hyperparameters.rho": self.rho}
        for name, stacked in {**self.phi, **hyper, **self.buffers}.items():
            for model, value in zip(self.models, stacked, strict=True):
                owner, _, leaf = name.removeprefix("model.").rpartition(".")
                getattr(model.get_submodule(owner), leaf).copy_(value)


class _Objective(nn.Module):
    """What a step lowers, with the model as its only child: so that its parameters can be exchanged for a call."""

    def __init__(self, model: SelfTuned, loss: Any, augment: Any, penalty: Any) -> None:
        super().__init__()
        self.model, self.loss, self.augment, self.penalty = model, loss, augment, penalty

    def forward(
        self, x: Tensor, y: Tensor, xi: Tensor | None, generator: torch.Generator, kind: str, metric: Any
    ) -> Tensor:
        model = self.model
        raw = model.hyperparameters.raw if xi is None else model.hyperparameters.shift(xi)
        if kind == "valid":
            each = (metric or self.loss)(model(x, raw), y)
            return torch.stack([each.mean(), model.hyperparameters.entropy().to(each)])
        raw = raw.detach()  # the weights learn here, and only they
        values = model.hyperparameters.values(raw)
        if self.augment is not None:
            x = self.augment(x, values, generator)
        output = model.linearised(x, raw, generator) if kind == "linearised" else model(x, raw, generator)
        each = self.loss(output, y)
        if each.shape[:1] != y.shape[:1]:
            raise ValueError(f"loss must return a value for each of {len(y)} examples, got {tuple(each.shape)}")
        total = each.mean()
        return total if self.penalty is None else total + self.penalty(model, raw, values).mean()


class _Batches:
    """Full batches without replacement, in a new order each epoch; one order for each generator."""

    def __init__(self, name: str, number: int, batch: int, generators: list[torch.Generator]) -> None:
        if not 1 <= batch <= number:
            raise ValueError(f"the {name} batch must have between 1 and all {number} examples, got {batch}")
        self.number, self.batch, self.generators = number, batch, generators
        self.position = number
        self.order = torch.zeros(len(generators), number, dtype=torch.long, device=generators[0].device)

    def next(self) -> Tensor:
        if self.position + self.batch > self.number:
            orders = [torch.randperm(self.number, generator=g, device=g.device) for g in self.generators]
            self.order, self.position = torch.stack(orders), 0
        self.position += self.batch
        return self.order[:, self.position - self.batch : self.position]


def _check(
    models: list[SelfTuned],
    ensemble: bool,
    seeds: list[int],
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor] | None,
    schedule: Tensor | None,
    linearised: bool,
) -> None:
    if any(isinstance(seed, bool) or not isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seed must be whole numbers; got {seeds}")
    if not models or len(seeds) != len(models):
        raise ValueError(f"model and seed must be at least one, and a seed each; got {len(models)} and {len(seeds)}")
    if len({id(m.hyperparameters) for m in models}) < len(models):
        raise ValueError("model must have hyperparameters of its own for each run, got some that two runs share")
    if linearised and not all(m.centred for m in models):
        raise ValueError("linearised needs a model made with centred=True: the response is measured from raw")
    for name, data in (("train", train), ("valid", valid)):
        if data is not None and (len(data[0]) != len(data[1]) or not len(data[0])):
            raise ValueError(
                f"{name} must hold x and y of equal length, at least 1; got {len(data[0])} and {len(data[1])}"
            )
    if schedule is not None:
        n, runs = len(models[0].hyperparameters), len(models)
        if valid is not None:
            raise ValueError("valid must be None with a schedule: nothing is tuned")
        if schedule.shape[-1] != n or schedule.ndim not in ((2, 3) if ensemble else (2,)):
            raise ValueError(f"schedule must have shape [steps, {n}], got {tuple(schedule.shape)}")
        if schedule.ndim == 3 and len(schedule) != runs:
            raise ValueError(f"schedule must have {runs} runs, got {tuple(schedule.shape)}")
        if not schedule.isfinite().all():
            raise ValueError("schedule must be finite")
    if valid is not None and train[0].shape[1:] == valid[0].shape[1:] and train[1].shape[1:] == valid[1].shape[1:]:
        known = int(torch.isin(_rows(*valid), _rows(*train)).sum())
        if known > len(valid[0]) / 2:
            warnings.warn(
                f"{known} of {len(valid[0])} validation examples also stand in the training set: hyperparameters that "
                "are tuned on them will not regularise",
                stacklevel=3,
            )


def _same(what: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    shapes = [{k: tuple(t.shape) for k, t in group.items()} for group in (ours, theirs)]
    different = sorted(k for k in ours.keys() | theirs.keys() if shapes[0].get(k) != shapes[1].get(k))
    if different:
        raise ValueError(f"state must be of a run with the same {what}; different: {different}")


def _rows(x: Tensor, y: Tensor) -> Tensor:
    """A number for each example: equal for equal ones, and for others only as often as 64 random bits are."""
    total = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for part in (x, y):
        bits = part.detach().flatten(1) if part.ndim > 1 else part.detach()[:, None]
        bits = bits.to(x.device, torch.float64).view(torch.int64)
        place = torch.arange(bits.shape[1], device=x.device)
        total = _mixed(total) + _mixed(bits + _mixed(place)).sum(1)  # where a number stands counts too
    return total


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's last steps: every bit of the result hangs on every bit given."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> 31)
