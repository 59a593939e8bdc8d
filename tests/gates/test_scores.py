"""Scores from features against scipy's densities, closed forms and each other's limits."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gated import gates as g


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, MEAN, PRIOR = normal(7, 3), normal(4, 3, seed=1), normal(4, seed=2).log_softmax(0)
FACTOR = normal(4, 3, 3, seed=3).tril(-1) + torch.diag_embed(normal(4, 3, seed=4).abs() + 0.3)
SCALES = {"spherical": FACTOR[:, 0, 0], "diagonal": FACTOR.diagonal(dim1=1, dim2=2), "full": FACTOR}


def covariance(scale):
    if scale.ndim == 3:
        return scale @ scale.mT
    return torch.diag_embed(scale.square() if scale.ndim == 2 else scale.square()[:, None].expand(4, 3))


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_gaussian_and_student_densities_are_scipys(scale):
    sigma = covariance(scale).numpy()
    gaussian = [stats.multivariate_normal(MEAN[j], sigma[j]).logpdf(X) for j in range(4)]
    expected = torch.from_numpy(np.stack(gaussian, -1)) + PRIOR
    torch.testing.assert_close(g.gaussian_logits(X, MEAN, scale, PRIOR), expected, rtol=1e-12, atol=1e-12)
    freedom = torch.tensor([0.7, 1.0, 3.0, 50.0], dtype=torch.float64)
    student = [stats.multivariate_t(MEAN[j], sigma[j], df=freedom[j].item()).logpdf(X) for j in range(4)]
    expected = torch.from_numpy(np.stack(student, -1))
    torch.testing.assert_close(g.student_t_logits(X, MEAN, scale, freedom), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_student_with_a_million_degrees_is_gaussian(scale):
    gaussian = g.gaussian_logits(X, MEAN, scale, PRIOR)
    student = g.student_t_logits(X, MEAN, scale, 1e6, PRIOR)
    error = g.gaussian_logits(X, MEAN, scale).abs().max() ** 2 / 1e6  # m^4 / 4v
    assert (student - gaussian).abs().max() < error
    assert not torch.allclose(g.student_t_logits(X, MEAN, scale, 10, PRIOR), gaussian, atol=error.item())


def test_students_constant_is_smooth_where_its_series_takes_over():
    below, above = (g.student_t_logits(X, MEAN, FACTOR, v) for v in (1e4 * (1 - 1e-9), 1e4 * (1 + 1e-9)))
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


@pytest.mark.parametrize("features", [1, 2, 4, 7])
@pytest.mark.parametrize("freedom", [0.7, 9_999.0, 10_001.0, 15_000.0, 1e6])
def test_students_density_on_both_sides_of_its_series(features, freedom):
    """A number of degrees of freedom counts in the precision of x."""
    x, mean, one = normal(3, features), normal(2, features, seed=5), torch.ones(2, dtype=torch.float64)
    expected = torch.from_numpy(np.stack([stats.multivariate_t(m, df=freedom).logpdf(x) for m in mean.numpy()], -1))
    found = g.student_t_logits(x, mean, one, freedom)
    torch.testing.assert_close(found, expected.reshape(3, 2), rtol=0, atol=1e-12 if freedom < 1 else 1e-6)


def test_shared_covariance_gives_linear_logits():
    shared = FACTOR[:1].expand(4, 3, 3)
    inverse = torch.linalg.inv(shared[0] @ shared[0].T)
    linear = X @ inverse @ MEAN.T - (MEAN @ inverse * MEAN).sum(-1) / 2 + PRIOR
    difference = g.gaussian_logits(X, MEAN, shared, PRIOR) - linear
    torch.testing.assert_close(difference, difference[:, :1].expand(7, 4), rtol=0, atol=1e-12)
    found = g.softmax_gate(g.gaussian_logits(X, MEAN, shared, PRIOR))
    torch.testing.assert_close(found, g.softmax_gate(linear), rtol=0, atol=1e-12)


def test_cosine_by_the_formula():
    by_hand = torch.nn.functional.cosine_similarity(X[:, None], MEAN[None], dim=-1)
    torch.testing.assert_close(g.cosine_logits(X, MEAN, 7.0), 7 * by_hand, rtol=1e-13, atol=1e-13)
    lengths = (X.norm(dim=-1)[:, None] + 0.3) * (MEAN.norm(dim=-1) + 0.2)
    perturbed = g.cosine_logits(X, MEAN, perturbation=(0.3, 0.2))
    torch.testing.assert_close(perturbed, X @ MEAN.T / lengths, rtol=1e-13, atol=1e-13)


def test_cosine_does_not_see_the_length_of_x_and_the_others_do():
    torch.testing.assert_close(g.cosine_logits(10 * X, MEAN), g.cosine_logits(X, MEAN), rtol=0, atol=1e-14)
    for other in (
        lambda x: g.cosine_logits(x, MEAN, perturbation=(0.3, 0)),
        lambda x: g.gaussian_logits(x, MEAN, FACTOR),
        lambda x: g.student_t_logits(x, MEAN, FACTOR, 3),
        lambda x: g.laplace_logits(x, MEAN),
    ):
        assert not torch.allclose(other(10 * X), other(X), atol=1e-2)


def test_zero_vectors_score_zero_with_finite_gradients():
    x, e = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    logits = g.cosine_logits(x, e)
    assert torch.equal(logits, torch.zeros(2, 4))
    logits.sum().backward()
    assert x.grad.isfinite().all()
    at_centre = torch.ones(1, 3, requires_grad=True)
    g.laplace_logits(at_centre, torch.ones(2, 3)).sum().backward()
    assert torch.equal(at_centre.grad, torch.zeros(1, 3))


def test_laplace_is_minus_the_distance():
    by_hand = [[-math.dist(x, a) / 0.4 for a in MEAN.tolist()] for x in X.tolist()]
    found = g.laplace_logits(X, MEAN, torch.tensor(0.4, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-13, atol=0)


FUNCTIONS = {
    "cosine": lambda x, m, s: g.cosine_logits(x, m, s[0, 0, 0], perturbation=(0.1, 0.1)),
    "gaussian": lambda x, m, s: g.gaussian_logits(x, m, s),
    "diagonal": lambda x, m, s: g.gaussian_logits(x, m, s.diagonal(dim1=1, dim2=2)),
    "spherical": lambda x, m, s: g.gaussian_logits(x, m, s[:, 0, 0]),
    "student": lambda x, m, s: g.student_t_logits(x, m, s, s[:, 1, 1]),
    "laplace": lambda x, m, s: g.laplace_logits(x, m, s[0, 0, 0]),
}


@pytest.mark.parametrize("score", FUNCTIONS.values(), ids=FUNCTIONS)
def test_gradients_batches_and_dtype(score):
    inputs = [t.clone().requires_grad_() for t in (X[:2], MEAN, FACTOR)]
    assert torch.autograd.gradcheck(lambda x, m, s: score(x, m, s.tril()), inputs)
    batched = score(X[:6].reshape(2, 3, 3), MEAN, FACTOR)
    torch.testing.assert_close(batched.reshape(6, 4), score(X[:6], MEAN, FACTOR), rtol=0, atol=1e-13)
    assert score(X[:0], MEAN, FACTOR).shape == (0, 4)
    single = score(X.float(), MEAN.float(), FACTOR.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), score(X, MEAN, FACTOR), rtol=1e-4, atol=1e-4)
    if score is not FUNCTIONS["cosine"]:  # far away the log stays finite where the density is 0
        assert score(1e6 * X, MEAN, FACTOR).isfinite().all()
