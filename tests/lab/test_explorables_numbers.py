"""The figures' numbers: a real browser computes what the library computes, and a changed constant shows."""

from __future__ import annotations

import random

import pytest
from figure_page import TOLERANCE, difference, shown
from random_figures import RANDOM

from gated.lab.explorables import (
    BoardExplorable,
    ConsensusExplorable,
    DecayExplorable,
    Explorable,
    GateExplorable,
    OffloadExplorable,
    PlaneExplorable,
    RayExplorable,
    ResponseExplorable,
    RouterExplorable,
    explorable,
)


def test_every_figure_is_compared_with_python():
    assert {figure.name for figure in Explorable.__subclasses__()} == set(RANDOM)


@pytest.mark.parametrize("name", RANDOM)
def test_the_browser_computes_what_the_library_computes(visit, name):
    rng = random.Random(3)
    figures = [RANDOM[name](rng) for _ in range(20)]
    page = visit(*(figure.html() for figure in figures))
    for index, figure in enumerate(figures):
        assert difference(figure.values(), shown(page, index)) <= TOLERANCE, figure.state


@pytest.mark.parametrize(
    ("figure", "old", "new"),
    [
        (GateExplorable, "(z[i] - best) / tau", "(z[i] - best) / (tau * 1.0001)"),
        (GateExplorable, "0.985 * k", "0.2 * k"),
        (GateExplorable, "(w[i] > 0) / deviations.length", "(w[i] > 0.01) / deviations.length"),
        (DecayExplorable, "sum += g[i], i--", "sum += g[i] * 1.000001, i--"),
        (DecayExplorable, "(sum += at(i + 1))", "(sum += at(i) + 1)"),
        (DecayExplorable, "i = first - 1; i >= start", "i = first; i > start"),
        (OffloadExplorable, "Math.max(now, free)", "now"),
        (OffloadExplorable, "if (b + ahead < B)", "if (b + ahead <= B)"),
        (RouterExplorable, "dot / (norms || 1) / s.temperature", "dot / (norms || 1) * s.temperature"),
        (RouterExplorable, "Math.log1p(square / (2 * s", "Math.log1p(square / (3 * s"),
        (RouterExplorable, "if (sum > s.threshold) break", "if (sum > s.threshold + 0.1) break"),
        (RouterExplorable, "best[b[0]] - best[a[0]]", "best[a[0]] - best[b[0]]"),
        (RouterExplorable, "kept[i] < C", "kept[i] <= C"),
        (RouterExplorable, "sigmoid(v) + s.bias[i]", "sigmoid(v) - s.bias[i]"),
        (RayExplorable, "/ (c * g.truth.tau)", "/ g.truth.tau"),
        (ConsensusExplorable, "s.lambda_p * (1 - 2 * mean)", "s.lambda_p * (1 - 1.9999 * mean)"),
        (ConsensusExplorable, "undecided += v * (1 - v)", "undecided += v"),
        (ConsensusExplorable, "Math.min(n, INPUTS - n)", "Math.min(n, INPUTS - n - 1)"),
        (RayExplorable, "- score(0)) / (c", ") / (c"),
        (RayExplorable, "c ** (1 / (g.degrees[kind] || 1))", "c"),
        (RayExplorable, "which = [1, 1, 2, 3", "which = [1, 1, 2, 1"),
        (ResponseExplorable, "at - RATE * down", "at - 1.0001 * RATE * down"),
        (ResponseExplorable, "width * curvature - s.tau / width", "width * curvature - s.tau"),
        (ResponseExplorable, "rm * sigma * sigma * chance", "rm * sigma * chance"),
        (ResponseExplorable, "state ^= state >>> 17", "state ^= state >>> 16"),
        (PlaneExplorable, "ratio[i] - ratio[j]", "ratio[j] - ratio[i]"),
        (PlaneExplorable, "lacking -= gain;", ""),
        (PlaneExplorable, "margins[route] <= 0", "margins[0] <= 0"),
        (BoardExplorable, "(next[i] + 1) % lane[i].length", "next[i] + 0"),
        (BoardExplorable, "i < seers || caught[i]", "true"),
        (BoardExplorable, "values[b] - values[a] || a - b", "values[b] - values[a] || b - a"),
        (BoardExplorable, "two[c] += p * q", "two[c] += p * first[c]"),
    ],
)
def test_a_changed_constant_is_noticed(visit, monkeypatch, figure, old, new):
    read = explorable._read
    assert old in read(f"{figure.name}.js")
    monkeypatch.setattr(explorable, "_read", lambda file: read(file).replace(old, new))
    rng = random.Random(3)
    figures = [RANDOM[figure.name](rng) for _ in range(12 if figure is RouterExplorable else 5)] + [figure()]
    page = visit(*(one.html() for one in figures))
    off = max(difference(one.values(), shown(page, index)) for index, one in enumerate(figures))
    # The last change moves where the sum starts, which no exponent at or below 0 can show: the picture stays right.
    assert (off > TOLERANCE) == ("i = first;" not in new)
