"""The pages for whoever reads them otherwise: by keyboard, by ear, with weak eyes, on paper."""

from __future__ import annotations

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from built_page import ACCESS, after_tab

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}


@pytest.fixture
def opened(browser, site_url):
    """Opens a page of the site by its name."""
    contexts = []

    def go(name: str, scheme: str = "light", viewport: dict = DESK):
        contexts.append(browser.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce"))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(script=ACCESS)
        page.goto(f"{site_url}/{name}.html", wait_until="load")
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_a_whole_page(opened, scheme):
    """Nothing is taken out before, and axe looks at the contrast itself, of links in a text too."""
    page = opened("book/gates", scheme)
    page.evaluate("access.unfold()")
    page.evaluate(AXE_SCRIPT)
    assert page.evaluate("access.serious(true)") == []


@pytest.mark.parametrize("name", ["book/gates", "book/gla", "book/claims", "book/api/gated.gates"])
def test_what_scrolls_on_a_phone_answers_to_keys(opened, name):
    """Long lines of code, folded ones too, wide formulas and tables; not every browser scrolls by keys of its own."""
    page = opened(name, "light", PHONE)
    if page.locator(".math").count():
        page.wait_for_function("window.MathJax?.startup?.promise?.then(() => document.fonts.ready)")
    page.evaluate("access.unfold()")
    page.wait_for_timeout(500)  # the theme looks 0.3 s after a change
    assert page.evaluate("access.stuck()") == []


# Contrast -----------------------------------------------------------------------------------------------------


FAULTY = """<div class="bd-container"><svg width="300" height="200"><rect width="100" height="50" fill="#0072b2" />
<rect x="100" width="100" height="50" fill="#f0a83a" /><text x="10" y="30" fill="#fff">white on blue</text>
<text class="a" x="110" y="30" fill="#fff">on orange</text><text class="b" x="10" y="100" fill="#fff">on white</text>
<text x="110" y="45" fill="#fff" style="paint-order: stroke; stroke: #000a; stroke-width: 3px">rim</text>
<text class="c" x="10" y="45" fill="#003">dark on blue</text></svg>
<div data-explorable="x"><svg><path d="M0 9H99" stroke="#ddd" stroke-width="2" /><path d="M0 9H9" stroke="#333" /></svg>
<button style="outline: none">no ring</button> <button style="outline: 3px solid red">always a ring</button>
<style>#ringed:focus { outline: 2px solid }</style><button id="ringed">a ring</button></div>
<details><summary>more</summary>
<pre style="width: 50px; overflow: auto" tabindex="-1">a long line of code</pre></details>
</div>"""


def test_what_is_measured_here_is_noticed(browser):
    """White on white and on orange, dark on blue, a pale curve, code that no key scrolls, a ring that says nothing."""
    page = browser.new_page()
    page.set_content(FAULTY)
    page.add_script_tag(content=ACCESS)
    page.evaluate("access.unfold()")
    words = page.evaluate("access.words()")
    assert {key.partition(" ")[0] for key in words} == {"text.a", "text.b", "text.c"}
    assert list(page.evaluate("access.curves()").values()) == ["1.36"]
    assert [one[:4] for one in page.evaluate("access.stuck()")] == ["<pre"]
    page.evaluate("access.remember()")
    seen = []
    for _ in range(3):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("access.focused(document.body).seen"))
    assert seen == [False, False, True]
    page.close()


# By keyboard --------------------------------------------------------------------------------------------------


def test_tab_goes_through_a_whole_page(opened):
    """From the page's top to its end; what has the focus is always seen, and in the window."""
    page = opened("book/gates")
    page.evaluate("access.remember()")
    wanted, reached = page.evaluate("access.stops(document.body)"), []
    whole = page.locator("body")
    while len(reached) < 2 * wanted:
        if (now := after_tab(page, whole)) is None:
            break
        reached.append(now)
    assert wanted <= len(reached) < 2 * wanted, (wanted, reached[-5:])


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

# What reaches over the right edge of the paper; a picture or a formula counts as a whole.
BEYOND = """[...document.querySelectorAll("article *")].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width > 1 && box.right > innerWidth + 1 && !one.parentElement.closest("svg, mjx-container, .gx-aria");
}).map((one) => one.outerHTML.slice(0, 150))"""


def test_paper_has_no_controls_and_says_where_links_lead(opened):
    page = opened("book/gla", viewport={"width": 674, "height": 1000})  # A4 without its margins
    page.emulate_media(media="print")
    assert page.evaluate(BEYOND) == []
    assert not any(one.is_visible() for one in page.locator(".tag_hide-input details.hide").all())
    assert all(one.is_visible() for one in page.locator(".tag_hide-cell details.hide pre").all())
    assert not any(one.is_visible() for one in page.locator("details.hide > summary").all())
    for css in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".gx-controls", ".headerlink", ".bd-header-article"):
        assert not any(one.is_visible() for one in page.locator(css).all()), css
    outward = page.locator("article a[href^='http']").first
    said = outward.evaluate("one => getComputedStyle(one, '::after').content")
    assert "attr(href)" in said or outward.get_attribute("href") in said
    figure = page.locator("[data-explorable]").first
    assert figure.locator("svg").first.is_visible()
    assert "web page" in figure.evaluate("one => getComputedStyle(one, '::after').content")
