"""The pages for whoever reads them otherwise: by keyboard, by ear, with weak eyes, on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(p.stem for p in (ROOT / "book").glob("*.ipynb") if "data-explorable" in p.read_text(encoding="utf-8"))
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}

SCRIPT = ROOT / "tests" / "book" / "access.js"


def pages(site: Path) -> list[str]:
    return sorted(
        str(path.relative_to(site).with_suffix("")) for path in (*site.glob("book/**/*.html"), *site.glob("[gs]*.html"))
    )


@pytest.fixture
def opened(browser, site_url):
    """Opens a page of the site by its name."""
    contexts = []

    def go(name: str, scheme: str = "light", viewport: dict = DESK, page=None):
        if page is None:
            contexts.append(browser.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce"))
            page = contexts[-1].new_page()
            page.set_default_timeout(60_000)
            page.add_init_script(path=SCRIPT)
        page.goto(f"{site_url}/{name}.html", wait_until="load")
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["light-desk", "dark-phone"])
def test_axe_finds_nothing_serious(opened, built_site, scheme, viewport):
    page, faults = None, {}
    for name in pages(built_site):
        page = opened(name, scheme, viewport, page)
        page.evaluate("access.fewer()")
        page.evaluate(AXE_SCRIPT)
        if found := page.evaluate("access.serious()"):
            faults[name] = found
    assert page is not None and faults == {}


# Contrast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_curves_stand_out(opened, built_site, scheme):
    """WCAG's 4.5:1 for words (3:1 for large ones) and 3:1 for curves, of the colours that the browser computes."""
    page, faults = None, {}
    for name in pages(built_site):
        page = opened(name, scheme, DESK, page)
        if found := page.evaluate("({ ...access.words(), ...access.curves() })"):
            faults[name] = found
    assert page is not None and faults == {}


# By keyboard --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAPTERS)
def test_tab_reaches_every_control_and_leaves(opened, name):
    page = opened(f"book/{name}")
    for figure in page.locator("[data-explorable]").all():
        wanted = figure.evaluate("one => access.stops(one)")
        figure.evaluate("one => { one.tabIndex = -1; one.focus(); }")
        reached = []
        for _ in range(wanted + 3):
            page.keyboard.press("Tab")
            now = figure.evaluate("one => access.focused(one)")
            if now is None:
                break
            assert now["seen"], f"the focus cannot be seen on {now['what']}"
            reached.append(now["what"])
        else:
            pytest.fail(f"the keyboard does not leave the figure: {reached[-1]}")
        assert len(reached) >= wanted, (wanted, reached)


def test_skip_link_leads_past_the_sidebar(opened):
    page = opened("book/gates")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_scoreboard_is_sorted_and_filtered_by_keys(opened):
    page = opened("book/claims")
    rows = ".gated-claims tbody tr:not([hidden])"
    page.get_by_label("Find").focus()
    before = page.locator(rows).count()
    page.keyboard.type("seed")
    assert 0 < page.locator(rows).count() < before
    sorting = page.locator(".gated-claims th button")
    for _ in range(12):
        page.keyboard.press("Tab")
        if sorting.first.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.press("Enter")
    assert page.locator(".gated-claims th[aria-sort]").count() == 1


def test_icons_are_drawn_by_the_small_font(opened):
    page = opened("search")
    page.wait_for_function("[...document.fonts].some(one => one.family.includes('Awesome') && one.status === 'loaded')")


# On paper -----------------------------------------------------------------------------------------------------


def test_paper_has_no_controls_and_says_where_links_lead(opened):
    page = opened("book/gla")
    page.emulate_media(media="print")
    for css in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".gx-controls", ".headerlink", ".bd-header-article"):
        assert not any(one.is_visible() for one in page.locator(css).all()), css
    outward = page.locator("article a[href^='http']").first
    said = outward.evaluate("one => getComputedStyle(one, '::after').content")
    assert "attr(href)" in said or outward.get_attribute("href") in said
    figure = page.locator("[data-explorable]").first
    assert figure.locator("svg").first.is_visible()
    assert "web page" in figure.evaluate("one => getComputedStyle(one, '::after').content")
