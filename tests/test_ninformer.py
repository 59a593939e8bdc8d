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
from torch.nn import functional as F

from gated.backbones import ViT, macs
from gated.ninformer import (
    DIGITS,
    MLP,
    MNIST,
    RELEASED,
    FlatMLP,
    GMLPBlock,
    Kind,
    LocalViTBlock,
    MixerBlock,
    NiNBlock,
    Sizes,
    Variant,
    block_macs,
    block_params,
    blocks,
    build,
    crossover,
    fused,
    gate,
    matched_depths,
    mixing_task,
    network,
)

KINDS, VARIANTS = get_args(Kind), get_args(Variant)
WIDTHS = (3, 4, 7, 5, 6)  # n, d, T, C, F: all different, so that a map along the wrong axis cannot pass
SMALL = Sizes.of_image(
    (2, 6, 9), 3, dim=8, outputs=5, token_hidden=7, channel_hidden=9, ffn_hidden=10, gmlp_hidden=12, heads=2
)


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


def images(sizes: Sizes = SMALL, batch: int = 3, seed: int = 2) -> torch.Tensor:
    return torch.randn(batch, *sizes.image, generator=seeded(seed), dtype=torch.float64)


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


def test_vit_is_the_one_of_the_backbones():
    sizes = Sizes.of_image((2, 6, 6), 3, dim=8, outputs=5, token_hidden=7, channel_hidden=9, ffn_hidden=10, heads=2)
    ours = build("vit", sizes, 2).double()
    theirs = ViT(
        image_size=6, patch_size=3, in_channels=2, num_classes=5, dim=8, depth=2, heads=2, mlp_dim=10,
        pool="mean", final_norm=False,
    ).double()  # fmt: skip
    theirs.blocks.load_state_dict(ours.blocks.state_dict())
    theirs.head.load_state_dict(ours.head.state_dict())
    theirs.embed.proj.load_state_dict(ours.embed.state_dict())
    with torch.no_grad():
        theirs.embed.position.copy_(ours.positions[None])
    x = images(sizes)
    torch.testing.assert_close(ours(x), theirs(x))


def permuted(x: torch.Tensor) -> torch.Tensor:
    """The 3 x 3 patches of SMALL's images, the two rows swapped: a permutation of tokens."""
    return torch.cat([x[:, :, 3:], x[:, :, :3]], 2)


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_places(kind):
    """All but attention without positions, which sees a bag of patches; LocalViT's convolution sees neighbours."""
    net, x = build(kind, SMALL, 2).double(), images()
    if kind == "gmlp":  # whose spatial weights start too near 0 to see
        for layer in net.blocks:
            nn.init.normal_(layer.gate.mix.weight)
    assert (net(x) - net(permuted(x))).abs().max() > 1e-4
    if "vit" in kind:
        nn.init.zeros_(net.positions)
        difference = (net(x) - net(permuted(x))).abs().max()
        assert difference < 1e-12 if kind == "vit" else difference > 1e-4


def test_local_vit_convolves_over_the_grid():
    local, x = LocalViTBlock(8, 2, 10, SMALL.grid).double(), tokens(6, 8)
    kernel, bias = (p.detach() for p in local.mlp.conv.parameters())
    hidden = F.pad(F.gelu(local.mlp.up(x)).unflatten(1, (2, 3)), (0, 0, 1, 1, 1, 1))
    summed = sum(hidden[:, i : i + 2, j : j + 3] * kernel[:, 0, i, j] for i in range(3) for j in range(3)) + bias
    torch.testing.assert_close(local.mlp(x), local.mlp.down(F.gelu(summed.flatten(1, 2))))
    after = x + local.attention(local.attention_norm(x))
    torch.testing.assert_close(local(x), after + local.mlp(local.mlp_norm(after)))


def test_gmlp_is_its_formula_and_starts_with_an_open_gate():
    made, x = GMLPBlock(6, 8, 12).double(), tokens(6, 8)
    passed, rest = F.gelu(made.up(made.norm(x))).chunk(2, -1)
    torch.testing.assert_close(made.gate(rest), torch.ones_like(rest), atol=1e-2, rtol=0)
    nn.init.normal_(made.gate.mix.weight)
    mixed = torch.einsum("ij,bjd->bid", made.gate.mix.weight, made.gate.norm(rest)) + made.gate.mix.bias[:, None]
    torch.testing.assert_close(made(x), x + made.down(passed * mixed))


def test_a_flat_mlp_fills_its_budget():
    x = images()
    for depth in (1, 2, 3):
        for params in (200, 1_000, 21_898):
            flat = FlatMLP.within(params, SMALL, depth)
            wider = FlatMLP(SMALL, depth, flat.hidden + 1)
            count, more = (sum(p.numel() for p in net.parameters()) for net in (flat, wider))
            assert count <= params < more
    flat.double()
    by_hand = x.flatten(1)
    for layer in [m for m in flat.layers if isinstance(m, nn.Linear)][:-1]:
        by_hand = F.gelu(by_hand @ layer.weight.T + layer.bias)
    torch.testing.assert_close(flat(x), flat.layers[-1](by_hand))


# Whole networks and the dial -----------------------------------------------------------------------------------------


def test_the_network_is_patches_blocks_mean_and_map():
    net, x = build("ninformer", SMALL, 2).double(), images()
    patches = torch.stack(
        [x[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].flatten(1) for i in range(2) for j in range(3)], 1
    )
    h = patches @ net.embed.weight.flatten(1).T + net.embed.bias
    for layer in net.blocks:
        h = layer(h)
    torch.testing.assert_close(net(x), h.mean(1) @ net.head.weight.T + net.head.bias)


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


def test_a_closed_dial_leaves_a_bag_of_patches():
    net, x = build("ninformer", SMALL, 3).double(), images()
    closed, gates = net(x, gate_mix=0.0, return_gates=True)
    torch.testing.assert_close(closed, net(permuted(x), gate_mix=0.0))
    assert (net(x, gate_mix=0.1) - net(permuted(x), gate_mix=0.1)).abs().max() > 1e-5
    assert gates.shape == (3, 3, 6, 8)
    torch.testing.assert_close(net(x, gate_mix=1.0), net(x), atol=0, rtol=0)
    h = net.embed(x).flatten(2).mT
    torch.testing.assert_close(gates[0], net.blocks[0].gate(net.blocks[0].norm(h)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_kinds_train_on_images_and_on_tokens(kind, dtype):
    small = Sizes(8, 16, 16, token_hidden=5, channel_hidden=6, ffn_hidden=7)
    for sizes, x in ((SMALL, images()), (small, tokens(8, 16))):
        net = build(kind, sizes, 2, dropout=0.1).to(dtype)
        y = net(x.to(dtype))
        assert y.dtype == dtype and y.shape == (len(x), sizes.outputs)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_variants_train_and_show_gates_of_one_shape(variant):
    net, x = build("ninformer", SMALL, 2, variant=variant), images().float()
    logits, gates = net(x, return_gates=True)
    assert gates.shape == (2, 3, 6, 8)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


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

TABLE = [
    ("ninformer", 4, 2_652_170, 218.9),
    ("mixer", 4, 1_335_306, 135.0),
    ("mixer", 8, 2_655_498, 269.2),
    ("mixer", 6, 1_995_402, 202.1),
    ("mixer", 7, 2_325_450, 235.7),
    ("vit", 4, 2_139_914, 143.4),
    ("vit", 5, 2_667_018, 179.0),
    ("vit", 6, 3_194_122, 214.7),
    ("gmlp", 13, 2_648_394, 178.0),
]
BLOCKS_ONLY = [  # million MACs without patches and head
    (DIGITS, "ninformer", 2, 21_898, 0.360),
    (DIGITS, "mixer", 4, 22_058, 0.393),
    (DIGITS, "mixer", 3, 16_666, 0.295),
    (DIGITS, "mixer", 2, 11_274, 0.197),
    (DIGITS, "gmlp", 4, 21_162, 0.344),
    (DIGITS, "vit", 2, 18_090, 0.295),
    (DIGITS, "vit", 3, 26_634, 0.442),
    (MNIST, "ninformer", 2, 56_796, 2.63),
    (MNIST, "mixer", 3, 49_117, 2.26),
    (MNIST, "mixer", 4, 65_054, 3.01),
    (MNIST, "vit", 3, 60_538, 3.40),
    (MNIST, "gmlp", 4, 54_306, 2.72),
]


@pytest.mark.parametrize(("kind", "depth", "params", "million"), TABLE)
def test_budgets_at_the_released_sizes(kind, depth, params, million):
    budget = network(kind, RELEASED, depth)
    assert budget.params == params
    assert round(budget.macs / 1e6, 1) == million


@pytest.mark.parametrize(("sizes", "kind", "depth", "params", "million"), BLOCKS_ONLY)
def test_budgets_at_small_sizes(sizes, kind, depth, params, million):
    assert network(kind, sizes, depth).params == params
    macs_of_blocks = depth * block_macs(kind, sizes) / 1e6
    assert round(macs_of_blocks, 2 if sizes is MNIST else 3) == pytest.approx(million, abs=1.1e-3)


def test_the_parts_of_a_released_block():
    assert block_params("ninformer", RELEASED) == 659_264
    assert block_params("mixer", RELEASED) == 330_048
    with torch.device("meta"):
        nin = NiNBlock(64, 256, 512, 512, 512)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in nin.named_children()}
    assert parts["gate"] + parts["value"] == 395_840
    assert parts["mlp"] == 262_912


widths = st.integers(1, 9)


@given(
    kind=st.sampled_from(KINDS), rows=widths, columns=widths, dim=st.sampled_from([2, 4, 8]),
    hidden=st.tuples(*[widths] * 4), patch=st.integers(1, 3), channels=st.integers(1, 3), depth=st.integers(1, 3),
)  # fmt: skip
def test_closed_forms_equal_what_is_counted(kind, rows, columns, dim, hidden, patch, channels, depth):
    T, C, F_, half = hidden
    sizes = Sizes.of_image(
        (channels, patch * rows, patch * columns), patch, dim=dim, outputs=3, token_hidden=T, channel_hidden=C,
        ffn_hidden=F_, gmlp_hidden=2 * half, heads=2,
    )  # fmt: skip
    net = build(kind, sizes, depth)
    counted = sum(p.numel() for p in net.parameters()), macs(net, torch.zeros(1, *sizes.image))
    assert tuple(network(kind, sizes, depth)) == counted


@pytest.mark.parametrize("variant", VARIANTS)
def test_closed_forms_of_variants_equal_what_is_counted(variant):
    net = build("ninformer", SMALL, 2, variant=variant)
    counted = sum(p.numel() for p in net.parameters()), macs(net, torch.zeros(1, *SMALL.image))
    assert tuple(network("ninformer", SMALL, 2, variant)) == counted
    one = NiNBlock(6, 8, 7, 9, 10, variant=variant)
    assert block_macs("ninformer", SMALL, variant=variant) == macs(one, torch.zeros(1, 6, 8))
    assert block_params("ninformer", SMALL, variant) == sum(p.numel() for p in one.parameters())
    without_image = Sizes(6, 8, 5, token_hidden=7, channel_hidden=9, ffn_hidden=10)
    net = build("ninformer", without_image, 2, variant=variant)
    counted = sum(p.numel() for p in net.parameters()), macs(net, torch.zeros(1, 6, 8))
    assert tuple(network("ninformer", without_image, 2, variant)) == counted


@given(dim=st.sampled_from([4, 12, 256]), T=st.integers(1, 600), C=st.integers(1, 600), F_=st.integers(1, 600))
def test_the_crossover_is_where_the_counts_meet(dim, T, C, F_):
    sizes = Sizes(1, dim, 2, token_hidden=T, channel_hidden=C, ffn_hidden=F_)
    at = crossover(sizes)
    for n in {1, 2, 64, 1024, math.floor(at) - 1, math.floor(at), math.ceil(at), math.ceil(at) + 1} - {0}:
        if n > 0:
            difference = block_macs("ninformer", sizes, n) - block_macs("vit", sizes, n)
            assert np.sign(difference) == np.sign(at - n)


def test_the_published_crossover():
    assert crossover(RELEASED) == 640
    assert crossover(Sizes(64, 256, 10, token_hidden=256, channel_hidden=256, ffn_hidden=512)) == 128
    for n, nin, vit in ((64, 54.5, 35.7), (196, 167.0, 122.4)):
        assert round(block_macs("ninformer", RELEASED, n) / 1e6, 1) == nin
        assert round(block_macs("vit", RELEASED, n) / 1e6, 1) == vit
    assert block_macs("ninformer", RELEASED, 640) == block_macs("vit", RELEASED, 640)


def test_depths_of_equal_budget():
    nin = network("ninformer", RELEASED, 4)
    assert matched_depths("mixer", RELEASED, nin) == (7, 8)  # 8 is nearest: 0.1 % above
    assert matched_depths("mixer", RELEASED, nin, by="macs") == (6, 7)
    assert matched_depths("vit", RELEASED, nin) == (4, 5)
    assert matched_depths("vit", RELEASED, nin, by="macs") == (6, 7)
    assert matched_depths("gmlp", RELEASED, nin) == (13, 14)
    assert matched_depths("ninformer", RELEASED, nin) == (4, 4)
    assert matched_depths("ninformer", RELEASED, nin, by="macs") == (4, 4)
    assert matched_depths("ninformer", RELEASED, network("mixer", RELEASED, 1)) == (0, 1)


# The task ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [False, True])
def test_the_task_multiplies_by_its_first_token(control):
    x, target = mixing_task(4_000, control=control, generator=seeded(6))
    again = mixing_task(4_000, control=control, generator=seeded(6))
    assert torch.equal(x, again[0]) and torch.equal(target, again[1])
    c, others = x[:, 0], x[:, 1:]
    assert x.shape == (4_000, 8, 16) and set(c.unique().tolist()) == {-1.0, 1.0} and (c.sum(-1) == 0).all()
    assert c.mean(0).abs().max() < 5 / math.sqrt(4_000)  # no place is favoured
    torch.testing.assert_close(F.layer_norm(x, (16,), eps=0.0), x, atol=1e-5, rtol=1e-5)
    mean = others.numpy().mean(1)
    np.testing.assert_allclose(target.numpy(), c.numpy() + mean if control else c.numpy() * mean, atol=1e-6)
    assert target.var().item() == pytest.approx(1 / 7 + control, rel=0.03)
    assert abs(target.mean().item()) < 0.01


def test_one_block_can_solve_the_task():
    """Token 0 hears every other token, and its own c multiplies what it hears: y_0 = c * (n - 1) mean(x)."""
    nin = NiNBlock(8, 16, 2, 4, 4).double()
    zero(nin.value, nin.mlp, nin.gate.token_mlp, nin.gate.channel_mlp)
    with torch.no_grad():
        nin.value.weight.copy_(torch.eye(16))
        # GELU(z) - GELU(-z) = z: two hidden entries carry the sum of the other tokens to token 0
        nin.gate.token_mlp.up.weight[:, 1:] = torch.tensor([[1.0], [-1.0]])
        nin.gate.token_mlp.down.weight[0] = torch.tensor([1.0, -1.0])
    x, target = mixing_task(100, generator=seeded(7))
    x = x.double()
    # the gate of token 0 is c + 7 mean(x), so its product with c is 1 + 7 c mean(x)
    torch.testing.assert_close(nin(x)[:, 0] - x[:, 0] - 1, 7 * target.double(), atol=1e-3, rtol=1e-3)
