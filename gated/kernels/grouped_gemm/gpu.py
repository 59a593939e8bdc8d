"""Grouped matrix products in Triton: one launch over all groups, whose sizes stay on the device.

    _product    y_m = r_m · x_m W_g         one program a tile of BM rows of a group and BN columns
    _gradient   dW_g = x_gᵀ dy_g            one program a tile of dW_g, which walks the group's rows

**Which tile is whose.** A group of s rows has ceil(s / BM) tiles, and which group a tile falls into is known only on
the device. Summed, the tiles are at most (rows + groups · (BM - 1)) / BM, so that many programs are launched, without
waiting for the device. Each counts, in one running sum over the groups, how many groups end before its tile; programs
past the last tile leave at once. No tile has rows of two groups, so no row is computed twice and none is padded in
memory; a group's last tile is masked.

Products take operands in the inputs' dtype (on tensor cores in half precision; IEEE products for float32) and
accumulate in float32. r is multiplied in before the result is rounded. Nothing is added across programs: the same
result on every run. A group that holds most rows makes `_gradient` wait for the programs of its own tiles.

x, dy and y are contiguous; W may have any strides. They are constants of the compiled kernel, as K and N are: a model
has few layer shapes, and a known stride is what makes loads wide. M and the offsets are not.
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@no_type_check
def _find(offsets, tile, G, GROUPS: tl.constexpr, BM: tl.constexpr):
    """The group that a tile belongs to (G or more: none), and its number within the group."""
    group = tl.arange(0, GROUPS)
    first = tl.load(offsets + group, mask=group < G, other=0)
    end = tl.load(offsets + group + 1, mask=group < G, other=0)
    tiles = ((end - first + BM - 1) // BM).to(tl.int32)
    before = tl.cumsum(tiles, 0) <= tile
    return tl.sum(before.to(tl.int32), 0), tile - tl.sum(tl.where(before, tiles, 0), 0)


@triton.jit
@no_type_check
def _product(x, weight, offsets, r, y, G, K: tl.constexpr, N: tl.constexpr, WG: tl.constexpr, WK: tl.constexpr,
             WN: tl.constexpr, GROUPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = r · x W_g for one tile; W_g[k, n] stands at g · WG + k · WK + n · WN."""
    group, tile = _find(offsets, tl.program_id(0), G, GROUPS, BM)
    if group >= G:
        return
    first, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    row = first + tile * BM + tl.arange(0, BM)
    inner, column = tl.arange(0, BK), tl.program_id(1) * BN + tl.arange(0, BN)
    inside, exists = (row < end)[:, None], (column < N)[None, :]
    a_at = x + row[:, None] * K + inner[None, :]
    b_at = weight + group.to(tl.int64) * WG + inner[:, None] * WK + column[None, :] * WN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        a = tl.load(a_at + k, mask=inside & (inner < K - k)[None, :], other=0.0)
        b = tl.load(b_at + k * WK, mask=(inner < K - k)[:, None] & exists, other=0.0)
        total += tl.dot(a, b, input_precision="ieee")
    if r is not None:
        total *= tl.load(r + row, mask=row < end, other=0.0).to(tl.float32)[:, None]
    tl.store(y + row[:, None] * N + column[None, :], total.to(y.dtype.element_ty), mask=inside & exists)


@triton.jit
@no_type_check
def _gradient(x, dy, offsets, dw, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):
    """dW_g = sum over the group's rows of x_mᵀ dy_m for one tile [BK, BN]; zeros for a group without rows."""
    group = tl.program_id(2).to(tl.int64)
    first, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    inner, column = tl.program_id(0) * BK + tl.arange(0, BK), tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BK, BN), tl.float32)
    for step in range(((end - first + BM - 1) // BM).to(tl.int32)):
        row = first + step * BM + tl.arange(0, BM)
        inside = (row < end)[:, None]
        a = tl.load(x + row[:, None] * K + inner[None, :], mask=inside & (inner < K)[None, :], other=0.0)
        b = tl.load(dy + row[:, None] * N + column[None, :], mask=inside & (column < N)[None, :], other=0.0)
        total += tl.dot(tl.trans(a), b, input_precision="ieee")
    at = dw + group * K * N + inner[:, None] * N + column[None, :]
    tl.store(at, total.to(dw.dtype.element_ty), mask=(inner < K)[:, None] & (column < N)[None, :])


def _block(size: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(size)))


def plan(kernel: str, K: int, N: int, rows: int, itemsize: int = 2,
         hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """Tile sizes, warps and stages for about `rows` rows a group: what is launched below, and compiled ahead of time.

    The dimension that is summed over is cut into 128 bytes, so that a stage takes the same shared memory in any dtype.
    """
    step, stages = 128 // itemsize, 2 if hip else 3
    if kernel == "_gradient":
        BK, BN = _block(K, 128), _block(N, 128)
        return {"BM": step, "BK": BK, "BN": BN, "num_warps": 8 if BK * BN > 4096 else 4, "num_stages": stages}
    BM, BN = _block(rows, 128), _block(N, 128)
    return {"BM": BM, "BN": BN, "BK": _block(K, step), "num_warps": 8 if BM * BN > 4096 else 4, "num_stages": stages}


def most_tiles(M: int, G: int, BM: int) -> int:
    """At least the sum of ceil(size / BM) over any G groups with M rows in all."""
    return (M + min(G, M) * (BM - 1)) // BM


def gemm(x: Tensor, weight: Tensor, offsets: Tensor, row_weight: Tensor | None) -> Tensor:
    """y [M, N] in x's dtype."""
    (M, K), (G, _, N), x = x.shape, weight.shape, x.contiguous()
    y = x.new_empty(M, N)
    if y.numel() == 0:
        return y
    block = plan("_product", K, N, triton.cdiv(M, G), x.element_size())
    r = None if row_weight is None else row_weight.contiguous()
    with torch.cuda.device_of(x):  # Triton launches on the current device; no-op on CPU (interpreter)
        _product[(most_tiles(M, G, block["BM"]), triton.cdiv(N, block["BN"]))](
            x, weight, offsets.contiguous(), r, y, G, K, N, *weight.stride(),
            GROUPS=triton.next_power_of_2(G), **block)
    return y


def gemm_weight(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """dW [G, K, N] in x's dtype."""
    (M, K), N, G = x.shape, dy.shape[1], offsets.numel() - 1
    dw = x.new_empty(G, K, N)
    if dw.numel() == 0:
        return dw
    block = plan("_gradient", K, N, triton.cdiv(M, G), x.element_size())
    with torch.cuda.device_of(x):
        _gradient[(triton.cdiv(K, block["BK"]), triton.cdiv(N, block["BN"]), G)](
            x.contiguous(), dy.contiguous(), offsets.contiguous(), dw, K, N, **block)
    return dw
