"""The scikit-learn regressor: its checks, another program's results, units, and what bad data do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from gated.gaussian_moe import truths
from gated.gaussian_moe.estimator import EXPECTED_FAILED_CHECKS, GaussianMoERegressor

# Land temperature anomalies 1880-2015 in hundredths of a degree, relative to 1951-1980 (NASA GISS, Hansen et al., from
# CDIAC's gl_land.txt): the data of the example that comes with the R package meteorits 0.1.1.
ANOMALIES = """
-41 -39 -30 -32 -60 -46 -60 -64 -44 -20 -56 -59 -49 -51 -41 -33 -30 -22 -39 -32 -15 -14 -37 -43 -54 -37 -26
-55 -41 -43 -36 -38 -36 -34 -8 -7 -31 -52 -43 -19 -29 -17 -26 -28 -23 -26 -5 -19 -11 -34 -16 -9 -12 -24 -10
-22 -9 0 7 -10 8 4 5 1 6 -8 -7 6 -9 -13 -23 -8 -2 7 -13 -11 -22 4 5 4 -2 8 1 1 -26 -17 -7 -2 -10 1 7 -8 -3 22
-4 2 -17 21 14 20 34 44 13 39 22 20 24 40 49 38 52 52 23 27 37 56 47 53 84 60 57 68 79 77 68 87 77 85 65 79 92
79 78 82 88 99
"""


def two_lines(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = torch.Generator().manual_seed(seed)
    x = truths.uniform(truths.UNIT, n, generator=g)
    return x.numpy(), truths.DENSE.sample(x, g).numpy()


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, id=getattr(check, "func", check).__name__)
        for estimator, check in estimator_checks_generator(GaussianMoERegressor(n_init=1, max_iter=20))
        if getattr(check, "func", check).__name__ not in (*EXPECTED_FAILED_CHECKS, "check_array_api_input")
    ],
)
def test_scikit_learns_checks(estimator, check):
    """All but the one that is expected to fail, and one that scikit-learn itself skips without an array API."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_the_expected_failure_does_fail():
    """So that the list says nothing that has become untrue."""
    checks = {
        getattr(check, "func", check).__name__: check
        for _, check in estimator_checks_generator(GaussianMoERegressor(n_init=1, max_iter=50))
    }
    for name in EXPECTED_FAILED_CHECKS:
        with pytest.raises(AssertionError):
            checks[name](GaussianMoERegressor(n_init=1))


def test_rs_meteorits_agrees():
    """emNMoE(Year, AnnualAnomaly, K = 2, p = 1, q = 1), as printed in the package's README.

    Its experts are those before and after 1964 (84 and 52 years) with log-likelihood 102.722. Between the two the gate
    may be as steep as it likes; ours is steeper and gains a tenth.
    """
    year, anomaly = np.arange(1880.0, 2016)[:, None], np.array(ANOMALIES.split(), float) / 100
    ours = GaussianMoERegressor(2, random_state=0).fit(year, anomaly)
    assert 102.721 < ours.log_likelihood_ < 102.9
    early = ours.predict_proba(year)[0].argmax()
    order = [1 - early, early]  # the late years first, as there
    counts = np.bincount(ours.predict_proba(year).argmax(1))
    assert counts[order].tolist() == [52, 84]
    np.testing.assert_allclose(ours.model_.b[order], [-42.36218611, -12.667281991], rtol=2e-4)
    np.testing.assert_allclose(ours.model_.a[order, 0], [0.02149272, 0.006474802], rtol=2e-4)
    np.testing.assert_allclose(ours.model_.variance[order], [0.011931, 0.01352343], rtol=5e-4)


def test_the_truth_is_found_from_random_starts():
    x, y = two_lines(2000)
    found = GaussianMoERegressor(random_state=0).fit(x, y)
    assert found.log_likelihood_ >= truths.DENSE.log_density(torch.tensor(x), torch.tensor(y)).sum()
    assert found.log_likelihood_ == pytest.approx(found.log_density(x, y).sum(), abs=1e-6)
    assert found.converged_ and not found.at_bound_ and found.n_dormant_ == 0 and found.n_iter_ > 1
    assert found.score(x, y) == pytest.approx(r2_score(y, found.predict(x)))
    pi = found.predict_proba(x)
    assert pi.shape == (2000, 2)
    np.testing.assert_allclose(pi.sum(1), 1, atol=1e-12)
    lines = x * found.model_.a[:, 0].numpy() + found.model_.b.numpy()
    np.testing.assert_allclose(found.predict(x), (pi * lines).sum(1), atol=1e-12)


def test_samples_follow_the_model():
    x, y = two_lines()
    found = GaussianMoERegressor(random_state=0).fit(x, y)
    at = np.full((20_000, 1), 0.3)
    drawn = found.sample(at, random_state=1)
    pi, line = found.predict_proba(at[:1])[0], 0.3 * found.model_.a[:, 0].numpy() + found.model_.b.numpy()
    mean = (pi * line).sum()
    variance = (pi * (line**2 + found.model_.variance.numpy())).sum() - mean**2
    assert abs(drawn.mean() - mean) < 5 * np.sqrt(variance / 20_000)
    assert drawn.var() == pytest.approx(variance, rel=0.05)
    np.testing.assert_array_equal(drawn, found.sample(at, random_state=1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2, "n_experts": 3},
        {"top_k": 2, "n_experts": 3, "rank": "slope"},
        {"activation": "tanh", "free_tau": True},
    ],
)
def test_units_do_not_matter(options):
    """y in other units, from another zero; x in other units, and from another zero where the gate has room for it."""
    x, y = two_lines(200)
    options = {"max_iter": 30, "n_init": 2, **options}
    shift = 0 if options.get("rank") == "slope" or "activation" in options else 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = GaussianMoERegressor(random_state=3, **options).fit(x, y)
        theirs = clone(ours).fit(1000 * x + shift, 50 * y - 3)
    np.testing.assert_allclose(theirs.predict(1000 * x + shift), 50 * ours.predict(x) - 3, rtol=1e-3, atol=1e-2)
    assert theirs.log_likelihood_ == pytest.approx(ours.log_likelihood_ - 200 * np.log(50), abs=1e-3)


def test_it_works_in_searches_and_pipelines():
    x, y = two_lines(200)
    search = GridSearchCV(GaussianMoERegressor(n_init=3, random_state=0), {"n_experts": [1, 2]}, cv=3).fit(x, y)
    assert search.best_params_ == {"n_experts": 2}
    piped = make_pipeline(StandardScaler(), GaussianMoERegressor(random_state=0)).fit(x, y)
    np.testing.assert_allclose(piped.predict(x), GaussianMoERegressor(random_state=0).fit(x, y).predict(x), atol=1e-3)


def test_one_expert_is_least_squares():
    x, y = two_lines(200)
    found = GaussianMoERegressor(1, n_init=1).fit(x, y)
    slope, intercept = np.polyfit(x[:, 0], y, 1)
    np.testing.assert_allclose([found.model_.a[0, 0], found.model_.b[0]], [slope, intercept], rtol=1e-6)
    np.testing.assert_allclose(found.model_.variance, np.mean((y - slope * x[:, 0] - intercept) ** 2), rtol=1e-6)


def test_a_seed_decides_the_result():
    x, y = two_lines(100)
    first, second = (GaussianMoERegressor(3, n_init=2, random_state=5).fit(x, y) for _ in range(2))
    assert first.model_.b.equal(second.model_.b)


RNG = np.random.default_rng(0)
LINE = np.linspace(-1, 1, 60)


@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.full((60, 1), 3.0), RNG.normal(size=60)),
        (RNG.normal(size=(60, 2)), np.full(60, 1e8)),
        (np.full((60, 1), 0.1), np.full(60, 0.1)),
        (np.repeat([[-1.0], [0], [1]], 20, 0), np.repeat([1.0, 0, 1], 20)),
        (LINE[:, None], 3 * LINE + 1),
        (LINE[:, None], np.r_[np.zeros(30), RNG.normal(size=30)]),
        (LINE[:3, None], LINE[:3]),
        (np.c_[LINE, LINE, 2 * LINE], RNG.normal(size=60)),
    ],
    ids=["constant x", "constant y", "both", "duplicates", "on a line", "half without noise", "n = k", "collinear"],
)
def test_degenerate_data_end_in_finite_predictions(x, y, top_k):
    found = GaussianMoERegressor(3, top_k=top_k, n_init=2, max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit(x, y)
    for values in (found.predict(x), found.predict_proba(x), found.log_density(x, y), found.sample(x, 0)):
        assert np.isfinite(values).all()
    assert (found.model_.variance > 0).all()
    assert np.isfinite(found.score(x, y))


def test_no_convergence_is_said():
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        found = GaussianMoERegressor(max_iter=1).fit(*two_lines(100))
    assert not found.converged_
