"""gated.ninformer answers bad input with a ValueError that names the argument (run without the jaxtyping hook)."""

import pytest
import torch

from gated.ninformer import (
    DIGITS,
    Budget,
    FlatMLP,
    NiNBlock,
    Sizes,
    block_macs,
    block_params,
    build,
    matched_depths,
    mixing_task,
    network,
)

WIDTHS = {"dim": 8, "outputs": 3, "token_hidden": 5, "channel_hidden": 6, "ffn_hidden": 7}


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("tokens", {"tokens": 0}),
        ("dim", {"dim": 0}),
        ("heads", {"heads": 0}),
        ("outputs", {"outputs": -1}),
        ("token_hidden", {"token_hidden": 2.0}),
        ("channel_hidden", {"channel_hidden": 0}),
        ("ffn_hidden", {"ffn_hidden": True}),
        ("gmlp_hidden", {"gmlp_hidden": 7}),
        ("gmlp_hidden", {"gmlp_hidden": -2}),
        ("patch", {"patch": 0}),
        ("patch", {"image": (1, 8, 9), "patch": 2, "tokens": 16}),
        ("patch", {"image": (1, 8, 8), "patch": 0, "tokens": 16}),
        ("image", {"image": (8, 8), "patch": 2, "tokens": 16}),
        ("image", {"image": (0, 8, 8), "patch": 2, "tokens": 16}),
        ("tokens must be 16", {"image": (1, 8, 8), "patch": 2, "tokens": 64}),
    ],
)
def test_sizes(argument, options):
    with pytest.raises(ValueError, match=argument):
        Sizes(**{"tokens": 4, **WIDTHS} | options)


@pytest.mark.parametrize("patch", [0, -2, 3, 16])
def test_a_patch_that_does_not_divide(patch):
    with pytest.raises(ValueError, match="patch must divide the height 8 and the width 8"):
        Sizes.of_image((1, 8, 8), patch, **WIDTHS)


@pytest.mark.parametrize("make", [lambda: build("ninformer", DIGITS, 1), lambda: FlatMLP(DIGITS, 1, 8)])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 1, 16, 16),
        torch.zeros(2, 1, 8, 10),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(1, 8, 8),
        torch.zeros(2, 1, 8, 8).long(),
        torch.zeros(2, 16, 32),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype}",
)
def test_images_of_another_size(make, x):
    with pytest.raises(ValueError, match=r"x must be floating point \[batch, 1, 8, 8\].*16 tokens"):
        make()(x)


@pytest.mark.parametrize("kind", ["ninformer", "mixer", "vit", "local_vit", "gmlp"])
def test_tokens_of_another_number(kind):
    with pytest.raises(ValueError, match=r"x must be floating point \[batch, 4, 8\].*4 tokens"):
        build(kind, Sizes(4, **WIDTHS), 1)(torch.zeros(2, 5, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(bad):
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 3, 3] = bad
    for net in (build("vit", DIGITS, 1), FlatMLP(DIGITS, 1, 8)):
        with pytest.raises(ValueError, match="x must be finite"):
            net(x)


@pytest.mark.parametrize("gate_mix", [-0.1, 1.1, float("nan"), float("inf")])
def test_the_dial(gate_mix):
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="gate_mix"):
        build("ninformer", DIGITS, 1)(x, gate_mix=gate_mix)
    for options in ({"gate_mix": 0.5}, {"return_gates": True}):
        with pytest.raises(ValueError, match="gate_mix and return_gates"):
            build("mixer", DIGITS, 1)(x, **options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("kind", {"kind": "resnet"}),
        ("variant", {"variant": "softmax"}),
        ("variant", {"kind": "mixer", "variant": "sum"}),
        ("depth", {"depth": 0}),
        ("depth", {"depth": 1.5}),
        ("dropout", {"dropout": 1.0}),
        ("dropout", {"dropout": -0.1}),
        ("dropout", {"dropout": float("nan")}),
    ],
)
def test_build(argument, options):
    with pytest.raises(ValueError, match=argument):
        build(**{"kind": "ninformer", "sizes": DIGITS, "depth": 1} | options)


@pytest.mark.parametrize("kind", ["vit", "local_vit"])
def test_heads_that_do_not_divide(kind):
    sizes = Sizes(4, **WIDTHS | {"dim": 10})
    build("mixer", sizes, 1)
    with pytest.raises(ValueError, match="dim must be a multiple of heads=4"):
        build(kind, sizes, 1)


def test_a_block_of_an_unknown_variant():
    with pytest.raises(ValueError, match="variant"):
        NiNBlock(4, 8, 5, 6, 7, variant="softmax")


@pytest.mark.parametrize(
    ("argument", "options"), [("depth", {"depth": 0}), ("hidden", {"hidden": 0}), ("dropout", {"dropout": 1.0})]
)
def test_flat(argument, options):
    with pytest.raises(ValueError, match=argument):
        FlatMLP(**{"sizes": DIGITS, "depth": 1, "hidden": 8} | options)


def test_a_flat_mlp_below_its_least_budget():
    least = sum(p.numel() for p in FlatMLP(DIGITS, 2, 1).parameters())
    assert FlatMLP.within(least, DIGITS, 2).hidden == 1
    with pytest.raises(ValueError, match=f"params must be at least {least}"):
        FlatMLP.within(least - 1, DIGITS, 2)


def test_budgets():
    for count in (block_macs, block_params, lambda kind, sizes, **options: network(kind, sizes, 1, **options)):
        with pytest.raises(ValueError, match="kind"):
            count("resnet", DIGITS)
        with pytest.raises(ValueError, match="variant"):
            count("ninformer", DIGITS, variant="softmax")
        with pytest.raises(ValueError, match="variant"):
            count("vit", DIGITS, variant="sum")
    with pytest.raises(ValueError, match="tokens"):
        block_macs("vit", DIGITS, 0)
    with pytest.raises(ValueError, match="depth"):
        network("vit", DIGITS, 0)
    with pytest.raises(ValueError, match="by"):
        matched_depths("vit", DIGITS, Budget(10, 10), by="time")


@pytest.mark.parametrize("variant", ["sum", "sigmoid", "static", "squeeze", "spatial", "fourier"])
def test_a_variant_without_a_fused_unit(variant):
    with pytest.raises(ValueError, match="variant"):
        NiNBlock(4, 8, 5, 6, 7, variant=variant).fused_unit(torch.zeros(1, 4, 8))


@pytest.mark.parametrize(
    ("argument", "options"),
    [("batch", {"batch": 0}), ("tokens", {"tokens": 1}), ("dim", {"dim": 5}), ("dim", {"dim": 2})],
)
def test_the_task(argument, options):
    with pytest.raises(ValueError, match=argument):
        mixing_task(**{"batch": 2} | options)
