"""The decay figure: its weights, its exponents, and when they overflow."""

from __future__ import annotations

import random

import numpy as np
import pytest
from figure_page import TOLERANCE, difference, shown
from random_figures import random_decay

from gated.lab.explorables import (
    DecayExplorable,
    decay_matrix,
    max_exponent,
)
from gated.lab.explorables.decay import LIMITS, MIXED, SCHEMES, T


def test_the_decay_figure_follows_gates_chunks_and_length(visit):
    page = visit(DecayExplorable().html())
    page.get_by_role("button", name="… at 2,064 tokens").click()
    assert difference(DecayExplorable(repeats=86).values(), shown(page)) <= TOLERANCE
    assert "overflows fp32" in page.locator("[data-verdict='one piece']").text_content()
    assert "fits" in page.locator("[data-verdict='sub-chunk']").text_content()
    page.get_by_role("button", name="strongly mixed").click()
    page.locator("input[data-key=chunk]").focus()
    page.keyboard.press("End")
    page.locator("[data-cell='10,3']").click()
    assert difference(DecayExplorable(MIXED, 1, T, 4, 1, token=10).values(), shown(page)) <= TOLERANCE
    assert page.locator("[data-handle='10']").get_attribute("tabindex") == "0"


def test_decay_weights_are_those_of_the_recurrence():
    z, tau = np.array(random_decay(random.Random(1)).state["z"]), 3.0
    state, reads = np.zeros(T), []
    for t in range(T):  # with q = k = 1 and one-hot values, the state after token t holds the weights of row t
        state = (1 + np.exp(-z[t])) ** (-1 / tau) * state + np.eye(T)[t]
        reads.append(state)
    np.testing.assert_allclose(decay_matrix(z, tau), reads, rtol=1e-12, atol=1e-300)
    assert np.array_equal(np.diag(decay_matrix(z, tau)), np.ones(T))


def test_at_the_papers_start_one_piece_overflows_fp32_at_2048_tokens():
    figure = DecayExplorable()
    values = figure.values()
    assert values["half_life"] == pytest.approx(16, rel=1e-14) and values["onset"] == 2048
    assert max_exponent([0.0] * 8, 16, "one piece", repeats=256) == pytest.approx(128 * np.log(2), rel=1e-13)
    with np.errstate(over="ignore"):
        assert np.isfinite(np.exp(np.float32(2047 * np.log(2) / 16))) and np.isinf(
            np.exp(np.float32(2048 * np.log(2) / 16))
        )
    for length in (values["onset"] - 1, values["onset"]):
        exponent = max_exponent([0.0], 16, "one piece", repeats=length)
        assert (exponent > LIMITS["fp32"]) == (length == values["onset"])


def test_onset_is_the_first_length_that_overflows():
    for seed in range(20):
        figure = random_decay(random.Random(seed))
        onset = figure.values()["onset"]
        g = np.resize(np.log(1 / (1 + np.exp(-np.array(figure.state["z"])))) / figure.state["temperature"], onset)
        assert -g[:-1].sum() <= LIMITS["fp32"] < -g.sum()


@pytest.mark.parametrize("seed", range(6))
def test_largest_exponents_by_brute_force(seed):
    """Every pair of positions, every factor, straight from the definition."""
    rng = random.Random(seed)
    z, tau, chunk, repeats = (
        [rng.uniform(-9, 3) for _ in range(7)],
        rng.uniform(1, 4),
        rng.randint(1, 9),
        rng.randint(1, 3),
    )
    sub = rng.randint(1, chunk)
    g = np.tile(-np.log1p(np.exp(-np.array(z))) / tau, repeats)
    G = np.concatenate([[0.0], np.cumsum(g)])  # G[t] after t tokens
    met = {scheme: [0.0] for scheme in SCHEMES}
    for t in range(1, len(G)):
        for i in range(1, t + 1):
            start = (t - 1) // chunk * chunk
            met["one piece"] += [G[t], -G[i]]
            if i <= start:
                continue  # through the state
            met["chunk"] += [G[t] - G[start], G[start] - G[i]]
            row, column = (t - 1 - start) // sub, (i - 1 - start) // sub
            first = start + row * sub + 1
            met["sub-chunk"] += [G[t] - G[i]] if row == column else [G[t] - G[first], G[first] - G[i]]
    for scheme in SCHEMES:
        assert max_exponent(z, tau, scheme, chunk, sub, repeats) == pytest.approx(
            max(met[scheme]), rel=1e-12, abs=1e-12
        )
    assert max_exponent(z, tau, "sub-chunk", chunk, sub, repeats) == 0
