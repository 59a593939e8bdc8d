"""The figure of the plane: its margins against the library's on any network, its lines, and what it shows."""

from __future__ import annotations

import math
import random

import pytest
import torch
from figure_page import drag_by_finger, shown

from gated.advmoe import exact_margin
from gated.lab.explorables.plane import EXPERTS, GRID, REACH, ROUTERS, WIDEST, WORDS, PlaneExplorable

STATES = {
    "flip": {},
    "steady": {"router": "robust"},
    "agree": {"experts": "robust"},
    "own": {"point": (0.9, 0.1)},
    "wrong": {"point": (0.5, -1.2)},
}


def drawn(rng: random.Random, dim: int) -> dict:
    """A network and a point; some coordinates that cost nothing or that the router does not see, some boxes empty."""
    few = lambda: [rng.choice([0.0, 1.0, 1.0, 1.0]) * rng.gauss(0, 1) for _ in range(dim)]  # noqa: E731
    return {
        "x": [rng.gauss(0, 1) for _ in range(dim)],
        "y": rng.choice([-1, 1]),
        "eps": rng.choice([0.0, rng.uniform(0, 1)]),
        "a": few(),
        "c": rng.gauss(0, 0.5),
        "experts": [[*few(), rng.gauss(0, 0.5)] for _ in range(2)],
    }


def test_the_margins_of_the_browser_are_the_librarys(visit):
    rng = random.Random(1)
    cases = [drawn(rng, dim) for dim in (1, 2, 2, 2, 5) for _ in range(80)]
    page = visit("<p>")
    source = PlaneExplorable.module().replace("export default { render };", "")
    found = page.evaluate(
        f"""(cases) => {{ {source}
        return cases.map(({{ x, y, eps, a, c, experts }}) => {{
            const v = exactMargin(x, y, eps, a, c, experts);
            return {{ ...v, margins: v.margins.map((m) => (m < Infinity ? m : 1e300)) }};
        }}); }}""",
        cases,
    )
    seen, worst = set(), 0.0
    for case, v in zip(cases, found, strict=True):
        x, a, c, table = (torch.tensor(case[key], dtype=torch.float64) for key in ("x", "a", "c", "experts"))
        label = torch.tensor([case["y"]])
        m = exact_margin(x[None], label, case["eps"], (a, c), (table[:, :-1], table[:, -1]))
        verdict = bool(m.own_path), bool(m.only_by_flip)
        assert (v["route"], v["beaten"], v["flip"]) == (m.route.item(), *verdict), case
        gaps = [abs(v[name] - getattr(m, name).item()) for name in ("margin", "clean", "frozen")]
        for e in range(2):
            there = m.by_expert[0, e].item() < math.inf
            assert there == (v["margins"][e] < 1e300) == bool(v["worst"][e]), case
            if there:
                gaps.append(abs(v["margins"][e] - m.by_expert[0, e].item()))
                gaps += [abs(p - q) for p, q in zip(v["worst"][e], m.worst[0, e].tolist(), strict=True)]
        worst = max(worst, *gaps)
        seen.add((*verdict, there))
    print(f"largest difference of {len(cases)} cases: {worst:.1e}")
    assert worst < 1e-9 and len(seen) >= 5


@pytest.mark.parametrize("seed", range(8))
def test_the_margins_by_trying_every_place_of_the_box(seed):
    """A fine lattice over the box never finds less than the exact margin, and comes near it."""
    rng = random.Random(seed)
    figure = PlaneExplorable(
        (rng.uniform(-1, 1), rng.uniform(-1, 1)),
        0.5,
        rng.uniform(-90, 90),
        experts="standard",
        label=rng.choice([-1, 1]),
    )
    v, s = figure.values(), figure.state
    steps = torch.linspace(-0.5, 0.5, 401, dtype=torch.float64)
    x = torch.tensor(s["point"], dtype=torch.float64) + torch.cartesian_prod(steps, steps)
    angle, lowest = math.radians(s["angle"]), [math.inf, math.inf]
    above = x[:, 0] * math.cos(angle) + x[:, 1] * math.sin(angle) >= ROUTERS["standard"]
    for e, (u, w, b) in enumerate(EXPERTS["standard"]):
        f = s["label"] * (u * x[:, 0] + w * x[:, 1] + b)[above == bool(e)]
        lowest[e] = f.amin().item() if len(f) else math.inf
    for margin, low in zip(v["by_expert"], lowest, strict=True):
        margin = math.inf if margin == "not reached" else margin
        assert margin - 1e-12 <= low and (low <= margin + 0.01 or low == math.inf)
    assert v["margin"] == min(m for m in v["by_expert"] if m != "not reached")


def test_five_states_and_what_cures_a_flip():
    found = {kind: PlaneExplorable(**state).values() for kind, state in STATES.items()}
    assert [v["kind"] for v in found.values()] == list(STATES) and STATES.keys() == WORDS.keys()
    flip, steady, agree = (found[kind] for kind in ("flip", "steady", "agree"))
    assert flip["by_expert"][1] > 0.5 and flip["by_expert"][0] < 0 and flip["frozen"] > 0.5 > 0 > flip["margin"]
    assert (
        steady["by_expert"][0] == "not reached"
        and steady["slack"] > 0
        and steady["margin"] == pytest.approx(steady["frozen"])
    )
    assert min(agree["by_expert"]) > 0 > agree["slack"]
    # Without a box there is nothing to attack with.
    assert PlaneExplorable(eps=0).values()["kind"] == "steady"
    low = PlaneExplorable((0.0, 1.25)).values()
    assert low["kind"] == "agree" and low["frozen"] < 0 < low["margin"]


def test_agreeing_experts_leave_little_to_a_flip_and_a_frozen_route_reports_too_much():
    def share(code: str, **state) -> float:
        return PlaneExplorable(**state).values()["cells"].count(code) / GRID**2

    assert share("2") > 0.025 > 10 * share("2", experts="robust")
    assert share("2", router="robust") > 0.02  # a line that moves takes its band of flips along
    v = PlaneExplorable().values()
    assert v["reported"] > v["safe"] + 0.04
    assert v["safe"] == pytest.approx(share("0") / (1 - share("3")))
    assert share("3") == share("3", eps=0) and share("1", eps=0) == share("2", eps=0) == 0


def test_no_verdict_hangs_on_rounding():
    """No place of the map lies so near a border that two programs might differ, wherever the sliders stand."""
    near = math.inf
    centres = 2 * ((2 * torch.arange(GRID, dtype=torch.float64) + 1) / GRID - 1)
    cells = torch.cartesian_prod(centres, centres)
    for router in ROUTERS:
        for experts in EXPERTS:
            for angle in (-90, -45, -37, 0, 30, 45, 90):
                normal = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))]).double()
                for eps in (0, 0.04, 0.26, 0.4, 0.5):
                    m = PlaneExplorable(eps=eps, angle=angle, router=router, experts=experts).exact(cells)
                    slack = (cells @ normal - ROUTERS[router]).abs() - eps * normal.abs().sum()
                    borders = (m.by_expert, m.clean, m.frozen, slack)
                    near = min(near, *(border.abs().min().item() for border in borders))
    assert near > 1e-9


def test_every_state_is_told_in_the_badge_and_the_words(visit):
    page = visit(PlaneExplorable().html())
    badge, note = page.locator("[data-verdict]"), page.locator(".gx-note")
    told = {}
    for name in ("wide router margin", "agreeing experts", "own path", "frozen too low", "only by a flip"):
        page.get_by_role("button", name=name).click()
        told[name] = (badge.text_content(), note.locator("strong").inner_text())
    assert [words for words, _ in told.values()] == [
        "Safe", "Safe", "Beaten on its own path", "Safe", "Beaten only by flipping the route"
    ]  # fmt: skip
    assert told["wide router margin"][1] != told["agreeing experts"][1] == told["frozen too low"][1]
    assert page.locator("[data-slot=off]").inner_text() == "1.11 too high"
    page.get_by_label("robust experts").check()
    assert badge.text_content() == "Safe" and note.locator("math").count() == 1
    page.get_by_label("label y = −1").check()
    assert badge.text_content() == "Beaten on its own path: wrong as it is"


def test_the_point_is_moved_by_mouse_and_keys(visit):
    page = visit(PlaneExplorable().html())
    handle = page.locator("[data-handle]")
    box = handle.locator("circle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    unit = page.locator("svg").evaluate("node => 96 * node.getScreenCTM().a")  # pixels of a step of 1
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.6 * unit, y + 0.3 * unit, steps=4)
    page.mouse.up()
    page.mouse.move(x, y)  # the button is up: nothing follows the pointer
    here = [float(part.replace("−", "-")) for part in handle.get_attribute("aria-valuetext").split(", ")]
    assert here == pytest.approx([0.85, 0.35], abs=0.02)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    expected = PlaneExplorable((round(here[0] - 0.05, 2), round(here[1] - 0.05, 2))).values()
    assert shown(page)["by_expert"] == pytest.approx(expected["by_expert"], abs=1e-12)
    for _ in range(60):
        page.keyboard.press("ArrowUp")
    assert handle.get_attribute("aria-valuetext").endswith(f"{REACH:.2f}")


def test_the_point_is_dragged_by_a_finger(visit):
    page = visit(PlaneExplorable().html() + "<p style='height: 900px'>", width=375, has_touch=True, is_mobile=True)
    handle = page.locator("[data-handle]")
    box = handle.locator("circle").nth(1).bounding_box()
    assert box["width"] > 30  # wide enough for a finger
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag_by_finger(page, (x, y), (x - 20, y + 20), (x - 60, y + 60))
    assert float(handle.get_attribute("aria-valuenow")) < -0.3 and page.evaluate("scrollY") == 0
    assert page.locator("[data-verdict]").text_content().startswith("Beaten on its own path")


def test_the_drawing_shows_what_is_reached(visit):
    """Two parts of the box and two worst places, or one of each; a cross where the expert is beaten."""
    page = visit(PlaneExplorable().html())
    part, worst = page.locator("[data-part='0']"), page.locator("[data-worst]")
    assert part.get_attribute("points") and worst.nth(0).is_visible() and worst.nth(1).is_visible()
    crosses = page.locator("[data-worst] path")
    assert [crosses.nth(e).get_attribute("visibility") for e in range(2)] == ["visible", "hidden"]
    page.get_by_label("robust router").check()
    assert not part.get_attribute("points") and not worst.nth(0).is_visible() and worst.nth(1).is_visible()
    assert page.locator("[data-slot=margin0]").inner_text() == "out of reach"


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(PlaneExplorable().html())
    figure = page.locator("[data-explorable=plane]")
    state = lambda: (figure.locator("svg").inner_html(), shown(page))  # noqa: E731
    for key in ("eps", "angle"):
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowLeft")
        assert state()[0] != picture and state()[1] != values, key


@pytest.mark.parametrize(
    ("state", "argument"),
    [
        ({"point": (0.0,)}, "point"),
        ({"point": (1.5, 0.0)}, "point"),
        ({"eps": WIDEST + 0.01}, "eps"),
        ({"angle": 91}, "angle"),
        ({"router": "soft"}, "router"),
        ({"experts": "soft"}, "experts"),
        ({"label": 0}, "label"),
    ],
)
def test_bad_input_is_named(state, argument):
    with pytest.raises(ValueError, match=f"^{argument} "):
        PlaneExplorable(**state)
