"""gated.ninformer against a fixture, closed forms, explicit sums, autograd, counted operations and other libraries."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev

from gated.ninformer import (
    MLP,
    Kind,
    MixerBlock,
    NiNBlock,
    Variant,
    blocks,
    fused,
    gate,
)

KINDS, VARIANTS = get_args(Kind), get_args(Variant)
WIDTHS = (3, 4, 7, 5, 6)  # n, d, T, C, F: all different, so that a map along the wrong axis cannot pass


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(*widths: int, variant: str = "released", seed: int = 0) -> NiNBlock:
    """In float64 and with every parameter drawn, the norms' too."""
    made = NiNBlock(*(widths or WIDTHS), variant=variant).double()
    gen = seeded(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=gen, dtype=p.dtype) * 0.5)
    return made


def tokens(n: int = 3, d: int = 4, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, n, d, generator=seeded(seed), dtype=torch.float64)


def zero(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.zero_()


def norm_by_hand(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def gelu_by_hand(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def weights(linear: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy() for p in linear.parameters()]


def mlp_by_hand(mlp: MLP, x: np.ndarray, axis: str) -> np.ndarray:
    """Explicit sums; `axis` is "channels" (the last) or "tokens"."""
    (up, up_bias), (down, down_bias) = weights(mlp.up), weights(mlp.down)
    if axis == "channels":
        return np.einsum("bnh,dh->bnd", gelu_by_hand(np.einsum("bnd,hd->bnh", x, up) + up_bias), down) + down_bias
    hidden = gelu_by_hand(np.einsum("bnd,hn->bhd", x, up) + up_bias[:, None])
    return np.einsum("bhd,nh->bnd", hidden, down) + down_bias[:, None]


def mixer_by_hand(mixer: MixerBlock, x: np.ndarray) -> np.ndarray:
    if mixer.token_mlp is not None:
        x = x + mlp_by_hand(mixer.token_mlp, norm_by_hand(x, mixer.token_norm), "tokens")
    return x + mlp_by_hand(mixer.channel_mlp, norm_by_hand(x, mixer.channel_norm), "channels")


# The block as released -----------------------------------------------------------------------------------------------


def test_the_fixture():
    """Parameter tensor j, flat entry k, is sin(0.7 (k + 1) + j) / 2; the numbers are those of the authors' module."""
    nin = NiNBlock(3, 4, 6, 6, 6).double()
    with torch.no_grad():
        for j, p in enumerate(nin.parameters()):
            p.copy_(0.5 * torch.sin(0.7 * torch.arange(1, p.numel() + 1, dtype=torch.float64) + j).view_as(p))
    x = torch.cos(torch.arange(12, dtype=torch.float64)).view(1, 3, 4)
    y, g = nin(x, return_gate=True)
    expected = [
        [3.352096, -1.253606, -0.379779, -0.941083],
        [0.009958, 0.352658, 0.659604, 0.492788],
        [1.003074, -0.346278, -0.744644, 0.471607],
    ]
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(y[0], torch.tensor(expected).double(), **close)
    torch.testing.assert_close(y.sum().item(), 2.6763957829, atol=1e-9, rtol=0)
    torch.testing.assert_close(y.square().sum().item(), 16.5433009026, atol=1e-9, rtol=0)
    torch.testing.assert_close(g[0, 0], torch.tensor([2.239898, 2.191656, 0.413455, 0.281132]).double(), **close)
    u = nin.value_and_gate(nin.norm(x))[0]
    torch.testing.assert_close(u[0, 0], torch.tensor([0.758471, -1.139027, 0.298674, -1.103669]).double(), **close)


def test_the_state_has_the_order_of_the_released_module():
    n, d, T, C, F_ = WIDTHS
    inner = [(d,), (d,), (T, n), (T,), (n, T), (n,), (d,), (d,), (C, d), (C,), (d, C), (d,)]
    expected = [(d,), (d,), *inner, (d, d), (d,), (F_, d), (F_,), (d, F_), (d,)]
    assert [tuple(p.shape) for p in NiNBlock(*WIDTHS).state_dict().values()] == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_its_formula_in_explicit_sums(variant):
    nin, x = block(variant=variant), tokens()
    normed = norm_by_hand(x.numpy(), nin.norm)
    if variant == "static":
        g = np.broadcast_to(nin.gate.gate.detach().numpy(), normed.shape)
    elif variant == "squeeze":
        (down, down_bias), (up, up_bias) = weights(nin.gate.down), weights(nin.gate.up)
        squeezed = np.maximum(normed.mean(1) @ down.T + down_bias, 0)
        g = np.broadcast_to((1 / (1 + np.exp(-squeezed @ up.T - up_bias)))[:, None], normed.shape)
    elif variant == "spatial":
        mix, bias = weights(nin.gate.mix)
        g = np.einsum("ij,bjd->bid", mix, norm_by_hand(normed, nin.gate.norm)) + bias[:, None]
    elif variant == "fourier":
        n, d = normed.shape[1:]
        turn = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        g = np.einsum("ij,bjd->bid", turn, normed + 0j)
        g = (g @ np.exp(-2j * np.pi * np.outer(np.arange(d), np.arange(d)) / d)).real / math.sqrt(n * d)
    else:
        assert (nin.gate.token_mlp is None) == (variant == "no token mixing")
        g = mixer_by_hand(nin.gate, normed)
        g = 1 / (1 + np.exp(-g)) if variant == "sigmoid" else g
    p, bias = (np.eye(4), 0) if variant == "no value" else weights(nin.value)
    u = normed @ p.T + bias
    y = x.numpy() + (u + g if variant == "sum" else u * g)
    z = y + mlp_by_hand(nin.mlp, norm_by_hand(y, nin.mlp_norm if variant == "untied" else nin.norm), "channels")
    got, gate = nin(x, return_gate=True)
    np.testing.assert_allclose(gate.detach().numpy(), g, atol=1e-12)
    np.testing.assert_allclose(got.detach().numpy(), z, atol=1e-12)


def test_without_value_the_unit_adds_nothing():
    nin, x = block(), tokens()
    zero(nin.value)
    torch.testing.assert_close(nin(x), x + nin.mlp(nin.norm(x)), atol=0, rtol=0)


def test_without_inner_second_maps_the_gate_is_the_normalised_token():
    nin, x = block(), tokens()
    zero(nin.gate.token_mlp.down, nin.gate.channel_mlp.down, nin.mlp.down)
    normed = nin.norm(x)
    torch.testing.assert_close(nin.gate(normed), normed, atol=0, rtol=0)
    torch.testing.assert_close(nin(x), x + (normed @ nin.value.weight.T + nin.value.bias) * normed)


def test_value_one_and_no_skip_is_a_mixer_block():
    nin, x = block(), tokens()
    zero(nin.value, nin.mlp.down)
    nn.init.ones_(nin.value.bias)
    mixer = MixerBlock(*WIDTHS[:4]).double()
    mixer.load_state_dict(nin.gate.state_dict())
    torch.testing.assert_close(nin(x) - x, mixer(nin.norm(x)))


def test_tokens_can_change_places_only_without_token_mixing():
    nin, x, order = block(), tokens(), [2, 0, 1]
    assert (nin(x[:, order]) - nin(x)[:, order]).abs().max() > 1e-2
    zero(nin.gate.token_mlp)
    torch.testing.assert_close(nin(x[:, order]), nin(x)[:, order])


@given(scale=st.floats(1e-2, 1e3))
def test_the_product_ignores_the_scale_of_the_tokens(scale):
    nin, x = block(), 1e4 * tokens()  # far above the norm's epsilon
    first, second = (math.prod(nin.value_and_gate(nin.norm(a * x))) for a in (1.0, scale))
    torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-7)


def test_other_tokens_enter_through_the_gate_alone():
    """dy_i/dx_j = Diag(u_i) dg_i/dx_j for i != j: nothing where u_i = 0, nothing without token mixing."""
    nin, x = block(), tokens(batch=1)
    zero(nin.mlp.down)

    def unit(x):
        return nin(x)[0]

    def gate(x):
        return nin.value_and_gate(nin.norm(x))[1][0]

    other = ~torch.eye(3, dtype=torch.bool)
    u = nin.value_and_gate(nin.norm(x))[0][0]
    dy, dg = (jacrev(f)(x)[:, :, 0].permute(0, 2, 1, 3)[other] for f in (unit, gate))  # [pairs i != j, d, d]
    torch.testing.assert_close(dy, u.repeat_interleave(2, 0)[:, :, None] * dg)
    assert dy.abs().max() > 1e-3
    zero(nin.gate.token_mlp)
    assert jacrev(unit)(x)[:, :, 0].permute(0, 2, 1, 3)[other].abs().max() == 0
    fresh = block()
    zero(fresh.value, fresh.mlp.down)
    assert jacrev(lambda x: fresh(x)[0])(x)[:, :, 0].permute(0, 2, 1, 3)[other].abs().max() == 0


@pytest.mark.parametrize("variant", ["released", "untied", "fourier"])
def test_gradients_are_those_of_finite_differences(variant):
    nin, x = block(variant=variant), tokens(batch=1).requires_grad_()
    names = [name for name, _ in nin.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(nin, dict(zip(names, values, strict=True)), (x, 0.7))

    assert torch.autograd.gradcheck(call, (x, *nin.parameters()), fast_mode=True)


def test_tied_norms_add_both_gradients():
    tied, untied, x = block(), block(variant="untied"), tokens()
    state = tied.state_dict()
    untied.load_state_dict(state | {f"mlp_norm.{name}": state[f"norm.{name}"] for name in ("weight", "bias")})
    for nin in (tied, untied):
        nin(x).square().sum().backward()
    torch.testing.assert_close(tied(x), untied(x))
    assert untied.mlp_norm.weight.grad.abs().min() > 0
    for name in ("weight", "bias"):
        parts = [getattr(norm, name).grad for norm in (untied.norm, untied.mlp_norm)]
        torch.testing.assert_close(getattr(tied.norm, name).grad, parts[0] + parts[1])


def test_factors_need_each_other_to_learn():
    nin, x = block(), tokens()
    zero(nin.value)
    nin(x).square().sum().backward()
    assert all(p.grad.abs().max() == 0 for p in nin.gate.parameters())
    assert nin.value.weight.grad.abs().min() > 0


def test_a_fresh_block_starts_near_a_square_not_near_an_open_gate():
    torch.manual_seed(0)
    nin = NiNBlock(64, 256, 512, 512, 512)
    x = nin.norm(torch.randn(32, 64, 256, generator=seeded(3)))
    with torch.no_grad():
        u, g = nin.value_and_gate(x)
    assert torch.corrcoef(torch.stack([g.flatten(), x.flatten()]))[0, 1].item() == pytest.approx(0.96, abs=0.01)
    assert g.std().item() == pytest.approx(1.04, abs=0.02)
    assert (g < 0).float().mean().item() == pytest.approx(0.505, abs=0.01)
    assert u.std().item() == pytest.approx(0.58, abs=0.01)
    assert (u * g).std().item() == pytest.approx(0.60, abs=0.02)


def test_dropout_falls_on_hidden_and_on_result_and_spares_evaluation():
    mlp = MLP(50, 50, 0.5)
    with torch.no_grad():
        mlp.down.weight.copy_(torch.eye(50))
        mlp.down.bias.zero_()
    x = torch.randn(400, 50, generator=seeded(4))
    torch.manual_seed(0)
    y = mlp(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    plain = mlp.eval()(x)
    torch.testing.assert_close(y[y != 0], 4 * plain[y != 0])


# The same without gradients ------------------------------------------------------------------------------------------


FUSED = ["released", "untied", "no token mixing", "no value"]


@pytest.mark.parametrize("variant", FUSED)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_fused_forms_give_the_same_numbers(variant, batch, monkeypatch):
    monkeypatch.setattr(fused, "CACHED", 2 * 7 * 4)  # two images a slice
    nin, x = block(variant=variant), tokens(batch=batch)
    before, expected, mixed = x.clone(), nin(x).detach(), nin.gate(x).detach()
    u, g = nin.value_and_gate(nin.norm(x))
    torch.testing.assert_close(nin.fused_unit(x), (x + u * g).detach())
    with torch.inference_mode():
        torch.testing.assert_close(nin(x), expected)
        torch.testing.assert_close(nin.gate(x), mixed)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


def test_a_slice_holds_what_fits_the_cache(monkeypatch):
    monkeypatch.setattr(fused, "CACHED", 100)
    sizes = []
    y = fused.in_slices(lambda part, out: sizes.append(len(part)) or out.copy_(part), tokens(batch=7), 30)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(y, tokens(batch=7))
    assert block().gate.largest(tokens(3, 4)) == 7 * 4  # T d, more than n C = 15
    assert block(9, 4, 7, 5, 6).gate.largest(tokens(9, 4)) == 9 * 5


def test_when_the_fused_forms_run(monkeypatch):
    calls = []
    real = fused.in_slices

    def spy(*arguments):
        calls.append(1)
        return real(*arguments)

    for module in (gate, blocks):
        monkeypatch.setattr(module, "in_slices", spy)
    x = tokens()

    def runs(nin: nn.Module, *options) -> bool:
        calls.clear()
        nin(x, *options)
        return bool(calls)

    assert not runs(block()) and not runs(block().gate)
    with torch.no_grad():
        assert not runs(block()) and not runs(block().gate)
    with torch.inference_mode():
        assert all(runs(block(variant=v)) for v in FUSED)
        assert runs(block().gate) and runs(block(), 0.5)  # the Mixer alone
        assert not runs(block(variant="static"))
        thinned = NiNBlock(*WIDTHS, dropout=0.5).double()
        assert not runs(thinned) and runs(thinned.eval())
        x = x.float()
        assert runs(block().float())
        with torch.autocast("cpu", torch.bfloat16):
            assert not runs(block().float())


# Baselines -----------------------------------------------------------------------------------------------------------


# Whole networks and the dial -----------------------------------------------------------------------------------------


@given(mix=st.floats(0, 1))
def test_the_dial_mixes_the_gate_with_one(mix):
    nin, x = block(), tokens()
    u, g = nin.value_and_gate(nin.norm(x))
    y = x + u * ((1 - mix) + mix * g)
    got, gates = nin(x, mix, return_gate=True)
    torch.testing.assert_close(got, y + nin.mlp(nin.norm(y)))
    torch.testing.assert_close(gates, g, atol=0, rtol=0)
    added = block(variant="sum")
    y = x + u + mix * g
    torch.testing.assert_close(added(x, mix), y + added.mlp(added.norm(y)))


def test_under_autocast_the_product_is_in_single_precision():
    """u g = 90,000 lies beyond float16 (65,504), u and g do not."""
    nin = NiNBlock(3, 4, 5, 6, 7, variant="static")
    zero(nin.value, nin.mlp.down)
    with torch.no_grad():
        nin.value.bias.fill_(300.0)
        nin.gate.gate.fill_(300.0)
        x = torch.randn(1, 3, 4, generator=seeded(5))
        with torch.autocast("cpu", torch.float16):
            y = nin(x)
    torch.testing.assert_close(y, x + 90_000)


# Budgets -------------------------------------------------------------------------------------------------------------


# The task ------------------------------------------------------------------------------------------------------------
