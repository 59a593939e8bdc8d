"""Sizes that are all different, so that a map along the wrong axis cannot pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gated.ninformer import Sizes


@pytest.fixture
def small() -> Sizes:
    """Six patches of 3 x 3, in two rows."""
    return Sizes.of_image(
        (2, 6, 9), 3, dim=8, outputs=5, token_hidden=7, channel_hidden=9, ffn_hidden=10, gmlp_hidden=12, heads=2
    )


@pytest.fixture
def images(small: Sizes) -> Tensor:
    """Three of them, in float64."""
    return torch.randn(3, *small.image, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
