"""Sizes and knobs that make no population and no baseline."""

from __future__ import annotations

import pytest
import torch

from gated.lab import population as pop
from gated.lab import spikes


def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("make", [spikes.lorenz, spikes.lattice, spikes.control])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditions": 0}, "conditions must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"observed": 0}, "observed must be at least 1"),
        ({"heldin": 0}, "heldin must be at least 1"),
        ({"forward": -1}, "forward must be at least 0"),
        ({"heldin": 40}, "heldin must leave neurons"),
    ],
)
def test_sizes(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(rng(), **wrong)


def test_splitting():
    p = spikes.lattice(rng(), conditions=4, repeats=2)
    with pytest.raises(ValueError, match="by must be 'condition' or 'repeat'"):
        spikes.split(p, "neuron", rng())
    with pytest.raises(ValueError, match="at least one repeat of 2"):
        spikes.split(p, "repeat", rng())


def test_methods():
    x = torch.ones(3, 5, 2)
    with pytest.raises(ValueError, match="sd must be a positive"):
        pop.smooth(x, 0)
    with pytest.raises(ValueError, match="penalty must be positive"):
        pop.fit_readout(x, x, 0)
    with pytest.raises(ValueError, match="same trials and bins"):
        pop.fit_readout(x, x[:, :4], 1.0)
    for wrong in ({"factors": 0}, {"factors": 2, "rounds": 0}, {"factors": 2, "tau": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            pop.Gpfa(**wrong)
    parts = spikes.split(spikes.lattice(rng(), conditions=6, repeats=1), "condition", rng())
    with pytest.raises(ValueError, match="method must be"):
        pop.baseline_rates("spline", parts)
