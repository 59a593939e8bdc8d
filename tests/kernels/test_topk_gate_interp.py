"""The Triton kernels in Triton's interpreter, against Python loops (run with TRITON_INTERPRET=1).

Indices, ties, masks, ranks over several parts and dtypes; not the compiler (see test_families_aot.py) and not
bfloat16, which the interpreter is known to get wrong.
"""

import os

import pytest
import torch

from gated.kernels.topk_gate import naive_topk_gate

INF = float("inf")


@pytest.fixture(scope="module")
def gpu():
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    from gated.kernels.topk_gate import gpu

    return gpu


def logits(tokens: int, experts: int, seed: int, dtype=torch.float32):
    """Half of them tie; rows of -inf alone, and rows with fewer open experts than slots."""
    generator = torch.Generator().manual_seed(seed)
    l = torch.randn(tokens, experts, generator=generator)
    l[::2] = (2 * l[::2]).round()
    l[2::5] = -INF
    l[3::5, 1:] = -INF
    l[4::7, ::2] = -INF
    return l.to(dtype)


def check(got, l, k, renormalise):
    want = naive_topk_gate(l.double(), k, renormalise=renormalise)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if l.dtype == torch.float32 else {"rtol": 2**-10, "atol": 2**-24}
    torch.testing.assert_close(got[0], want[0].to(l.dtype), **tolerance)
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.dtype == torch.int64 and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "experts", "k"),
    [(0, 3, 2), (1, 1, 1), (5, 2, 2), (67, 4, 1), (300, 37, 8), (33, 64, 2), (40, 256, 8), (9, 200, 6)],
)
@pytest.mark.parametrize("renormalise", [True, False])
def test_equals_the_definition(gpu, tokens, experts, k, renormalise, dtype):
    l = logits(tokens, experts, tokens + k, dtype)
    check(gpu.forward(l, k, renormalise), l, k, renormalise)


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_several_tiles(gpu, monkeypatch, parts):
    """Few parts, so that each walks several tiles and the scan adds them up: also the last one, partly empty."""
    monkeypatch.setattr(gpu, "PARTS", parts)
    l = logits(1100, 33, 5)  # tiles of 32 rows
    check(gpu.forward(l, 3, True), l, 3, True)


def test_the_scan_in_several_tiles(gpu):
    """70 parts and tiles of 8 rows of counts in the scan."""
    l = logits(550, 200, 6)
    check(gpu.forward(l, 2, False), l, 2, False)


def test_rows_that_are_not_contiguous(gpu):
    l = logits(30, 12, 7).T.contiguous().T
    check(gpu.forward(l, 2, True), l.contiguous(), 2, True)


def test_twice_the_same(gpu):
    l = logits(500, 64, 8)
    for a, b in zip(gpu.forward(l, 4, True), gpu.forward(l, 4, True), strict=True):
        assert torch.equal(a, b)
