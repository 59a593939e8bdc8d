"""The offload figure: it knows the paper's machines."""

from __future__ import annotations

import pytest
from figure_page import TOLERANCE, difference, shown

from gated.lab.explorables import (
    OffloadExplorable,
)
from gated.lab.explorables.offload import PRESETS


def test_the_offload_figure_knows_the_papers_machines(visit):
    page = visit(OffloadExplorable().html())
    for name, one in PRESETS.items():
        page.get_by_role("button", name=name, exact=True).click()
        values = shown(page)
        assert values["preset"] == name
        assert difference(OffloadExplorable(**one["state"]).values(), values) <= TOLERANCE
        for design, measured in one["measured"].items():
            assert values["latency"][design] == pytest.approx(measured, rel=0.08), (name, design)
        assert page.locator("[data-measured][visibility=visible]").count() == len(one["measured"])
    page.get_by_label("on demand").check()
    assert page.locator(".gx-note").inner_text().startswith("Each block waits")
    page.locator("input[data-key=block]").focus()
    page.keyboard.press("ArrowRight")  # no longer the authors' machine
    assert shown(page)["preset"] == "" and page.locator("[data-measured][visibility=visible]").count() == 0


def test_no_label_or_sentence_has_raw_tex(visit):
    page = visit(OffloadExplorable().html())
    for name in PRESETS:
        page.get_by_role("button", name=name, exact=True).click()
        assert "_" not in page.locator(".gx").inner_text()
    assert page.locator(".gx sub").all_text_contents() == ["d", "d"]
    assert page.get_by_label("Dense Td, ms").count() == 1
