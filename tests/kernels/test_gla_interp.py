"""The Triton kernels in Triton's interpreter, against the recurrence in float64 (run with TRITON_INTERPRET=1).

The interpreter runs the kernels' own source on the CPU, so these tests cover indices, masks, decay and gradients, but
not the compiler (see test_gla_aot.py) and not bfloat16, which the interpreter is known to get wrong.
"""

import os

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

INF = float("inf")
NAMES = ("q", "k", "v", "g", "h0")


@pytest.fixture(scope="module")
def gpu():
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    from gated.kernels.gla import gpu

    return gpu


def recurrence(q, k, v, g, h0, scale: float, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """S_t = Diag(e^{g_t}) S_{t-1} + k_t^T v_t and o_t = scale q_t S_t, sequence after sequence."""
    out, last, start = [], [], 0
    for n, length in enumerate(lengths):
        S = h0[n]
        for t in range(start, start + length):
            S = g[t].exp()[..., None] * S + k[t][..., None] * v[t][:, None]
            out.append(scale * torch.einsum("hk,hkv->hv", q[t], S))
        last, start = [*last, S], start + length
    return torch.stack(out), torch.stack(last)


def gates(regime: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    normal, uniform = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
    step = torch.arange(shape[0])[:, None, None].expand(shape)
    if regime == "hard resets":
        g = logsigmoid(normal) / 16
        g[[0, 5, 6, 40, 63, 64, 70]] = -INF  # also a chunk's first and last step, and two in a row
        return torch.where(uniform < 0.05, -INF, g)
    return {
        "open": torch.zeros(shape),
        "paper": logsigmoid(normal) / 16,
        "tau 1": logsigmoid(normal),
        "-20 everywhere": torch.full(shape, -20.0),
        "uniform to -20": -20 * uniform,
        "-20 half the time": torch.where(uniform < 0.5, -20.0, -0.001),
        "48 x -20, 16 x -.001": torch.where(step % 64 < 48, -20.0, -0.001),
        "all reset": torch.full(shape, -INF),
    }[regime]


REGIMES = ("open", "paper", "tau 1", "-20 everywhere", "uniform to -20", "-20 half the time", "48 x -20, 16 x -.001",
           "hard resets", "all reset")


def problem(regime: str, chunks: list[int], H: int, K: int, V: int, dtype=torch.float32, seed: int = 0):
    """Inputs, the gradients that come in, and the float64 outputs and gradients of the recurrence."""
    generator = torch.Generator().manual_seed(seed)
    L, N, scale = 64 * sum(chunks), len(chunks), K**-0.5
    q, k, v, do = (torch.randn(L, H, D, generator=generator).to(dtype) for D in (K, K, V, V))
    h0, dht = (torch.randn(N, H, K, V, generator=generator) for _ in range(2))
    inputs = (q, k, v, gates(regime, (L, H, K), generator), h0)
    leaves = [x.double().requires_grad_() for x in inputs]
    exact = recurrence(*leaves, scale, [64 * c for c in chunks])
    loss = (exact[0] * do.double()).sum() + (exact[1] * dht.double()).sum()
    offsets = torch.tensor([0, *chunks]).cumsum(0).int()
    return inputs, scale, offsets, do, dht, [x.detach() for x in exact], torch.autograd.grad(loss, leaves)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where got is not finite."""
    difference = (got.double() - want.detach()).abs().max() / want.detach().abs().max().clamp_min(1e-300)
    return difference.item() if torch.isfinite(got).all() else INF


@pytest.mark.parametrize("regime", REGIMES)
def test_forward_and_all_gradients(gpu, regime, record_property):
    """K and V differ and are no powers of two; two sequences of different length share the launch."""
    (q, k, v, g, h0), scale, offsets, do, dht, exact, grads = problem(regime, [2, 1], H=2, K=20, V=24)
    o, ht = gpu.chunk_forward(q, k, v, g, scale, h0, offsets)
    got = gpu.chunk_backward(q, k, v, g, scale, h0, offsets, do, dht)
    assert ht.dtype == torch.float32
    errors = {"o": error(o, exact[0]), "ht": error(ht, exact[1])}
    for name, x, want in zip(NAMES, got, grads, strict=True):
        # a gate's gradient is exactly 0 where every gate is -inf: nothing is left to forget
        errors["d" + name] = error(x, want) if want.any() else x.abs().max().item()
    record_property("errors", {n: f"{e:.1e}" for n, e in errors.items()})
    assert max(errors["o"], errors["ht"]) < 1e-6, errors
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize(("chunks", "H", "K", "V"), [
    ([1], 1, 1, 1), ([3], 1, 64, 64), ([1, 1], 1, 33, 130), ([1], 2, 100, 5), ([1], 1, 256, 256)])
def test_sizes(gpu, chunks, H, K, V):
    """One channel, tiles that fill exactly, tiles left partly empty, several tiles of keys and of values."""
    (q, k, v, g, h0), scale, offsets, do, dht, exact, grads = problem("-20 half the time", chunks, H, K, V)
    got = [*gpu.chunk_forward(q, k, v, g, scale, h0, offsets),
           *gpu.chunk_backward(q, k, v, g, scale, h0, offsets, do, dht)]
    assert [x.shape for x in got] == [x.shape for x in (*exact, *grads)]
    for x, want in zip(got, (*exact, *grads), strict=True):
        assert error(x, want) < 2e-6


def test_without_states(gpu):
    """No initial state is a state of zeros, no gradient of the final state is a gradient of zeros."""
    (q, k, v, g, h0), scale, offsets, do, dht, _, _ = problem("paper", [1, 2], 1, 16, 16)
    empty = torch.zeros_like(h0)
    for none, zero in zip(gpu.chunk_forward(q, k, v, g, scale, None, offsets),
                          gpu.chunk_forward(q, k, v, g, scale, empty, offsets), strict=True):
        assert torch.equal(none, zero)
    for none, zero in zip(gpu.chunk_backward(q, k, v, g, scale, None, offsets, do, None),
                          gpu.chunk_backward(q, k, v, g, scale, empty, offsets, do, 0 * dht), strict=True):
        assert torch.equal(none, zero)


def test_padding_leaves_the_state_alone(gpu):
    """q = k = v = 0 and g = 0 after the end: the same states, gradients and outputs before it, zeros on it."""
    (q, k, v, g, h0), scale, offsets, do, dht, _, _ = problem("paper", [1], 1, 16, 16)
    for x in (q, k, v, g, do):
        x[50:] = 0
    leaves = [x.double().requires_grad_() for x in (q[:50], k[:50], v[:50], g[:50], h0)]
    exact, last = recurrence(*leaves, scale, [50])
    loss = (exact * do[:50].double()).sum() + (last * dht.double()).sum()
    grads = torch.autograd.grad(loss, leaves)
    o, ht = gpu.chunk_forward(q, k, v, g, scale, h0, offsets)
    got = gpu.chunk_backward(q, k, v, g, scale, h0, offsets, do, dht)
    assert error(o[:50], exact) < 1e-6
    assert error(ht, last) < 1e-6
    assert not o[50:].any()
    for x, want in zip(got, grads, strict=True):
        assert error(x[:50] if x is not got[-1] else x, want) < 2e-6


def test_half_precision(gpu):
    """float16: errors of the size of its rounding (2^-11), for outputs and gradients in its own dtype."""
    (q, k, v, g, h0), scale, offsets, do, dht, exact, grads = problem("tau 1", [2, 1], 2, 32, 16, torch.float16)
    o, ht = gpu.chunk_forward(q, k, v, g, scale, h0, offsets)
    got = gpu.chunk_backward(q, k, v, g, scale, h0, offsets, do, dht)
    half, single = torch.float16, torch.float32
    assert [x.dtype for x in (o, ht, *got)] == [half, single, half, half, half, single, single]
    for x, want in zip((o, ht, *got), (*exact, *grads), strict=True):
        assert error(x, want) < 2**-10


def test_half_precision_gate_gradient_cancels(gpu):
    """Nothing passes a gate of -20, so its gradient is 0: in half precision too, equal terms of reads and writes must
    cancel to float32 rounding, far below the 2^-11 to which each of them is known."""
    (q, k, v, g, h0), scale, offsets, do, dht, _, grads = problem("-20 half the time", [2], 1, 32, 32, torch.float16)
    dg = gpu.chunk_backward(q, k, v, g, scale, h0, offsets, do, dht)[3]
    assert error(dg, grads[3]) < 2**-10
    assert (dg - grads[3])[g == -20].abs().max() < 2e-6 * grads[3].abs().max()


def test_causal_and_apart(gpu):
    """A later step changes no earlier output and a sequence no other: exactly, not to rounding."""
    (q, k, v, g, h0), scale, offsets, _, _, _, _ = problem("paper", [1, 1], 1, 16, 16)
    before, _ = gpu.chunk_forward(q, k, v, g, scale, h0, offsets)
    changed = [x.clone() for x in (q, k, v, g)]
    for x in changed:
        x[40:64] -= 1
    after, _ = gpu.chunk_forward(*changed, scale, h0, offsets)
    same = [t for t in range(128) if torch.equal(before[t], after[t])]
    assert same == [*range(40), *range(64, 128)]


@pytest.mark.parametrize("regime", ["paper", "uniform to -20", "hard resets"])
def test_recurrent_form(gpu, regime):
    """Offsets in tokens, sequences of any length, one of them of a single token."""
    generator = torch.Generator().manual_seed(1)
    H, K, V, lengths = 2, 20, 24, [75, 1, 14]
    q, k, v = (torch.randn(90, H, D, generator=generator) for D in (K, K, V))
    h0, g = torch.randn(3, H, K, V, generator=generator), gates(regime, (90, H, K), generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    exact = recurrence(*(x.double() for x in (q, k, v, g, h0)), K**-0.5, lengths)
    for got, want in zip(gpu.recurrent_forward(q, k, v, g, K**-0.5, h0, offsets), exact, strict=True):
        assert error(got, want) < 1e-6
    none = gpu.recurrent_forward(q, k, v, g, K**-0.5, None, offsets)
    zero = gpu.recurrent_forward(q, k, v, g, K**-0.5, torch.zeros_like(h0), offsets)
    assert all(torch.equal(a, b) for a, b in zip(none, zero, strict=True))


@pytest.mark.parametrize(("time", "bounds", "resets"), [
    (140, None, 0), (140, [0, 5, 70, 71, 140], 0), (1, None, 0.5), (1, None, 1), (20, [0, 7, 8, 20], 0.5)])
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_the_operators_gpu_side_packs_and_unpacks(gpu, form, time, bounds, resets):
    """What CUDA dispatches to, on CPU tensors: padding, offsets, dtypes and the way back, against the CPU path."""
    from gated.kernels import gla

    generator = torch.Generator().manual_seed(3)
    batch, sequences = (2, 2) if bounds is None else (1, len(bounds) - 1)
    q, k, v, z = (torch.randn(batch, time, 2, d, generator=generator) for d in (8, 8, 5, 8))
    h0 = torch.randn(sequences, 2, 8, 5, generator=generator)
    g = (logsigmoid(z) / 4).masked_fill(torch.rand(z.shape, generator=generator) < resets, -INF)
    do, dht = torch.randn(v.shape, generator=generator), torch.randn(h0.shape, generator=generator)
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    inputs = (q, k, v, g, 0.3, h0, cu_seqlens)
    o, ht, entering = gla._gla_gpu(*inputs, form)
    want, state, saved = gla._gla_cpu(*inputs, form)
    assert not entering.numel()
    torch.testing.assert_close(o, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ht, state, rtol=1e-5, atol=1e-5)
    got = gla._gla_backward_gpu(*inputs, entering, do, dht)
    for a, b in zip(got, gla._gla_backward_cpu(*inputs, saved, do, dht), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
