"""The scoreboard shows every claim of every notebook, and finds and sorts them as a list comprehension would."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEED = json.loads((ROOT / "reports" / "bench.json").read_text(encoding="utf-8"))
DEPARTURES = tomllib.loads((ROOT / "book" / "departures.toml").read_text(encoding="utf-8"))["departure"]

PROCESSES = 1.1  # a ratio of times that is nearer to 1 is open
# a row is searched, cut and sorted: what leans on the row above it is read alone there
LEANING = re.compile(r"^(And|There(?! (is|are)\b)|So|But|Also|Then)\b|\bthan that\b|\b[Tt]he same,? too\b|\bAs [A-Z]\d")
UNNAMED = re.compile(r"^(It|Its|They|Their|This|These|Here|The same)\b")
KINDS = {"holds here": "holds", "fails here": "fails", "not decidable at this scale": "open"}


@pytest.fixture(scope="module")
def rows(tool):
    return tool("claims").collect()


@pytest.fixture
def page(browser, site_url):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site_url}/book/claims.html")
    yield page
    context.close()


COUNTS = """rows => rows.map(row => [...row.cells].slice(0, 4)
    .map(cell => (cell.querySelector("small") ?? cell).textContent))"""


def names(page) -> list[str]:
    """The rows that are seen, from top to bottom."""
    return page.locator(".gated-claims tbody tr").evaluate_all(
        "rows => rows.filter(row => row.offsetHeight).map(row => row.cells[0].querySelector('small').textContent)"
    )


def name(row: dict) -> str:
    return f"{row['chapter']} {row['id']}"


def test_without_scripts_all_claims_and_reasons_are_there(browser, site_url, rows):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site_url}/book/claims.html")
    shown = page.locator(".gated-claims tbody tr")
    assert shown.count() == len(rows) and not page.locator(".gated-filter").is_visible()
    text = page.locator(".gated-claims").text_content()
    assert all(row[part] in text for row in rows for part in ("claim", "refuted_if", "why"))
    context.close()


def leaning(row: dict, rows: list[dict]) -> str:
    """The first part of a row that needs another row to be read, or nothing."""
    ids = {other["id"] for other in rows if other["chapter"] == row["chapter"]}
    if LEANING.search(row["claim"]) or UNNAMED.search(row["claim"]) or ids & set(re.findall(r"\w+", row["claim"])):
        return row["claim"]
    return row["why"] if LEANING.search(row["why"]) else ""


def test_a_row_can_be_read_alone(rows):
    assert not [(name(row), part) for row in rows if (part := leaning(row, rows))]


@pytest.mark.parametrize(
    "part",
    [
        {"claim": "And it is faster."},
        {"claim": "There it is no better than one expert for all."},
        {"claim": "With 4 experts and k = 2 it is faster than that, too."},
        {"claim": "It works on real robots."},
        {"claim": "C1d with one gate for each head."},
        {"why": "As A3."},
        {"why": "Then a gate stands between them."},
    ],
    ids=lambda part: next(iter(part.values()))[:12],
)
def test_a_row_that_leans_is_found(part):
    alone = {"chapter": "gla", "id": "C1d", "claim": "There is a gate, as in A3.", "why": "No robot here."}
    assert leaning(alone, [alone]) == "" and leaning(alone | part, [alone])


def test_each_chapter_marks_rows_of_its_own(rows):
    own = {row["chapter"] for row in rows if re.search(r"\([^)]*\bours?\b", row["claim"], re.IGNORECASE)}
    assert own == {row["chapter"] for row in rows}


def test_counts_by_chapter(page, rows):
    counts = Counter((row["chapter"], KINDS[row["verdict"]]) for row in rows)
    lines = page.locator(".gated-counts tbody tr")
    found = lines.evaluate_all(COUNTS)
    assert len(found) == len({row["chapter"] for row in rows})
    assert {
        (chapter, kind): int(n) for chapter, *numbers in found for kind, n in zip(KINDS.values(), numbers, strict=True)
    } == {(chapter, kind): counts[chapter, kind] for chapter, *_ in found for kind in KINDS.values()}


def test_filters_are_the_conjunction_of_what_is_asked(page, rows):
    assert sorted(names(page)) == sorted(map(name, rows))
    page.get_by_label("fails here").uncheck()
    page.get_by_label("Find").fill("SEED gate")
    kept = [r for r in rows if r["verdict"] != "fails here"]
    said = "{chapter} {id} {claim} {refuted_if} {why} {unit} {measured} {verdict}"
    low = {name(r): said.format(**r).lower() for r in kept}
    found = names(page)
    assert 0 < len(found) < len(rows)
    assert {n for n, text in low.items() if "seed" in text and "gate" in text} <= set(found) <= set(low)
    page.get_by_label("Find").fill("")
    page.get_by_label("Chapter").select_option("gla")
    assert sorted(names(page)) == sorted(name(r) for r in kept if r["chapter"] == "gla")
    assert page.locator(".gated-filter [role=status]").text_content() == f"{len(names(page))} of {len(rows)} claims"


def test_sorting_both_ways_and_back_from_the_address(page, rows):
    by_seeds = page.get_by_role("button", name="seeds")
    number = {name(row): row["seeds"] for row in rows}
    by_seeds.click()
    up = [number[n] for n in names(page)]
    by_seeds.click()
    down = [number[n] for n in names(page)]
    assert up == sorted(up) and down == up[::-1]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="measured").click()
    measured = {name(row): row["measured"] for row in rows}
    values = [measured[n] for n in names(page)]
    numbers = [x for x in values if not isinstance(x, str)]
    assert values[: len(numbers)] == sorted(numbers)
    page.get_by_label("Chapter").select_option("moe")
    before, address = names(page), page.url
    page.goto("about:blank")
    page.goto(address)
    assert names(page) == before and before


def test_a_claim_opens_by_keyboard_and_leads_to_its_chapter(page):
    first = page.locator(".gated-claims summary").first
    first.focus()
    page.keyboard.press("Enter")
    reason = page.locator(".gated-claims details[open]")
    assert reason.count() == 1 and "Refuted if" in reason.text_content()
    reason.get_by_role("link").click()
    page.wait_for_url("**#at-full-scale")
    assert page.locator("#at-full-scale").count() == 1


def test_a_chapter_has_its_title_wherever_it_is_named(page, tool):
    """In the counts, the rows, the filter, the departures and the races."""
    titles = tool("book_site").in_order()
    links = page.locator(".bd-article table a[href$='.html']").evaluate_all(
        "all => all.filter(a => a.nextElementSibling).map(a => [a.getAttribute('href'), a.textContent])"
    )
    assert len({href for href, _ in links}) == len(titles)
    assert all(titles[href.removesuffix(".html")] == text for href, text in links)
    options = page.locator(".gated-filter option").all_text_contents()
    assert options == ["all", *(f"{title} ({name})" for name, title in titles.items())]
    for head in page.locator(".gated-speed summary").all_text_contents():
        title, _, name = head.partition(":")[0].rpartition(" ")
        assert titles[name] == title


WIDTHS = """rows => [rows[0].closest("table").offsetWidth, rows[0].cells[1].offsetWidth,
    Math.max(...rows.map(row => row.offsetHeight))]"""


def test_the_claim_has_most_of_the_width(page):
    page.set_viewport_size({"width": 1200, "height": 900})
    whole, claim, tallest = page.locator(".gated-claims tbody tr").evaluate_all(WIDTHS)
    assert 0.4 < claim / whole < 0.5 and tallest < 360


def test_cards_on_a_phone_have_no_empty_lines(page):
    page.set_viewport_size({"width": 375, "height": 812})
    cells = ".bd-article table td[data-label]"
    page.locator(cells).first.evaluate("cell => cell.textContent = ''")
    shown = page.locator(cells).evaluate_all("all => all.filter(e => e.offsetHeight && !e.textContent.trim()).length")
    assert shown == 0


@pytest.mark.parametrize("row", DEPARTURES, ids=lambda row: f"{row['chapter']}-{row['test'].rpartition('::')[2]}")
def test_what_shows_a_departure_exists(row, rows):
    assert set(row) == {"chapter", "paper", "code", "here", "test"} and all(row.values())
    assert row["chapter"] in {claim["chapter"] for claim in rows}
    path, _, wanted = row["test"].partition("::")
    assert (ROOT / path).is_file()
    if wanted:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert wanted in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_departures_are_shown(page):
    assert page.locator(".gated-departures tbody tr").count() == len(DEPARTURES) > 0


def test_every_benchmark_is_stored_and_shown(page, tool):
    """The report has a chapter for each benchmark file, the page all its rows; ratios are as their times give them."""
    rows = tool("results").check("bench", {"rows": SPEED["rows"]})
    scripts = {
        "topk_theory" if path.stem == "gaussian_moe" else path.stem for path in (ROOT / "benchmarks").glob("*.py")
    }
    assert {row["chapter"] for row in rows} == set(SPEED["made"]) == scripts
    tool("bench").honest(rows)
    assert page.locator(".gated-speed tbody tr").count() == len(rows)
    races = [row for row in rows if "peer" in row]
    for row in races:
        (low, high), times = row["ratio_interval"], row["peer_ms"] / row["ours_ms"]
        assert low <= row["ratio"] <= high and low / 1.25 < times < 1.25 * high, row
    signs = {(low > PROCESSES) - (high < 1 / PROCESSES) for low, high in (row["ratio_interval"] for row in races)}
    assert signs == {-1, 0, 1}, "no race was lost?"
    heads = [
        re.search(r"(\w+: .*)", head)[1].replace(",", "").replace(":", "").split()
        for head in page.locator(".gated-speed summary").all_text_contents()
    ]
    for chapter, all_of_them, _, _, _, faster, _, _, slower, *_ in heads:
        own = [row["ratio_interval"] for row in races if row["chapter"] == chapter]
        assert len(own) == int(all_of_them)
        clear = sum(low > PROCESSES for low, _ in own), sum(high < 1 / PROCESSES for _, high in own)
        assert clear == (int(faster), int(slower))
    assert {head[0] for head in heads} == scripts


def race(peer: str, ratio: float, **more) -> dict:
    return {
        "chapter": "gla", "case": "forward", "sizes": {"T": 2048}, "threads": 1, "device": "cpu", "ours": "chunks",
        "ours_ms": 2.0, "peer": peer, "peer_ms": 2 * ratio, "ratio": ratio, "ratio_interval": [0.9 * ratio, ratio],
    } | more  # fmt: skip


def test_rows_say_what_was_compared_and_which_are_doubtful(tool):
    rows = [
        race("loop", 4, apart=3e-7),
        race("loop", 0.5, apart=0.0, unsteady=True),
        race("softmax", 1.05, uncompared="less"),
    ]
    rows += [race("products", ratio, apart=0.0) for ratio in (0.5, 0.6, 3)] + [
        race("softmax", 0.5, uncompared="less")
    ] * 3
    grown = {"chapter": "gla", "case": "longer", "sizes": {"T": [1, 2, 4]}, "threads": 1, "ours_ms": [1, 2, 4]}
    rows += [grown, grown | {"exponent": 1.0, "exponent_interval": [0.9, 1.1]}]
    made = {"gla": {"date": "today", "machine": "one", "versions": {}}}
    html = tool("scoreboard").speed({"made": made, "rows": rows}, {"moe": "Experts", "gla": "A memory"})
    assert "A memory <small>gla</small>: 9 races, faster in 2, slower in 6, open in 1;" in html
    assert "; 1 of them too unsteady to count on<" in html
    assert ">chunks, 2 ms<" in html and ">loop, 8 ms (same results, 3e−07 apart)<" in html
    assert ">softmax, 2.1 ms (less)<" in html and ">products, 1 ms (same results)<" in html
    assert html.count(", unsteady<") == 1 and ">0.5 times [0.45, 0.5], unsteady<" in html
    assert ">no one power of the size<" in html and ">as size to the 1 [0.9, 1.1]<" in html
    # a peer that does something else has not won, and half is not most
    assert "faster in most of their races: products beside chunks (2 of 3).</p>" in html
