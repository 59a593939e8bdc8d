"""Block after block, an expert after another, in pieces that stay in the cache.

Arithmetic binds. On one thread, the shortest of many runs of PyTorch's float64 operators took, in nanoseconds a number,
1.4 for an exponential, 2 for a logarithm, 3.9 for tanh and 0.4 for a division, while x and y of a point are read in
0.2. Hence one exponential, not two, where two experts are kept, one division a point for both softmaxes, and one
logarithm a block where its product cannot overflow. Compiled, a pass takes between a fifth and a third of the time on
one thread, and an eighth to a fifth on two; benchmarks/gaussian_moe.py measures both beside their peers.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gated.kernels.gmoe_em.activations import ACTIVATIONS
from gated.kernels.gmoe_em.layout import sizes

PIECE = 16_384  # points at a time: a float64 row of them is 128 KiB
COMPILED_PIECE = 131_072  # its loops keep fewer rows between them, and share the blocks out; more would leave the cache


def selection(by: list[Tensor], top_k: int) -> list[Tensor]:
    """Which experts are among the `top_k` largest of `by`: those that fewer than `top_k` others come before.

    Of two equal scores the lower index comes first.
    """
    before = [torch.zeros_like(score, dtype=torch.int32) for score in by]
    for j in range(len(by)):
        for i in range(j):
            later = (by[j] > by[i]).int()
            before[i] = before[i] + later
            before[j] = before[j] + (1 - later)
    return [number < top_k for number in before]


def exponentials(logits: list[Tensor], selected: list[Tensor], top_k: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """The largest of the selected logits, the exponentials of what is above it (0 where not selected), their sum.

    Two selected experts need one exponential, one needs none.
    """
    masked = [torch.where(s, l, -torch.inf) for l, s in zip(logits, selected, strict=True)] if selected else logits
    top = masked[0]
    for l in masked[1:]:
        top = torch.maximum(top, l)
    if top_k == 1:
        parts = [s.to(top.dtype) for s in selected] if selected else [torch.ones_like(top)]
        return top, parts, torch.ones_like(top)
    if top_k == 2:
        low = [torch.where(s, l, torch.inf) for l, s in zip(logits, selected, strict=True)] if selected else logits
        least = low[0]
        for l in low[1:]:
            least = torch.minimum(least, l)
        small = torch.exp(least - top)
        parts = [torch.where(l == top, 1.0, torch.where(l == -torch.inf, 0.0, small)) for l in masked]
        return top, parts, 1 + small
    parts = [torch.exp(l - top) for l in masked]
    return top, parts, sum(parts[1:], parts[0])


def statistics(
    x: Tensor,
    y: Tensor,
    count: Tensor,
    beta0: Tensor,
    beta1: Tensor,
    a: Tensor,
    b: Tensor,
    variance: Tensor,
    tau: Tensor,
    top_k: int,
    rank: str,
    activation: str,
    product: bool,
) -> Tensor:
    """[blocks, numbers] from points [blocks, (dim,) length] and each block's parameters [blocks, experts (, dim)].

    `product`: take the logarithm of a block's product, not of each factor; they lie between 1 / top_k and top_k.
    """
    k, d, length = beta0.shape[1], x.shape[1], x.shape[2]
    real = (torch.arange(length, device=x.device) < count[:, None]).to(x.dtype)
    value, derivative, _ = ACTIVATIONS[activation]
    inputs = [x[:, u] for u in range(d)]
    column = lambda p: p[:, None]  # noqa: E731

    def linear(weight: Tensor, i: int) -> Tensor:
        total = column(weight[:, i, 0]) * inputs[0]
        for u in range(1, d):
            total = total + column(weight[:, i, u]) * inputs[u]
        return total

    scaled = [linear(beta1, i) for i in range(k)]
    scores = [value(z) for z in scaled]
    slopes = None if activation == "identity" else [derivative(z) for z in scaled]
    cold = column(1 / tau)
    logits = [(scores[i] + column(beta0[:, i])) * cold for i in range(k)]
    selected = selection(scores if rank == "slope" else logits, top_k) if top_k < k else []
    error = [y - linear(a, i) - column(b[:, i]) for i in range(k)]
    joint = [
        logits[i] - error[i] * error[i] * column(0.5 / variance[:, i]) - column(0.5 * torch.log(variance[:, i]))
        for i in range(k)
    ]
    top, prior, priors = exponentials(logits, selected, top_k)
    joint_top, posterior, posteriors = exponentials(joint, selected, top_k)

    out: list[Tensor] = []

    def put(values: Tensor) -> Tensor:
        out.append(values.sum(1))
        return values

    # one division a point; both sums are between 1 and top_k
    both = 1 / (priors * posteriors)
    per_prior, per_posterior = posteriors * both, priors * both
    ratio = posteriors * per_prior
    largest = joint_top - top - 0.5 * math.log(2 * math.pi)
    if product:
        put(real * largest)
        out[0] = out[0] + torch.where(real > 0, ratio, 1.0).prod(1).log()
    else:
        put(real * (largest + ratio.log()))
    own = [p * per_prior for p in prior]
    pi = [p * real for p in own]
    per_posterior = per_posterior * real
    r = [p * per_posterior for p in posterior]
    pairs = [(u, v) for u in range(d) for v in range(u, d)]
    for i in range(k):  # moment, upper triangle in rows: (1, x) (1, x)^T
        put(r[i])
        times = [put(r[i] * z) for z in inputs]
        for u, v in pairs:
            put(times[u] * inputs[v])
    squares = []
    for i in range(k):
        weighted = put(r[i] * error[i])
        for z in inputs:
            put(weighted * z)
        squares.append(weighted * error[i])
    for values in squares:
        put(values)

    def steep(values: Tensor, i: int) -> Tensor:
        return values if slopes is None else values * slopes[i]

    above = [logits[i] - top for i in range(k)]
    mean = sum((own[i] * above[i] for i in range(1, k)), own[0] * above[0])
    for i in range(k - 1):
        difference = put(r[i] - pi[i])
        for z in inputs:
            put(steep(difference, i) * z)
    put(sum(((pi[i] - r[i]) * above[i] for i in range(1, k)), (pi[0] - r[0]) * above[0]))
    for i in range(k - 1):  # gram: rows (i, 0..d), columns to the right in the upper triangle, tau last
        around = pi[i] * (mean - above[i])
        spread = [pi[i] * (1 - own[i]) if i == j else -(pi[i] * own[j]) for j in range(i, k - 1)]
        for h, j in zip(spread, range(i, k - 1), strict=True):  # the row of beta0_i
            put(h)
            for z in inputs:
                put(steep(h, j) * z)
        put(around)
        for u in range(d):  # the row of beta1_iu
            for h, j in zip(spread, range(i, k - 1), strict=True):
                row = steep(h, i) * inputs[u]
                if j > i:
                    put(row)
                for v in range(u if i == j else 0, d):
                    put(steep(row, j) * inputs[v])
            put(steep(around, i) * inputs[u])
    put(sum((pi[i] * (above[i] - mean) ** 2 for i in range(1, k)), pi[0] * (above[0] - mean) ** 2))
    if selected:
        for chosen in selected:
            put(real * chosen)
    else:
        out += [count.to(x.dtype)] * k
    return torch.stack(out, 1)


@functools.cache
def compiled_statistics(
    k: int, d: int, dtype: torch.dtype, top_k: int, rank: str, activation: str, product: bool
) -> Callable[..., Tensor] | None:
    """`statistics` for one form of the gate and any number and length of blocks, in machine code.

    None, and a warning, where there is no C++ compiler that works.
    """

    def of_tensors(*tensors: Tensor) -> Tensor:
        return statistics(*tensors, top_k, rank, activation, product)  # type: ignore[call-arg, arg-type]

    # Sizes that differ from each other and from k and d, so that none is taken for another.
    blocks, length = 211, 1009
    shapes = [(blocks, d, length), (blocks, length), (blocks,), (blocks, k), (blocks, k, d), (blocks, k, d)]
    example = [torch.ones(shape, dtype=dtype) for shape in [*shapes, (blocks, k), (blocks, k), (blocks,)]]
    example[2] = example[2].long()
    # Traced first: the compiler then sees a list of operations, however the Python around it is wrapped.
    graph = make_fx(of_tensors, tracing_mode="symbolic")(*example)
    function = torch.compile(graph, dynamic=True, fullgraph=True, options={"max_fusion_size": 1_000_000})
    try:
        function(*example)
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"compiled=True has no effect: torch.compile failed ({reason}). It needs a C++ compiler, and an "
            "environment whose path has no space in it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return function


def forward(
    x: Tensor,
    y: Tensor,
    count: Tensor,
    segment: Tensor,
    segments: int,
    parameters: list[Tensor],
    top_k: int,
    rank: str,
    activation: str,
    compiled: bool,
) -> Tensor:
    """[segments, numbers]: the blocks' statistics, added up in float64."""
    (blocks, d, length), k = x.shape, parameters[0].shape[1]
    total = torch.zeros(segments, sum(sizes(k, d)), dtype=torch.float64)
    product = length * math.log2(top_k) < math.log2(torch.finfo(x.dtype).max) - 1
    fast = compiled_statistics(k, d, x.dtype, top_k, rank, activation, product) if compiled and blocks else None
    step = max(1, (COMPILED_PIECE if fast is not None else PIECE) // length)
    for start in range(0, blocks, step):
        at = slice(start, start + step)
        given = [x[at], y[at], count[at], *(p[segment[at]] for p in parameters)]
        if fast is not None and len(given[0]) > 1 and length > 1:  # (axes of length 1 would be compiled for anew)
            # as if newly made: the strides of axes of length 1 (d, say) can be anything, and are compiled for too
            part = fast(*(t.contiguous().view(-1).view(t.shape) for t in given))
        else:
            part = statistics(*given, top_k, rank, activation, product)  # type: ignore[call-arg, arg-type]
        total.index_add_(0, segment[at], part.double())
    return total
