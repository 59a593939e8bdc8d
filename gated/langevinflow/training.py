"""Training: hidden counts, Poisson likelihood, a KL that is warmed up, and runs that can be taken up again."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_count, check_number, check_positive
from gated.gates.schedules import Schedule
from gated.langevinflow.model import Rates
from gated.langevinflow.objective import ScoreRule, check_counts, check_rule, coordinated_dropout, poisson_nll, scored


class Loss(NamedTuple):
    """Nats for each trial, mean over trials, as numbers in a record and as tensors in a step.

    Args:
        kl: the divergence, without its weight beta.
    """

    total: Any
    """nll + beta kl."""
    nll: Any
    """Of the scored counts, without ln y!."""
    kl: Any


class Trainer:
    """Adam on NLL + beta KL with coordinated dropout, a step at a time, for any model that returns `Rates`.

    What is minimised is (NLL + beta KL) / (bins * neurons), so that gradients do not grow with the recording; beta is
    the weight in nats for each trial, and beta = 1 an evidence bound (on the counts that are scored). Held-out neurons
    and forward bins are always scored. Every random number comes from one generator, which is part of the state.

    Args:
        model: `LangevinFlow` or a rival; trained in place.
        spikes: counts of the observed neurons [trials, observed bins, observed].
        targets: counts of all neurons in all bins [trials, bins, neurons]; the observed ones first.
        seed: of batches, masks, dropout and noise.
        batch: trials of a step, drawn without repetition until all have been seen.
        rate: of Adam, a number or a schedule of the step.
        beta: final weight of the KL.
        ramp: steps over which the weight grows from 0 to it, linearly.
        keep: c, the share of counts that the encoder sees, in (0, 1].
        rule: which observed counts are scored, see `scored`. With keep = 1 all are, under either rule.
        weight_decay: of Adam (added to the gradient), a number or a schedule.

    Raises:
        ValueError: counts that are negative or not finite, no spikes at all, shapes that do not fit, and numbers out of
            range; from a step, a loss that is not finite, and then no weight has changed.
    """

    def __init__(
        self,
        model: nn.Module,
        spikes: Float[Tensor, "trials observed_bins observed"],
        targets: Float[Tensor, "trials bins neurons"],
        *,
        seed: int,
        batch: int = 64,
        rate: float | int | Schedule = 3e-3,
        beta: float | int = 1.0,
        ramp: int = 100,
        keep: float | int = 0.7,
        rule: ScoreRule = "original",
        weight_decay: float | int | Schedule = 0.0,
    ) -> None:
        check_count("batch", batch)
        check_rule(rule)
        check_number("keep", keep, "(0, 1]")
        check_number("beta", beta, "[0, inf)")
        check_count("ramp", ramp, least=0)
        check_count("seed", seed, least=0)
        if not callable(weight_decay):
            check_number("weight_decay", weight_decay, "[0, inf)")
        if not callable(rate):
            check_positive("rate", rate)
        for name, counts in {"spikes": spikes, "targets": targets}.items():
            if counts.ndim != 3 or 0 in counts.shape:
                raise ValueError(
                    f"{name} must have shape [trials, bins, neurons], not empty; got {tuple(counts.shape)}"
                )
            check_counts(name, counts)
            if not bool(counts.any()):
                raise ValueError(f"{name} must hold at least one spike; got none")
        if len(spikes) != len(targets) or any(a > b for a, b in zip(spikes.shape[1:], targets.shape[1:], strict=True)):
            raise ValueError(
                "targets must have the trials of spikes, and at least its bins and neurons; got "
                f"{tuple(targets.shape)} for {tuple(spikes.shape)}"
            )
        self.model, self.spikes, self.targets = model, spikes, targets
        self.batch, self.rate, self.beta, self.ramp = min(batch, len(spikes)), rate, beta, ramp
        self.keep, self.rule, self.weight_decay = keep, rule, weight_decay
        self.generator = torch.Generator(device=spikes.device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1.0, fused=True)
        self.order = torch.empty(0, dtype=torch.long, device=spikes.device)
        self.step = 0

    def loss(
        self, spikes: Float[Tensor, "trials observed_bins observed"], targets: Float[Tensor, "trials bins neurons"]
    ) -> Loss:
        """Of one batch at the present step, with masks drawn from the trainer's generator."""
        seen, visible = coordinated_dropout(spikes, self.keep, self.generator)
        out: Rates = self.model(seen, generator=self.generator)
        nll = poisson_nll(out.log_rates, targets)
        if self.keep < 1:
            asked = torch.ones_like(nll)
            asked[:, : spikes.shape[1], : spikes.shape[2]] = scored(visible, self.keep, self.rule, self.generator)
            nll = nll * asked
        nll, kl = nll.sum((1, 2)).mean(), out.kl.mean()
        weight = self.beta * min(1.0, self.step / self.ramp if self.ramp else 1.0)
        return Loss(nll + weight * kl, nll, kl)

    def run(self, steps: int) -> list[Loss]:
        """So many further steps; their losses."""
        check_count("steps", steps)
        self.model.train()
        record = []
        for _ in range(steps):
            chosen = self._next()
            loss = self.loss(self.spikes[chosen], self.targets[chosen])
            if not bool(loss.total.isfinite()):
                raise ValueError(
                    f"loss must be finite, got {loss.total.item()} at step {self.step}: lower rate or step"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step) if callable(self.rate) else self.rate
                group["weight_decay"] = (
                    self.weight_decay(self.step) if callable(self.weight_decay) else self.weight_decay
                )
            self.optimizer.zero_grad(set_to_none=True)
            (loss.total / self.targets[0].numel()).backward()
            self.optimizer.step()
            self.step += 1
            record.append(Loss(*(float(part.detach()) for part in loss)))
        return record

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on with the same numbers, bit for bit; a copy."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order,
            "step": self.step,
        }
        return copy.deepcopy(state)  # training goes on in place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a run of a trainer that was made with the same arguments."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.order, self.step = state["order"], state["step"]

    def _next(self) -> Tensor:
        if len(self.order) < self.batch:
            fresh = torch.randperm(len(self.spikes), generator=self.generator, device=self.spikes.device)
            self.order = torch.cat([self.order, fresh])
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        return chosen


def predict(
    model: nn.Module,
    spikes: Float[Tensor, "trials observed_bins observed"],
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Float[Tensor, "trials bins neurons"]:
    """Expected counts per bin: the mean over samples of the rates, or exp of the mean of the log rates (released).

    The geometric mean is never above the arithmetic one. The model is asked in evaluation mode, without gradients, and
    left as it was.

    Args:
        samples: number of draws of the latent path; 1 for models that draw nothing.
        generator: of the draws; None follows the path without noise, once.

    Raises:
        ValueError: samples below 1, several of them without a generator, an unknown mean, and as the model.

    Example:
        >>> model = GRUTransformer(observed=20, neurons=25, bins=30, dim=8)
        >>> predict(model, torch.ones(4, 25, 20)).shape
        torch.Size([4, 30, 25])
    """
    check_count("samples", samples)
    if mean not in ("arithmetic", "geometric"):
        raise ValueError(f"mean must be 'arithmetic' or 'geometric'; got {mean!r}")
    if samples > 1 and generator is None:
        raise ValueError(f"generator must be given for several samples; got None for {samples}")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            total: Any = 0.0
            for _ in range(samples):
                log_rates = model(spikes, generator=generator).log_rates
                total = total + (log_rates.exp() if mean == "arithmetic" else log_rates)
    finally:
        model.train(training)
    return total / samples if mean == "arithmetic" else (total / samples).exp()
