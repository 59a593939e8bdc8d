"""The router's figure: its anchors, its bias, and what it shows."""

from __future__ import annotations

import pytest
import torch
from figure_page import TOLERANCE, difference, drag_by_finger, shown

from gated.gates import SelectionBias
from gated.lab.explorables import (
    RouterExplorable,
)


def test_an_anchor_is_dragged_by_mouse_and_finger_and_moved_by_the_keyboard(visit):
    page = visit(RouterExplorable().html())
    page.get_by_label("Gaussian").check()
    anchor = page.locator("[data-handle='1']")
    box, side = (
        anchor.locator("circle").bounding_box(),
        page.locator("[data-plane]").evaluate("node => node.dataset.side * node.getCTM().a / (2 * 1.25)"),
    )
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 90, steps=4)
    page.mouse.up()
    page.mouse.move(x, y)  # the button is up: nothing follows the pointer
    here = [float(part.replace("−", "-")) for part in anchor.get_attribute("aria-valuetext").split(", ")]
    assert here == pytest.approx([0.13 - 60 / side, 0.83 - 90 / side], abs=0.03)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowRight")
    anchors = RouterExplorable().state["anchors"]
    anchors[2:5] = [round(here[0] - 0.05, 2), round(here[1] + 0.05, 2), anchors[4] + 0.05]
    assert difference(RouterExplorable(anchors, score="Gaussian").values(), shown(page)) <= TOLERANCE
    assert page.locator("[data-handle][tabindex='0']").get_attribute("data-handle") == "2"

    page = visit(RouterExplorable().html() + "<p style='height: 900px'>", width=375, has_touch=True, is_mobile=True)
    anchor = page.locator("[data-handle='4']")
    box = anchor.locator("circle").bounding_box()
    assert box["width"] > 20  # wide enough for a finger
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag_by_finger(page, (x, y), (x + 20, y - 20), (x + 60, y - 60))
    assert float(anchor.get_attribute("aria-valuenow")) > -0.33 + 0.3 and page.evaluate("scrollY") == 0


def test_the_routers_bias_is_the_librarys(visit):
    """The button takes the step of `SelectionBias`; repeated, it evens out the loads."""
    figure = RouterExplorable(selection="sigmoid + bias", score="Gaussian")
    bias = SelectionBias(6, 1, rate=figure.state["rate"]).double()
    page = visit(figure.html())
    before, button = shown(page), page.get_by_role("button", name="one bias step")
    for step in range(25):
        bias.update(torch.tensor(figure.values()["asked"], dtype=torch.float64))
        figure.state["bias"] = bias.bias.tolist()
        if step < 5:
            button.click()
            assert difference(figure.values(), shown(page)) <= TOLERANCE
    for _ in range(2):
        page.get_by_role("button", name="ten steps").click()
    after = shown(page)
    assert difference(figure.values(), after) <= TOLERANCE
    assert after["imbalance"] < before["imbalance"] / 3 and after["agreement"] < before["agreement"] - 0.1
    page.get_by_role("button", name="bias to zero").click()
    assert shown(page) == before


def test_what_the_router_shows(visit):
    """Expert choice has even loads; cosine routing forgets the scale; anchors in the clusters leave few points out."""
    page = visit(RouterExplorable(selection="expert choice", top_k=2).html())
    v = shown(page)
    assert v["asked"] == [v["limit"]] * 6 and v["imbalance"] == 0
    page.get_by_label("top-k", exact=True).check()
    assert shown(page)["imbalance"] > 0.2
    first, second, *others = RouterExplorable().state["anchors"]
    for score in ("cosine", "linear"):  # one anchor comes nearer, in its direction
        near = RouterExplorable([first / 2, second / 2, *others], score=score).values()
        assert (near["cells"] == RouterExplorable(score=score).values()["cells"]) == (score == "cosine")
    page = visit(RouterExplorable(score="Gaussian").html())
    before = shown(page)["unserved"]
    page.get_by_role("button", name="anchors to the clusters").click()
    assert shown(page)["unserved"] < before / 2
