"""Calibration error and its finite-sample excess, temperature, conformal coverage, and bias at exits."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from gated import jeidnn as j

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def calibrated(n, low, high, gen):
    q = low + (high - low) * torch.rand(n, generator=gen, dtype=D)
    return q, torch.rand(n, generator=gen, dtype=D) < q


# Calibration error -------------------------------------------------------------------------------------------------


def test_reliability_by_hand():
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3], dtype=D)
    correct = torch.tensor([True, False, True, False, False])
    conf, acc, number = j.reliability(confidence, correct, 2)
    assert conf.tolist() == pytest.approx([0.3, 0.8]) and acc.tolist() == pytest.approx([1 / 3, 0.5])
    assert number.tolist() == [3, 2]
    expected = 0.6 * abs(0.3 - 1 / 3) + 0.4 * 0.3
    assert j.calibration_error(confidence, correct, 2) == pytest.approx(expected)
    assert len(j.reliability(confidence, correct).number) == 5  # fewer samples than bins


def test_calibration_error_by_numpy():
    q, right = calibrated(997, 0.1, 1, rng())
    order = np.argsort(q.numpy(), kind="stable")
    total = 0.0
    for part in np.array_split(order, 15):
        gap = q.numpy()[part].mean() - right.numpy()[part].mean()
        total += len(part) / 997 * abs(gap)
    assert j.calibration_error(q, right) == pytest.approx(total)


EXCESS = [  # range of a perfect predictor, number of samples, repeats, expected error in points
    (0.2, 0.7, 64, 400, 18.8), (0.8, 1.0, 64, 400, 10.6), (0.9, 1.0, 64, 400, 7.2),
    (0.2, 0.7, 1000, 150, 4.5), (0.8, 1.0, 1000, 150, 2.7), (0.9, 1.0, 1000, 150, 2.0),
    (0.2, 0.7, 10000, 60, 1.5), (0.8, 1.0, 10000, 60, 0.9), (0.9, 1.0, 10000, 60, 0.7),
]  # fmt: skip


@pytest.mark.parametrize(("low", "high", "n", "repeats", "points"), EXCESS)
def test_a_perfect_predictor_has_a_calibration_error(low, high, n, repeats, points):
    gen = rng(1)
    errors = [j.calibration_error(*calibrated(n, low, high, gen)) for _ in range(repeats)]
    assert 100 * sum(errors) / repeats == pytest.approx(points, abs=0.3)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.7), (0.8, 1.0), (0.9, 1.0)])
def test_that_error_is_the_mean_of_coin_flips(low, high):
    """Batches of 64: in each bin of 4 or 5 the exact law of the number of successes gives E|gap|."""
    gen, errors, exact = rng(12), [], []
    for _ in range(300):
        q, right = calibrated(64, low, high, gen)
        errors.append(j.calibration_error(q, right))
        total = 0.0
        for part in np.array_split(np.sort(q.numpy()), 15):
            law = np.ones(1)
            for p in part:
                law = np.convolve(law, [1 - p, p])
            total += float(law @ np.abs(np.arange(len(law)) - part.sum())) / 64
        exact.append(total)
    difference = np.array(errors) - np.array(exact)
    assert abs(difference.mean()) < 4 * difference.std() / 300**0.5


def test_debiased_absolute_error_takes_some_of_the_excess_out():
    gen = rng(3)
    pairs = [calibrated(500, 0.3, 0.7, gen) for _ in range(200)]
    plain = np.mean([j.calibration_error(*pair) for pair in pairs])
    less = np.mean([j.calibration_error(*pair, debiased=True) for pair in pairs])
    assert less / plain == pytest.approx(2 - 2**0.5, abs=0.05)  # 1 - (sqrt 2 - 1), for normal noise
    # with a large gap nothing is left to take out
    q, right = calibrated(20_000, 0.3, 0.7, gen)
    assert j.calibration_error(q + 0.3, right, debiased=True) == pytest.approx(0.3, abs=0.01)
    # bins without noise are left alone
    sure = torch.ones(40, dtype=torch.bool)
    assert j.calibration_error(torch.full((40,), 0.8, dtype=D), sure, debiased=True) == pytest.approx(0.2)


def test_double_softmax_ceiling():
    for k, ceiling in ((10, 0.232), (100, 0.027)):
        sure = torch.full((1, k), -50.0, dtype=D)
        sure[0, 0] = 50
        twice = float(sure.softmax(1).softmax(1).max())
        assert twice == pytest.approx(math.e / (math.e + k - 1)) and twice == pytest.approx(ceiling, abs=5e-4)


def test_brier_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=D)
    expected = (0.09 + 0.04 + 0.01 + 0.01 + 0.81 + 0.64) / 2
    assert j.brier(p, torch.tensor([0, 1])) == pytest.approx(expected)


def test_temperature_is_found():
    logits = 3 * torch.randn(4000, 5, generator=rng(4), dtype=D)
    y = torch.multinomial(logits.softmax(1), 1, generator=rng(5)).squeeze(1)
    for scale in (0.5, 1.0, 4.0):
        found = j.fit_temperature(scale * logits, y)
        ce = lambda t, s=scale: float(torch.nn.functional.cross_entropy(s * logits / t, y))  # noqa: E731
        best = optimize.minimize_scalar(ce, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-7}).x
        assert found == pytest.approx(best, rel=1e-4)
        assert found == pytest.approx(scale, rel=0.1)
    assert j.fit_temperature(logits, logits.argmax(1)) == pytest.approx(1e-3)  # never wrong: as sure as may be
    assert j.fit_temperature(logits, logits.argmin(1)) == pytest.approx(1e3)


# Conformal sets ----------------------------------------------------------------------------------------------------


def test_quantile_by_rank():
    scores = torch.tensor([0.5, 0.1, 0.9, 0.3], dtype=D)
    assert j.conformal_quantile(scores, 0.4) == 0.5  # ceil(5 * .6) = 3
    assert j.conformal_quantile(scores, 0.2) == 0.9
    assert j.conformal_quantile(scores, 0.1) == math.inf
    hundred = torch.arange(1, 100, dtype=D)
    for percent in range(1, 100):  # (n + 1)(1 - alpha) is whole, and must not be rounded up
        assert j.conformal_quantile(hundred, percent / 100) == 100 - percent


def test_coverage_follows_the_beta_law():
    n, alpha, gen = 1000, 0.05, rng(6)
    rank = math.ceil((n + 1) * (1 - alpha))
    law = stats.beta(rank, n + 1 - rank)
    assert law.mean() == pytest.approx(0.95, abs=1e-4) and law.std() == pytest.approx(0.0069, abs=1e-4)
    # uniform scores: the coverage of a threshold is the threshold
    cover = [j.conformal_quantile(torch.rand(n, generator=gen, dtype=D), alpha) for _ in range(200)]
    assert stats.kstest(cover, law.cdf).pvalue > 0.01


def test_sets_and_their_quality():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], dtype=D)
    sets = j.conformal_sets(p, torch.tensor([0.5, 0.65], dtype=D))
    assert sets.tolist() == [[True, False, False], [True, True, False]]
    size, miss = j.set_quality(sets, torch.tensor([0, 2]))
    assert size == 1.5 and miss == 0.5


def exits_world(n, gen):
    """Two exits that are calibrated for everybody, where only those leave first whom exit 1 has wrong more often."""
    hard = torch.rand(n, generator=gen, dtype=D) < 0.3
    truth = torch.zeros(n, dtype=torch.int64)
    right = torch.where(hard, 0.2, 0.9) + 0.1 * torch.rand(n, generator=gen, dtype=D)
    first = torch.stack([right, 1 - right], 1)
    second = torch.tensor([0.95, 0.05], dtype=D).expand(n, 2)
    return torch.stack([first, second], 1), truth, torch.where(hard, 0, 1)


def coverage(variant, n=2000, repeats=200):
    """Mean miss over resplits: of all samples together, and of those at exit 1."""
    gen, alpha, missed = rng(7), 0.05, []
    for _ in range(repeats):
        p, y, exit = exits_world(n, gen)
        q = j.conformal_thresholds(p, y, exit, alpha, variant)
        p, y, exit = exits_world(n, gen)
        answered = p[torch.arange(n), exit]
        sets = j.conformal_sets(answered, q[exit])
        miss = ~sets.gather(1, y[:, None]).squeeze(1)
        missed.append([float(miss.double().mean()), float(miss[exit == 0].double().mean())])
    return np.mean(missed, 0)


def test_which_variants_keep_their_promise():
    assert coverage("general")[0] == pytest.approx(0.05, abs=0.004)
    assert coverage("strict")[1] == pytest.approx(0.05, abs=0.005)
    # all samples at exit 1 are mostly easy ones; those who leave there are not
    assert coverage("gated-all", repeats=20)[1] > 0.1


def test_thresholds_by_hand():
    p, y, exit = exits_world(400, rng(8))
    scores = 1 - p[torch.arange(400)[:, None], torch.arange(2), y[:, None]]
    gated = torch.where(exit == 0, scores[:, 0], scores[:, 1])
    q = lambda s: j.conformal_quantile(s, 0.1)  # noqa: E731
    assert j.conformal_thresholds(p, y, exit, 0.1, "general").tolist() == [q(gated)] * 2
    own = [q(scores[exit == l, l]) for l in range(2)]
    assert j.conformal_thresholds(p, y, exit, 0.1, "strict").tolist() == own
    everybody = [q(scores[:, l]) for l in range(2)]
    assert j.conformal_thresholds(p, y, exit, 0.1, "gated-all").tolist() == everybody


def test_an_exit_that_nobody_takes():
    p, y, _ = exits_world(100, rng(9))
    exit = torch.ones(100, dtype=torch.int64)
    assert float(j.conformal_thresholds(p, y, exit, 0.1, "strict")[0]) == pytest.approx(0.9)
    for variant in ("general", "gated-all", "strict"):
        assert j.conformal_thresholds(p, y, exit, 0.1, variant).isfinite().all()
    bias, number = j.exit_bias(p[:, 1].amax(1), torch.ones(100, dtype=torch.bool), exit, 3)
    assert number.tolist() == [0, 100, 0] and bias.tolist() == pytest.approx([0, -0.05, 0])


# Bias at exits -----------------------------------------------------------------------------------------------------


def test_exit_bias_by_hand():
    confidence = torch.tensor([0.9, 0.8, 0.6], dtype=D)
    bias, number = j.exit_bias(confidence, torch.tensor([True, False, True]), torch.tensor([0, 0, 1]), 2)
    assert bias.tolist() == pytest.approx([0.35, -0.4]) and number.tolist() == [2, 1]


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_a_threshold_biases_a_noisy_score_and_not_a_calibrated_one(noise):
    n, gen = 200_000, rng(10)
    q, right = calibrated(n, 0.5, 1, gen)
    score = torch.sigmoid(torch.logit(q) + noise * torch.randn(n, generator=gen, dtype=D))
    bias, _ = j.exit_bias(score, right, (score < 0.9).long(), 2)
    if noise:
        assert float(bias[0]) > 0.02
    else:
        assert abs(float(bias[0])) < 4 * 0.5 / (0.2 * n) ** 0.5


def test_a_learned_gate_is_no_way_out():
    """A gate on the same statistics is a function of the same score: the bias comes with the choice, not the rule."""
    n, gen = 200_000, rng(11)
    q, right = calibrated(n, 0.5, 1, gen)
    logit = torch.logit(q) + 0.8 * torch.randn(n, generator=gen, dtype=D)
    logits = torch.stack([logit, torch.zeros_like(logit)], 1)
    confidence = j.uncertainty(logits)[:, 0]
    right = torch.where(logit > 0, right, ~right)
    gate = j.UncertaintyGate().double()
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[8.0, -1, 0.5, -0.5]]))
        gate.linear.bias.fill_(-7)
        exit = (gate(logits, logits) < 0).long()
    assert 0.05 < float((exit == 0).double().mean()) < 0.95
    assert float(j.exit_bias(confidence, right, exit, 2).bias[0]) > 0.02
