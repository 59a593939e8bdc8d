"""One pass of EM on the CPU, against the definition, autograd of the model's likelihood, and counting by hand."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.kernels.gmoe_em import ACTIVATIONS, Points, Statistics, cpu, gmoe_em, naive_gmoe_em

NAMES = tuple(ACTIVATIONS)


def random(*shape: int, seed: int, scale: float = 1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_and_degrees_of_the_activations(name):
    """sigma' by autograd, and Euler's z sigma'(z) = p sigma(z) for those that have a degree p, and for no other."""
    value, derivative, degree = ACTIVATIONS[name]
    z = torch.linspace(-4, 4, 1000, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(value(z).sum(), z)
    torch.testing.assert_close(derivative(z), slope, rtol=1e-12, atol=1e-14)
    fits = [p for p in (1, 2, 3) if torch.allclose(z * slope, p * value(z), atol=1e-12)]
    assert fits == ([] if degree is None else [degree])


def parameters(segments: int, k: int, d: int, seed: int = 0):
    """beta0, beta1, a, b, variance, tau; the last expert's gate is 0."""
    beta0, beta1 = random(segments, k, seed=seed), random(segments, k, d, seed=seed + 1)
    beta0[:, -1], beta1[:, -1] = 0, 0
    a, b = random(segments, k, d, seed=seed + 2), random(segments, k, seed=seed + 3)
    variance, tau = random(segments, k, seed=seed + 4).exp(), (0.3 * random(segments, seed=seed + 5)).exp()
    return beta0, beta1, a, b, variance, tau


def one_size(segments: int, n: int, d: int, seed: int = 10, length: int = 16):
    x, y = random(segments, n, d, seed=seed), random(segments, n, seed=seed + 1, scale=2)
    return x, y, Points.pack(x.reshape(-1, d), y.reshape(-1), torch.arange(segments + 1) * n, length=length)


def close(got: Statistics, want, rtol: float = 1e-9):
    for name, a, b in zip(Statistics._fields, got, want, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b.double(), rtol=rtol, atol=rtol * float(1 + b.abs().max()), msg=name)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_equals_the_definition(k, d, activation):
    x, y, points = one_size(3, 37, d)
    p = parameters(3, k, d)
    for top_k in range(1, k + 1):
        for rank in ("slope", "logit"):
            got = gmoe_em(points, *p, top_k=top_k, rank=rank, activation=activation)
            close(got, naive_gmoe_em(x, y, *p, top_k, rank, activation))


def test_sixteen_experts():
    x, y, points = one_size(2, 50, 2)
    p = parameters(2, 16, 2)
    close(gmoe_em(points, *p, top_k=5), naive_gmoe_em(x, y, *p, 5, "logit", "identity"))


@st.composite
def ragged(draw):
    return draw(st.lists(st.integers(0, 23), min_size=1, max_size=6)), draw(st.integers(1, 9)), draw(st.integers(1, 3))


@given(ragged())
def test_data_sets_of_any_sizes(problem):
    """Each as if it were alone; an empty one gets zeros; a selection is computed as before."""
    size, length, k = problem
    offsets = torch.tensor([0, *size]).cumsum(0)
    x, y, p = random(sum(size), 2, seed=1), random(sum(size), seed=2), parameters(len(size), k, 2)
    points = Points.pack(x, y, offsets, length=length)
    assert points.sizes().tolist() == size
    got = gmoe_em(points, *p, top_k=1)
    for s, n in enumerate(size):
        own = [t[s : s + 1] for t in p]
        alone = x[None, offsets[s] : offsets[s + 1]], y[None, offsets[s] : offsets[s + 1]]
        close(Statistics(*(t[s : s + 1] for t in got)), naive_gmoe_em(*alone, *own, 1, "logit", "identity"))
        assert n or not any(t[s].any() for t in got)
    chosen = torch.arange(len(size)).flip(0)[::2]
    again = gmoe_em(points.select(chosen), *(t[chosen] for t in p), top_k=1)
    for a, b in zip(again, got, strict=True):
        assert torch.equal(a, b[chosen])


@given(ragged())
def test_packing(problem):
    """As few blocks as will do, none of two data sets, the points in order, zeros in the rest."""
    size, length, _k = problem
    x, y = random(sum(size), 2, seed=1), random(sum(size), seed=2)
    points = Points.pack(x, y, torch.tensor([0, *size]).cumsum(0), length=length)
    assert points.segment.tolist() == [s for s, n in enumerate(size) for _ in range(-(-n // length))]
    real = torch.arange(length) < points.count[:, None]
    assert torch.equal(points.x.mT[real], x) and torch.equal(points.y[real], y)
    assert not points.x.mT[~real].any() and not points.y[~real].any()


def gate_vector(p):
    """beta0_i, beta1_i for i < k, then tau: the order of gradient and gram."""
    beta0, beta1, *_, tau = p
    return torch.cat([torch.cat([beta0[..., None], beta1], -1)[:, :-1].flatten(1), tau[:, None]], 1)


def model(p, gate, vector=None):
    if vector is not None:
        k, d = p[1].shape[1:]
        rows = vector[:, :-1].view(len(vector), k - 1, d + 1)
        last = torch.zeros(len(vector), 1, d + 1, dtype=torch.float64)
        rows = torch.cat([rows, last], 1)
        p = (rows[..., 0], rows[..., 1:], *p[2:5], vector[:, -1])
    return GaussianMoE(*p, gate=gate)


@pytest.mark.parametrize(
    "gate",
    [Gate(), Gate(2, "slope", "tanh"), Gate(2, "logit", "softplus"), Gate(1, "slope"), Gate(None, activation="gelu")],
)
def test_gradients_by_autograd_of_the_likelihood(gate):
    x, y, points = one_size(2, 60, 2)
    p = parameters(2, 3, 2)
    form = {"top_k": gate.top_k, "rank": gate.rank, "activation": gate.activation}
    got = gmoe_em(points, *p, **form)
    torch.testing.assert_close(got.log_likelihood, model(p, gate).log_density(x, y).sum(-1))
    vector = gate_vector(p).requires_grad_()
    (want,) = torch.autograd.grad(model(p, gate, vector).log_density(x, y).sum(), vector)
    torch.testing.assert_close(got.gradient, want)
    leaves = [t.clone().requires_grad_() for t in p]
    total = model(leaves, gate).log_density(x, y).sum()
    by_a, by_b, by_variance = torch.autograd.grad(total, leaves[2:5])
    variance = p[4]
    torch.testing.assert_close(got.cross / variance[..., None], torch.cat([by_b[..., None], by_a], -1))
    want = 0.5 * (got.square / variance - got.moment[..., 0, 0]) / variance
    torch.testing.assert_close(by_variance, want)
    assert torch.equal(got.selected, model(p, gate).selected(x).double().sum(1))


@pytest.mark.parametrize("gate", [Gate(), Gate(2, "slope", "tanh"), Gate(1), Gate(2, "logit", "cube")])
def test_the_gram_matrix_is_the_expected_information_of_a_choice(gate):
    """-E d^2 log pi_i: sum_i pi_i (d log pi_i)(d log pi_i)^T, each factor by autograd."""
    x, _y, points = one_size(1, 9, 2)
    p = parameters(1, 3, 2)
    got = gmoe_em(points, *p, top_k=gate.top_k, rank=gate.rank, activation=gate.activation)
    vector = gate_vector(p)
    log_pi = model(p, gate).log_gate(x)
    slopes = torch.autograd.functional.jacobian(
        lambda v: model(p, gate, v).log_gate(x).masked_fill(log_pi.isneginf(), 0), vector
    )[0, :, :, 0]
    want = torch.einsum("nk,nkg,nkh->gh", log_pi.exp()[0], slopes, slopes)
    torch.testing.assert_close(got.gram[0], want)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=6), st.integers(1, 6))
def test_selection_by_brute_force(scores, top_k):
    """Scores tie often. Of all subsets of the right size: the largest scores, then the lowest indices."""
    top_k = min(top_k, len(scores))
    best = max(
        combinations(range(len(scores)), top_k),
        key=lambda chosen: (sorted((scores[i] for i in chosen), reverse=True), [-i for i in chosen]),
    )
    got = cpu.selection([torch.tensor([float(s)]) for s in scores], top_k)
    assert [i for i, s in enumerate(got) if s] == list(best)


def test_ties_keep_exactly_top_k():
    _x, _y, points = one_size(1, 20, 1)
    beta0, beta1, *rest = parameters(1, 4, 1)
    got = gmoe_em(points, torch.zeros_like(beta0), torch.zeros_like(beta1), *rest, top_k=2, rank="slope")
    assert got.selected.tolist() == [[20, 20, 0, 0]]
    assert not got.moment[0, 2:].any() and not got.cross[0, 2:].any() and not got.square[0, 2:].any()


def test_moves_with_y_and_the_experts():
    """A shift of y and of the experts is no change, nor is the order of the points."""
    x, y, points = one_size(2, 40, 2)
    p = parameters(2, 3, 2)
    want = gmoe_em(points, *p)
    beta0, beta1, a, b, variance, tau = p
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = Points.pack(
        x[:, order].reshape(-1, 2), (y + 5 + x @ slope)[:, order].reshape(-1), torch.tensor([0, 40, 80]), length=7
    )
    close(gmoe_em(moved, beta0, beta1, a + slope, b + 5, variance, tau), want)


def test_permuted_experts():
    _x, _y, points = one_size(2, 40, 2)
    p = parameters(2, 3, 2)
    order = [1, 0, 2]
    got, want = gmoe_em(points, *(t[:, order] for t in p[:5]), p[5]), gmoe_em(points, *p)
    for name in ("moment", "cross", "square", "selected"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name)[:, order])
    torch.testing.assert_close(got.log_likelihood, want.log_likelihood)
    swap = [3, 4, 5, 0, 1, 2, 6]
    torch.testing.assert_close(got.gradient, want.gradient[:, swap])
    torch.testing.assert_close(got.gram, want.gram[:, swap][:, :, swap])


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("rank", ["slope", "logit"])
def test_far_out_nothing_overflows(top_k, rank):
    """Logits of 10^4 and points a hundred standard deviations from every expert."""
    x, y, points = one_size(2, 30, 1)
    beta0, beta1, a, b, variance, tau = parameters(2, 3, 1)
    beta1 = 1e4 * beta1
    beta0 = beta0 + torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64)
    p = beta0, beta1, a, b + 100, torch.ones_like(variance), torch.ones_like(tau)
    got = gmoe_em(points, *p, top_k=top_k, rank=rank)
    assert all(t.isfinite().all() for t in got)
    gate = Gate(top_k, rank)
    torch.testing.assert_close(got.log_likelihood, model(p, gate).log_density(x, y).sum(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.moment[..., 0, 0].sum(1), torch.full((2,), 30.0, dtype=torch.float64))


def test_points_that_only_an_unlikely_expert_explains():
    """Expert 1 has a weight of e^-500 but a density e^1800 times the other's: neither factor may vanish on its own."""
    points = Points.pack(torch.zeros(1, 1).double(), torch.full((1,), 60.0).double(), torch.tensor([0, 1]))
    row = lambda *v: torch.tensor([v], dtype=torch.float64)  # noqa: E731
    flat = torch.zeros(1, 2, 1, dtype=torch.float64)
    for top_k in (None, 2):
        got = gmoe_em(points, row(-500, 0), flat, flat, row(60, 0), row(1, 1), torch.ones(1).double(), top_k=top_k)
        assert math.isclose(got.log_likelihood.item(), -500 - 0.5 * math.log(2 * math.pi), rel_tol=1e-12)
        assert got.moment[0, :, 0, 0].tolist() == [1, 0]


def test_single_precision_points_and_double_sums():
    _x, _y, points = one_size(2, 300, 1, length=64)
    p = parameters(2, 2, 1)
    rough = Points(points.x.float(), points.y.float(), *points[2:])
    close(gmoe_em(rough, *p), gmoe_em(points, *p), rtol=3e-6)


@pytest.mark.parametrize(("weight", "other"), [(-50.0, 10.0), (0.0, 40.0)])
def test_long_blocks_do_not_overflow(weight, other):
    """1,500 points at which the mixture's density is 2 or 1/2 times its largest term: 2^1500 is no float64."""
    n = 1500
    points = Points.pack(torch.zeros(n, 1).double(), torch.zeros(n).double(), torch.tensor([0, n]), length=n)
    row = lambda *v: torch.tensor([v], dtype=torch.float64)  # noqa: E731
    flat = torch.zeros(1, 2, 1, dtype=torch.float64)
    got = gmoe_em(points, row(weight, 0), flat, flat, row(0, other), row(1, 1), torch.ones(1).double())
    want = -50 + math.log(2) if weight else -math.log(2)
    assert math.isclose(got.log_likelihood.item(), n * (want - 0.5 * math.log(2 * math.pi)), rel_tol=1e-12)


def test_pieces_do_not_matter(monkeypatch):
    _, _, points = one_size(3, 100, 1)
    p = parameters(3, 3, 1)
    want = gmoe_em(points, *p, top_k=2)
    monkeypatch.setattr(cpu, "PIECE", 40)
    close(gmoe_em(points, *p, top_k=2), want, rtol=1e-13)
