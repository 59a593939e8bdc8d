"""The reader's path on the built pages: routes that lead somewhere, threads that show on both ends, a map that agrees
with its data, a picture that is legible, and a search that finds the obvious words."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
FACTS = tomllib.loads((ROOT / "book" / "chapters.toml").read_text(encoding="utf-8"))
CARDS = tomllib.loads((ROOT / "gated" / "lab" / "_data" / "cards.toml").read_text(encoding="utf-8"))["card"]
# What somebody would type, and the page that should be among the first five results.
OBVIOUS = {
    "router": "moe", "early exit": "jeidnn", "forget gate": "gla", "temperature": "temperature_theory",
    "load balancing": "moe", "control barrier": "online_cbf", "straight-through": "gates", "gumbel": "gates",
    "top-k": "gates", "softmax": "gates", "mixture of experts": "moe", "linear attention": "gla",
    "pruning": "polarization", "calibration": "jeidnn", "adversarial": "advmoe", "hyperparameter": "stn",
    "langevin": "langevinflow", "multi-agent": "commformer", "offloading": "pregated", "dropout": "stn",
    "identifiability": "temperature_theory", "EM algorithm": "moe", "MLP-Mixer": "ninformer",
    "safety filter": "online_cbf", "capacity": "moe", "expert choice": "moe", "policy gradient": "commformer",
    "voronoi": "topk_theory",
    "notation": "notation", "glossary": "glossary", "claims": "claims", "references": "references",
}  # fmt: skip


@pytest.fixture(scope="module")
def soup(built_site):
    @functools.cache
    def read(name: str) -> BeautifulSoup:
        text = (built_site / "book" / f"{name}.html").read_text(encoding="utf-8")
        # most of a page is what no test here looks at; quotation marks are set by the builder
        text = re.sub(r"<(svg|script|style|pre)\b.*?</\1>", "", text, flags=re.S).replace("’", "'")
        return BeautifulSoup(text, "html.parser")

    return read


def leads(item) -> tuple[str, str]:
    """The page that an item of a list leads to, and what it says of it."""
    return item.a["href"].removesuffix(".html"), item.get_text().partition(": ")[2].strip()


def test_three_short_ways_in(soup):
    front = soup("index")
    ways = front.select("#three-ways-in > section")
    assert [way["id"] for way in ways] == ["you-are-curious", "you-are-a-student", "you-are-an-engineer"]
    for way in ways:
        stops = [item.a["href"] for item in way.select("ol > li")]
        assert 4 <= len(stops) == len(set(stops)) <= 6
        for stop in stops:
            path, _, place = stop.partition("#")
            assert not place or soup(path.removesuffix(".html")).find(id=place) is not None, stop


def test_threads_show_on_both_pages(soup):
    shown: dict[str, set[tuple[str, str, str]]] = {"Comes from": set(), "Goes on in": set()}
    for chapter in FACTS["chapter"]:
        page = soup(chapter["name"])
        assert chapter["knows"] in page.select_one(".gated-before").get_text()
        first = {link["from"] for link in FACTS["link"] if link["to"] == chapter["name"] and link.get("first")}
        assert {a["href"].removesuffix(".html") for a in page.select(".gated-before a")} == first
        for rubric in page.select(".gated-threads > .rubric"):
            for item in rubric.find_next_sibling("ul").find_all("li"):
                other, why = leads(item)
                here, title = chapter["name"], soup(other).h1.get_text().rstrip("#")
                pair = (here, other) if rubric.get_text() == "Goes on in" else (other, here)
                shown[rubric.get_text()].add((*pair, why))
                assert item.a.get_text() == title
    assert {row[:2] for row in shown["Comes from"]} == {row[:2] for row in shown["Goes on in"]}
    assert shown["Goes on in"] == {(link["from"], link["to"], link["forward"]) for link in FACTS["link"]}
    assert shown["Comes from"] == {(link["from"], link["to"], link["back"]) for link in FACTS["link"]}


def test_the_map_is_a_table_that_agrees_with_the_chapters(soup):
    page = soup("map")
    table = page.select_one(".gated-map")
    columns = [th.get_text() for th in table.select("thead th[scope=col]")]
    assert columns == list(FACTS["decides"].values()) and table.caption
    legend = {span["class"][0]: span.get_text() for span in table.caption.select("span")}
    shown = {(item["class"][0], item.small.get_text()) for item in table.select("li")}
    assert shown == set(legend.items()) and len(shown) == 3
    found = set()
    for row in table.select("tbody tr"):
        flow = row.select_one("th[scope=row]").get_text()
        for who, cell in zip(columns, row.select("td"), strict=True):
            assert cell["data-label"] == who
            found |= {(a["href"].removesuffix(".html"), flow, who) for a in cell.select("a")}
    expected = {
        (c["name"], FACTS["flows"][c["flows"]], FACTS["decides"][who])
        for c in FACTS["chapter"]
        if "flows" in c
        for who in c["decides"]
    }
    assert found == expected and {name for name, *_ in found} == {card["chapter"] for card in CARDS}
    answers = page.select(".gated-answers tbody tr")
    assert [row.a["href"].removesuffix(".html") for row in answers] == [card["chapter"] for card in CARDS]
    for row, card in zip(answers, CARDS, strict=True):
        assert [td.get_text() for td in row.select("td")][1:] == [
            card[k] for k in ("flows", "decides", "hardness", "learned")
        ]


def test_the_answers_of_the_primer_lead_to_the_chapters(soup):
    cells = soup("gates").select("td[data-label=Chapter]")
    assert [cell.a["href"].removesuffix(".html") for cell in cells] == [card["chapter"] for card in CARDS]
    for cell, card in zip(cells, CARDS, strict=True):
        assert cell.a.get_text() == soup(card["chapter"]).h1.get_text().rstrip("#")
        assert card["title"] in cell.small.get_text()


def test_the_notation_page_shows_all_symbols(soup):
    symbols = tomllib.loads((ROOT / "book" / "notation.toml").read_text(encoding="utf-8"))["symbol"]
    rows = soup("notation").select(".gated-notation tbody tr")
    assert len(rows) == len(symbols)
    for row, symbol in zip(rows, symbols, strict=True):
        path, _, member = symbol["code"].partition(" ")
        cells = row.select("td")
        assert symbol["tex"] in cells[0].get_text()
        shown = {code.get_text() for code in cells[2].select("code")}
        assert {member, symbol.get("shape", "").strip()} - {""} <= shown
        assert path.removesuffix(".forward").rpartition(".")[2] in cells[2].get_text()
        assert [a["href"] for a in cells[3].select("a")] == [f"{page}.html" for page in symbol["pages"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_legible_on_a_phone(browser, site_url, scheme):
    context = browser.new_context(viewport={"width": 375, "height": 812}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{site_url}/book/index.html")
    picture = page.locator("svg.gated-picture")
    assert picture.get_attribute("role") == "img"
    for part in picture.get_attribute("aria-labelledby").split():
        assert page.locator(f"#{part}").text_content().strip()
    sizes = picture.evaluate("""e => [...e.querySelectorAll('text')].map(t =>
        parseFloat(getComputedStyle(t).fontSize) * e.getBoundingClientRect().width / e.viewBox.baseVal.width)""")
    colours = picture.evaluate("""e => [...e.querySelectorAll('text')].map(t => getComputedStyle(t).fill)""")
    assert len(sizes) >= 6 and min(sizes) >= 11
    assert set(colours) == {page.evaluate("getComputedStyle(document.querySelector('.bd-article p')).color")}
    boxes = picture.evaluate("""e => [...e.querySelectorAll('text')].map(t => t.getBoundingClientRect())
        .map(b => [b.left, b.top, b.right, b.bottom])""")
    for i, (l1, t1, r1, b1) in enumerate(boxes):
        assert l1 >= 0 and r1 <= 375
        for l2, t2, r2, b2 in boxes[:i]:
            assert r1 <= l2 or r2 <= l1 or b1 <= t2 + 3 or b2 <= t1 + 3, "two words overlap"
    context.close()


SHOWN = """first => document.querySelectorAll('#search-results li a').length >= first
    || /finished|did not match/.test(document.querySelector('#search-results .search-summary')?.textContent)"""


@pytest.fixture(scope="module")
def results(browser, site_url):
    """The pages of the first results that the site's own search shows for some words."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("window.fetch = () => new Promise(() => {})")  # for the excerpts below each result: not needed

    def ask(words: str, first: int) -> list[str]:
        page.goto(f"{site_url}/search.html?q={words.replace(' ', '+')}")
        page.wait_for_function(SHOWN, arg=first)
        links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        return [re.sub(r"^book/|\.html.*$", "", link) for link in links[:first]]

    yield ask
    context.close()


@pytest.mark.parametrize("words", OBVIOUS)
def test_the_search_finds_the_obvious(results, words):
    found = results(words, 3)
    assert OBVIOUS[words] in found, found


def test_a_title_leads_to_its_page_first(results, soup):
    for page in FACTS["chapter"] + FACTS["page"]:
        title = soup(page["name"]).select_one("article h1").contents[0].get_text()
        assert results(title, 1) == [page["name"]], title


def test_a_method_of_two_chapters_leads_to_both(results):
    assert set(results("EM", 3)) == {"topk_theory", "temperature_theory", "glossary"}


def test_every_word_that_should_lead_to_a_page_does(built_site):
    index = (built_site / "searchindex.js").read_text(encoding="utf-8").lower()
    entries = BeautifulSoup((built_site / "genindex.html").read_text(encoding="utf-8"), "html.parser")
    targets = {a["href"] for a in entries.select(".indextable a[href]")}
    for chapter in FACTS["chapter"] + FACTS["page"]:
        for word, place in chapter["words"].items():
            assert f'"{word.lower()}":' in index
            assert f"book/{chapter['name']}.html#{place}" in targets
