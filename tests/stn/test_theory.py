"""Theorem 1 against a direct solve, scikit-learn, exact arithmetic and limits; hypergradients; Theorem 2."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from sklearn.linear_model import Ridge

from gated.stn import theory


def rng(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def with_spectrum(n, d, seed):
    """X = U diag(d) P^T with random orthonormal U [n, len(d)] and P."""
    u = torch.linalg.qr(normal(n, len(d), seed=seed)).Q
    p = torch.linalg.qr(normal(len(d), len(d), seed=seed + 1)).Q
    return (u * d) @ p.T


def relative(a, b):
    return float((a - b).norm() / b.norm())


PENALTIES = [-12.0, -6.0, -1.0, 0.0, 2.0, 5.0, 12.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 16), st.floats(-12, 12))
def test_theorem_holds_to_rounding(seed, n, inputs, lam):
    x, t = normal(n, inputs, seed=seed), normal(n, seed=seed + 1)
    d = torch.linalg.svdvals(x)
    spread = float(d[0]) / max(float(d[-1]) if n >= inputs else 0.0, math.exp(lam / 2))  # of [X; exp(lambda / 2) I]
    tolerance = max(1e-12, 4e-16 * spread**2)
    assert tolerance < 1e-8
    response = theory.sigmoid_response(x, t)
    u = response.weights(lam)
    assert relative(u, theory.ridge_response(x, t, lam)) < tolerance


@pytest.mark.parametrize("lam", PENALTIES)
def test_well_conditioned_to_1e_12(lam):
    x, t = with_spectrum(200, torch.logspace(1, -1.5, 16, dtype=torch.float64), seed=3), normal(200, seed=5)
    u = theory.sigmoid_response(x, t).weights(lam)
    assert relative(u, theory.ridge_response(x, t, lam)) < 1e-12
    oracle = Ridge(alpha=math.exp(lam), fit_intercept=False, solver="svd").fit(x.numpy(), t.numpy())
    assert relative(u, torch.from_numpy(oracle.coef_)) < 1e-12


@pytest.mark.parametrize("lam", PENALTIES)
@pytest.mark.parametrize("low", [-0.85, -2.0])
def test_ill_conditioned(lam, low):
    d = torch.logspace(1.8, low, 16, dtype=torch.float64)  # 63 to 0.14 as in the worst spectrum of data, or to 0.01
    x, t = with_spectrum(200, d, seed=3), normal(200, seed=5)
    assert relative(theory.sigmoid_response(x, t).weights(lam), theory.ridge_response(x, t, lam)) < 1e-10


def solved_with_60_digits(x, t, lam):
    with mpmath.workdps(60):
        rows = mpmath.matrix(x.tolist())
        gram = rows.T * rows + mpmath.exp(mpmath.mpf(lam)) * mpmath.eye(x.shape[1])
        u = mpmath.lu_solve(gram, rows.T * mpmath.matrix(t.tolist()))
        return torch.tensor([float(v) for v in u], dtype=torch.float64)


@pytest.mark.parametrize("lam", PENALTIES)
@pytest.mark.parametrize(("n", "inputs", "rank"), [(60, 12, 7), (5, 12, 5), (30, 12, 1)])
def test_rank_deficient(lam, n, inputs, rank):
    """Integers, so that the rank is exact; in float64 the direct solve loses 8 digits where exp(lambda) is small."""
    x = (4 * normal(n, rank, seed=1)).round() @ (4 * normal(rank, inputs, seed=2)).round()
    t = normal(n, seed=3)
    response = theory.sigmoid_response(x, t)
    assert int(response.threshold.isfinite().sum()) == rank
    torch.testing.assert_close(response.basis @ response.basis.T, torch.eye(inputs, dtype=torch.float64))
    assert relative(response.weights(lam), solved_with_60_digits(x, t, lam)) < 1e-12
    assert relative(theory.ridge_response(x, t, lam), solved_with_60_digits(x, t, lam)) < (1e-10 if lam >= -1 else 1e-4)
    assert response.jacobian(lam).isfinite().all()


@pytest.mark.parametrize("lam", PENALTIES)
def test_ill_conditioned_to_1e_10(lam):
    """A condition of 6e5 in X, 4e11 in X^T X."""
    d = torch.logspace(1.8, -4, 8, dtype=torch.float64)
    x, t = with_spectrum(40, d, seed=3), normal(40, seed=5)
    assert relative(theory.sigmoid_response(x, t).weights(lam), solved_with_60_digits(x, t, lam)) < 1e-10


def test_no_spread_at_all():
    x, t = torch.zeros(4, 3, dtype=torch.float64), normal(4, seed=0)
    assert not theory.sigmoid_response(x, t).weights(0.0).any()


def test_gates_are_the_closed_form():
    x, t = normal(50, 6, seed=0), normal(50, seed=1)
    response = theory.sigmoid_response(x, t)
    d = torch.linalg.svdvals(x)
    lam = torch.tensor(PENALTIES, dtype=torch.float64)
    expected = d**2 / (d**2 + lam.exp()[:, None])
    torch.testing.assert_close(response.gates(lam), expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(response.gates(2 * float(d[2].log()))[2], torch.tensor(0.5, dtype=torch.float64))
    assert (response.slope == -1).all()


def test_limits():
    x, t = normal(50, 6, seed=0), normal(50, seed=1)
    response = theory.sigmoid_response(x, t)
    ols = torch.linalg.lstsq(x, t[:, None]).solution[:, 0]
    torch.testing.assert_close(response.weights(-60.0), ols)
    assert relative(response.weights(40.0), math.exp(-40) * x.T @ t) < 1e-12
    torch.testing.assert_close(response.basis.T @ response.readout, ols)


def test_minimises_the_networks_own_loss():
    """The gradient in (Q, s) vanishes at the gated network, and at every network of its orbit."""
    x, t = normal(40, 5, seed=0), normal(40, seed=1)
    response = theory.sigmoid_response(x, t)
    for lam in (-3.0, 0.0, 4.0):
        q, s = response.gates(lam)[:, None] * response.basis, response.readout
        mix = normal(5, 5, seed=7) + 3 * torch.eye(5, dtype=torch.float64)
        twin = torch.linalg.solve(mix.T, q), mix @ s
        torch.testing.assert_close(twin[0].T @ twin[1], q.T @ s, rtol=1e-12, atol=1e-13)
        best = theory.jacobian_loss(q, s, x, t, lam)
        for a, b in ((q, s), twin):
            a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
            loss = theory.jacobian_loss(a, b, x, t, lam)
            torch.testing.assert_close(loss, best)
            assert all(float(g.abs().max()) < 1e-10 for g in torch.autograd.grad(loss, (a, b)))
        for i in range(20):
            assert theory.jacobian_loss(q + 0.1 * normal(5, 5, seed=i), s, x, t, lam) > best


def test_jacobian_penalty_is_the_jacobian():
    """exp(lambda) / N |dy/dx|^2, the derivative taken by autograd for each example."""
    x, t, q, s = normal(7, 4, seed=0), normal(7, seed=1), normal(4, 4, seed=2), normal(4, seed=3)
    loss = 0.0
    for a, b in zip(x, t, strict=True):
        a = a.clone().requires_grad_()
        y = s @ (q @ a)
        loss += (y - b) ** 2 + math.exp(0.3) / 7 * torch.autograd.grad(y, a, retain_graph=True)[0].square().sum()
    torch.testing.assert_close(theory.jacobian_loss(q, s, x, t, 0.3), loss.detach())


def test_response_jacobian():
    x, t = normal(60, 8, seed=0), normal(60, seed=1)
    response = theory.sigmoid_response(x, t)
    for lam in PENALTIES:
        u = response.weights(lam)
        implicit = -torch.linalg.solve(x.T @ x + math.exp(lam) * torch.eye(8, dtype=torch.float64), math.exp(lam) * u)
        assert relative(response.jacobian(lam), implicit) < 1e-12
    h = 1e-5
    numeric = (response.weights(1 + h) - response.weights(1 - h)) / (2 * h)
    assert relative(response.jacobian(1.0), numeric) < 1e-8


def test_tangent_error_bound():
    response = theory.sigmoid_response(
        with_spectrum(50, torch.logspace(1, -1, 6, dtype=torch.float64), 0), normal(50, seed=1)
    )
    at = torch.linspace(-4, 4, 9, dtype=torch.float64)
    far = torch.linspace(-3, 3, 61, dtype=torch.float64)
    worst = 0.0
    for lam in at.tolist():
        intercept, slope = response.tangent(lam)
        where = lam + far
        miss = (response.gates(where) - intercept - slope * where[:, None]).abs()
        bound = far[:, None] ** 2 / (12 * math.sqrt(3))
        assert (miss <= bound + 1e-14).all()
        worst = max(worst, float((miss / bound.clamp(min=1e-9)).max()))
    assert worst > 0.9  # the bound is nearly reached somewhere


# Hypergradients ----------------------------------------------------------------------------------------------------


def ridge_problem(seed=0, d=None, n=60):
    inputs = 8
    x = normal(n, inputs, seed=seed) if d is None else with_spectrum(n, d, seed)
    t, xv, tv = normal(n, seed=seed + 1), normal(40, x.shape[1], seed=seed + 2), normal(40, seed=seed + 3)

    def train(w, lam):
        return 0.5 * ((x @ w - t).square().sum() + lam[0].exp() * w.square().sum())

    def validate(w, lam):
        return 0.5 * (xv @ w - tv).square().mean()

    def exact(lam):
        u = theory.sigmoid_response(x, t)
        return float((xv @ u.jacobian(lam)) @ (xv @ u.weights(lam) - tv) / len(tv))

    return x, t, train, validate, exact


@pytest.mark.parametrize("lam", [-3.0, 0.0, 3.0])
def test_implicit_hypergradient(lam):
    x, t, train, validate, exact = ridge_problem()
    at = torch.tensor([lam], dtype=torch.float64)
    w = theory.ridge_response(x, t, lam)
    found = theory.implicit_hypergradient(train, validate, w, at, iterations=20)
    assert float(found[0]) == pytest.approx(exact(lam), rel=1e-10)
    outcome = lambda a: validate(theory.ridge_response(x, t, float(a)), a)  # noqa: E731
    assert float(theory.difference_hypergradient(outcome, at, 1e-5)[0]) == pytest.approx(exact(lam), rel=1e-6)


def test_implicit_hypergradient_by_complex_step():
    """L_V of the solve along an imaginary step, which has no cancellation."""
    x, t, train, validate, exact = ridge_problem()
    xv, tv = normal(40, 8, seed=2).numpy(), normal(40, seed=3).numpy()
    h = 1e-30
    gram = x.numpy().T @ x.numpy() + np.exp(0.7 + 1j * h) * np.eye(8)
    e = xv @ np.linalg.solve(gram, x.numpy().T @ t.numpy()) - tv
    value = 0.5 * (e * e).mean()
    assert value.imag / h == pytest.approx(exact(0.7), rel=1e-12)
    found = theory.implicit_hypergradient(
        train, validate, theory.ridge_response(x, t, 0.7), torch.tensor([0.7], dtype=torch.float64), iterations=20
    )
    assert value.imag / h == pytest.approx(float(found[0]), rel=1e-11)


def test_implicit_hypergradient_has_the_direct_term_and_damping():
    a = torch.diag(torch.tensor([2.0, 5.0], dtype=torch.float64))
    train = lambda w, lam: 0.5 * w @ a @ w - w @ lam  # noqa: E731  (w* = A^-1 lambda)
    validate = lambda w, lam: w.sum() + 3 * lam.sum()  # noqa: E731
    lam = torch.tensor([0.3, -0.2], dtype=torch.float64)
    w = lam / a.diagonal()
    torch.testing.assert_close(
        theory.implicit_hypergradient(train, validate, w, lam, iterations=5), 1 / a.diagonal() + 3
    )
    damped = theory.implicit_hypergradient(train, validate, w, lam, iterations=5, damping=1.0)
    torch.testing.assert_close(damped, 1 / (a.diagonal() + 1) + 3)


def test_implicit_hypergradient_under_vmap():
    x, t, train, validate, _ = ridge_problem()
    lams = torch.tensor([[-2.0], [0.0], [1.0]], dtype=torch.float64)
    w = torch.stack([theory.ridge_response(x, t, float(lam)) for lam in lams])
    many = torch.func.vmap(lambda a, b: theory.implicit_hypergradient(train, validate, a, b, iterations=12))(w, lams)
    one = torch.stack([theory.implicit_hypergradient(train, validate, a, b, iterations=12) for a, b in zip(w, lams)])  # noqa: B905
    torch.testing.assert_close(many, one)


def test_unrolled_converges_from_below():
    """Too few steps give a hypergradient that is too small here, as (1 - eta H)^K takes long in the flat directions."""
    d = torch.logspace(1, 0, 8, dtype=torch.float64)
    _, _, train, validate, exact = ridge_problem(d=d)
    at = torch.zeros(1, dtype=torch.float64)
    rate = 1 / (float(d[0]) ** 2 + 1)
    start = torch.zeros(8, dtype=torch.float64)
    found = [
        float(theory.unrolled_hypergradient(train, validate, start, at, steps=k, rate=rate)[0]) / exact(0.0)
        for k in (1, 10, 50, 1000)
    ]
    assert abs(found[-1] - 1) < 1e-8
    assert abs(found[0]) < abs(found[1]) < abs(found[2]) < 1


def test_unrolled_is_the_derivative_of_the_recursion():
    """Against the recursion for w_K and its derivative written out, J <- J - eta (H J + e^lambda w)."""
    x, t, train, validate, _ = ridge_problem()
    lam, rate, steps = 0.4, 0.004, 15
    hessian = x.T @ x + math.exp(lam) * torch.eye(8, dtype=torch.float64)
    w, j = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for _ in range(steps):
        w, j = w - rate * (hessian @ w - x.T @ t), j - rate * (hessian @ j + math.exp(lam) * w)
    at = torch.tensor([lam], dtype=torch.float64)
    slope = torch.func.grad(validate)(w, at)
    found = theory.unrolled_hypergradient(
        train, validate, torch.zeros(8, dtype=torch.float64), at, steps=steps, rate=rate
    )
    assert float(found[0]) == pytest.approx(float(slope @ j), rel=1e-11)


# The affine fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "centre", "slope"),
    [
        (0.1, 0.50000, -0.24938),
        (0.25, 0.5, -0.24609),
        (0.5, 0.49992, -0.23443),
        (1, 0.49599, -0.19029),
        (2, 0.37971, -0.07394),
    ],
)
def test_affine_ridge_figures(sigma, centre, slope):
    one = torch.ones((), dtype=torch.float64)
    fit = theory.affine_ridge_response(one, one, 0.0, sigma)
    assert float(fit.centre) == pytest.approx(centre, abs=6e-6)
    assert float(fit.jacobian) == pytest.approx(slope, abs=6e-6)


def test_affine_ridge_delta_has_the_exact_centre():
    one = torch.ones((), dtype=torch.float64)
    fit = theory.affine_ridge_response(one, one, 0.0, 1, "delta")
    assert float(fit.centre) == 0.5
    assert float(fit.jacobian) == pytest.approx(-0.1918, abs=5e-5)


@pytest.mark.parametrize("method", ["stn", "delta"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.7])
def test_affine_ridge_against_numerical_integrals(method, sigma):
    """The normal equations of the fit with its moments E e^eps eps^k integrated by scipy."""
    a, b, lam = 0.7, 1.3, -0.4
    density = lambda e: math.exp(-e * e / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))  # noqa: E731
    m0, m1, m2 = (
        integrate.quad(lambda e, k=k: math.exp(e) * e**k * density(e), -14 * sigma, 14 * sigma, epsabs=1e-13)[0]
        for k in range(3)
    )
    r = math.exp(lam)
    if method == "stn":
        w, j = np.linalg.solve([[a + r * m0, r * m1], [r * m1, a * sigma**2 + r * m2]], [b, 0])
    else:
        w = b / (a + r)
        j = -r * m1 * w / (a * sigma**2 + r * m2)
    double = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    fit = theory.affine_ridge_response(double(a), double(b), lam, sigma, method)
    assert float(fit.centre) == pytest.approx(w, rel=1e-8)
    assert float(fit.jacobian) == pytest.approx(j, rel=1e-8)


def test_affine_ridge_against_weighted_least_squares():
    """A fit on a million samples, within its own error."""
    eps = 0.8 * normal(400_000, seed=0).numpy()
    weight = np.exp(eps) + 2.0
    design = np.stack([np.ones_like(eps), eps], 1)
    normal_matrix = design.T @ (weight[:, None] * design) / len(eps)
    w, j = np.linalg.solve(normal_matrix, design.mean(0) * 1.5)
    fit = theory.affine_ridge_response(torch.tensor(2.0), torch.tensor(1.5), 0.0, 0.8)
    assert float(fit.centre) == pytest.approx(w, abs=2e-3)
    assert float(fit.jacobian) == pytest.approx(j, abs=2e-3)


def test_affine_ridge_limit_is_the_truth_with_error_of_second_order():
    x, t = normal(30, 5, seed=0), normal(30, seed=1)
    response = theory.sigmoid_response(x, t)
    d2 = (response.threshold).exp()
    truth = response.basis @ response.weights(0.5), response.basis @ response.jacobian(0.5)
    exact = theory.affine_ridge_response(d2, d2 * response.readout, 0.5, 0)
    torch.testing.assert_close(exact.centre, truth[0])
    torch.testing.assert_close(exact.jacobian, truth[1])
    off = [
        float((theory.affine_ridge_response(d2, d2 * response.readout, 0.5, s).jacobian - truth[1]).norm())
        for s in (0.02, 0.04)
    ]
    assert off[1] / off[0] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_fit_affine_response_is_the_closed_form(sigma):
    a, b = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    train = lambda w, lam: (0.5 * (a + lam[0].exp()) * w * w - b * w).sum()  # noqa: E731
    at = torch.tensor([0.3], dtype=torch.float64)
    fit = theory.fit_affine_response(train, torch.zeros(3, dtype=torch.float64), at, sigma, nodes=40)
    closed = theory.affine_ridge_response(a, b, 0.3, sigma)
    torch.testing.assert_close(fit.centre, closed.centre, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fit.jacobian[:, 0], closed.jacobian, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.1, 1.0, 3.0]))
def test_theorem_2(seed, size, n, sigma):
    root, b, d = normal(size, size, seed=seed), normal(size, n, seed=seed + 1), normal(size, seed=seed + 2)
    a = root @ root.T + torch.eye(size, dtype=torch.float64)
    c = normal(n, n, seed=seed + 3)
    train = lambda w, lam: 0.5 * w @ a @ w + w @ (b @ lam + d) + lam @ c @ lam  # noqa: E731
    at = normal(n, seed=seed + 4)
    fit = theory.fit_affine_response(train, torch.zeros(size, dtype=torch.float64), at, sigma, nodes=4)
    best = -torch.linalg.solve(a, b @ at + d)
    torch.testing.assert_close(fit.centre, best, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fit.jacobian, -torch.linalg.solve(a, b), rtol=1e-10, atol=1e-10)


def test_equilibrium_scale():
    """sigma* minimises h sigma^2 / 2 - tau ln sigma, the expected quadratic loss less the entropy."""
    assert theory.equilibrium_scale(1e-3, 0.01) == pytest.approx(0.316, abs=5e-4)
    s = np.linspace(0.01, 2, 20_000)
    assert s[(0.3 * s**2 / 2 - 0.02 * np.log(s)).argmin()] == pytest.approx(
        theory.equilibrium_scale(0.02, 0.3), abs=2e-4
    )
    assert theory.equilibrium_scale(0, 1) == 0
    assert theory.equilibrium_scale(1e-3, -1) == math.inf
