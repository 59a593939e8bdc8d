"""Training: what is minimised, that a run can be taken up again bit for bit, and that it learns."""

import io
import math

import pytest
import torch

from gated.gates.schedules import cosine_schedule, linear_schedule
from gated.langevinflow import (
    GRUTransformer,
    GRUVae,
    LangevinFlow,
    MaskedTransformer,
    Trainer,
    bits_per_spike,
    poisson_nll,
    predict,
)

MODELS = {
    "released": lambda: LangevinFlow(6, 9, 12, dim=8, hidden=16, mode="released", kl="released"),
    "corrected": lambda: LangevinFlow(6, 9, 12, dim=8, hidden=16, quartic=0.01),
    "controlled": lambda: LangevinFlow(6, 9, 12, dim=8, hidden=16, mode="controlled"),
    "learned friction": lambda: LangevinFlow(6, 9, 12, dim=8, hidden=16, learned_friction=True),
    "gru vae": lambda: GRUVae(6, 9, 12, dim=8),
    "masked transformer": lambda: MaskedTransformer(6, 9, 12, dim=8),
    "gru transformer": lambda: GRUTransformer(6, 9, 12, dim=8, hidden=16),
}


def data(trials: int = 20, bins: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Nine neurons that follow one wave of a random phase; six are observed, in all but the last three bins."""
    gen = torch.Generator().manual_seed(0)
    phase = 6.283 * torch.rand(trials, 1, generator=gen)
    wave = torch.sin(phase + 0.5 * torch.arange(bins))[..., None]
    targets = torch.poisson(torch.exp(1.2 * wave * torch.linspace(-1, 1, 9)), generator=gen)
    return targets[:, : bins - 3, :6], targets


def trainer(name: str = "corrected", seed: int = 0, **kwargs) -> Trainer:
    torch.manual_seed(0)
    return Trainer(MODELS[name](), *data(), seed=seed, **{"batch": 8, "ramp": 4, **kwargs})


def weights(run: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_was_saved_goes_on_bit_for_bit(name):
    rates = {"rate": cosine_schedule(1e-2, 1e-4, 9), "weight_decay": linear_schedule(1e-6, 1e-3, 9)}
    whole = trainer(name, **rates)
    losses = whole.run(9)
    first = trainer(name, **rates)
    early = first.run(4)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = trainer(name, seed=99, **rates)
    second.run(2)  # whatever it did before
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert early + second.run(5) == losses
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert all(p.grad is not None for p in whole.model.parameters())
    assert torch.equal(predict(whole.model, data()[0]), predict(second.model, data()[0]))


def test_a_state_does_not_follow_the_run_it_was_taken_from():
    run = trainer()
    run.run(2)
    state, before = run.state_dict(), weights(run)
    run.run(2)
    run.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), before, strict=True))


def test_seeds_differ_and_the_global_state_plays_no_part():
    a, b, c = trainer(), trainer(), trainer(seed=1)
    torch.manual_seed(123)
    first = a.run(2)
    torch.manual_seed(321)
    assert first == b.run(2)
    assert first != c.run(2)


def test_each_trial_comes_once_before_any_comes_twice():
    run = trainer(batch=5)
    assert sorted(torch.cat([run._next() for _ in range(4)]).tolist()) == list(range(20))
    drawn = [run._next() for _ in range(8)]
    assert torch.cat(drawn).bincount().tolist() == [2] * 20


@pytest.mark.parametrize("rule", ["original", "released"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_gradient_of_counts_that_are_not_scored_is_exactly_zero(rule, keep):
    run = trainer(keep=keep, rule=rule)
    seen = {}

    def hook(module, inputs, output):
        output.retain_grad()
        seen["log_rates"] = output

    run.model.decoder.register_forward_hook(hook)
    spikes, targets = data()
    run.loss(spikes, targets).total.backward()
    hit = seen["log_rates"].grad != 0
    assert bool(hit[:, :, 6:].all()) and bool(hit[:, 9:].all())  # held-out neurons and forward bins: always
    share = float(hit[:, :9, :6].float().mean())
    expected = 1 if keep == 1 else 1 - keep if rule == "original" else 1 - keep**2
    assert share == pytest.approx(expected, abs=0.05)


def test_loss_is_nll_plus_weighted_kl_for_a_trial():
    run = trainer(keep=1.0, beta=3.0)
    run.step = 2  # half of the ramp
    spikes, targets = data()
    state = run.generator.get_state()
    with torch.no_grad():
        loss = run.loss(spikes, targets)
    run.generator.set_state(state)
    torch.rand(spikes.shape, generator=run.generator)
    with torch.no_grad():
        out = run.model(spikes, run.generator)
    nll = poisson_nll(out.log_rates, targets).sum((1, 2)).mean()
    assert float(loss.nll) == pytest.approx(float(nll), rel=1e-6)
    assert float(loss.total) == pytest.approx(float(nll + 1.5 * out.kl.mean()), rel=1e-6)


def test_rate_follows_its_schedule():
    run = trainer(rate=linear_schedule(1e-2, 1e-3, 3), weight_decay=0.1)
    seen = []
    for _ in range(5):
        run.run(1)
        seen.append(run.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1e-2, 7e-3, 4e-3, 1e-3, 1e-3])
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["corrected", "gru transformer"])
def test_it_learns(name):
    """Held-out neurons of new trials, from the observed ones: far above their mean, and rates as large as counts."""
    run = trainer(name, rate=1e-2, batch=20)
    run.run(120)
    spikes, targets = data(60)
    spikes, targets = spikes[20:], targets[20:]
    rates = predict(run.model, spikes, samples=4, generator=torch.Generator().manual_seed(0))
    assert bits_per_spike(rates[:, :9, 6:], targets[:, :9, 6:]) > 0.1
    assert float(rates.mean()) == pytest.approx(float(targets.mean()), rel=0.15)


def test_beta_pulls_the_start_to_the_prior():
    ends = []
    for beta in (0.0, 100.0):
        run = trainer("corrected", beta=beta, rate=1e-2, ramp=0)
        ends.append(run.run(40)[-1].kl)
    assert ends[1] < 0.1 < ends[0] and math.isfinite(ends[0])
