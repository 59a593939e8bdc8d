"""The Triton kernels in Triton's interpreter, against the CPU path in float64 (run with TRITON_INTERPRET=1).

Activations, ties, masks, ragged data sets, blocks of several tiles and float64 sums; not the compiler (see
test_families_aot.py).
"""

import os

import pytest
import torch

from gated.kernels.gmoe_em import ACTIVATIONS, Points, gmoe_em
from gated.kernels.gmoe_em.layout import unpack

SIZES = [20, 0, 49, 1]


@pytest.fixture(scope="module")
def gpu():
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    from gated.kernels.gmoe_em import gpu

    return gpu


def problem(k: int, d: int, length: int, sizes=SIZES):
    """Rounded to float32, so that both paths see the same numbers."""
    gen = torch.Generator().manual_seed(100 * k + d)
    random = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
    n, segments = sum(sizes), len(sizes)
    points = Points.pack(random(n, d), random(n), torch.tensor([0, *sizes]).cumsum(0), length=length)
    of_experts = [random(segments, k), random(segments, k, d), random(segments, k, d), random(segments, k)]
    return points, [*of_experts, (0.5 * random(segments, k)).exp(), (0.3 * random(segments)).exp()]


def check(gpu, points, p, top_k, rank, activation, tolerance=5e-6):
    k, d = p[1].shape[1:]
    flat = gpu.forward(*points, p, top_k, rank, activation)
    exact = Points(points.x.double(), points.y.double(), *points[2:])
    want = gmoe_em(exact, *(t.double() for t in p), top_k=top_k, rank=rank, activation=activation)
    for name, a, b in zip(want._fields, unpack(flat, k, d, p[5].double()), want, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(1 + b.abs().max()), msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(gpu, activation):
    points, p = problem(3, 1, 16)
    check(gpu, points, p, 2, "slope", activation)


@pytest.mark.parametrize(
    ("k", "d", "length", "top_k"), [(1, 3, 16, 1), (2, 1, 7, 2), (4, 2, 64, 1), (5, 2, 33, 5), (16, 2, 16, 7)]
)
@pytest.mark.parametrize("rank", ["slope", "logit"])
def test_sizes(gpu, k, d, length, top_k, rank):
    points, p = problem(k, d, length)
    check(gpu, points, p, top_k, rank, "tanh")


def test_blocks_of_several_tiles(gpu):
    points, p = problem(2, 1, 600, [700, 0, 30])
    assert gpu.plan("_tile", 2, 1, 600)["ROWS"] == 256
    check(gpu, points, p, 2, "logit", "identity")


def test_more_tiles_than_one_round_of_the_sum(gpu):
    points, p = problem(2, 1, 2, [70, 3])
    assert len(points.y) > 2 * gpu.plan("_total", 2, 1, 2)["ROWS"]
    check(gpu, points, p, 2, "logit", "identity")


def test_ties_and_far_out_points(gpu):
    """Exactly top_k are kept; logits of 10^4 and outputs a hundred standard deviations away give no NaN."""
    points, (beta0, beta1, a, b, variance, tau) = problem(4, 1, 16)
    level = [torch.zeros_like(t) for t in (beta0, beta1)]
    flat = gpu.forward(*points, [*level, a, b, variance, tau], 2, "slope", "identity")
    selected = unpack(flat, 4, 1, tau.double()).selected
    assert selected.tolist() == [[n, n, 0, 0] for n in SIZES]
    far = [1e4 * beta0, beta1, a, b + 100, torch.ones_like(variance), torch.ones_like(tau)]
    assert gpu.forward(*points, far, 3, "logit", "identity").isfinite().all()


def test_sums_are_in_double_precision(gpu):
    """20,000 equal points: a float32 sum would be off by 1e-4 of itself."""
    n = 20_000
    points = Points.pack(torch.full((n, 1), 0.1), torch.full((n,), 0.3), torch.tensor([0, n]), length=2000)
    _, p = problem(2, 1, 16, [1])
    flat, one = (
        gpu.forward(*q, p, 2, "logit", "identity")
        for q in (points, Points(points.x[:1], points.y[:1], torch.ones(1).long(), torch.zeros(1).long(), 1))
    )
    torch.testing.assert_close(flat, n * one, rtol=1e-12, atol=1e-9)


def test_twice_the_same(gpu):
    points, p = problem(3, 2, 32)
    a, b = (gpu.forward(*points, p, 2, "slope", "gelu") for _ in range(2))
    assert torch.equal(a, b)
