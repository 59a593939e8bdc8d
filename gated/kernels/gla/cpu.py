"""Chunked gated linear attention from batched matrix products: the CPU path.

A chunk of C steps turns into four products once queries and keys carry their decay. With G the running sum of the
log gates g ≤ 0 and r a reference position in the chunk,

    A_ij = Σ_d q_id e^{G_id − G_rd} · k_jd e^{G_rd − G_jd},    j ≤ i,
    o    = A v + (q ⊙ e^{G − G_start}) S,     S' = e^{G_end − G_start} ⊙ S + (k ⊙ e^{G_end − G})ᵀ v.

**The reference.** With r in the middle of the chunk one of the two exponents in A is positive. That is harmless while
it is small: the factors stay finite, and since an exponent of size x carries an error of x ulp they also stay exact
as long as |x| ≤ RANGE. Trained gates keep a chunk of 64 well inside, so that a whole chunk is one product. When
they do not, the chunk is split into *leaves*, the largest power of two whose halves stay within RANGE (down to a single
step, where no exponent is left), and leaves are joined two by two: the right half scores the left half with their
common *boundary* as reference, where both exponents are ≤ 0 and cannot overflow for any gate. Each join multiplies
the right half's queries by the left half's decay and the left half's keys by the right half's, so that the last join
leaves exactly the two factors that the state needs. Exponents are sums over the steps that they span and never
differences of long running sums, which is what keeps seven digits for gates of −20 a step and for resets (g = −∞).

**Cost.** Forward 4KV + C(K + V) useful operations a step and head (a multiply-add counts 2, the triangle counts half),
backward 2.5 times that plus one recomputation; memory one state a segment. The walk over segments, each small enough
for the cache, is what makes time linear in T. Source: Yang et al. 2024 (arXiv 2312.06635), chunkwise form and
secondary chunking; the choice of leaves and the sums are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

CHUNK = 64
RANGE = 8.0  # nats: the largest positive exponent; its rounding, 8 ulp, is what the error budget allows
SEGMENT = 64  # chunks × heads × batch in flight: with their temporaries about what a level-2 cache holds
FLOOR = -1e4  # e^FLOOR is exactly 0 in float64 too, and finite sums of it stay finite, which −∞ would not


@cache
def _sums(chunk: int, leaf: int, dtype: torch.dtype) -> Tensor:
    """Rows that, times g [chunk, ·], give the exponents: one row a step relative to the middle of its leaf, then for
    each leaf the sum over its first half, then over its second half."""
    step = torch.arange(chunk)
    row, column = step[:, None], step[None, :]
    middle = row // leaf * leaf + (leaf - 1) // 2
    after, before = (column > middle) & (column <= row), (column <= middle) & (column > row)
    start = torch.arange(0, chunk, leaf)[:, None]
    first = (column >= start) & (column <= start + (leaf - 1) // 2)
    second = (column > start + (leaf - 1) // 2) & (column < start + leaf)
    return torch.cat([after.to(dtype) - before.to(dtype), first.to(dtype), second.to(dtype)])


def _leaf(g: Tensor) -> int:
    """The largest power of two whose halves decay by at most RANGE anywhere in g [..., chunk, channels]."""
    chunk = g.shape[-2]
    if chunk > 1 and g.unflatten(-2, (2, chunk // 2)).sum(-2).amin() >= -RANGE:
        return chunk
    leaf, halves = 1, g
    while leaf < chunk and halves.amin() >= -RANGE:
        leaf, halves = 2 * leaf, halves.unflatten(-2, (-1, 2)).sum(-2)
    return leaf


class _Chunks(NamedTuple):
    """One segment's chunks, m = batch × chunks × heads of them, queries and keys carrying their decay."""

    query: Tensor  # [m, C, K] q ⊙ e^{G − G_mid}, relative to the middle of each leaf
    key: Tensor  # [m, C, K] k ⊙ e^{G_mid − G}
    value: Tensor  # [m, C, V]
    decay: Tensor  # [b, n, C, h, K] e^{G − G_mid}
    before: Tensor  # [m, C/leaf, K] decay of a leaf's first half
    after: Tensor  # [m, C/leaf, K] decay of its second half
    leaf: int


class _Ladder(NamedTuple):
    """What joining the leaves leaves: the scores, the factors of the state, and each rung for the backward."""

    scores: Tensor  # [m, C, C], lower triangular, without the scale
    query: Tensor  # [m, C, K]; query ⊙ before = q ⊙ e^{G − G_start}
    key: Tensor  # [m, C, K]; key ⊙ after = k ⊙ e^{G_end − G}
    before: Tensor  # [m, K, 1]
    after: Tensor  # [m, K, 1]
    total: Tensor  # [m, K, 1] decay of the whole chunk
    rungs: list[tuple[int, Tensor, Tensor, Tensor, Tensor]]


def _chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk: int) -> _Chunks:
    heads, leaf = q.shape[2], _leaf(g := rearrange(g, "b (n c) h d -> b n c (h d)", c=chunk))
    if leaf < chunk or chunk == 1:  # gates beyond RANGE, −∞ among them; those of a single step were not looked at
        g = g.clamp_min(FLOOR)
    exponents = (_sums(chunk, leaf, g.dtype) @ g).exp_()
    exponents = rearrange(exponents, "b n c (h d) -> b n c h d", h=heads)
    decay, before, after = exponents.split([chunk, chunk // leaf, chunk // leaf], 2)
    query = _by_head(q, chunk, torch.mul, decay)
    key = _by_head(k, chunk, torch.div, decay)
    value = rearrange(v, "b (n c) h d -> (b n h) c d", c=chunk)
    before, after = (_flush(rearrange(y, "b n c h d -> (b n h) c d")) for y in (before, after))
    return _Chunks(query, key, value, decay, before, after, leaf)


def _by_head(y: Tensor, chunk: int, op: Callable[..., Tensor], decay: Tensor) -> Tensor:
    """op(y, decay) of y [b, T, h, d] laid out as [m, C, d]: the product and the transposition in one pass."""
    y = rearrange(y, "b (n c) h d -> b n h c d", c=chunk)
    return op(y, decay.transpose(2, 3), out=torch.empty(y.shape, dtype=y.dtype)).flatten(0, 2)


def _flush(y: Tensor) -> Tensor:
    """Set to zero what is so small that the product of two such factors would be a denormal number. Those cost a
    hundred cycles each, and here they stand beside terms of weight 1, or of the largest of y if that is less."""
    largest = min(1.0, float(y.abs().amax()))
    return torch.nn.functional.hardshrink(y, largest * torch.finfo(y.dtype).tiny ** 0.5)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product; with an inner dimension of 1 or 2, a sum of broadcast products is ten times faster."""
    if a.shape[-1] > 2:
        return torch.bmm(a, b)
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _blocks(y: Tensor, size: int) -> Tensor:
    """View of y [m, C, d] as its blocks [m · C/size, size, d]."""
    return rearrange(y, "m (n c) d -> (m n) c d", c=size)


def _diagonal(a: Tensor, size: int) -> Tensor:
    """View of the diagonal blocks of a [m, C, C] as [m, C/size, size, size]."""
    return rearrange(a, "m (r i) (s j) -> m r i s j", i=size, j=size).diagonal(0, 1, 3).movedim(-1, 1)


def _join(a: Tensor, size: int) -> Tensor:
    """View of the blocks of a [m, C, C] in which the right half of a pair meets its left half."""
    return _diagonal(a, 2 * size)[..., size:, :size]


def _climb(x: _Chunks) -> _Ladder:
    m, chunk, _ = x.query.shape
    if x.leaf == chunk:
        scores = torch.bmm(x.query, x.key.mT).tril_()
        before, after = x.before.mT, x.after.mT
        return _Ladder(scores, x.query, x.key, before, after, before * after, [])
    scores = x.query.new_zeros(m, chunk, chunk)
    inside = torch.bmm(_blocks(x.query, x.leaf), _blocks(x.key, x.leaf).mT)
    inside = inside.tril_().view(m, -1, x.leaf, x.leaf)
    _diagonal(scores, x.leaf).copy_(inside)
    split = "m (n c) d -> m n c d"
    query = (rearrange(x.query, split, c=x.leaf) * x.before.unsqueeze(2)).flatten(1, 2)
    key = (rearrange(x.key, split, c=x.leaf) * x.after.unsqueeze(2)).flatten(1, 2)
    total, size, rungs = x.before * x.after, x.leaf, []
    while size < chunk:
        right, left = _halves(query, size)[1], _halves(key, size)[0]
        decay_left, decay_right = rearrange(_flush(total), "m (n two) d -> two m n 1 d", two=2)
        rung = _flush(right), _flush(left)
        rungs.append((size, *rung, decay_left, decay_right))
        pairs = "m n c d -> (m n) c d"
        meet = torch.bmm(rearrange(rung[0], pairs), rearrange(rung[1], pairs).mT)
        _join(scores, size).copy_(meet.view(m, -1, size, size))
        torch.mul(rung[0], decay_left, out=right)
        torch.mul(rung[1], decay_right, out=left)
        total, size = (decay_left * decay_right).squeeze(2), 2 * size
    one = total.new_ones(()).expand(m, total.shape[-1], 1)
    return _Ladder(scores, _flush(query), _flush(key), one, one, _flush(total).mT, rungs)


def _halves(y: Tensor, size: int) -> Tensor:
    """View of y [m, C, d] as the left and the right halves of its pairs of blocks: [2, m, pairs, size, d]."""
    return rearrange(y, "m (n two c) d -> two m n c d", two=2, c=size)


def _descend(ladder: _Ladder, dscores: Tensor, dquery: Tensor, dkey: Tensor, beyond: Tensor) -> None:
    """Backward of the climb, top rung first and in place: each rung adds its part to dquery and dkey."""
    for size, right, left, decay_left, decay_right in reversed(ladder.rungs):
        pairs = "m n c d -> (m n) c d"
        da = _join(dscores, size).reshape(-1, size, size)
        dright, dleft = _halves(dquery, size)[1], _halves(dkey, size)[0]
        meet = _product(da, rearrange(left, pairs)).view_as(dright)
        torch.addcmul(meet, _flush(dright), decay_left, out=dright)
        meet = _product(da.mT, rearrange(right, pairs)).view_as(dleft)
        torch.addcmul(meet, _flush(dleft), decay_right, out=dleft)
        _halves(beyond, size)[0].mul_(decay_right)


def _scan(first: Tensor, step: Tensor, total: Tensor, reverse: bool) -> Tensor:
    """All states [n + 1, ...] of s_{i+1} = total_i ⊙ s_i + step_i from s_0 = first (in reverse, from s_n = first)."""
    n = step.shape[1]
    states = first.new_empty(n + 1, *first.shape)
    states[n if reverse else 0] = first
    for i in reversed(range(n)) if reverse else range(n):
        source, target = (i + 1, i) if reverse else (i, i + 1)
        torch.addcmul(step[:, i], total[:, i], states[source], out=states[target])
    return states


def _states(
    ladder: _Ladder, left: Tensor, right: Tensor, weight: Tensor, first: Tensor, reverse: bool = False
) -> Tensor:
    """The scan over a segment's chunks whose steps are weight ⊙ leftᵀ right."""
    grid = {"b": first.shape[0], "h": first.shape[1]}
    step = torch.bmm(left.mT, right).mul_(weight)
    step, total = (rearrange(y, "(b n h) k v -> b n h k v", **grid) for y in (step, ladder.total))
    return _scan(first, step, total, reverse)


def _merge(states: Tensor) -> Tensor:
    return rearrange(states, "n b h k v -> (b n h) k v")


def _segment_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, scale: float, chunk: int, out: Tensor
) -> Tensor:
    """Write a segment's outputs to out [B, T, H, V] and return the state that leaves it."""
    x = _chunks(q, k, v, g, chunk)
    ladder = _climb(x)
    states = _states(ladder, ladder.key, x.value, ladder.after, state)
    o = torch.bmm(ladder.scores, x.value)
    o.baddbmm_(ladder.query, _merge(states[:-1]) * ladder.before)
    out = rearrange(out, "b (n c) h v -> b n h c v", c=chunk)
    torch.mul(o.view(out.shape), scale, out=out)
    return states[-1]


def _segment_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    do: Tensor,
    *,
    state: Tensor,
    dstate: Tensor,
    scale: float,
    chunk: int,
    out: list[Tensor],
) -> Tensor:
    """Write a segment's gradients of q, k, v, g to out and return that of the state that enters it."""
    x = _chunks(q, k, v, g, chunk)
    ladder = _climb(x)
    states = _states(ladder, ladder.key, x.value, ladder.after, state)
    do = _by_head(do, chunk, torch.mul, do.new_tensor(scale).expand(1, 1, 1, 1, 1))
    dstates = _states(ladder, ladder.query, do, ladder.before, dstate, reverse=True)
    enter, leave = _merge(states[:-1]) * ladder.before, _merge(dstates[1:]) * ladder.after

    dv = torch.bmm(ladder.scores.mT, do).baddbmm_(ladder.key, leave)
    dquery, dkey, beyond = torch.bmm(do, enter.mT), torch.zeros_like(x.key), torch.bmm(x.value, leave.mT)
    sums = torch.empty(len(dv), 2 * chunk + 1, q.shape[-1], dtype=q.dtype)
    torch.mul(ladder.key, beyond, out=sums[:, chunk:-1])
    sums[:, -1] = (_merge(states[:-1] * dstates[1:]) * ladder.total).sum(-1)

    dscores = torch.bmm(do, x.value.mT)
    _descend(ladder, dscores, dquery, dkey, beyond)
    if x.leaf < chunk:
        dquery.unflatten(1, (-1, x.leaf)).mul_(x.before.unsqueeze(2))
        dkey.unflatten(1, (-1, x.leaf)).mul_(x.after.unsqueeze(2))
        beyond.unflatten(1, (-1, x.leaf)).mul_(x.after.unsqueeze(2))
    # A step's score with itself has no decay: kept apart, it can't drown the gradient of a nearly closed gate.
    own = dscores.diagonal(0, 1, 2).unsqueeze(-1).clone()
    da = _diagonal(dscores, x.leaf).reshape(-1, x.leaf, x.leaf).tril_(-1)
    _blocks(dquery, x.leaf).baddbmm_(da, _blocks(x.key, x.leaf))
    _blocks(dkey, x.leaf).baddbmm_(da.mT, _blocks(x.query, x.leaf))
    torch.mul(x.query, dquery, out=sums[:, :chunk]).addcmul_(x.key, dkey, value=-1)
    dquery.addcmul_(own, x.key)
    dkey.addcmul_(own, x.query).add_(beyond)

    dg = torch.matmul(_gate_sums(chunk, q.dtype), sums)
    natural = {"b": len(q), "h": q.shape[2]}
    dq, dk, dv, dg = (rearrange(y, "(b n h) c d -> b n c h d", **natural) for y in (dquery, dkey, dv, dg))
    views = [rearrange(y, "b (n c) h d -> b n c h d", c=chunk) for y in out]
    torch.mul(dq, x.decay, out=views[0])
    torch.div(dk, x.decay, out=views[1])
    views[2].copy_(dv)
    if x.leaf < chunk:  # e^{−∞} · anything
        torch.mul(dg, g.unflatten(1, (-1, chunk)) > FLOOR, out=views[3])
    else:
        views[3].copy_(dg)
    return dstates[0]


@cache
def _gate_sums(chunk: int, dtype: torch.dtype) -> Tensor:
    """Rows that, times [q ⊙ dq − k ⊙ dk inside; k ⊙ dk beyond the chunk; what passes through], give dg.

    ∂L/∂G_t = q_t ⊙ dq_t − k_t ⊙ dk_t and g_t moves every later G: dg_t is the sum of that over s ≥ t. Keys read
    beyond the chunk would cancel in it against the gradient of the state; summing them over s < t instead is the
    same number without the cancellation.
    """
    ones = torch.ones(chunk, chunk, dtype=dtype)
    return torch.cat([ones.triu(), ones.tril(-1), ones[:, :1]], 1)


def segments(batch: int, time: int, heads: int) -> tuple[int, int]:
    """Steps of a chunk and of a segment for a shape: short sequences get a short chunk."""
    chunk = min(CHUNK, 1 << (time - 1).bit_length())
    return chunk, chunk * min(-(-time // chunk), max(1, SEGMENT // (batch * heads)))


def _pieces(
    inputs: tuple[Tensor, ...], outputs: list[Tensor], chunk: int, segment: int, reverse: bool = False
) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
    """Yield (index, input pieces, output pieces) of each segment. The last one is filled up with zeros to whole
    chunks: a step with k = 0 and g = 0 leaves the state as it is."""
    time = inputs[0].shape[1]
    starts = range(0, time, segment)
    for start in reversed(starts) if reverse else starts:
        stop = min(start + segment, time)
        missing = -(stop - start) % chunk
        pieces, results = ([y[:, start:stop] for y in ys] for ys in (inputs, outputs))
        if not missing:
            yield start // segment, pieces, results
            continue
        pieces = [torch.nn.functional.pad(y, (0, 0, 0, 0, 0, missing)) for y in pieces]
        padded = [y.new_empty(y.shape[0], stop - start + missing, *y.shape[2:]) for y in results]
        yield start // segment, pieces, padded
        for y, result in zip(padded, results, strict=True):
            result.copy_(y[:, : stop - start])


def chunk_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [B, T, H, V], last state [B, H, K, V], and the state entering each segment [segments, B, H, K, V]."""
    chunk, segment = segments(*q.shape[:3])
    o, entering = torch.empty(v.shape, dtype=v.dtype), []
    for _, inputs, (out,) in _pieces((q, k, v, g), [o], chunk, segment):
        entering.append(state)
        state = _segment_forward(*inputs, state=state, scale=scale, chunk=chunk, out=out)
    return o, state.clone(), torch.stack(entering)


def chunk_backward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, do: Tensor, *, dstate: Tensor, entering: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g and of the first state; each segment is computed again from the state that enters it."""
    chunk, segment = segments(*q.shape[:3])
    grads = [torch.empty(y.shape, dtype=y.dtype) for y in (q, k, v, g)]
    for index, inputs, out in _pieces((q, k, v, g, do), grads, chunk, segment, reverse=True):
        state = entering[index]
        dstate = _segment_backward(*inputs, state=state, dstate=dstate, scale=scale, chunk=chunk, out=out)
    return *grads, dstate.clone()


def recurrent_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `chunk_forward` computes, a step at a time and without keeping the states in between."""
    _, segment = segments(*q.shape[:3])
    decay, k, q, v = g.exp().unsqueeze(-1), k.unsqueeze(-1), (q * scale).unsqueeze(-2), v.unsqueeze(-2)
    outputs, entering = [], []
    for t, (qt, kt, vt, at) in enumerate(zip(*(y.unbind(1) for y in (q, k, v, decay)), strict=True)):
        if t % segment == 0:
            entering.append(state)
        state = torch.mul(state, at).addcmul_(kt, vt)
        outputs.append((qt @ state).squeeze(-2))
    return torch.stack(outputs, 1), state, torch.stack(entering)


def most_segments(shape: tuple[int, ...], sequences: int) -> int:
    """How many segments there can be with any bounds of that many sequences; without bounds, how many there are."""
    batch, time, heads = shape[:3]
    if sequences == batch:
        return -(-time // segments(batch, time, heads)[1])
    return sequences + time // (CHUNK * max(1, SEGMENT // heads))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    state: Tensor,
    scale: float,
    bounds: list[int],
    recurrent: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last states and states entering segments, for a batch or for sequences packed behind one another."""
    run = recurrent_forward if recurrent else chunk_forward
    if len(bounds) == 2:
        return run(q, k, v, g, state=state, scale=scale)
    parts = [
        run(*(y[:, i:j] for y in (q, k, v, g)), state=first.unsqueeze(0), scale=scale)
        for (i, j), first in zip(pairwise(bounds), state, strict=True)
    ]
    o, last, entering = (
        torch.cat(y, axis) for y, axis in zip(zip(*parts, strict=True), (1, 0, 0), strict=True)
    )
    spare = most_segments(q.shape, len(state)) - len(entering)
    return o, last, torch.cat([entering, entering.new_zeros(spare, *entering.shape[1:])])


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    do: Tensor,
    *,
    dstate: Tensor,
    entering: Tensor,
    scale: float,
    bounds: list[int],
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g and of the initial states."""
    if len(bounds) == 2:
        return chunk_backward(q, k, v, g, do, dstate=dstate, entering=entering, scale=scale)
    parts, used = [], 0
    for (i, j), last in zip(pairwise(bounds), dstate, strict=True):
        count = most_segments((1, j - i, q.shape[2]), 1)
        inputs = (y[:, i:j] for y in (q, k, v, g, do))
        states = {"dstate": last.unsqueeze(0), "entering": entering[used : used + count]}
        parts.append(chunk_backward(*inputs, **states, scale=scale))
        used += count
    return tuple(
        torch.cat(y, axis) for y, axis in zip(zip(*parts, strict=True), (1, 1, 1, 1, 0), strict=True)
    )
