"""Gated linear attention in Triton: four kernels and a decoding kernel.

Per head, with log gates g_t <= 0 (-inf is a hard reset), rows as vectors and s the scale,

    S_t = Diag(e^{g_t}) S_{t-1} + k_t^T v_t,     o_t = s q_t S_t                            (recurrence)

A chunk is C = 64 steps. Inside it P_t sums g from the chunk's first step to t, and R_t from t + 1 to the chunk's
last step. Neither is ever positive and neither is a difference, so no weight overflows, none loses digits to
cancellation, and g = -inf gives no inf - inf:

    S_{n+1} = Diag(e^{P_C}) S_n + (K e^R)^T V,   O = s (Q e^P) S_n + A V                    (chunk n)
    A_ij = s sum_d q_id k_jd e^{g_{j+1,d} + ... + g_id} for i >= j, else 0                  (scores)

**Scores as matrix products.** Let h be the highest bit in which the row numbers i > j differ. Then i lies in the
right and j in the left half of one block of 2h rows. With P^h, R^h the same sums inside half blocks of h rows, the
pair's weight is e^{P^h_i} e^{R^h_j}: a reference between the two, both exponents <= 0. One matrix holds both factors,

    Y = where(right half, Q e^{P^h}, K e^{R^h}),   A_ij = s (Y Y^T)_ij for all pairs of level h

so that log2 C = 6 products of 64 x K x 64 on the tensor cores give all of A below its diagonal, which is s q_i.k_i.
Both sums of a block grow from those of its halves (`_join`): six additions lead from single rows to the chunk.

**Backward.** With dS_n the gradient of the state that enters chunk n (dS_N that of the final state), D = s dO V^T,

    dS_n = Diag(e^{P_C}) dS_{n+1} + s (Q e^P)^T dO,   dV = A^T dO + (K e^R) dS_{n+1}        (time reversed)
    dQ = s (dO S_n^T) e^P + ...,   dK = (V dS_{n+1}^T) e^R + ...

where, with D made symmetric and cut to the pairs of level h, e^{P^h} W or e^{R^h} W with W = D Y is added to dQ in
right halves or to dK in left ones; the diagonal adds D_ii k_i to dQ and D_ii q_i to dK.

Gate g_t is passed by every pair (written at j, read at i) with j < t <= i. So dg_t sums the pairs' shares q_i dQ_i of
the reads i >= t, less the shares k_j dK_j of the writes j >= t. The diagonal, and pairs whose partner lies in another
chunk, would only cancel there; they are left out of the difference, and what remains cancels within a chunk:

    dg_t = sum_{i>=t} (Y W in right halves, -Y W in left ones, all levels) + sum_{i>=t} q_i dQ_i + sum_{j<t} k_j dK_j
         + e^{P_C} rowsum(S_n dS_{n+1}),                  dQ, dK: only the parts that come from the states

Reading (o, dV) is one kernel, `_read`, and writing (S, dS) another, `_write`: the backward pass is the forward pass
with q and k exchanged and time reversed. Products take operands in the inputs' dtype, rounded after the decay is
multiplied in, and accumulate in float32 (float32 inputs: IEEE products). The running state is float32; the states kept
for each chunk have the dtype in which the products read them.

Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training" (arXiv 2312.06635):
chunks, secondary chunking, gate gradient. Halving blocks down to single rows, with sums that never cancel, is ours.

All tensors are contiguous, packed over sequences: q, k, g [L, H, K], v [L, H, V], states [N, H, K, V] float32.
Sequence n owns the chunks (or tokens, for the recurrent form) offsets[n] ... offsets[n + 1] - 1.
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64
C = tl.constexpr(CHUNK)
LEVELS = tl.constexpr(6)  # C = 2**LEVELS
LOG2E = tl.constexpr(1.4426950408889634)  # gates are scaled once, so that every exponential is the hardware's exp2


@triton.jit
@no_type_check
def _join(P, R, row, half, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of blocks of 2*half rows from those of their halves: each half adds the total of its sibling."""
    last = (row ^ half) | (half - 1)  # the last row of the sibling half: there P is the sibling's total
    total = tl.gather(P, tl.broadcast_to(last[:, None], (ROWS, COLS)), 0)
    right = ((row & half) != 0)[:, None]
    return P + tl.where(right, total, 0.0), R + tl.where(right, 0.0, total)


@triton.jit
@no_type_check
def _write(x, y, g, start, states, final, offsets, scale, H, K: tl.constexpr, V: tl.constexpr,
           BK: tl.constexpr, BV: tl.constexpr, REVERSE: tl.constexpr):
    """S <- Diag(e^{P_C}) S + (x e^R)^T y over a sequence, in reverse (scale x e^P)^T y; keeps S before each chunk."""
    n, head = tl.program_id(0) // H, tl.program_id(0) % H
    key, value = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    row = tl.arange(0, C)
    at = row[:, None] * (H * K) + key[None, :]
    tile = key[:, None] * V + value[None, :]
    inside = (key < K)[:, None] & (value < V)[None, :]
    first, end = tl.load(offsets + n).to(tl.int64), tl.load(offsets + n + 1).to(tl.int64)
    sequence = tl.program_id(0).to(tl.int64) * K * V
    S = tl.zeros((BK, BV), tl.float32)
    if start is not None:
        S += tl.load(start + sequence + tile, mask=inside, other=0.0)
    for step in range((end - first).to(tl.int32)):
        chunk = end - 1 - step if REVERSE else first + step
        tl.store(states + (chunk * H + head) * K * V + tile, S.to(states.dtype.element_ty), mask=inside)
        token = chunk * C * H + head
        gate = tl.load(g + token * K + at, mask=(key < K)[None, :], other=0.0).to(tl.float32) * LOG2E
        a = tl.load(x + token * K + at, mask=(key < K)[None, :], other=0.0)
        b = tl.load(y + token * V + row[:, None] * (H * V) + value[None, :], mask=(value < V)[None, :], other=0.0)
        if REVERSE:
            decayed = a.to(tl.float32) * (tl.exp2(tl.cumsum(gate, 0)) * scale)
        else:  # R excludes its own row: the sum runs over gates loaded one row further on
            after = tl.load(g + (token + H) * K + at, mask=(row < C - 1)[:, None] & (key < K)[None, :], other=0.0)
            decayed = a.to(tl.float32) * tl.exp2(tl.cumsum(after.to(tl.float32) * LOG2E, 0, reverse=True))
        S = S * tl.exp2(tl.sum(gate, 0))[:, None]
        S += tl.dot(tl.trans(decayed.to(b.dtype)), b, input_precision="ieee")
    tl.store(final + sequence + tile, S, mask=inside)


@triton.jit
@no_type_check
def _read(q, k, g, x, states, out, scale, H, K: tl.constexpr, V: tl.constexpr,
          BK: tl.constexpr, BV: tl.constexpr, REVERSE: tl.constexpr):
    """A x + scale (q e^P) S for one chunk; in reverse A^T x + (k e^R) S."""
    chunk, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    value = tl.program_id(1) * BV + tl.arange(0, BV)
    row, column = tl.arange(0, C), tl.arange(0, C)
    base = chunk * C * H + head  # 64-bit offsets to the chunk, 32-bit ones inside it
    q, k, g, x, out = q + base * K, k + base * K, g + base * K, x + base * V, out + base * V
    states += (chunk * H + head) * K * V
    A = tl.zeros((C, C), tl.float32)
    diagonal = tl.zeros((C,), tl.float32)
    o = tl.zeros((C, BV), tl.float32)
    for block in range(0, K, BK):
        key = block + tl.arange(0, BK)
        at = row[:, None] * (H * K) + key[None, :]
        bq = tl.load(q + at, mask=(key < K)[None, :], other=0.0)
        bk = tl.load(k + at, mask=(key < K)[None, :], other=0.0)
        P = tl.load(g + at, mask=(key < K)[None, :], other=0.0).to(tl.float32) * LOG2E
        R = tl.zeros((C, BK), tl.float32)
        diagonal += tl.sum(bq.to(tl.float32) * bk.to(tl.float32), 1)
        for level in range(LEVELS):
            half = 1 << level
            right = ((row & half) != 0)[:, None]
            Y = (tl.where(right, bq, bk).to(tl.float32) * tl.exp2(tl.where(right, P, R))).to(bq.dtype)
            pairs = ((row >> level)[:, None] ^ (column >> level)[None, :]) == 1
            A += tl.where(pairs, tl.dot(Y, tl.trans(Y), input_precision="ieee"), 0.0)
            P, R = _join(P, R, row, half, C, BK)
        if REVERSE:
            decayed = bk.to(tl.float32) * tl.exp2(R)
        else:
            decayed = bq.to(tl.float32) * (tl.exp2(P) * scale)
        S = tl.load(states + key[:, None] * V + value[None, :],
                    mask=(key < K)[:, None] & (value < V)[None, :], other=0.0)
        o += tl.dot(decayed.to(bq.dtype), S, input_precision="ieee")
    A = tl.where(row[:, None] == column[None, :], diagonal[:, None], A) * scale
    causal = row[:, None] <= column[None, :] if REVERSE else row[:, None] >= column[None, :]
    at = row[:, None] * (H * V) + value[None, :]
    b = tl.load(x + at, mask=(value < V)[None, :], other=0.0)
    o += tl.dot(tl.where(causal, A, 0.0).to(b.dtype), b, input_precision="ieee")
    tl.store(out + at, o.to(out.dtype.element_ty), mask=(value < V)[None, :])


@triton.jit
@no_type_check
def _grad(q, k, v, g, do, states, dstates, dq, dk, dg, scale, H, K: tl.constexpr, V: tl.constexpr,
          BK: tl.constexpr, BV: tl.constexpr):
    """dq, dk, dg of one chunk and one block of key channels, from the state before and the state gradient after it."""
    chunk, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    key = tl.program_id(1) * BK + tl.arange(0, BK)
    row, column = tl.arange(0, C), tl.arange(0, C)
    base, state = chunk * C * H + head, (chunk * H + head) * K * V
    q, k, g, dq, dk, dg = q + base * K, k + base * K, g + base * K, dq + base * K, dk + base * K, dg + base * K
    v, do, states, dstates = v + base * V, do + base * V, states + state, dstates + state
    D = tl.zeros((C, C), tl.float32)
    for block in range(0, V, BV):
        value = block + tl.arange(0, BV)
        at = row[:, None] * (H * V) + value[None, :]
        bv = tl.load(v + at, mask=(value < V)[None, :], other=0.0)
        bdo = tl.load(do + at, mask=(value < V)[None, :], other=0.0)
        D += tl.dot(bdo, tl.trans(bv), input_precision="ieee")
    D = tl.where(row[:, None] >= column[None, :], D, tl.trans(D)) * scale
    diagonal = tl.sum(tl.where(row[:, None] == column[None, :], D, 0.0), 1)[:, None]
    D = D.to(v.dtype.element_ty)

    key_at = row[:, None] * (H * K) + key[None, :]
    bq = tl.load(q + key_at, mask=(key < K)[None, :], other=0.0)
    bk = tl.load(k + key_at, mask=(key < K)[None, :], other=0.0)
    P = tl.load(g + key_at, mask=(key < K)[None, :], other=0.0).to(tl.float32) * LOG2E
    R = tl.zeros((C, BK), tl.float32)
    bdq = tl.zeros((C, BK), tl.float32)
    bdk = tl.zeros((C, BK), tl.float32)
    bdg = tl.zeros((C, BK), tl.float32)
    for level in range(LEVELS):
        half = 1 << level
        right = ((row & half) != 0)[:, None]
        decay = tl.exp2(tl.where(right, P, R))
        Y = (tl.where(right, bq, bk).to(tl.float32) * decay).to(bq.dtype)
        pairs = ((row >> level)[:, None] ^ (column >> level)[None, :]) == 1
        W = tl.dot(tl.where(pairs, D, 0.0), Y, input_precision="ieee")
        # Y as rounded for the product: the two terms of a pair are then the same number, and cancel exactly
        bdg += tl.where(right, Y, -Y).to(tl.float32) * W
        bdq += tl.where(right, decay * W, 0.0)
        bdk += tl.where(right, 0.0, decay * W)
        P, R = _join(P, R, row, half, C, BK)

    from_state = tl.zeros((C, BK), tl.float32)
    to_state = tl.zeros((C, BK), tl.float32)
    through = tl.zeros((BK,), tl.float32)
    for block in range(0, V, BV):
        value = block + tl.arange(0, BV)
        at = row[:, None] * (H * V) + value[None, :]
        bv = tl.load(v + at, mask=(value < V)[None, :], other=0.0)
        bdo = tl.load(do + at, mask=(value < V)[None, :], other=0.0)
        tile = key[:, None] * V + value[None, :]
        inside = (key < K)[:, None] & (value < V)[None, :]
        S = tl.load(states + tile, mask=inside, other=0.0)
        dS = tl.load(dstates + tile, mask=inside, other=0.0)
        from_state += tl.dot(bdo, tl.trans(S), input_precision="ieee")
        to_state += tl.dot(bv, tl.trans(dS), input_precision="ieee")
        through += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 1)
    P = tl.exp2(P)
    from_state *= P * scale
    to_state *= tl.exp2(R)
    tl.store(dq + key_at, (bdq + from_state + bk * diagonal).to(dq.dtype.element_ty), mask=(key < K)[None, :])
    tl.store(dk + key_at, (bdk + to_state + bq * diagonal).to(dk.dtype.element_ty), mask=(key < K)[None, :])
    through *= tl.sum(tl.where((row == C - 1)[:, None], P, 0.0), 0)
    before = tl.broadcast_to(tl.maximum(row - 1, 0)[:, None], (C, BK))
    written = tl.where((row > 0)[:, None], tl.gather(bk.to(tl.float32) * to_state, before, 0), 0.0)
    bdg = tl.cumsum(bdg + bq.to(tl.float32) * from_state, 0, reverse=True) + tl.cumsum(written, 0) + through[None, :]
    tl.store(dg + key_at, bdg, mask=(key < K)[None, :])


@triton.jit
@no_type_check
def _step(q, k, v, g, start, o, final, offsets, scale, H, K: tl.constexpr, V: tl.constexpr,
          BK: tl.constexpr, BV: tl.constexpr):
    """The recurrence itself, token by token, with all key channels of BV state columns in registers."""
    n, head = tl.program_id(0) // H, tl.program_id(0) % H
    key, value = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    sequence = tl.program_id(0).to(tl.int64) * K * V + key[:, None] * V + value[None, :]
    inside = (key < K)[:, None] & (value < V)[None, :]
    first, end = tl.load(offsets + n), tl.load(offsets + n + 1)
    S = tl.zeros((BK, BV), tl.float32)
    if start is not None:
        S += tl.load(start + sequence, mask=inside, other=0.0)
    for step in range(end - first):
        token = (first + step).to(tl.int64) * H + head
        bq = tl.load(q + token * K + key, mask=key < K, other=0.0).to(tl.float32) * scale
        bk = tl.load(k + token * K + key, mask=key < K, other=0.0).to(tl.float32)
        bg = tl.load(g + token * K + key, mask=key < K, other=0.0).to(tl.float32) * LOG2E
        bv = tl.load(v + token * V + value, mask=value < V, other=0.0).to(tl.float32)
        S = S * tl.exp2(bg)[:, None] + bk[:, None] * bv[None, :]
        bo = tl.sum(bq[:, None] * S, 0)
        tl.store(o + token * V + value, bo.to(o.dtype.element_ty), mask=value < V)
    tl.store(final + sequence, S, mask=inside)


def _block(size: int, most: int = 2**20) -> int:
    return min(most, max(16, triton.next_power_of_2(size)))


def plan(kernel: str, K: int, V: int, hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel: what is launched below, and what is compiled ahead of time."""
    # the most warps that leave no register spilled; only the walk over chunks gains from loading one step ahead
    warps = {"num_warps": 4 if hip else 8, "num_stages": 2 if kernel == "_write" and not hip else 1}
    if kernel == "_step":  # all K channels at once, so that o needs no second pass; 4096 numbers of state a program
        BK = _block(K)
        return {"BK": BK, "BV": _block(V, max(16, 4096 // BK)), **warps}
    return {"BK": _block(K, 32), "BV": _block(V, 64 if kernel == "_grad" else 128), **warps}


def _launch(kernel, grid, *arguments, K: int, V: int, **constants) -> None:
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device; no-op on CPU (interpreter)
        kernel[grid](*arguments, K=K, V=V, **constants, **plan(kernel.__name__, K, V))


def _states(x: Tensor, y: Tensor, g: Tensor, start: Tensor | None, offsets: Tensor, scale: float,
            reverse: bool) -> tuple[Tensor, Tensor]:
    """The state before each chunk [L/C, H, K, V] in y's dtype, and the one after the last [N, H, K, V]."""
    (L, H, K), V, N = x.shape, y.shape[-1], offsets.numel() - 1
    states = y.new_empty(L // CHUNK, H, K, V)
    final = y.new_empty(N, H, K, V, dtype=torch.float32)
    block = plan("_write", K, V)
    grid = (N * H, triton.cdiv(K, block["BK"]), triton.cdiv(V, block["BV"]))
    _launch(_write, grid, x, y, g, start, states, final, offsets, scale, H, K=K, V=V, REVERSE=reverse)
    return states, final


def _outputs(q: Tensor, k: Tensor, g: Tensor, x: Tensor, states: Tensor, scale: float, reverse: bool) -> Tensor:
    (L, H, K), V, out = q.shape, x.shape[-1], torch.empty_like(x)
    grid = (L // CHUNK * H, triton.cdiv(V, plan("_read", K, V)["BV"]))
    _launch(_read, grid, q, k, g, x, states, out, scale, H, K=K, V=V, REVERSE=reverse)
    return out


def chunk_forward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, h0: Tensor | None,
                  offsets: Tensor) -> tuple[Tensor, Tensor]:
    """o [L, H, V] in v's dtype and the final states [N, H, K, V]; L a multiple of 64, offsets in chunks."""
    states, ht = _states(k, v, g, h0, offsets, scale, reverse=False)
    return _outputs(q, k, g, v, states, scale, reverse=False), ht


def chunk_backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, h0: Tensor | None, offsets: Tensor,
                   do: Tensor, dht: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in the inputs' dtypes, dg and dh0 in float32; the forward's states are recomputed, not kept."""
    (L, H, K), V, do = q.shape, v.shape[-1], do.to(v.dtype).contiguous()
    states, _ = _states(k, v, g, h0, offsets, scale, reverse=False)
    dstates, dh0 = _states(q, do, g, dht, offsets, scale, reverse=True)
    dv = _outputs(q, k, g, do, dstates, scale, reverse=True)
    dq, dk, dg = torch.empty_like(q), torch.empty_like(k), torch.empty_like(g, dtype=torch.float32)
    grid = (L // CHUNK * H, triton.cdiv(K, plan("_grad", K, V)["BK"]))
    _launch(_grad, grid, q, k, v, g, do, states, dstates, dq, dk, dg, scale, H, K=K, V=V)
    return dq, dk, dv, dg, dh0


def recurrent_forward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, h0: Tensor | None,
                      offsets: Tensor) -> tuple[Tensor, Tensor]:
    """o and the final states by the recurrence, for decoding and short sequences; any L, offsets in tokens."""
    (_, H, K), V, N = q.shape, v.shape[-1], offsets.numel() - 1
    o, ht = torch.empty_like(v), v.new_empty(N, H, K, V, dtype=torch.float32)
    grid = (N * H, triton.cdiv(V, plan("_step", K, V)["BV"]))
    _launch(_step, grid, q, k, v, g, h0, o, ht, offsets, scale, H, K=K, V=V)
    return o, ht
