"""The Triton kernels in Triton's interpreter, against float64 products a group (run with TRITON_INTERPRET=1).

Tiles, masks, strides, ragged and empty groups; not the compiler (see test_families_aot.py) and not bfloat16, which
the interpreter is known to get wrong.
"""

import os
from itertools import pairwise

import pytest
import torch

from gated.kernels.grouped_gemm import naive_grouped_gemm


@pytest.fixture(scope="module")
def gpu():
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    from gated.kernels.grouped_gemm import gpu

    return gpu


def problem(sizes, K, N, dtype=torch.float32):
    gen = torch.Generator().manual_seed(sum(sizes) + K)
    M, G = sum(sizes), len(sizes)
    shapes = ((M, K), (G, K, N), (M,), (M, N))
    x, weight, r, dy = (torch.randn(shape, generator=gen).to(dtype) for shape in shapes)
    return x, weight, r, dy, torch.tensor([0, *sizes]).cumsum(0)


def close(got, want):
    assert got.dtype in (torch.float32, torch.float16)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if got.dtype == torch.float32 else {"rtol": 2**-10, "atol": 2**-8}
    torch.testing.assert_close(got, want.to(got.dtype), **tolerance)


SIZES = [
    ([0], 3, 4),
    ([0, 0, 0], 16, 16),
    ([1], 1, 1),
    ([1] * 9, 16, 16),
    ([5, 0, 3], 7, 11),
    ([0, 0, 40, 0, 1, 0], 33, 20),
    ([300, 0, 2, 129], 40, 130),  # tiles of 128 rows, cut by every group's end; two tiles of columns
    ([128, 256], 64, 128),  # tiles that fill exactly
    ([64, 1], 150, 300),  # several steps along K
    ([3] * 70, 8, 8),  # more groups than rows of a tile
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("sizes", "K", "N"), SIZES)
def test_product(gpu, sizes, K, N, dtype):
    x, weight, r, _, offsets = problem(sizes, K, N, dtype)
    close(gpu.gemm(x, weight, offsets, None), naive_grouped_gemm(x.double(), weight.double(), offsets))
    close(gpu.gemm(x, weight, offsets, r), naive_grouped_gemm(x.double(), weight.double(), offsets, r.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("sizes", "K", "N"), SIZES)
def test_weight_gradient(gpu, sizes, K, N, dtype):
    x, _, _, dy, offsets = problem(sizes, K, N, dtype)
    want = [x[a:b].double().T @ dy[a:b].double() for a, b in pairwise(offsets.tolist())]
    close(gpu.gemm_weight(x, dy, offsets), torch.stack(want))


def test_256_groups_of_any_size(gpu):
    sizes = torch.randint(0, 6, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    x, weight, r, dy, offsets = problem(sizes, 16, 16)
    close(gpu.gemm(x, weight, offsets, r), naive_grouped_gemm(x.double(), weight.double(), offsets, r.double()))
    want = [x[a:b].double().T @ dy[a:b].double() for a, b in pairwise(offsets.tolist())]
    close(gpu.gemm_weight(x, dy, offsets), torch.stack(want))


def test_strides(gpu):
    """Transposed and packed matrices, rows and gradients that are no contiguous tensors: no copy is asked for."""
    x, weight, r, dy, offsets = problem([9, 0, 30], 20, 48)
    want = naive_grouped_gemm(x.double(), weight.double(), offsets, r.double())
    columns = weight.transpose(1, 2).contiguous().transpose(1, 2)
    packed = torch.cat([weight, weight.flip(2)], 2).repeat_interleave(2, 0)[::2, :, :48]
    for view in (columns, packed):
        assert not view.is_contiguous()
        close(gpu.gemm(x.T.contiguous().T, view, offsets, torch.stack([r, r], 1)[:, 0]), want)
    ones = torch.ones(()).expand_as(dy)  # what the backward of a sum hands over
    assert torch.equal(gpu.gemm_weight(x.T.contiguous().T, ones, offsets), gpu.gemm_weight(x, ones.clone(), offsets))


def test_no_more_programs_than_needed(gpu):
    """The bound on the tiles holds for the worst sizes (every group one row into a tile) and is small for one group."""
    for sizes in ([129] * 5, [1, 1, 1, 400], [640]):
        x, weight, _, _, offsets = problem(sizes, 16, 16)
        M, G = sum(sizes), len(sizes)
        BM = gpu.plan("_product", 16, 16, -(-M // G), 4)["BM"]
        needed = sum(-(-size // BM) for size in sizes)
        assert needed <= gpu.most_tiles(M, G, BM) <= M // BM + G
        close(gpu.gemm(x, weight, offsets, None), naive_grouped_gemm(x.double(), weight.double(), offsets))


@pytest.mark.parametrize(("size", "tile"), [(1, 16), (16, 16), (17, 32), (100, 128), (128, 128), (5000, 128)])
def test_tiles_are_as_large_as_needed_within_what_the_hardware_takes(gpu, size, tile):
    """A dot takes 16 rows or more, a power of two; eight warps where a tile has more numbers than four can hold."""
    found = gpu.plan("_product", size, size, size, 1, hip=False)
    assert (found["BM"], found["BN"], found["BK"], found["num_stages"]) == (tile, tile, tile, 3)
    found = gpu.plan("_gradient", size, size, size, 4, hip=True)
    assert (found["BM"], found["BK"], found["BN"], found["num_stages"]) == (32, tile, tile, 2)
    warps = {gpu.plan(kernel, size, size, size)["num_warps"] for kernel in ("_product", "_gradient")}
    assert warps == {8 if tile == 128 else 4}


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # the interpreter's NumPy
def test_what_is_not_finite_stays_in_its_row(gpu):
    """Tiles reach into the next group's rows, and steps beyond K: masked, not multiplied by zero."""
    x, weight, _, _, offsets = problem([3, 4], 5, 6)
    x[3:], weight[1] = float("nan"), float("inf")
    assert gpu.gemm(x, weight, offsets, None)[:3].isfinite().all()
    assert gpu.gemm_weight(x, x, offsets)[0].isfinite().all()


def test_twice_the_same(gpu):
    x, weight, r, dy, offsets = problem([30, 3, 0, 70], 40, 24)
    assert torch.equal(gpu.gemm(x, weight, offsets, r), gpu.gemm(x, weight, offsets, r))
    assert torch.equal(gpu.gemm_weight(x, dy, offsets), gpu.gemm_weight(x, dy, offsets))
