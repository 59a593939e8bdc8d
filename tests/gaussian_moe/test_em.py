"""EM of Gaussian mixtures of experts, against autograd, least squares, statistics and symmetries."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gated.gaussian_moe import Gate, GaussianMoE, fit, starts, steps, truths
from gated.gaussian_moe.steps import Layout, step_from
from gated.kernels.gmoe_em import ACTIVATIONS, Points


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pack(x: Tensor, y: Tensor) -> Points:
    """x [datasets, n, dim], y [datasets, n]."""
    return Points.pack(x.flatten(0, 1), y.flatten(), torch.arange(0, y.numel() + 1, y.shape[1]))


def draw(truth: GaussianMoE, interval: tuple[float, float], n: int, datasets: int, seed: int = 0):
    g = generator(seed)
    x = truths.uniform(interval, datasets, n, generator=g)
    y = truth.expand(datasets).sample(x, g)
    return x, y, pack(x, y)


def random_model(datasets: int, k: int, d: int, gate: Gate, seed: int = 0, tau: float = 1.0) -> GaussianMoE:
    g = generator(seed)
    normal = lambda *shape: torch.randn(datasets, *shape, dtype=torch.float64, generator=g)  # noqa: E731
    beta0, beta1 = normal(k), normal(k, d)
    beta0[:, -1], beta1[:, -1] = 0, 0
    tau_ = torch.full((datasets,), tau, dtype=torch.float64)
    return GaussianMoE(beta0, beta1, 2 * normal(k, d), normal(k), 0.3 * (0.3 * normal(k)).exp(), tau_, gate)


def random_data(datasets: int, n: int, d: int, seed: int = 0):
    g = generator(seed)
    x = torch.randn(datasets, n, d, dtype=torch.float64, generator=g)
    return x, torch.randn(datasets, n, dtype=torch.float64, generator=g)


FORMS = [
    (Gate(), False),
    (Gate(), True),
    (Gate(2, "slope"), False),
    (Gate(2, "logit"), False),
    (Gate(1, "logit"), False),
    *[(Gate(activation=name), True) for name in ACTIVATIONS if name != "identity"],
]


# One step -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gate", "free_tau"), FORMS)
def test_the_gradient_is_autograds(gate, free_tau):
    x, y = random_data(3, 40, 2)
    layout = Layout(4, 2, gate)
    theta = layout.pack(random_model(3, 4, 2, gate, tau=0.7)).requires_grad_()
    (want,) = torch.autograd.grad(layout.unpack(theta).log_density(x, y).sum(), theta)
    theta = theta.detach()
    bounds = layout.bounds(theta, torch.full((3,), 1e-9, dtype=torch.float64), free_tau, 200.0, 1e-3)
    got = step_from(layout.statistics(pack(x, y), theta, False), layout, theta, bounds, free_tau).gradient
    free = bounds[0] < bounds[1]
    torch.testing.assert_close(got[free], want[free], rtol=1e-9, atol=1e-9)
    assert not got[~free].any()
    if gate.top_k == 1:  # what is not estimated has no gradient but rounding
        assert want[:, : layout.parts[0]].abs().max() < 1e-12


@pytest.mark.parametrize(("gate", "free_tau"), [form for form in FORMS if form[0].top_k != 1])
def test_the_gates_step_solves_fisher_scoring(gate, free_tau):
    """Its matrix is minus the expected Hessian of sum r log pi, where r is drawn from pi."""
    x, y = random_data(1, 60, 1)
    layout = Layout(3, 1, gate)
    theta = layout.pack(random_model(1, 3, 1, gate, tau=0.7))
    size = layout.parts[0]
    pi = layout.unpack(theta).log_gate(x).exp()
    r = (layout.unpack(theta).log_gate(x) + layout.unpack(theta).log_experts(x, y)).softmax(-1)

    def q(gate_part: Tensor, weights: Tensor) -> Tensor:
        log_pi = layout.unpack(torch.cat([gate_part, theta[:, size:]], 1)).log_gate(x)
        return torch.where(weights > 0, weights * log_pi, 0).sum()

    start = theta[:, :size]
    gradient = torch.autograd.functional.jacobian(lambda part: q(part, r), start)[0]
    information = -torch.autograd.functional.hessian(lambda part: q(part, pi), start)[0, :, 0]
    free = slice(0, size if free_tau else size - 1)
    bounds = layout.bounds(theta, torch.full((1,), 1e-9, dtype=torch.float64), free_tau, 200.0, 1e-3)
    step = step_from(layout.statistics(pack(x, y), theta, False), layout, theta, bounds, free_tau)
    left = information[free, free] @ step.em[0, :size][free]
    # What is missing is the ridge: at most 1e-6 n / tau^2 times the step.
    slack = 60 * (1e-6 if free_tau else 1e-8) / 0.49 * step.em[0, :size].norm()
    assert (left - gradient[free]).norm() <= slack + 1e-9


def test_the_experts_step_is_weighted_least_squares():
    x, y = random_data(2, 50, 3)
    model = random_model(2, 3, 3, Gate())
    got = fit(pack(x, y), model, max_iterations=1, min_variance=1e-9).model
    r = (model.log_gate(x) + model.log_experts(x, y)).softmax(-1)
    z = torch.cat([torch.ones_like(x[..., :1]), x], -1)
    for s in range(2):
        for i in range(3):
            root = r[s, :, i].sqrt()
            line = torch.linalg.lstsq(root[:, None] * z[s], (root * y[s])[:, None]).solution[:, 0]
            variance = (r[s, :, i] * (y[s] - z[s] @ line).square()).sum() / r[s, :, i].sum()
            torch.testing.assert_close(torch.cat([got.b[s, i, None], got.a[s, i]]), line, rtol=1e-7, atol=1e-8)
            torch.testing.assert_close(got.variance[s, i], variance, rtol=1e-7, atol=0.0)


# The ascent -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "free_tau", "polish"),
    [(*form, "lbfgs") for form in FORMS] + [(*form, None) for form in FORMS[:4]],
)
def test_the_likelihood_never_falls(gate, free_tau, polish):
    x, y = random_data(8, 80, 1, seed=1)
    points, start = pack(x, y), random_model(8, 3, 1, gate)
    done = fit(points, start, free_tau=free_tau, polish=polish, max_iterations=30, record=True)
    assert done.history.diff(dim=0).min() > -1e-9
    torch.testing.assert_close(done.history[-1], done.log_likelihood)
    torch.testing.assert_close(done.model.log_density(x, y).sum(-1), done.log_likelihood, rtol=1e-9, atol=1e-9)
    assert not done.model.beta0[:, -1].any() and not done.model.beta1[:, -1].any()
    assert (done.iterations <= 30).all() and (done.converged | (done.iterations == 30)).all()


@pytest.mark.parametrize(
    ("truth", "interval", "free_tau", "freedom"),
    [
        (truths.DENSE, truths.UNIT, False, 8),
        (truths.SPARSE, truths.SYMMETRIC, False, 13),
        (truths.TEMPERATURE, truths.SYMMETRIC, True, 8),  # 9 numbers, of which the data do not see one
        (truths.TEMPERATURE, truths.SYMMETRIC, False, 8),
        (truths.temperature_truth("tanh"), truths.SYMMETRIC, True, 9),
    ],
)
def test_wilks(truth, interval, free_tau, freedom):
    """2 (l(fit) - l(truth)) has mean `freedom` and variance twice that, and is never negative."""
    x, y, points = draw(truth, interval, 2000, 100)
    start = starts.near(truth, 100, 0.05, generator(1), ray=0.3 * free_tau)
    done = fit(points, start, free_tau=free_tau)
    ratio = 2 * (done.log_likelihood - truth.expand(100).log_density(x, y).sum(-1))
    assert done.converged.all() and ratio.min() >= 0
    # Four standard errors of the mean are 1.6 for 8 degrees of freedom and 2.0 for 13.
    assert abs(ratio.mean() - freedom) < 1.5
    assert 0.5 < ratio.var() / (2 * freedom) < 1.7


def test_a_batch_of_any_sizes_is_its_data_sets_one_by_one():
    g, truth, sizes = generator(3), truths.TEMPERATURE, [50, 400, 3, 1000, 257]
    x = truths.uniform(truths.SYMMETRIC, sum(sizes), generator=g)
    y = truth.sample(x, g)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    start = starts.near(truth, 5, 0.1, g)
    together = fit(Points.pack(x, y, offsets), start, polish="lbfgs")
    for s, (low, high) in enumerate(pairwise(offsets.tolist())):
        alone = fit(
            Points.pack(x[low:high], y[low:high], torch.tensor([0, high - low])), start[s : s + 1], polish="lbfgs"
        )
        assert alone.iterations[0] == together.iterations[s]
        for name, tensor in alone.model.tensors().items():
            torch.testing.assert_close(together.model.tensors()[name][s], tensor[0], rtol=1e-12, atol=1e-12)


def test_l_bfgs_finishes_what_em_does_not():
    """One expert too many: EM creeps, with gains that fall slower than any geometric sequence."""
    _, _, points = draw(truths.DENSE, truths.UNIT, 1000, 8)
    start = starts.deal(truths.DENSE, 3, 8, 0.05, generator(1))
    short = fit(points, start, max_iterations=200)
    polished = fit(points, start, polish="lbfgs", max_iterations=200)
    assert polished.converged.all() and not short.converged.all()
    gain = polished.log_likelihood - short.log_likelihood
    assert gain.median() > 0.1
    # At a maximum no coordinate that is free has a slope: EM's own step is tiny.
    more = fit(points, polished.model, max_iterations=20)
    assert (more.log_likelihood - polished.log_likelihood).max() < 1e-4


# What must not matter -------------------------------------------------------------------------------------------------


def test_a_fixed_temperature_is_a_unit_of_the_gate():
    """tau = 0.5 and beta are tau = 1 and beta / 0.5, iteration by iteration."""
    _, _, points = draw(truths.TEMPERATURE, truths.SYMMETRIC, 500, 8)
    start = starts.near(truths.TEMPERATURE, 8, 0.1, generator(1))
    plain = replace(start, beta0=start.beta0 / 0.5, beta1=start.beta1 / 0.5, tau=start.tau / 0.5)
    cold, warm = fit(points, start, record=True), fit(points, plain, record=True)
    torch.testing.assert_close(cold.history, warm.history, rtol=0, atol=1e-9)
    torch.testing.assert_close(cold.model.beta1 / 0.5, warm.model.beta1, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "degree"), [(n, a.degree) for n, a in ACTIVATIONS.items() if a.degree])
def test_nothing_moves_a_temperature_that_the_data_do_not_see(name, degree):
    """A step is orthogonal to the ray (beta_0, beta_1 / p, tau), so that the fit ends as far out as it began."""
    gate = Gate(activation=name)
    truth = truths.temperature_truth(name)
    _, _, points = draw(truth, truths.SYMMETRIC, 1000, 10)
    start = starts.near(truth, 10, 0.05, generator(1), ray=0.3)
    layout = Layout(2, 1, gate)
    theta = layout.pack(start)
    bounds = layout.bounds(theta, torch.full((10,), 1e-3, dtype=torch.float64), True, 200.0, 1e-3)
    step = step_from(layout.statistics(points, theta, False), layout, theta, bounds, True)
    ray = theta[:, :3] / torch.tensor([1, degree, 1])
    for vector in (step.gradient, step.em):
        part = vector[:, :3]
        assert ((part * ray).sum(1).abs() <= 1e-8 * part.norm(dim=1) * ray.norm(dim=1)).all()

    def radius(model: GaussianMoE) -> Tensor:  # constant along every curve that is orthogonal to the rays
        return (model.beta0.square() + degree * model.beta1[..., 0].square()).sum(1) + model.tau.square()

    for polish in (None, "lbfgs"):
        done = fit(points, start, free_tau=True, polish=polish, max_iterations=100)
        change = 0.5 * (radius(done.model) / radius(start)).log()
        assert change.abs().max() < 0.1, polish  # a step is finite, and goes outwards by its square
        if name == "identity":
            assert (done.model.tau / start.tau).log().abs().max() < 0.15 < start.tau.log().std()


def test_ridges_only_shorten_steps_where_everything_is_seen():
    """tanh: tau is estimated from far off, and does not stay where it was."""
    truth = truths.temperature_truth("tanh")
    _, _, points = draw(truth, truths.SYMMETRIC, 20_000, 4)
    start = starts.near(truth, 4, 0.05, generator(1), ray=0.3)
    done = fit(points, start, free_tau=True)
    assert (done.model.tau - 0.5).abs().max() < 4 * 2.3 / math.sqrt(
        20_000
    )  # asymptotic standard deviation 2.3 / sqrt n


def test_all_of_k_selected_is_dense_to_the_bit():
    _, _, points = draw(truths.DENSE, truths.UNIT, 400, 3)
    start = starts.deal(truths.DENSE, 3, 3, 0.05, generator(1))
    dense = fit(points, start, max_iterations=30)
    for rank in ("slope", "logit"):
        full = fit(points, start.with_gate(Gate(3, rank)), max_iterations=30)
        for name, tensor in dense.model.tensors().items():
            assert tensor.equal(full.model.tensors()[name])


def test_one_selected_expert_leaves_the_gate():
    _, _, points = draw(truths.TOP1, truths.UNIT, 400, 5)
    start = starts.near(truths.TOP1, 5, 0.05, generator(1))
    done = fit(points, start, polish="lbfgs")
    assert done.model.beta0.equal(start.beta0) and done.model.beta1.equal(start.beta1)
    assert not done.model.a.equal(start.a)


@pytest.mark.parametrize("gate", [Gate(), Gate(2, "slope"), Gate(2, "logit")])
def test_gauge_and_order_do_not_matter(gate):
    """A shift of all beta_0 and beta_1 changes nothing, a permutation of the experts only their order."""
    truth = truths.SPARSE.with_gate(gate)
    _, _, points = draw(truth, truths.SYMMETRIC, 1000, 4)
    start = starts.near(truth, 4, 0.05, generator(1))
    done = fit(points, start, tolerance=1e-10)
    shifted = fit(points, replace(start, beta0=start.beta0 + 3, beta1=start.beta1 - 2), tolerance=1e-10)
    torch.testing.assert_close(shifted.log_likelihood, done.log_likelihood, rtol=0, atol=1e-8)
    order = torch.tensor([2, 0, 1])
    turned = start.map(lambda tensor: tensor[:, order] if tensor.dim() > 1 else tensor)
    turned = fit(points, turned, tolerance=1e-10)
    torch.testing.assert_close(turned.log_likelihood, done.log_likelihood, rtol=0, atol=1e-7)
    torch.testing.assert_close(turned.model.b, done.model.b[:, order], rtol=0, atol=1e-3)
    assert not turned.model.beta0[:, -1].any()


# Safeguards -----------------------------------------------------------------------------------------------------------


def finite(done) -> bool:
    return all(tensor.isfinite().all() for tensor in (*done.model.tensors().values(), done.log_likelihood))


@pytest.mark.parametrize("polish", [None, "lbfgs"])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.ones(1, 1, 1), torch.ones(1, 1)),
        (torch.full((1, 40, 1), 3.0), torch.linspace(-1, 1, 40)[None]),
        (torch.full((1, 40, 1), 3.0), torch.full((1, 40), 2.0)),
        (torch.linspace(-1, 1, 40)[None, :, None], torch.zeros(1, 40)),
        (torch.linspace(-1, 1, 40)[None, :, None], 3 * torch.linspace(-1, 1, 40)[None] + 1),
        (torch.tensor([-1.0, 0, 1]).repeat(1, 20)[..., None], torch.tensor([1.0, 0, 1]).repeat(1, 20)),
    ],
    ids=["one point", "constant x", "constant x and y", "y = 0", "points on a line", "duplicated points"],
)
def test_degenerate_data_end_in_finite_models(x, y, polish):
    x, y = x.double(), y.double()
    done = fit(pack(x, y), random_model(1, 3, 1, Gate()), polish=polish, max_iterations=100)
    assert finite(done)
    assert done.log_likelihood >= random_model(1, 3, 1, Gate()).log_density(x, y).sum() - 1e-9


def test_bounds_are_kept_and_counted():
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[None, :, None]
    y = torch.where(x[..., 0] > 0, 2.0, -2.0) + 0.1 * torch.sin(20 * x[..., 0])
    start = GaussianMoE(
        *[
            torch.tensor(v, dtype=torch.float64)[None]
            for v in ([0.0, 0], [[3.0], [0]], [[0.0], [0]], [2.0, -2], [1.0, 1])
        ],
        torch.ones(1, dtype=torch.float64),
    )
    free = fit(pack(x, y), start, max_slope=1e5)
    bound = fit(pack(x, y), start, max_slope=20.0)  # the two groups are apart: the steeper, the better
    assert bound.at_bound.all() and bound.model.beta1[0, 0, 0] == 20 and free.model.beta1[0, 0, 0] > 20
    assert free.log_likelihood > bound.log_likelihood
    for activation in ("identity", "tanh"):
        tilted = replace(start, beta0=start.beta0 + torch.tensor([3.0, 0]), gate=Gate(activation=activation))
        noisy = pack(x, torch.where(x[..., 0] > 0.5, 2.0, -2.0) + y.sin())  # three of four points are expert 2's
        loose = fit(noisy, tilted, polish="lbfgs", max_slope=1.0)
        held = fit(noisy, tilted, polish="lbfgs", max_slope=1.0, max_bias=0.5)
        assert held.at_bound.all() and held.model.beta0[0, 0] == -0.5 > loose.model.beta0[0, 0]
    shifted = replace(start, beta0=start.beta0 + 40)  # of all experts, which changes nothing
    assert fit(pack(x, y), shifted, max_slope=20.0, max_bias=30.0).log_likelihood == bound.log_likelihood
    floored = fit(pack(x, y), start, min_variance=0.5)
    assert floored.at_bound.all() and floored.model.variance.eq(0.5).all()
    torch.testing.assert_close(
        fit(pack(x, y), start, min_variance=torch.tensor([0.5]).double()).model.b, floored.model.b
    )


def test_dormant_experts_are_counted_and_keep_their_parameters():
    """Of slopes -3, 0, 0.7, 1.5, 4.5 the middle one is never among the two largest, nor is 0 beside 25 for x > 0."""
    x, _, points = draw(truths.SPARSE, truths.SYMMETRIC, 500, 2)
    cell = torch.tensor([[0, 1, 2, 2, 2]] * 2)
    start = starts.share(truths.SPARSE, cell, 0.02, generator(1), gate=Gate(2, "slope"))
    start.beta1[:, 0], start.beta1[:, 2], start.beta1[:, 3] = 4.5, 1.5, 0.7
    done = fit(points, start)
    assert done.dormant.eq(1).all() and not done.model.selected(x)[..., 3].any()
    assert done.model.b[:, 3].equal(start.b[:, 3]) and done.model.beta0[:, 3].equal(start.beta0[:, 3])
    torch.testing.assert_close(done.model.variance[:, 3], start.variance[:, 3], rtol=1e-14, atol=0)

    _, _, points = draw(truths.DENSE, truths.UNIT, 100, 2)
    done = fit(points, starts.near(truths.DENSE.with_gate(Gate(1, "slope")), 2, 0.01, generator(1)))
    assert done.dormant.eq(1).all() and finite(done)


def test_compiled_is_passed_on():
    """What it computes is tested with the kernel."""
    _, _, points = draw(truths.DENSE, truths.UNIT, 50, 2)
    seen = []
    layout_statistics = Layout.statistics

    def spy(self, points, theta, compiled):
        seen.append(compiled)
        return layout_statistics(self, points, theta, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layout, "statistics", spy)
        fit(points, starts.near(truths.DENSE, 2, 0.01, generator()), compiled=True)
    assert seen and all(seen)


def test_passes_in_single_precision_as_a_gpu_makes_them_find_the_same_maxima(monkeypatch):
    """The kernel of a GPU takes float32 points; the fit keeps its parameters in float64 and still comes to rest."""
    generator = torch.Generator().manual_seed(31)
    x = truths.uniform(truths.SYMMETRIC, 12, 1000, generator=generator)
    truth = truths.SPARSE.expand(12)
    y = truth.sample(x, generator)
    points = Points.pack(x.flatten(0, 1), y.flatten(), 1000 * torch.arange(13))
    near = starts.near(truths.SPARSE, 12, 0.1, generator)
    double = fit(points, near)
    seen = []

    def as_on_a_gpu(points):
        seen.append(points.y.dtype)
        return points._replace(x=points.x.float(), y=points.y.float())

    monkeypatch.setattr(steps, "for_kernel", as_on_a_gpu)
    single = fit(points, near, tolerance=1e-4)
    assert seen and single.converged.all() and single.log_likelihood.dtype == torch.float64
    torch.testing.assert_close(single.log_likelihood, double.log_likelihood, rtol=0, atol=1e-2)
    assert (single.log_likelihood != double.log_likelihood).any()
