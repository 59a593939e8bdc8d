"""One run of the chapter's study: an arm learns one population, and is then asked everything at once.

    model = build("released", parts.train, seed=0)
    curves = learn(model, parts, rate=6e-3, steps=300, seed=0)
    measure(model, parts, seed=0)                    numbers that JSON can hold

`parts` has `train`, `valid` and `test`; each has `spikes`, `rates` and `latents` [trials, bins, ...], of which the
first `observed` bins and the first `heldin` neurons are seen (as `gated.lab.spikes` makes them).

All arms have the parameters of the released form to within 5 %, the same coordinated dropout, batches and steps, and
start with the logarithm of each neuron's mean count as the bias of their readout. The weights that are kept are those
with the least validation loss, looked at every `EVERY` steps, on what no model has seen: held-out neurons, and the bins
after the observed ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gated.langevinflow.metrics import bits_per_spike
from gated.langevinflow.model import Ablation, LangevinFlow
from gated.langevinflow.objective import poisson_nll, released_beta
from gated.langevinflow.rivals import GRUTransformer, GRUVae, MaskedTransformer, match_parameters
from gated.langevinflow.training import Trainer, predict

VERSION = 1
DIM, BATCH, KEEP, EVERY, SAMPLES = 16, 32, 0.7, 50, 8
RELEASED: dict[str, Any] = {"mode": "released", "kl": "released", "encoder_input": "lagged"}
ARMS: dict[str, dict[str, Any]] = {
    "GRU-VAE": {},
    "NDT-like": {},
    "GRU + Transformer": {},
    "released": RELEASED,
    "corrected": {"mode": "corrected"},
    "controlled": {"mode": "controlled"},
}
ABLATIONS: tuple[Ablation, ...] = ("no potential", "frozen velocity", "zero", "noise", "shuffle")


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def build(arm: str, train: Any, seed: int, **changes: Any) -> nn.Module:
    """A model of the released form's size. `changes` are options of `LangevinFlow`; another depth keeps the size.

    With `alone` the decoder is shown zeros in place of the encoder's state: all it knows comes through the particle.
    """
    neurons, bins, heldin = train.spikes.shape[2], train.spikes.shape[1], train.heldin
    task = heldin, neurons, bins
    depth, alone = changes.pop("depth", 1), changes.pop("alone", False)
    makers: dict[str, Callable[[int], nn.Module]] = {
        "GRU-VAE": lambda width: GRUVae(*task, dim=width),
        "NDT-like": lambda width: MaskedTransformer(*task, dim=width),
        "GRU + Transformer": lambda width: GRUTransformer(*task, dim=width),
    }
    with torch.random.fork_rng([]):
        target = size(LangevinFlow(*task, dim=DIM, mode="released"))
        torch.manual_seed(seed)
        if arm in makers:
            model = match_parameters(makers[arm], target, widths=range(4, 257, 2))
        elif depth == 1:
            model = LangevinFlow(*task, dim=DIM, **(ARMS[arm] | changes))
        else:  # without attention: wider states; with more of it: narrower ones, and smaller layers
            widths: Iterable[tuple[int, int]] = [(w, 1) for w in range(DIM, 49, 4)]
            if depth > 1:
                widths = [(DIM - 4, hidden) for hidden in range(4, 129, 4)]
            tries = [
                LangevinFlow(*task, dim=dim, depth=depth, hidden=hidden, **(ARMS[arm] | changes))
                for dim, hidden in widths
            ]
            model = min(tries, key=lambda m: abs(size(m) - target))
    if alone:
        model.decoder.register_forward_pre_hook(_without_encoder)  # type: ignore[union-attr]
    with torch.no_grad():
        readout = next(m for name, m in model.named_modules() if name.split(".")[-1] == "readout")
        readout.bias.copy_(train.spikes.mean((0, 1)).clamp(min=1e-3).log())
    return model


def _without_encoder(decoder: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    states, *rest = inputs
    z, v, h = states.chunk(3, -1)
    return torch.cat([z, v, torch.zeros_like(h)], -1), *rest


def learn(
    model: nn.Module, parts: Any, rate: float, steps: int, seed: int, progress: Callable[..., Any] = list
) -> dict[str, list[Any]]:
    """Trains in place and keeps the best weights by validation. Returns curves at every `EVERY` steps.

    The weight of the KL is that of the released loss where the KL is the released one, and 1 else, reached after a
    quarter of the steps. `progress` may wrap the list of rounds, for a bar.
    """
    train = parts.train
    seen = train.spikes[:, : train.observed, : train.heldin]
    beta = released_beta(*train.spikes.shape[1:]) if getattr(model, "kl", "") == "released" else 1.0
    trainer = Trainer(
        model, seen, train.spikes, seed=seed, batch=BATCH, rate=rate, beta=beta, ramp=steps // 4, keep=KEEP
    )
    curves: dict[str, list[Any]] = {"step": [], "train": [], "valid": [], "kl": []}
    best: tuple[float, dict[str, Tensor]] = math.inf, {}
    for _ in progress(range(steps // EVERY)):
        record = trainer.run(EVERY)
        valid = unseen_nll(model, parts.valid, seed)
        curves["step"].append(trainer.step)
        curves["train"].append(sum(loss.nll for loss in record) / EVERY / train.spikes[0].numel())
        curves["kl"].append(record[-1].kl)
        curves["valid"].append(valid)
        if valid < best[0]:
            best = valid, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])
    return curves


def rates_of(model: nn.Module, trials: Any, seed: int, samples: int = SAMPLES) -> Tensor:
    """Mean over some sampled paths of the rates; the models that draw nothing are asked once."""
    draws = isinstance(model, (LangevinFlow, GRUVae))
    generator = torch.Generator().manual_seed(seed)
    seen = trials.spikes[:, : trials.observed, : trials.heldin]
    return predict(model, seen, samples=samples if draws else 1, generator=generator if draws else None)


def unseen_nll(model: nn.Module, trials: Any, seed: int) -> float:
    """Mean Poisson loss of held-out neurons and of the bins after the observed ones, in nats a count."""
    nll = poisson_nll(rates_of(model, trials, seed, 2).log(), trials.spikes)
    asked = torch.ones_like(nll, dtype=torch.bool)
    asked[:, : trials.observed, : trials.heldin] = False
    return float(nll[asked].mean())


def scores(rates: Tensor, trials: Any) -> dict[str, float]:
    """`co-bps`, `fp-bps`, the latter if the last observed rate stays, and R² (truth, prediction) over neurons."""
    seen, held = trials.observed, trials.heldin
    stays = rates[:, seen - 1 : seen].expand(-1, rates.shape[1] - seen, -1)
    return {
        "co-bps": bits_per_spike(rates[:, :seen, held:], trials.spikes[:, :seen, held:]),
        "fp-bps": bits_per_spike(rates[:, seen:], trials.spikes[:, seen:]),
        "fp-bps, last stays": bits_per_spike(stays, trials.spikes[:, seen:]),
        "R2": rates_r2(trials.rates[:, :seen], rates[:, :seen]),
    }


def rates_r2(truth: Tensor, prediction: Tensor) -> float:
    """1 - error / variance of the truth for each neuron, over trials and bins; the mean over neurons."""
    truth, prediction = truth.flatten(0, 1).double(), prediction.flatten(0, 1).double()
    return float((1 - ((truth - prediction) ** 2).mean(0) / truth.var(0, unbiased=False)).mean())


def linear_r2(x: Tensor, y: Tensor, x_new: Tensor, y_new: Tensor, penalty: float = 1e-3) -> float:
    """R² on new data of a ridge regression with standardised inputs, the mean over outputs."""
    x, y, x_new, y_new = (t.flatten(0, 1).double() for t in (x, y, x_new, y_new))
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-9)
    z, z_new = (x - mean) / sd, (x_new - mean) / sd
    gram = z.T @ z / len(z) + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    weight = torch.linalg.solve(gram, z.T @ (y - y.mean(0)) / len(z))
    error = y_new - y.mean(0) - z_new @ weight
    return float((1 - (error**2).mean(0) / y_new.var(0, unbiased=False)).mean())


def measure(model: nn.Module, parts: Any, seed: int) -> dict[str, Any]:
    """Scores on the test trials; for a particle also each ablation's, what z, v and h know, and how the prior moves."""
    rates = rates_of(model, parts.test, seed)
    found: dict[str, Any] = {"parameters": size(model), **scores(rates, parts.test)}
    if not isinstance(model, LangevinFlow):
        return found
    before, found["ablations"] = model.ablation, {}
    for ablation in ABLATIONS:
        model.ablation = ablation
        found["ablations"][ablation] = scores(rates_of(model, parts.test, seed), parts.test)
    model.ablation = before
    states = [state_of(model, part, seed) for part in (parts.train, parts.test)]
    seen = parts.test.observed
    found["latents from"] = {
        name: linear_r2(
            states[0][name][:, :seen],
            parts.train.latents[:, :seen],
            states[1][name][:, :seen],
            parts.test.latents[:, :seen],
        )
        for name in ("z", "v", "h")
    }
    found["prior spectrum"] = prior_spectrum(model, seed).tolist()
    return found


def state_of(model: LangevinFlow, trials: Any, seed: int) -> Mapping[str, Tensor]:
    """z, v and h of one sampled path."""
    with torch.no_grad():
        out = model.eval()(
            trials.spikes[:, : trials.observed, : trials.heldin], generator=torch.Generator().manual_seed(seed)
        )
    return {"z": out.z, "v": out.v, "h": out.h}


def spectrum(x: Tensor) -> Tensor:
    """Power of paths [trials, bins, dim] at each frequency above 0, as a share of the whole, mean over dims."""
    power = torch.fft.rfft(x - x.mean(1, keepdim=True), dim=1).abs().square()[:, 1:].mean(0)
    return (power / power.sum(0)).mean(1)


def prior_spectrum(model: LangevinFlow, seed: int, trials: int = 64, bins: int = 160) -> Tensor:
    """Of the positions of free-running particles, after 80 bins in which they forget where they began."""
    asked, model.bins = model.bins, 80 + bins
    with torch.no_grad():
        z, _ = model.prior(trials, torch.Generator().manual_seed(seed))
    model.bins = asked
    return spectrum(z[:, 80:])
