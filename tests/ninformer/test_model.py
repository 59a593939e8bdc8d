"""The networks around the block, and their rivals."""

from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.backbones import ViT
from gated.ninformer import (
    FlatMLP,
    GMLPBlock,
    Kind,
    LocalViTBlock,
    Sizes,
    Variant,
    build,
)

KINDS, VARIANTS = get_args(Kind), get_args(Variant)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(n: int = 3, d: int = 4, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, n, d, generator=seeded(seed), dtype=torch.float64)


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
    x = torch.randn(3, *sizes.image, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def permuted(x: torch.Tensor) -> torch.Tensor:
    """The 3 x 3 patches of the small images, the two rows swapped: a permutation of tokens."""
    return torch.cat([x[:, :, 3:], x[:, :, :3]], 2)


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_places(kind, small, images):
    """All but attention without positions, which sees a bag of patches; LocalViT's convolution sees neighbours."""
    net, x = build(kind, small, 2).double(), images
    if kind == "gmlp":  # whose spatial weights start too near 0 to see
        for layer in net.blocks:
            nn.init.normal_(layer.gate.mix.weight)
    assert (net(x) - net(permuted(x))).abs().max() > 1e-4
    if "vit" in kind:
        nn.init.zeros_(net.positions)
        difference = (net(x) - net(permuted(x))).abs().max()
        assert difference < 1e-12 if kind == "vit" else difference > 1e-4


def test_local_vit_convolves_over_the_grid(small):
    local, x = LocalViTBlock(8, 2, 10, small.grid).double(), tokens(6, 8)
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


def test_a_flat_mlp_fills_its_budget(small, images):
    for depth in (1, 2, 3):
        for params in (200, 1_000, 21_898):
            flat = FlatMLP.within(params, small, depth)
            wider = FlatMLP(small, depth, flat.hidden + 1)
            count, more = (sum(p.numel() for p in net.parameters()) for net in (flat, wider))
            assert count <= params < more
    flat.double()
    by_hand = images.flatten(1)
    for layer in [m for m in flat.layers if isinstance(m, nn.Linear)][:-1]:
        by_hand = F.gelu(by_hand @ layer.weight.T + layer.bias)
    torch.testing.assert_close(flat(images), flat.layers[-1](by_hand))


def test_the_network_is_patches_blocks_mean_and_map(small, images):
    net, x = build("ninformer", small, 2).double(), images
    patches = torch.stack(
        [x[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].flatten(1) for i in range(2) for j in range(3)], 1
    )
    h = patches @ net.embed.weight.flatten(1).T + net.embed.bias
    for layer in net.blocks:
        h = layer(h)
    torch.testing.assert_close(net(x), h.mean(1) @ net.head.weight.T + net.head.bias)


def test_a_closed_dial_leaves_a_bag_of_patches(small, images):
    net, x = build("ninformer", small, 3).double(), images
    closed, gates = net(x, gate_mix=0.0, return_gates=True)
    torch.testing.assert_close(closed, net(permuted(x), gate_mix=0.0))
    assert (net(x, gate_mix=0.1) - net(permuted(x), gate_mix=0.1)).abs().max() > 1e-5
    assert gates.shape == (3, 3, 6, 8)
    torch.testing.assert_close(net(x, gate_mix=1.0), net(x), atol=0, rtol=0)
    h = net.embed(x).flatten(2).mT
    torch.testing.assert_close(gates[0], net.blocks[0].gate(net.blocks[0].norm(h)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_kinds_train_on_images_and_on_tokens(kind, dtype, small, images):
    without_image = Sizes(8, 16, 16, token_hidden=5, channel_hidden=6, ffn_hidden=7)
    for sizes, x in ((small, images), (without_image, tokens(8, 16))):
        net = build(kind, sizes, 2, dropout=0.1).to(dtype)
        y = net(x.to(dtype))
        assert y.dtype == dtype and y.shape == (len(x), sizes.outputs)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_variants_train_and_show_gates_of_one_shape(variant, small, images):
    net, x = build("ninformer", small, 2, variant=variant), images.float()
    logits, gates = net(x, return_gates=True)
    assert gates.shape == (2, 3, 6, 8)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
