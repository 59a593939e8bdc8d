"""The gate's figure: its regimes, its dots, and what noise is good for."""

from __future__ import annotations

import pytest
from figure_page import shown

from gated.lab.explorables import (
    GateExplorable,
)


def test_every_regime_has_its_equation(visit):
    states = {
        "dense": {},
        "sparse": {"k": 3},
        "truncated": {"k": 3, "order": "softmax-topk"},
        "argmax": {"temperature": 0.1},
        "uniform": {"temperature": 20},
        "hard": {"k": 1},
        "switch": {"k": 1, "order": "softmax-topk"},
        "noisy": {"k": 2, "noise": 1},
    }
    figures = [GateExplorable(**state) for state in states.values()]
    page = visit(*(figure.html() for figure in figures))
    notes = page.locator(".gx-note").all_inner_texts()
    for index, (name, figure) in enumerate(zip(states, figures, strict=True)):
        assert figure.values()["regime"] == shown(page, index)["regime"] == name
    assert len(set(notes)) == len(states) == page.locator(".gx-note math").count()
    page.get_by_role("button", name="hard").first.click()  # and the note follows the hand
    assert page.locator(".gx-note").first.inner_text() == notes[list(states).index("hard")]


def test_noise_gives_a_shut_expert_a_gradient_and_tokens():
    still, noisy = GateExplorable(k=2, expert=6).values(), GateExplorable(k=2, expert=6, noise=1.0).values()
    assert still["gradient"] == [0.0] * 8 and all(abs(x) > 0 for x in noisy["gradient"][:2])
    assert sum(still["load"]) == pytest.approx(2) and sum(noisy["load"]) == pytest.approx(2)
    assert noisy["imbalance"] < still["imbalance"]
