"""The built pages in a real browser: nothing leaves this machine, nothing complains, all can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from built_page import ACCESS, Visit

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = sorted({f"book/{path.stem}" for pattern in ("*.ipynb", "*.md") for path in BOOK.glob(pattern)})
NOTEBOOKS = [f"book/{path.stem}" for path in sorted(BOOK.glob("*.ipynb"))]
WITH_MATHS = [name for name in NOTEBOOKS if "$" in (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")]
PHONE = {"width": 375, "height": 812}


GROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
LOOKS = {
    "desk": {"color_scheme": "light"},  # served
    "phone": {"color_scheme": "dark", "viewport": PHONE, "is_mobile": True, "has_touch": True},
}


@pytest.fixture(params=LOOKS)
def is_whole(request, browser, built_site, site_url):
    """Looks at a page: served, on a desk and in the light; or opened from a disk, on a phone and in the dark."""
    look, base = LOOKS[request.param], {"desk": site_url, "phone": built_site.as_uri()}[request.param]

    def check(name: str) -> None:
        with Visit(browser, base, **look) as visit:
            page = visit.open(name, idle=True)
            assert page.locator("h1").count() >= 1
            assert page.evaluate("document.documentElement.dataset.theme") == look["color_scheme"]
            ground = page.evaluate(GROUND)
            assert (max(ground) < 80) == (look["color_scheme"] == "dark"), ground
            if name in WITH_MATHS:
                mathematics_is_set(page)
            if name in PAGES:
                assert page.locator(".prev-next-title").count() >= 1
            if request.param == "phone":
                assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], culprits(page)
                assert page.evaluate(BROKEN) == []
            assert visit.errors == [], name
            nothing_serious_on(page, name)

    return check


def nothing_serious_on(page, name: str) -> None:
    """WCAG asks 4.5:1 of words (3:1 of large ones), also of those on marks of figures, and 3:1 of curves: measured are
    the colours that the browser computes. axe looks at the rest."""
    page.emulate_media(reduced_motion="reduce")  # what is unfolded would fade in
    page.evaluate(ACCESS)
    assert page.evaluate("access.unfold(), { ...access.words(), ...access.curves() }") == {}, name
    page.evaluate("access.fewer()")
    page.evaluate(AXE_SCRIPT)
    assert page.evaluate("access.serious()") == [], name


@pytest.mark.parametrize("name", [*PAGES, "genindex", "search"])
def test_page_is_whole(is_whole, name):
    is_whole(name)


def test_api_pages_are_whole(is_whole, built_site):
    for path in sorted((built_site / "book" / "api").glob("*.html")):
        is_whole(f"book/api/{path.stem}")


def mathematics_is_set(page) -> None:
    raw, done, wrong = (page.locator(css).count() for css in (".math", "mjx-container", "mjx-merror"))
    assert done >= raw > 0 and wrong == 0
    families = page.evaluate(
        "document.fonts.ready.then(f => [...f].filter(x => x.status == 'loaded').map(x => x.family))"
    )
    assert any("MJXTEX" in family for family in families), families


def test_the_front_leads_to_the_pages(browser, site_url):
    with Visit(browser, site_url) as visit:
        visit.page.goto(f"{site_url}/index.html")
        visit.page.wait_for_url("**/book/index.html")
        links = visit.page.locator(".bd-sidebar-primary a").evaluate_all("all => all.map(a => a.href)")
        for name in PAGES:
            assert name == "book/index" or any(link.endswith(f"{name}.html") for link in links), name


def culprits(page) -> list[str]:
    return page.evaluate("""() => [...document.querySelectorAll('main *')]
        .filter(e => e.getBoundingClientRect().right > 376).slice(0, 6)
        .map(e => e.outerHTML.slice(0, 120))""")


# Words that a line's end breaks in the links to the next page and the one before.
BROKEN = """() => [...document.querySelectorAll('.prev-next-title')].flatMap(e => {
    const text = e.firstChild, range = document.createRange();
    return [...text.data.matchAll(/\\S+/g)].filter(word => {
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1;
    }).map(word => word[0]); })"""


def test_search_finds_a_word(browser, site_url):
    with Visit(browser, site_url) as visit:
        visit.page.goto(f"{site_url}/search.html?q=gate")
        visit.page.wait_for_selector("#search-results li a", timeout=10_000)
        assert visit.errors == []


def test_quotes_below_results_have_no_tex(browser, site_url):
    """Letters stay, other formulas are left out; the words around them stay."""
    with Visit(browser, site_url) as visit:
        visit.page.goto(f"{site_url}/search.html?q=logits")
        visit.page.wait_for_function("/finished/.test(document.querySelector('.search-summary')?.textContent)")
        visit.page.wait_for_load_state("networkidle")
        said = visit.page.locator("#search-results .context").all_text_contents()
        assert "\\" not in "".join(said) and sum("…" in text for text in said) > 3
        html = r"<div role='main'>Of \(k\) experts \(x_i \in \mathbb R^d\) goes to \[ a \] <code>\(b</code></div>"
        assert visit.page.evaluate("html => Search.htmlToText(html)", html) == r"Of k experts … goes to … \(b"
        assert visit.errors == []


def test_every_chapter_offers_colab_from_its_own_file(built_site, tool):
    place = (
        tool("bootstrap")
        .repository()
        .replace("https://github.com/", "https://colab.research.google.com/github/")
    )
    version = tool("bootstrap").version()
    for name in NOTEBOOKS:
        assert f"{place}/blob/v{version}/{name}.ipynb" in (built_site / f"{name}.html").read_text(encoding="utf-8")


def test_pages_are_light(built_site):
    """What a first visit loads: page, scripts, styles, at most 2.5 MB besides the page's own outputs."""
    static = built_site / "_static"
    assert not list(static.rglob("fontawesome.js"))
    assert (
        sum(path.stat().st_size for path in static.rglob("*.js") if path.name not in ("language_data.js",))
        < 2.5e6
    )
