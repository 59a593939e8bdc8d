"""Parameters and multiply-adds: the paper's tables, and closed forms against what is counted."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.backbones import macs
from gated.ninformer import (
    DIGITS,
    MNIST,
    RELEASED,
    Kind,
    NiNBlock,
    Sizes,
    Variant,
    block_macs,
    block_params,
    build,
    crossover,
    matched_depths,
    network,
)

KINDS, VARIANTS = get_args(Kind), get_args(Variant)

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
def test_closed_forms_of_variants_equal_what_is_counted(variant, small):
    net = build("ninformer", small, 2, variant=variant)
    counted = sum(p.numel() for p in net.parameters()), macs(net, torch.zeros(1, *small.image))
    assert tuple(network("ninformer", small, 2, variant)) == counted
    one = NiNBlock(6, 8, 7, 9, 10, variant=variant)
    assert block_macs("ninformer", small, variant=variant) == macs(one, torch.zeros(1, 6, 8))
    assert block_params("ninformer", small, variant) == sum(p.numel() for p in one.parameters())
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
