"""Bad input to the study: a ValueError that names the argument (run without run-time type checks)."""

import pytest

from gated.gaussian_moe import study


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("regime", ("nothing", 100, 0, 1)),
        ("n must", ("dense", 49, 0, 1)),
        ("first < last", ("dense", 100, 1, 1)),
        ("0 <= first", ("dense", 100, -1, 1)),
    ],
)
def test_a_shard_must_be_one(match, arguments):
    with pytest.raises(ValueError, match=match):
        study.shard(*arguments)


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("regimes", ([], [100], 1)),
        ("regimes", (["dense", "dense"], [100], 1)),
        ("regimes.*nothing", (["nothing"], [100], 1)),
        ("sizes", (["dense"], [], 1)),
        ("sizes", (["dense"], [100, 100], 1)),
        ("sizes", (["dense"], [20], 1)),
        ("replicates", (["dense"], [100], 0)),
    ],
)
def test_a_sweep_must_make_sense(match, arguments):
    with pytest.raises(ValueError, match=match):
        study.sweep(*arguments, run=lambda function, jobs: pytest.fail("nothing should run"))


def test_digits_must_be_some():
    with pytest.raises(ValueError, match="digits"):
        study.sweep(["dense"], [100], 1, digits=0)
