"""The built pages in a real browser: nothing leaves this machine, nothing complains, and every figure
answers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = sorted({f"book/{path.stem}" for pattern in ("*.ipynb", "*.md") for path in BOOK.glob(pattern)})
NOTEBOOKS = [f"book/{path.stem}" for path in sorted(BOOK.glob("*.ipynb"))]
WITH_MATHS = [name for name in NOTEBOOKS if "$" in (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")]
WITH_FIGURES = [
    name for name in NOTEBOOKS if "data-explorable" in (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")
]
PHONE = {"width": 375, "height": 812}


class Visit:
    """A page and what went wrong on it: console messages, exceptions, failed requests, requests to
    other hosts."""

    def __init__(self, browser, base: str, **context) -> None:
        self.base = base
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
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


def bases(site: Path, url: str) -> dict[str, str]:
    return {"http": url, "file": site.as_uri()}


@pytest.mark.parametrize("how", ["http", "file"])
@pytest.mark.parametrize("name", [*PAGES, "book/api/index", "genindex", "search"])
def test_page_is_whole(browser, built_site, site_url, name, how):
    """Served, on a desk and in the light; opened from a disk, on a phone and in the dark."""
    phone, scheme = how == "file", "dark" if how == "file" else "light"
    look = {"viewport": PHONE, "is_mobile": True, "has_touch": True} if phone else {}
    with Visit(browser, bases(built_site, site_url)[how], color_scheme=scheme, **look) as visit:
        page = visit.open(name, idle=True)
        assert page.locator("h1").count() >= 1
        if name in WITH_MATHS:
            mathematics_is_set(page)
        if phone:
            assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], culprits(page)
            assert page.evaluate(BROKEN) == []
        if name in PAGES:
            text_is_readable(page, scheme)
            assert page.locator(".prev-next-title").count() >= 1
        assert visit.errors == []


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


def test_api_pages_are_quiet_and_fit_a_phone(browser, built_site, site_url):
    with Visit(browser, site_url, viewport=PHONE) as visit:
        for path in sorted((built_site / "book" / "api").glob("*.html")):
            page = visit.open(f"book/api/{path.stem}", idle=True)
            wide = page.evaluate("document.scrollingElement.scrollWidth")
            assert wide <= PHONE["width"], (path.stem, culprits(page))
            assert visit.errors == [], path.stem


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


CONTRAST = """selector => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = c => c.slice(0, 3).map(x => linear(x / 255))
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length == 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll(selector)].filter(e => e.offsetParent && e.textContent.trim());
  return shown.map(e => {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); });
}"""


def text_is_readable(page, scheme: str) -> None:
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (max(ground) < 80) == (scheme == "dark"), ground
    ratios = page.evaluate(CONTRAST, "article p, article td, article label, article h1, article h2")
    assert ratios and min(ratios) >= 4.5, min(ratios)


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


# Explorables ------------------------------------------------------------------------------------------------


SET = """async ([input, value]) => {
  const frame = () => new Promise(requestAnimationFrame);
  input.value = value;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  await frame();
  await frame();
}"""
TIMING = """async input => {
  const ms = [], frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  const [low, high] = [+input.min, +input.max], before = input.value;
  for (let i = 0; i < 40; i++) {
    await frame();
    input.value = low + (high - low) * ((i * 7) % 11) / 10;
    const start = performance.now();
    input.dispatchEvent(new Event('input', {bubbles: true}));
    document.body.offsetHeight;               // style and layout belong to the answer
    ms.push(performance.now() - start);
  }
  input.value = before; input.dispatchEvent(new Event('input', {bubbles: true}));
  return ms;
}"""


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_every_slider_moves_the_picture(browser, built_site, name):
    with Visit(browser, built_site.as_uri()) as visit:
        page = visit.open(name)
        for figure in page.locator("[data-explorable]").all():
            sliders = figure.locator("input[type=range][data-key]").all()
            assert any(slider.is_enabled() for slider in sliders), figure.get_attribute("data-explorable")
            for slider in sliders:
                if slider.is_disabled():  # the figure says that it has no effect on what is shown now
                    continue
                key = slider.get_attribute("data-key")
                low, high, first = (slider.evaluate(f"e => e.{what}") for what in ("min", "max", "value"))
                pictures, values = set(), set()
                for value in (low, high, first):
                    page.evaluate(SET, [slider.element_handle(), value])
                    pictures.add(
                        "".join(
                            figure.locator("svg, canvas").evaluate_all(
                                "all => all.map(e => e.tagName == 'CANVAS' ? e.toDataURL() : e.innerHTML)"
                            )
                        )
                    )
                    values.add(figure.get_attribute("data-values"))
                assert len(pictures) > 1, f"{key} does not move the picture"
                assert len(values) > 1, f"{key} does not move data-values"
                json.loads(figure.get_attribute("data-values"))
        assert visit.errors == []


@pytest.mark.clock
@pytest.mark.parametrize("name", WITH_FIGURES)
def test_a_slider_answers_within_25_ms(browser, site_url, name):
    with Visit(browser, site_url) as visit:
        page = visit.open(name)
        for slider in page.locator("[data-explorable] input[type=range][data-key]").all():
            ms = statistics.median(slider.evaluate(TIMING))
            assert ms <= 25, f"{slider.get_attribute('data-key')}: {ms:.1f} ms"


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_keyboard_and_labels(browser, site_url, name):
    with Visit(browser, site_url) as visit:
        page = visit.open(name)
        for figure in page.locator("[data-explorable]").all():
            for control in figure.locator("input, button, select, [role=slider]").all():
                label = control.evaluate("""e => (e.getAttribute('aria-label')
                    || e.getAttribute('aria-labelledby')
                    || [...(e.labels || [])].map(l => l.textContent).join('') || e.textContent).trim()""")
                assert label, control.evaluate("e => e.outerHTML.slice(0, 200)")
            for picture in figure.locator("svg").all():
                named = picture.evaluate("""e => e.closest('[aria-hidden=true]') || e.closest('[aria-label]')
                    || e.getAttribute('aria-labelledby') || e.querySelector('title')""")
                assert named, "an svg has neither a name nor aria-hidden"
            slider = figure.locator("input[type=range][data-key]").first
            before = figure.get_attribute("data-values")
            slider.focus()
            for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
                page.keyboard.press(key)
                page.wait_for_timeout(40)
                if figure.get_attribute("data-values") != before:
                    break
            else:
                pytest.fail("the arrow keys change nothing")
