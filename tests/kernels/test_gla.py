"""The CPU path of gated linear attention, against the step-by-step definition in float64 and against closed forms."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from gated.kernels.gla import chunk_gla, cpu, fused_recurrent_gla, naive_recurrent_gla

FORMS = [chunk_gla, fused_recurrent_gla]
NAMES = ["q", "k", "v", "g", "initial_state"]


def normal(gen, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)


def uniform(gen, *shape):
    return torch.rand(*shape, generator=gen, dtype=torch.float64)


def regimes(shape, gen):
    """The gates of the precision table, and some that lie between its rows."""
    time = shape[1]
    blocks = torch.full(shape, -0.001, dtype=torch.float64)
    blocks[:, torch.arange(time) % 64 < 48] = -20
    resets = logsigmoid(normal(gen, *shape)) / 16
    resets[:, [time // 5, time // 2, time - 7]] = -math.inf
    return {
        "paper": logsigmoid(normal(gen, *shape)) / 16,
        "temperature 4": logsigmoid(normal(gen, *shape)) / 4,
        "temperature 1": logsigmoid(normal(gen, *shape)),
        "mostly closed": logsigmoid(normal(gen, *shape) - 3) / 2,
        "-20": torch.full(shape, -20.0, dtype=torch.float64),
        "U(-20, 0)": -20 * uniform(gen, *shape),
        "half -20": torch.where(uniform(gen, *shape) < 0.5, -20.0, -0.001).double(),
        "48 of 64": blocks,
        "resets": resets,
        "one closed channel": torch.where(torch.arange(shape[-1]) == 1, -50.0, -0.01).double().expand(shape),
        "constant": torch.full(shape, -0.001, dtype=torch.float64),
        "open": torch.zeros(shape, dtype=torch.float64),
    }


def problem(gen, batch, time, heads, key, value, dtype=torch.float64, sequences=None):
    shape = (batch, time, heads)
    q, k, v = (normal(gen, *shape, d, dtype=dtype) for d in (key, key, value))
    return q, k, v, normal(gen, sequences or batch, heads, key, value, dtype=dtype)


def outcome(form, inputs, weights, **options):
    """Outputs, last state and all gradients of a weighted sum of both."""
    q, k, v, g, state = inputs = [y.detach().requires_grad_() for y in inputs]
    if form is naive_recurrent_gla:
        o, last = form(q, k, v, g, initial_state=state, **options)
    else:
        o, last = form(q, k, v, g, initial_state=state, output_final_state=True, **options)
    grads = torch.autograd.grad((o * weights[0]).sum() + (last * weights[1]).sum(), inputs)
    return dict(zip(["o", "state", *NAMES], (o, last, *grads), strict=True))


@pytest.mark.parametrize(("time", "key"), [(273, 64), (64, 32)])
@pytest.mark.parametrize("regime", regimes((1, 64, 1, 2), torch.Generator()))
def test_float32_is_exact_in_every_gate_regime(regime, time, key):
    gen = torch.Generator().manual_seed(0)
    q, k, v, state = problem(gen, 1, time, 2, key, 48, torch.float32)
    g = regimes(q.shape, gen)[regime].float()
    weights = normal(gen, *v.shape, dtype=torch.float32), normal(gen, *state.shape, dtype=torch.float32)
    got = outcome(chunk_gla, (q, k, v, g, state), weights)
    want = outcome(naive_recurrent_gla, [y.double() for y in (q, k, v, g, state)], weights)
    for name, y in got.items():
        expected = want[name].nan_to_num(0.0) if name == "g" else want[name]  # e^{−∞} · anything, in autograd's words
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert error <= (1e-6 if name in ("o", "state") else 2e-6), (name, float(error))


@pytest.mark.parametrize("size", [1e-24, 1e-6, 1e9])
def test_closed_gates_do_not_depend_on_the_scale_of_the_inputs(size):
    gen = torch.Generator().manual_seed(20)
    q, k, v, state = problem(gen, 1, 130, 1, 8, 8, torch.float32)
    g = (-20 * uniform(gen, *q.shape)).float()
    weights = normal(gen, *v.shape, dtype=torch.float32), torch.zeros_like(state)
    whole = outcome(chunk_gla, (size * q, k, v, g, state), weights)
    for name, y in outcome(chunk_gla, (q, k, v, g, state), weights).items():
        factor = 1 if name in ("q", "state") else size
        error = (whole[name] / factor - y).abs().max() / y.abs().max()
        assert error <= 1e-6, (name, float(error))


@pytest.mark.parametrize("form", FORMS)
@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 2),
    time=st.sampled_from([1, 2, 3, 7, 16, 31, 64, 65, 130, 200]),
    heads=st.integers(1, 2),
    key=st.sampled_from([1, 3, 8]),
    value=st.sampled_from([1, 2, 5]),
    spread=st.sampled_from([0.05, 1.0, 30.0]),
    resets=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_float64_equals_the_recurrence_for_any_shape(form, seed, batch, time, heads, key, value, spread, resets):
    gen = torch.Generator().manual_seed(seed)
    q, k, v, state = problem(gen, batch, time, heads, key, value)
    g = -spread * uniform(gen, *q.shape).masked_fill(uniform(gen, *q.shape) < resets, math.inf)
    weights = normal(gen, *v.shape), normal(gen, *state.shape)
    got = outcome(form, (q, k, v, g, state), weights, scale=0.7)
    want = outcome(naive_recurrent_gla, (q, k, v, g, state), weights, scale=0.7)
    for name in got:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize("segment", [1, 2, 8])
def test_segments_carry_the_state_and_its_gradient(segment, monkeypatch):
    gen = torch.Generator().manual_seed(1)
    q, k, v, state = problem(gen, 2, 333, 2, 4, 3)
    g = logsigmoid(normal(gen, *q.shape))
    weights = normal(gen, *v.shape), normal(gen, *state.shape)
    want = outcome(naive_recurrent_gla, (q, k, v, g, state), weights)
    monkeypatch.setattr(cpu, "SEGMENT", segment)
    for name, y in outcome(chunk_gla, (q, k, v, g, state), weights).items():
        torch.testing.assert_close(y, want[name], rtol=1e-10, atol=1e-11, msg=name)


def test_the_sheet_example_by_hand():
    def row(*numbers):
        return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()

    q, k, v, g = row(1, 2, 3), row(1, -1, 2), row(1, 2, -1), row(*np.log([0.5, 0.5, 0.25]))
    for form in FORMS:
        o, state = form(q, k, v, g, scale=1.0, output_final_state=True)
        assert o.flatten().tolist() == pytest.approx([1, -3, -7.125])
        assert state.item() == pytest.approx(-2.375)
        grads = torch.autograd.grad(o.sum(), (q, k, v, g))
        for grad, want in zip(
            grads, ([1, -1.5, -2.375], [2.375, 5.5, -3], [2.375, -2.75, 6], [0, 1.375, -1.125]), strict=True
        ):
            assert grad.flatten().tolist() == pytest.approx(want, abs=1e-12)


def test_open_gates_are_causal_linear_attention():
    gen = torch.Generator().manual_seed(2)
    q, k, v, _ = problem(gen, 2, 150, 3, 5, 4)
    o, _ = chunk_gla(q, k, v, torch.zeros_like(q), scale=1.0)
    scores = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    torch.testing.assert_close(o, torch.einsum("bhij,bjhe->bihe", scores, v))


def test_constant_gates_are_retention():
    gen = torch.Generator().manual_seed(3)
    q, k, v, _ = problem(gen, 1, 150, 2, 5, 4)
    gamma = torch.tensor([1 - 2**-5, 1 - 2**-6], dtype=torch.float64)
    o, _ = chunk_gla(q, k, v, gamma.log().view(1, 1, 2, 1).expand(q.shape), scale=1.0)
    lag = torch.arange(150)[:, None] - torch.arange(150)
    decay = torch.where(lag >= 0, gamma.view(2, 1, 1) ** lag.clamp_min(0), 0.0)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * decay
    torch.testing.assert_close(o, torch.einsum("bhij,bjhe->bihe", scores, v))


def test_one_channel_is_a_first_order_filter():
    gen = torch.Generator().manual_seed(4)
    q, k, v, _ = problem(gen, 1, 500, 1, 1, 1)
    o, _ = chunk_gla(q, k, v, torch.full_like(q, math.log(0.9)), scale=2.0)
    filtered = lfilter([1], [1, -0.9], (k * v).flatten().numpy())
    np.testing.assert_allclose(o.flatten().numpy(), 2 * q.flatten().numpy() * filtered, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_resets_forget_exactly(form, dtype):
    gen = torch.Generator().manual_seed(5)
    q, k, v, state = problem(gen, 1, 200, 2, 8, 8, dtype)
    g = (logsigmoid(normal(gen, *q.shape)) / 16).to(dtype)
    g[:, 77] = -math.inf
    other = [y.clone() for y in (q, k, v, g)]
    for y in other[:3]:
        y[:, :77] = normal(gen, *y[:, :77].shape, dtype=dtype)
    q2, k2, v2, g2 = (y.requires_grad_() for y in other)
    o = form(q, k, v, g, initial_state=state)[0]
    o2 = form(q2, k2, v2, g2, initial_state=5 * state)[0]
    assert torch.equal(o[:, 77:], o2[:, 77:])
    grads = torch.autograd.grad(o2[:, 77:].sum(), (q2, k2, v2, g2))
    assert all(y.isfinite().all() for y in grads) and not any(y[:, :77].any() for y in grads[:3])
    assert not grads[3][:, 77].any()
    # A gate's gradient is a sum over later steps in which what the reset cut off cancels, to rounding.
    assert grads[3][:, :77].abs().max() <= 8 * torch.finfo(dtype).eps * grads[3].abs().max()
    closed = form(q, k, v, torch.full_like(q, -math.inf))[0]
    torch.testing.assert_close(closed, 8**-0.5 * (q * k).sum(-1, keepdim=True) * v)
    one = form(*(y[:, :1] for y in (q, k, v, torch.full_like(q, -math.inf))))[0]
    torch.testing.assert_close(one, closed[:, :1])


@pytest.mark.parametrize("resets", [0, 0.5, 1])
@pytest.mark.parametrize("segment", [1, cpu.SEGMENT])
@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences_are_those_sequences_one_by_one(form, segment, resets, monkeypatch):
    monkeypatch.setattr(cpu, "SEGMENT", segment)
    gen = torch.Generator().manual_seed(6)
    bounds = [0, 5, 70, 71, 263, 264]
    q, k, v, state = problem(gen, 1, bounds[-1], 2, 4, 3, sequences=5)
    g = logsigmoid(normal(gen, *q.shape)).masked_fill(uniform(gen, *q.shape) < resets, -math.inf)
    weights = normal(gen, *v.shape), normal(gen, *state.shape)
    got = outcome(form, (q, k, v, g, state), weights, cu_seqlens=torch.tensor(bounds))
    for n, (i, j) in enumerate(itertools.pairwise(bounds)):
        alone = [y[:, i:j] for y in (q, k, v, g)] + [state[n : n + 1]]
        want = outcome(naive_recurrent_gla, alone, (weights[0][:, i:j], weights[1][n : n + 1]))
        for name, y in got.items():
            part = y[n : n + 1] if name in ("state", "initial_state") else y[:, i:j]
            torch.testing.assert_close(part, want[name], rtol=1e-10, atol=1e-11, msg=name)


@given(seed=st.integers(0, 2**16), cut=st.integers(1, 149))
def test_a_carried_state_equals_one_run(seed, cut):
    gen = torch.Generator().manual_seed(seed)
    q, k, v, _ = problem(gen, 1, 150, 2, 4, 4)
    g = logsigmoid(normal(gen, *q.shape)) / 4
    whole, last = chunk_gla(q, k, v, g, output_final_state=True)
    first, state = chunk_gla(*(y[:, :cut] for y in (q, k, v, g)), output_final_state=True)
    second, end = fused_recurrent_gla(*(y[:, cut:] for y in (q, k, v, g)), initial_state=state, output_final_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


@given(seed=st.integers(0, 2**16))
def test_gauge_invariance_and_the_conservation_law_it_implies(seed):
    gen = torch.Generator().manual_seed(seed)
    q, k, v, state = problem(gen, 1, 100, 2, 4, 3)
    g = logsigmoid(normal(gen, *q.shape))
    tilt = normal(gen, 1, 1, 2, 4)
    torch.testing.assert_close(chunk_gla(q * tilt.exp(), k * (-tilt).exp(), v, g)[0], chunk_gla(q, k, v, g)[0])
    weights = normal(gen, *v.shape), normal(gen, *state.shape)
    zero = torch.zeros_like(state)
    got = outcome(chunk_gla, (q, k, v, g, zero), weights)
    through = (got["state"].detach() * weights[1]).sum(-1)
    balance = (q * got["q"] - k * got["k"]).sum(1) + through
    torch.testing.assert_close(balance, torch.zeros_like(balance), atol=1e-10, rtol=0)
    torch.testing.assert_close(got["g"][:, 0], torch.zeros_like(got["g"][:, 0]), atol=1e-10, rtol=0)


def test_the_future_does_not_reach_the_past():
    gen = torch.Generator().manual_seed(7)
    q, k, v, _ = (y.requires_grad_() for y in problem(gen, 1, 100, 1, 4, 3, torch.float32))
    g = (logsigmoid(normal(gen, *q.shape)) / 16).float().requires_grad_()
    grads = torch.autograd.grad(chunk_gla(q, k, v, g)[0][:, 40].sum(), (q, k, v, g))
    assert not any(y[:, 41:].any() for y in grads)
    assert all(y[:, 1:41].any() for y in grads)


@pytest.mark.parametrize(("time", "resets"), [(20, 0), (20, 0.2), (1, 0.5), (1, 1)])
def test_reverse_and_value_gates_match_their_definitions(time, resets):
    gen = torch.Generator().manual_seed(8)
    q, k, v, state = problem(gen, 2, time, 2, 4, 3)
    gk, gv = (logsigmoid(normal(gen, *y.shape)).masked_fill(uniform(gen, *y.shape) < resets, -math.inf) for y in (q, v))
    o, last = fused_recurrent_gla(q, k, v, gk, initial_state=state, output_final_state=True, reverse=True)
    want, end = naive_recurrent_gla(*(y.flip(1) for y in (q, k, v, gk)), initial_state=state)
    torch.testing.assert_close(o, want.flip(1))
    torch.testing.assert_close(last, end)
    memory, outputs = state, []
    for t in range(time):
        memory = memory * torch.einsum("bhk,bhv->bhkv", gk[:, t].exp(), gv[:, t].exp())
        memory = memory + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory) / 2)
    o, last = fused_recurrent_gla(q, k, v, gk, gv, initial_state=state, output_final_state=True)
    torch.testing.assert_close(o, torch.stack(outputs, 1))
    torch.testing.assert_close(last, memory)
    bounds = [0, 7, 8, 20] if time == 20 else [0, 1]
    packed = [y[:1] for y in (q, k, v, gk, gv)]
    o, _ = fused_recurrent_gla(*packed, reverse=True, cu_seqlens=torch.tensor(bounds))
    parts = itertools.pairwise(bounds)
    want = [fused_recurrent_gla(*(y[:, i:j] for y in packed), reverse=True)[0] for i, j in parts]
    torch.testing.assert_close(o, torch.cat(want, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    gen = torch.Generator().manual_seed(9)
    q, k, v, _ = problem(gen, 1, 100, 2, 8, 8, dtype)
    g = (logsigmoid(normal(gen, *q.shape)) / 16).float()
    o, state = chunk_gla(q, k, v, g, output_final_state=True)
    exact, last = chunk_gla(q.float(), k.float(), v.float(), g, output_final_state=True)
    assert o.dtype == dtype and state.dtype == torch.float32
    assert torch.equal(o, exact.to(dtype)) and torch.equal(state, last)


def test_agrees_with_another_implementation():
    fla = pytest.importorskip("fla.ops.gla.naive")
    gen = torch.Generator().manual_seed(10)
    q, k, v, state = problem(gen, 2, 60, 2, 16, 8, torch.float32)
    g = (logsigmoid(normal(gen, *q.shape)) / 16).float()
    want, last = fla.naive_recurrent_gla(q, k, v, g, initial_state=state, output_final_state=True)
    got, end = chunk_gla(q, k, v, g, initial_state=state, output_final_state=True)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    gen = torch.Generator().manual_seed(12)
    q, k, v, state = problem(gen, 1, 9, 1, 2, 2)
    inputs = [y.requires_grad_() for y in (q, k, v, logsigmoid(normal(gen, *q.shape)), state)]
    torch.autograd.gradcheck(lambda q, k, v, g, s: chunk_gla(q, k, v, g, None, s, True), inputs)


def test_what_autograd_keeps_grows_with_the_inputs_and_not_with_states():
    gen = torch.Generator().manual_seed(14)

    def kept(form, time):
        q, k, v, _ = (y.requires_grad_() for y in problem(gen, 1, time, 4, 64, 64, torch.float32))
        g = (logsigmoid(normal(gen, *q.shape)) / 16).float().requires_grad_()
        saved = {}

        def note(y):
            saved[y.data_ptr()] = y  # holding y keeps its address from being given away again
            return y

        with torch.autograd.graph.saved_tensors_hooks(note, lambda y: y):
            form(q, k, v, g)
        return sum(y.nbytes for y in saved.values())

    inputs = 4 * 4 * 64 * 4  # four tensors a step, four heads, 64 channels, four bytes
    assert kept(chunk_gla, 4096) - kept(chunk_gla, 2048) < 1.02 * 2048 * inputs
    assert kept(naive_recurrent_gla, 64) > 10 * 64 * inputs


def test_counted_operations_are_the_cost_model():
    gen = torch.Generator().manual_seed(15)
    q, k, v, _ = (y.requires_grad_() for y in problem(gen, 2, 256, 3, 16, 8, torch.float32))
    g = (logsigmoid(normal(gen, *q.shape)) / 16).float().requires_grad_()
    for recorded in (False, True):
        with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(recorded):
            o, _ = chunk_gla(q, k, v, g)
        assert forward.get_total_flops() == 2 * 256 * 3 * (4 * 16 * 8 + 64 * (16 + 8))
    with FlopCounterMode(display=False) as backward:
        o.sum().backward()
    assert backward.get_total_flops() == pytest.approx(2.5 * forward.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_product_of_two_factors_is_a_denormal_number(dtype):
    """And nothing goes that might have been part of a product that counts."""
    tiny = torch.finfo(dtype).tiny
    factors = torch.logspace(math.log10(tiny), 0, 500, dtype=torch.float64).to(dtype)
    for largest in (1.0, 1e-3):
        left = cpu._flush(largest * factors)
        products = left.outer(left / largest)
        assert ((products == 0) | (products >= tiny * largest)).all()
        assert torch.equal(left != 0, largest * factors > largest * tiny**0.5)


class Watched(torch.Tensor):
    """A tensor that writes down which of our operators it meets."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen += [name for name in [str(function)] if name.startswith("gated.")]
        return super().__torch_function__(function, types, args, kwargs or {})


def test_the_dispatch_is_left_out_only_where_nobody_watches():
    """Decoding calls the operator once a token and layer: plain tensors without a gradient go straight to the loops."""
    gen = torch.Generator().manual_seed(18)
    q, k, v, _ = problem(gen, 1, 9, 1, 4, 4)
    for recorded, watched, dispatched in ((False, False, False), (True, False, True), (False, True, True)):
        x = q.as_subclass(Watched) if watched else q
        Watched.seen.clear()
        with torch.set_grad_enabled(recorded), torch.profiler.profile(acc_events=True) as profile:
            fused_recurrent_gla(x, k, v)
        names = [event.key for event in profile.key_averages()] + Watched.seen
        assert any(name.startswith(("gated::gla", "gated.gla")) for name in names) == dispatched


@pytest.mark.parametrize("form", FORMS)
def test_autocast_leaves_the_computation_in_float32(form):
    gen = torch.Generator().manual_seed(16)
    q, k, v, _ = (y.requires_grad_() for y in problem(gen, 1, 100, 2, 8, 8, torch.float32))
    g = (logsigmoid(normal(gen, *q.shape)) / 16).float()
    want = torch.autograd.grad(form(q, k, v, g)[0].square().sum(), (q, k, v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, _ = form(q, k, v, g)
        got = torch.autograd.grad(o.square().sum(), (q, k, v))
    torch.testing.assert_close(got, want)


def test_what_the_mask_hides_may_overflow():
    gen = torch.Generator().manual_seed(17)
    q, k, v, _ = problem(gen, 1, 64, 1, 4, 4, torch.float32)
    g = torch.full_like(q, -0.249)
    o, _ = chunk_gla(1e17 * q, 1e17 * k, v, g)
    want, _ = naive_recurrent_gla(*(y.double() for y in (1e17 * q, 1e17 * k, v, g)))
    assert (o - want).abs().max() <= 1e-6 * want.abs().max()
