"""The study's parts: equal sizes, the same start, what is kept, and scores of rates that are known."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from gated.lab import spikes
from gated.langevinflow import bits_per_spike, study


@pytest.fixture(scope="module")
def parts():
    g = torch.Generator().manual_seed(0)
    return spikes.split(spikes.lattice(g, conditions=24, repeats=2, observed=12, forward=4), "condition", g)


@pytest.mark.parametrize("arm", study.ARMS)
def test_arms_have_one_size_and_start_at_the_mean_rates(parts, arm):
    model = study.build(arm, parts.train, seed=0)
    released = study.size(study.build("released", parts.train, seed=0))
    assert abs(study.size(model) - released) <= 0.05 * released
    rates = study.rates_of(model, parts.train, seed=0)
    assert float(rates.mean()) == pytest.approx(0.2, abs=0.15)
    again = study.build(arm, parts.train, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("depth", [0, 2])
def test_depths_have_one_size(parts, depth):
    released = study.size(study.build("released", parts.train, seed=0))
    model = study.build("released", parts.train, seed=0, depth=depth)
    assert len(model.decoder.layers) == depth and abs(study.size(model) - released) <= 0.1 * released


def test_alone_the_decoder_knows_the_particle_only(parts):
    model = study.build("controlled", parts.train, seed=0, alone=True).eval()
    states = torch.randn(2, 16, 3 * study.DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.decoder(states)
        states[..., 2 * study.DIM :] = 9
        assert torch.equal(model.decoder(states), before)
        states[..., 0] = 9
        assert not torch.equal(model.decoder(states), before)


def test_building_leaves_the_global_random_state_alone(parts):
    torch.manual_seed(3)
    study.build("NDT-like", parts.train, seed=0)
    first = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), first)


def test_learning_keeps_the_best_weights(parts, monkeypatch):
    monkeypatch.setattr(study, "EVERY", 5)
    model = study.build("corrected", parts.train, seed=0)
    curves = study.learn(model, parts, rate=1e-2, steps=20, seed=0)
    assert curves["step"] == [5, 10, 15, 20] and all(len(v) == 4 for v in curves.values())
    assert study.unseen_nll(model, parts.valid, 0) == pytest.approx(min(curves["valid"]))
    found = study.measure(model, parts, 0)
    assert set(found["ablations"]) == set(study.ABLATIONS) and model.ablation is None
    assert set(found["latents from"]) == {"z", "v", "h"}
    assert found == study.measure(model, parts, 0)


def test_scores_of_the_truth(parts):
    test = parts.test
    found = study.scores(test.rates, test)
    assert found["R2"] == 1
    assert found["co-bps"] == bits_per_spike(test.rates[:, :12, 30:], test.spikes[:, :12, 30:])
    assert found["fp-bps, last stays"] < found["fp-bps"]
    mean = test.rates.mean((0, 1)).expand_as(test.rates)
    assert study.rates_r2(test.rates, mean) == pytest.approx(0, abs=1e-9)


def test_r2_is_scikit_learns_in_its_order(parts):
    g = torch.Generator().manual_seed(1)
    truth, guess = torch.rand(4, 6, 3, generator=g), torch.rand(4, 6, 3, generator=g)
    want = r2_score(truth.flatten(0, 1), guess.flatten(0, 1))
    assert study.rates_r2(truth, guess) == pytest.approx(want)
    x = torch.randn(20, 6, 4, generator=g)
    y = x[..., :2] @ torch.rand(2, 2, generator=g) + 0.1 * torch.randn(20, 6, 2, generator=g)
    flat = x[:10].flatten(0, 1)
    mean, sd = flat.mean(0), flat.std(0)
    ridge = Ridge(alpha=1e-3 * 60).fit((flat - mean) / sd, y[:10].flatten(0, 1))
    want = ridge.score((x[10:].flatten(0, 1) - mean) / sd, y[10:].flatten(0, 1))
    assert study.linear_r2(x[:10], y[:10], x[10:], y[10:]) == pytest.approx(want, abs=1e-3)


def test_the_spectrum_of_a_tone_is_a_peak():
    t = torch.arange(160.0)
    tone = torch.sin(2 * math.pi * t / 10 + torch.rand(8, 1))[..., None]
    power = study.spectrum(tone)
    assert int(power.argmax()) + 1 == 16 and float(power.sum()) == pytest.approx(1)


def test_the_released_prior_has_no_peak_and_the_lattices_has(parts):
    released, corrected = (study.build(arm, parts.train, 0) for arm in ("released", "corrected"))
    assert int(study.prior_spectrum(released, 0).argmax()) == 0
    bins = corrected.bins
    assert float(study.prior_spectrum(corrected, 0).sum()) == pytest.approx(1, abs=1e-4) and corrected.bins == bins
