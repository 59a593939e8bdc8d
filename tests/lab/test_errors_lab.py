"""Bad input to the lab: a ValueError that names the argument (run without run-time type checks)."""

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

matplotlib.use("agg")
import matplotlib.pyplot as plt

from gated.lab import bench, claims, data, style, train

GOOD = {
    "id": "C1",
    "claim": "c",
    "refuted_if": "r",
    "measured": 1.0,
    "verdict": claims.holds_if(True),
    "why": "w",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", ""),
        ("claim", " "),
        ("refuted_if", ""),
        ("why", None),
        ("verdict", "holds here"),
        ("verdict", True),
        ("source", "typed"),
        ("seeds", -1),
        ("measured", float("nan")),
        ("interval", (2, 1)),
        ("interval", 3.0),
        ("interval", (0, float("nan"))),
        ("interval", (0, float("inf"))),
    ],
)
def test_a_claim_names_what_is_wrong(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        claims.Ledger("gla").claim(**(GOOD | {name: value}))


def test_a_claim_has_one_row():
    ledger = claims.Ledger("gla")
    ledger.claim(**GOOD)
    with pytest.raises(ValueError, match="id 'C1'"):
        ledger.claim(**GOOD)
    with pytest.raises(ValueError, match="chapter"):
        claims.Ledger("../gla")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: claims.decide((0, 1), better="less"), "better"),
        (lambda: claims.decide((0, 1), better="below", than=float("nan")), "than"),
        (lambda: claims.decide((0, 1), better="within", than=1.0), "than"),
        (lambda: claims.all_of(), "all_of"),
        (lambda: claims.t_interval([1.0]), "x must"),
        (lambda: claims.t_interval([1.0, float("inf")]), "x must be finite"),
        (lambda: claims.t_interval([[1.0, 2.0]]), "x must be one-dim"),
        (lambda: claims.t_interval([1.0, 2.0], level=95), "level"),
        (lambda: claims.bootstrap_interval(np.arange(5.0)), "at least 20"),
        (lambda: claims.paired_interval([1.0, 2.0], [1.0, 2.0, 3.0]), "a and b"),
        (lambda: claims.prediction_interval([1.0, 2.0], future=0), "future"),
        (lambda: claims.provenance("gla", "no such result"), "no such result"),
        (lambda: claims.provenance("gla"), "names must hold at least one"),
        (lambda: bench.race({}), "cases"),
        (lambda: bench.race({"a": lambda: 0}, rounds=5), "rounds"),
        (lambda: bench.race({"a": lambda: 0}, uncompared={"a": "ours"}), "uncompared"),
        (lambda: bench.use_threads(0).__enter__(), "n must"),
        (lambda: bench.median_interval(np.arange(5.0)), "5 values"),
        (lambda: bench.fit_exponent([1, 2], [1, 2]), "three sizes"),
        (lambda: bench.fit_exponent([1, 2, 2], [1, 2, 2]), "three sizes"),
        (lambda: bench.fit_exponent([1, 2, 4], [1, 0, 2]), "positive"),
        (lambda: style.Table(("a", "b"), [("1",)]), "2 cells"),
        (lambda: data.text().encode("é"), "alphabet"),
        (lambda: data.batches(torch.arange(8), 2, 8, torch.Generator()), "length"),
        (lambda: data.batches(torch.arange(8), 0, 4, torch.Generator()), "batch"),
        (
            lambda: data.minibatches(data.Labelled(torch.zeros(3, 1), torch.zeros(3).long()), 4, torch.Generator()),
            "batch",
        ),
        (
            lambda: data.split(data.Labelled(torch.zeros(3, 1), torch.zeros(3).long()), 3, torch.Generator()),
            "test",
        ),
        (lambda: train.fit(nn.Linear(1, 1), lambda m, b: m(b).sum(), [], 3), "ran out at step 1 of 3"),
        (lambda: train.fit(nn.Linear(1, 1), lambda m, b: m(b).sum(), [torch.ones(1)], 0), "steps"),
        (
            lambda: train.fit_seeds(lambda s: nn.Linear(1, 1), lambda m, b: m(b).sum(), lambda s: [], 3, []),
            "seeds",
        ),
        (lambda: train.warmup_cosine(10, 11), "warmup"),
        (lambda: train.stack([]), "runs"),
        (lambda: train.equal_budget({"a": train.Budget(1, 1, 1)}), "arms"),
    ],
)
def test_the_argument_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_figure_needs_words_and_must_stay_small():
    fig, ax = plt.subplots()
    for alt in ("", "a plot"):
        with pytest.raises(ValueError, match="alt"):
            style.show(fig, alt)
    ax.set_title(r"$\mathcal{L}$")
    with pytest.raises(ValueError, match="sign"):
        style.show(fig, "letters that only one font has")
    ax.set_title("")
    ax.scatter(*np.random.default_rng(0).normal(size=(2, 20_000)))
    with pytest.raises(ValueError, match="rasterized"):
        style.show(fig, "far too many points for vectors")
    with pytest.raises(ValueError, match=r"runs must be \[seeds, points\]"):
        style.band(ax, [1, 2, 3], [[1.0, 2.0]], "x")
