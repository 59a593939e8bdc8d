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


def test_with_noise_the_bars_are_said_to_be_means(visit):
    """With k = 1 and noise they are not what the entropy, which is each draw's, belongs to."""
    page = visit(GateExplorable().html(), GateExplorable(k=1, noise=0.7).html())
    heading = page.locator("[data-heading=weights]")
    assert heading.all_text_contents() == ["Gate weights wᵢ", "Gate weights wᵢ: mean over 256 draws"]
    assert sum(w > 0.01 for w in shown(page, 1)["weights"]) > 1 and shown(page, 1)["entropy"] == 0
    assert "those of one draw, then averaged" in page.locator(".gx-note").nth(1).inner_text()
    page.locator("input[data-key=noise]").first.focus()
    page.keyboard.press("End")
    assert heading.first.text_content() == heading.nth(1).text_content()
    assert page.get_by_label("Noise ν").count() == 2


def test_noise_gives_a_shut_expert_a_gradient_and_tokens():
    still, noisy = GateExplorable(k=2, expert=6).values(), GateExplorable(k=2, expert=6, noise=1.0).values()
    assert still["gradient"] == [0.0] * 8 and all(abs(x) > 0 for x in noisy["gradient"][:2])
    assert sum(still["load"]) == pytest.approx(2) and sum(noisy["load"]) == pytest.approx(2)
    assert noisy["imbalance"] < still["imbalance"]


STRUCK = """() => { const line = document.querySelector("[data-even]").getBoundingClientRect();
    return [...document.querySelectorAll("[data-load-label]")].filter(e => {
        const box = e.getBoundingClientRect();
        return box.bottom - 0.2 * box.height > line.top && box.top + 0.15 * box.height < line.bottom;
    }).map(e => e.textContent); }"""


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0])
def test_the_line_of_even_loads_strikes_no_number_through(visit, noise):
    page = visit(GateExplorable(k=2, noise=noise).html())
    assert page.evaluate(STRUCK) == []
    slider = page.locator("input[data-key=top_k]")
    for k in range(1, 9):
        slider.evaluate("(e, k) => { e.value = k; e.dispatchEvent(new Event('input', {bubbles: true})); }", k)
        assert page.evaluate(STRUCK) == [], k
