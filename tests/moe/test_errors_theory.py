"""gated.moe.theory answers bad input with a ValueError (run without the jaxtyping hook)."""

import pytest
import torch

from gated.moe import theory


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("n >= 1", {"n": 0}),
        ("clusters >= 2", {"clusters": 1}),
        ("sigma >= 0", {"sigma": -1.0}),
        ("dim must", {"dim": 7}),
        ("basis must", {"basis": torch.eye(4)}),
    ],
)
def test_chen_data(argument, options):
    with pytest.raises(ValueError, match=argument):
        theory.chen_data(**{"n": 2, "generator": seeded()} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("n", {"n": 0}),
        ("patches", {"patches": 0}),
        ("patterns", {"patterns": 0}),
        ("sigma", {"sigma": -0.1}),
        ("dim", {"dim": 31}),
        ("basis", {"basis": torch.eye(4)}),
    ],
)
def test_chowdhury_data(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        theory.chowdhury_data(**{"n": 2, "generator": seeded()} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("seeds", {"seeds": 0}),
        ("num_experts", {"num_experts": 0}),
        ("filters", {"filters": 0}),
        ("filters", {"filters": 3}),
        ("dim", {"dim": 0}),
        ("power", {"power": 0}),
        ("std", {"std": 0}),
    ],
)
def test_patch_experts(argument, options):
    sizes = {"seeds": 1, "num_experts": 2, "filters": 2, "dim": 3, "generator": seeded()}
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        theory.PatchExperts(**sizes | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [("seeds", {"seeds": 0}), ("num_experts", {"num_experts": 0}), ("filters", {"filters": 3}), ("top", {"top": 1})],
)
def test_patch_router(argument, options):
    sizes = {"seeds": 1, "num_experts": 2, "filters": 2, "dim": 3, "top": 2, "generator": seeded()}
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        theory.PatchRouter(**sizes | options)


def test_piecewise():
    with pytest.raises(ValueError, match=r"^num_experts must"):
        theory.piecewise(torch.zeros(2), 0)
