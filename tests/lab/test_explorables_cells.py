"""The figure of the surplus expert: its numbers against closed forms and a finer quadrature, and how it answers."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise

import pytest
import torch
from figure_page import shown

from gated.gaussian_moe.distances import total_variation
from gated.gaussian_moe.truths import DENSE, UNIT
from gated.lab.explorables import CellsExplorable, explorable
from gated.lab.explorables.cells import COLUMNS, WORDS

SPLIT = {"top_k": 3, "slope": 25.0, "delta": 0.4, "halve": True}
STATES = {
    "short": {"top_k": 1, "rank": "logit"},
    "crowded": {},
    "dormant": {"slope": -1.0, "delta": 0.2},
    "faint": {"top_k": 3, "slope": -1.0, "delta": 0.1},
    "copy": {"top_k": 3, "halve": True},
    "split": SPLIT,
    "hidden": {**SPLIT, "compensate": True},
}


def values(**state) -> dict:
    return CellsExplorable(**state).values()


# The library's numbers ---------------------------------------------------------------------------------------------


def test_what_the_third_expert_costs():
    """The dense example's known figures, and the two cases without any error."""
    assert values(slope=-1.0)["tv"] < 1e-15
    assert values(slope=0.0)["tv"] < 1e-15  # a tie goes to the lower index: the third expert is left out
    assert values(slope=0.1)["tv"] == pytest.approx(0.3197, abs=5e-5)
    assert values(halve=True)["tv"] == pytest.approx(0.3197, abs=5e-5)
    assert values(top_k=3, halve=True)["tv"] == pytest.approx(6.3e-4, rel=0.01)
    assert values(**(SPLIT | {"delta": 0.0}))["tv"] < 1e-15  # two halves of one expert are that expert
    # Both at full weight: the border moves by ln 2 / 25, and nearly all that is there changes the expert.
    assert values(**(SPLIT | {"delta": 0.0, "halve": False}))["tv"] == pytest.approx(math.log(2) / 25, rel=0.03)


def test_without_a_place_an_expert_costs_its_share():
    """Far from the crossing of the means, a column's total variation is the share of the expert that is left out."""
    v = values()
    for c in range(30):
        share = 1 / (1 + math.exp(25 * (c + 0.5) / COLUMNS - 8))
        assert v["columns"][c] == pytest.approx(share, rel=1e-9)
    assert v["kept"] == [0b101] * COLUMNS
    logit = values(top_k=1, rank="logit")  # the largest logit: expert 2 below 8 / 25, then expert 1
    assert logit["kept"] == [0b010] * 24 + [0b001] * 51


@pytest.mark.parametrize(("compensate", "order"), [(False, 2), (True, 4)])
def test_the_split_costs_its_leading_term(compensate, order):
    """The first moment that a split changes, r = 2 or 4: V = delta^r c_r E|He_r(Z)| / 2, times expert 1's share."""
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    he = z**2 - 1 if order == 2 else z**4 - 6 * z**2 + 3
    mean = torch.trapezoid(he.abs() * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi), z).item()
    share = (math.log1p(math.exp(17)) - math.log1p(math.exp(-8))) / 25  # of expert 1, over all x
    v = values(**(SPLIT | {"delta": 0.1, "compensate": compensate}))
    assert v["tv"] == pytest.approx(share * 0.1**order * {2: 1 / 2, 4: 1 / 12}[order] * mean / 2, rel=0.03)
    assert v["exponent"] == pytest.approx(order, abs=0.03)


@pytest.mark.parametrize("kind", STATES)
def test_the_coarse_grid_is_fine_enough(kind):
    figure = CellsExplorable(**STATES[kind])
    shown = figure.values()
    assert shown["kind"] == kind and kind in WORDS
    exact = total_variation(figure._models()[:1], DENSE, UNIT).item()
    assert shown["tv"] == pytest.approx(exact, rel=0.01)
    assert sum(shown["columns"]) / COLUMNS == pytest.approx(shown["tv"])


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 4), ("top_k", 0), ("slope", 27), ("delta", 1), ("delta", math.nan), ("rank", "x")]
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        CellsExplorable(**{name: value})


# In the browser ----------------------------------------------------------------------------------------------------


def alike(a, b, tolerance: float = 1e-12) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return a == b if isinstance(a, str) else not isinstance(b, str) and abs(a - b) <= tolerance


def figures() -> list[CellsExplorable]:
    rng = random.Random(1)
    random_ones = [
        {
            "top_k": rng.randint(1, 3),
            "slope": round(rng.uniform(-2, 26), 1),
            "delta": rng.randint(0, 18) / 20,
            "compensate": rng.random() < 0.5,
            "halve": rng.random() < 0.5,
            "rank": rng.choice(["slope", "logit"]),
        }
        for _ in range(8)
    ]
    ties = [SPLIT | {"top_k": 1}, SPLIT | {"top_k": 1, "rank": "logit"}, {"slope": 0.0}]
    return [CellsExplorable(**state) for state in [*STATES.values(), *ties, *random_ones]]


def test_the_browser_shows_what_the_library_computes(visit):
    """Numbers, words, and every mark of the map, in each regime, at ties, and in random states."""
    read = """() => [...document.querySelectorAll('.gx')].map((figure) =>
        [...figure.querySelectorAll('.gx-figure svg *, .gx-note, .gx-numbers')].map((node) => [
            'd', 'points', 'x1', 'y1', 'y2', 'cx', 'cy', 'visibility'].map((name) => node.getAttribute(name)).join() +
            (node.querySelector('circle, path, text') ? '' : node.textContent)))"""
    all_of_them = figures()
    html = [figure.html() for figure in all_of_them]
    live, still = visit(*html), visit(*(re.sub(r"<script>.*</script>", "", one, flags=re.S) for one in html))
    for index, figure in enumerate(all_of_them):
        assert alike(figure.values(), shown(live, index)), figure.state
    for figure, a, b in zip(all_of_them, still.evaluate(read), live.evaluate(read), strict=True):
        assert a == b, figure.state


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("by[j] - by[i] || i - j", "by[j] - by[i] || j - i"),
        ("delta * delta * s.compensate", "delta * s.compensate"),
        ("-0.5 * e * e", "-0.50001 * e * e"),
        ("reach = 9 *", "reach = 5 *"),
        ("size >= LEVELS[2]", "size >= 1.01 * LEVELS[2]"),
        ("Math.LN2 * s.halve", "Math.LN2"),
        ('m.rank === "slope" ? score : logit', "logit"),
        ("at(1 / STEP)", "at(1)"),
    ],
)
def test_a_changed_formula_is_noticed(visit, monkeypatch, old, new):
    read = explorable._read
    assert old in read("cells.js")
    monkeypatch.setattr(explorable, "_read", lambda file: read(file).replace(old, new))
    all_of_them = [figures()[index] for index in (1, 3, 5, 6, 7, 8)]
    page = visit(*(figure.html() for figure in all_of_them))
    assert not all(alike(figure.values(), shown(page, index)) for index, figure in enumerate(all_of_them))


def test_the_third_expert_is_put_to_sleep_by_hand(visit):
    page = visit(CellsExplorable().html())
    assert shown(page)["tv"] == pytest.approx(0.3197, abs=5e-5)
    slope = page.locator("input[data-key=slope]")
    slope.focus()
    page.keyboard.press("Home")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slope.get_attribute("aria-valuetext") == "−1.0"
    assert shown(page)["tv"] < 1e-15 and shown(page)["kind"] == "dormant"
    assert page.locator("[data-slot=tv]").inner_text() == "0"
    assert page.locator("[data-tile][d='M0 0']").count() == 6  # the map is empty
    assert alike(values(slope=-1.0), shown(page))


def test_the_tick_box_steepens_the_line(visit):
    page = visit(CellsExplorable().html())
    page.get_by_role("button", name="split", exact=True).click()
    delta, box = page.locator("input[data-key=delta]"), page.get_by_label("compensate the variance")
    where = {}
    for ticked in (False, True):
        box.focus()
        if box.is_checked() != ticked:
            page.keyboard.press("Space")
        for presses in (0, 2):
            delta.focus()
            page.keyboard.press("Home")
            for _ in range(4 - presses):
                page.keyboard.press("ArrowRight")
            dot = page.locator("[data-dot]")
            x, y = where[ticked, presses] = [float(dot.get_attribute(name)) for name in ("cx", "cy")]
            line = page.locator("[data-delta] polyline").nth(int(ticked)).get_attribute("points")
            points = [tuple(map(float, point.split(","))) for point in line.split()]
            (x0, y0), (x1, y1) = next(pair for pair in pairwise(points) if pair[0][0] <= x <= pair[1][0])
            assert y == pytest.approx(y0 + (x - x0) / (x1 - x0) * (y1 - y0), abs=0.5)  # on the library's line
            state = SPLIT | {"delta": (4 - presses) / 20, "compensate": ticked}
            assert alike(values(**state), shown(page))
        assert shown(page)["exponent"] == pytest.approx(4 if ticked else 2, abs=0.03)
    steps = {ticked: where[ticked, 2][1] - where[ticked, 0][1] for ticked in (False, True)}
    assert steps[True] == pytest.approx(2 * steps[False], rel=0.06) and steps[False] > 5
    assert page.get_by_label("halve the copies’ weights").is_checked()
    assert page.locator(".gx-note").inner_text().startswith(WORDS["hidden"][0])


def test_every_slider_moves_everything_from_the_start(visit):
    page = visit(CellsExplorable().html())
    for slider in page.locator("input[type=range]").all():
        low, high, first = (slider.evaluate(f"node => node.{name}") for name in ("min", "max", "value"))
        seen = []
        for value in (low, high, first):
            slider.evaluate("(node, v) => { node.value = v; node.dispatchEvent(new Event('input')); }", value)
            picture = page.locator("svg").evaluate_all("all => all.map(node => node.innerHTML).join()")
            seen.append((picture, json.dumps(shown(page))))
        for part in zip(*seen, strict=True):
            assert len(set(part)) > 1
        assert alike(shown(page), values())
