"""The built pages in a real browser: nothing leaves this machine, nothing complains, all can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = sorted({f"book/{path.stem}" for pattern in ("*.ipynb", "*.md") for path in BOOK.glob(pattern)})
NOTEBOOKS = [f"book/{path.stem}" for path in sorted(BOOK.glob("*.ipynb"))]
WITH_MATHS = [name for name in NOTEBOOKS if "$" in (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")]
PHONE = {"width": 375, "height": 812}
ACCESS = (ROOT / "tests" / "book" / "access.js").read_text(encoding="utf-8")


class Visit:
    """A page and what went wrong on it: console messages, exceptions, failed requests, requests to
    other hosts."""

    def __init__(self, browser, base: str, **context) -> None:
        self.base = base
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on(
            "console",
            lambda m: self.errors.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on(
            "response", lambda r: self.errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None
        )

    def _request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:", "about:")):
            self.errors.append(f"left the site: {request.url}")

    def open(self, name: str, *, idle: bool = False):
        """The page with its fonts and mathematics; `idle` waits half a second for late requests too."""
        self.page.goto(f"{self.base}/{name}.html", wait_until="load")
        self.page.evaluate("document.fonts.ready.then(() => true)")
        if idle:
            self.page.wait_for_load_state("networkidle")
        if self.page.locator(".math").count():
            self.page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
        return self.page

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()


LOOKS = {
    "desk": {"color_scheme": "light"},  # served
    "phone": {"color_scheme": "dark", "viewport": PHONE, "is_mobile": True, "has_touch": True},
}


def look_at(site: Path, url: str, browser, look: str) -> Visit:
    return Visit(browser, url if look == "desk" else site.as_uri(), **LOOKS[look])


def is_whole(visit: Visit, name: str, look: str) -> None:
    """Served, on a desk and in the light; or opened from a disk, on a phone and in the dark.

    The contrast of all words and curves is WCAG's; axe looks at the rest where the page is shown in full."""
    page, scheme = visit.open(name, idle=True), LOOKS[look]["color_scheme"]
    assert page.locator("h1").count() >= 1
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (max(ground) < 80) == (scheme == "dark"), ground
    if name in WITH_MATHS:
        mathematics_is_set(page)
    if name in PAGES:
        assert page.locator(".prev-next-title").count() >= 1
    if look == "phone":
        assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], culprits(page)
        assert page.evaluate(BROKEN) == []
    assert visit.errors == [], name
    page.emulate_media(reduced_motion="reduce")  # what is unfolded would fade in
    page.evaluate(ACCESS)
    assert page.evaluate("access.unfold(), { ...access.words(), ...access.curves() }") == {}, name
    if look == "desk":
        page.evaluate("access.fewer()")
        page.evaluate(AXE_SCRIPT)
        assert page.evaluate("access.serious()") == [], name


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", [*PAGES, "genindex", "search"])
def test_page_is_whole(browser, built_site, site_url, name, look):
    with look_at(built_site, site_url, browser, look) as visit:
        is_whole(visit, name, look)


@pytest.mark.parametrize("look", LOOKS)
def test_api_pages_are_whole(browser, built_site, site_url, look):
    with look_at(built_site, site_url, browser, look) as visit:
        for path in sorted((built_site / "book" / "api").glob("*.html")):
            is_whole(visit, f"book/api/{path.stem}", look)


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
