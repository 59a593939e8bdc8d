"""The model against definitions written out with loops, integrals, limits and symmetries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from gated.gaussian_moe import Gate, GaussianMoE, truths
from gated.kernels.gmoe_em import ACTIVATIONS

ALL = {
    "dense": truths.DENSE,
    "sparse": truths.SPARSE,
    "top1": truths.TOP1,
    "temperature": truths.TEMPERATURE,
    "tanh": truths.temperature_truth("tanh"),
    "sigmoid": truths.temperature_truth("sigmoid"),
}
models = pytest.mark.parametrize("model", ALL.values(), ids=ALL.keys())
X = torch.arange(-20, 21, dtype=torch.float64)[:, None] / 20


def by_hand(model: GaussianMoE, x: float, y: float) -> tuple[list[float], float]:
    """The gate and the density at one point, from the definition."""
    value = ACTIVATIONS[model.gate.activation].value
    k = model.num_experts
    score = [float(value(model.beta1[i, 0] * x)) for i in range(k)]
    logit = [(score[i] + float(model.beta0[i])) / float(model.tau) for i in range(k)]
    by = score if model.gate.rank == "slope" else logit
    kept = sorted(range(k), key=lambda i: (-by[i], i))[: model.gate.top_k or k]
    weight = [math.exp(logit[i] - max(logit)) if i in kept else 0.0 for i in range(k)]
    pi = [w / sum(weight) for w in weight]
    density = 0.0
    for i in range(k):
        error, variance = y - float(model.a[i, 0]) * x - float(model.b[i]), float(model.variance[i])
        density += pi[i] * math.exp(-(error**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return pi, density


@models
def test_gate_and_density_follow_the_definition(model):
    for x, y in [(-0.9, 1.0), (-0.2, 0.3), (0.0, 0.0), (0.31, 5.0), (0.33, 8.0), (1.0, -5.0)]:
        pi, density = by_hand(model, x, y)
        at, out = torch.tensor([[x]], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
        assert model.log_gate(at).exp()[0].tolist() == pytest.approx(pi, abs=1e-14)
        assert model.log_density(at, out).exp().item() == pytest.approx(density, rel=1e-11, abs=1e-300)
        mean = sum(p * (float(a) * x + float(b)) for p, a, b in zip(pi, model.a[:, 0], model.b, strict=True))
        assert model.mean(at).item() == pytest.approx(mean, abs=1e-12)


@models
def test_the_density_integrates_to_one_and_has_the_mean(model):
    for x in (-0.6, 0.05, 0.32, 0.9):
        at = torch.tensor([[x]], dtype=torch.float64)
        density = lambda y, at=at: model.log_density(at, torch.tensor([y], dtype=torch.float64)).exp().item()  # noqa: E731
        peaks = model.means(at)[0].tolist()
        low, high = min(peaks) - 6, max(peaks) + 6
        near = {"points": [p + s for p in peaks for s in (-2, 0, 2)], "limit": 200, "epsabs": 1e-8, "epsrel": 1e-8}
        assert quad(density, low, high, **near)[0] == pytest.approx(1, abs=1e-7)
        mean = quad(lambda y: y * density(y), low, high, **near)[0]  # noqa: B023
        assert model.mean(at).item() == pytest.approx(mean, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["slope", "logit"]), st.booleans())
def test_selected_is_a_sort(seed, k, top_k, rank, ties):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    beta0, beta1 = draw(k), draw(k, 2)
    if ties:
        beta0, beta1 = beta0.round(), beta1.round()
    model = GaussianMoE(
        beta0, beta1, draw(k, 2), draw(k), draw(k).exp(), torch.tensor(0.7).double(), Gate(min(top_k, k), rank)
    )
    x = draw(6, 2).round()
    by = x @ beta1.T if rank == "slope" else (x @ beta1.T + beta0) / 0.7
    for row, score in zip(model.selected(x).tolist(), by.tolist(), strict=True):
        want = sorted(range(k), key=lambda i, score=score: (-score[i], i))[: min(top_k, k)]
        assert [i for i in range(k) if row[i]] == sorted(want)


def test_ranking_by_slope_and_by_logit_differ_as_stated():
    """Slopes 25 and 0 on x > 0: by slope expert 1 always; by logit expert 1 from 8 / 25 on."""
    x = torch.linspace(0.001, 1, 500, dtype=torch.float64)[:, None]
    by_slope = truths.DENSE.with_gate(Gate(1, "slope")).selected(x)
    assert by_slope[:, 0].all() and not by_slope[:, 1].any()
    assert truths.TOP1.selected(x)[:, 0].equal(x[:, 0] >= 8 / 25)
    sparse = truths.SPARSE.selected(X)
    assert sparse[X[:, 0] > 0].tolist() == [[True, False, True]] * 20
    assert sparse[X[:, 0] < 0].tolist() == [[False, True, True]] * 20


@pytest.mark.parametrize("name", ["identity", "tanh", "sigmoid"])
def test_limits_of_the_temperature(name):
    model = truths.temperature_truth(name)
    x = X[X[:, 0].abs() > 0.2]
    logits = model.logits(x)
    cold = replace(model, tau=torch.tensor(1e-4, dtype=torch.float64)).log_gate(x).exp()
    apart = (logits[:, 0] - logits[:, 1]).abs() > 0.1
    assert cold[apart].argmax(1).equal(logits[apart].argmax(1))
    torch.testing.assert_close(cold[apart].amax(1), torch.ones(int(apart.sum())).double())
    hot = replace(model, tau=torch.tensor(1e6).double()).log_gate(x).exp()
    torch.testing.assert_close(hot, torch.full_like(hot, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "degree"), [(n, a.degree) for n, a in ACTIVATIONS.items()])
def test_the_ray_is_a_symmetry_of_homogeneous_activations_only(name, degree):
    """(beta_1, beta_0, tau) -> (c^(1/p) beta_1, c beta_0, c tau)."""
    model, c = truths.temperature_truth(name), 7.3
    moved = replace(model, beta1=c ** (1 / (degree or 1)) * model.beta1, beta0=c * model.beta0, tau=c * model.tau)
    difference = (moved.log_gate(X).exp() - model.log_gate(X).exp()).abs().max()
    assert difference < 1e-14 if degree else difference > 0.01


@models
def test_translations_and_permutations(model):
    y = torch.linspace(-3, 3, 41, dtype=torch.float64)
    if model.gate.activation == "identity":
        shifted = replace(model, beta0=model.beta0 + 1.7, beta1=model.beta1 - 0.4)
        torch.testing.assert_close(shifted.log_density(X, y), model.log_density(X, y), rtol=1e-10, atol=1e-10)
    away = X[:, 0] != 0  # at 0 all slopes tie
    turned = model.map(lambda tensor: tensor.flip(0) if tensor.dim() else tensor)
    torch.testing.assert_close(turned.log_density(X, y)[away], model.log_density(X, y)[away], rtol=1e-12, atol=1e-12)
    full = model.with_gate(Gate(model.num_experts, "slope", model.gate.activation))
    dense = model.with_gate(Gate(activation=model.gate.activation))
    assert full.log_gate(X).equal(dense.log_gate(X))
    one = model.with_gate(Gate(1, "logit", model.gate.activation))
    assert one.log_gate(X).exp().sort(1).values[:, -1].eq(1).all() and (one.log_gate(X) > -math.inf).sum(1).eq(1).all()


@models
def test_samples_follow_the_gate_and_the_experts(model):
    n = 40_000
    for x in (-0.5, 0.3, 0.8):
        at = torch.full((n, 1), x, dtype=torch.float64)
        drawn = model.sample(at, torch.Generator().manual_seed(1))
        assert drawn.equal(model.sample(at, torch.Generator().manual_seed(1)))
        pi, mean = model.log_gate(at[:1]).exp()[0], model.means(at[:1])[0]
        # The nearest of the means is the expert that made a point, where the means are many deviations apart.
        live = pi > 0
        expected = (pi * mean).sum()
        variance = (pi * (model.variance + mean.square())).sum() - expected.square()
        assert abs(drawn.mean() - expected) < 5 * (variance / n).sqrt()
        fourth = pi[live] * (
            3 * model.variance[live].square() + 6 * model.variance[live] * (mean[live] - expected) ** 2
        )
        fourth = (fourth + pi[live] * (mean[live] - expected) ** 4).sum()
        assert abs(drawn.var() - variance) < 5 * ((fourth - variance.square()) / n).sqrt()


def test_many_models_are_each_by_itself():
    model = truths.SPARSE.expand(4, 3)
    assert model.models == (4, 3) and model.num_experts == 3 and model.dim == 1
    scaled = replace(model, b=model.b * torch.arange(12).view(4, 3, 1))
    x, y = X.expand(4, 3, 41, 1), torch.zeros(4, 3, 41, dtype=torch.float64)
    together = scaled.log_density(x, y)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(scaled[i, j].log_density(X, y[0, 0]), together[i, j], rtol=1e-13, atol=1e-13)
    assert scaled[1:3, 0].models == (2,)
    assert truths.SPARSE.free_parameters() == 13 and truths.DENSE.free_parameters() == 8
    assert truths.TEMPERATURE.free_parameters(free_tau=True) == 9
    assert (
        truths.DENSE.map(lambda tensor: tensor.float()).log_density(X.float(), X[:, 0].float()).dtype == torch.float32
    )
