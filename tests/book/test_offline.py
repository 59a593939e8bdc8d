"""The book to take along opens from a disk, with no server and no network, and prints."""

from __future__ import annotations

import zipfile

import pytest


@pytest.fixture(scope="module")
def unpacked(built_site, tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    made = tool("offline").archive(built_site, folder / "gated-book-1.zip")
    with zipfile.ZipFile(made) as whole:
        whole.extractall(folder)
    return folder / "gated-book-1"


@pytest.fixture
def page(browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or page.faults.append(asked.url))
    yield page
    context.close()
    assert page.faults == []


def test_a_chapter_has_its_formulas_and_a_figure_that_answers(unpacked, page):
    page.goto((unpacked / "book" / "gates.html").as_uri())
    page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
    assert page.locator("mjx-container").count() > 10
    figure = page.locator("[data-explorable]").first
    before = figure.get_attribute("data-values")
    figure.locator("input[type=range]:enabled").first.focus()
    page.keyboard.press("End")
    assert figure.get_attribute("data-values") != before


def test_search_finds_a_word(unpacked, page):
    page.goto((unpacked / "search.html").as_uri() + "?q=temperature")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a[href*='temperature_theory']").count() > 0


def test_the_order_is_the_books(built_site, tool):
    names = tool("offline").in_order(built_site)
    assert names[0] == "book/index" and names.index("book/gates") < names.index("book/moe") < names.index("book/claims")
    assert all((built_site / f"{name}.html").is_file() for name in names)


PAGE = """<html lang="en"><style>@page {{ margin: 2cm; @bottom-center {{ content: counter(page); }} }}
h2 {{ break-before: page; }}</style>
<h1>The {name}<a class="headerlink" href="#top">#</a></h1>
<a href="#same">below</a> <a href="{other}.html#same">there</a> <a href="{other}.html">its head</a>
<a href="beside.csv">data</a><h2 id="same">Same</h2>Of {name}.</html>"""


def test_paper_has_contents_and_numbers_and_leads_within_itself(browser, tool, tmp_path):
    """Three pages of two sheets each, with a section of the same name in each: contents stand behind the first."""
    from pypdf import PdfReader

    for name, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (tmp_path / f"{name}.html").write_text(PAGE.format(name=name, other=other), encoding="utf-8")
    whole = PdfReader(tool("offline").paper(browser, tmp_path, ["one", "two", "three"], tmp_path / "whole.pdf"))
    said = [sheet.extract_text().split() for sheet in whole.pages]
    assert said[2] == ["3", "Contents", "The", "one", "1", "The", "two", "4", "The", "three", "6"]
    assert [words[0] for words in said] == list("1234567")
    tops = [one for one in whole.outline if not isinstance(one, list)]
    numbers = [(one.title, whole.get_destination_page_number(one) + 1) for one in tops]
    assert numbers == [("The one", 1), ("Contents", 3), ("The two", 4), ("The three", 6)]

    number = {sheet.indirect_reference.idnum: i for i, sheet in enumerate(whole.pages, start=1)}
    leads = [
        [number[note.get_object()["/Dest"][0].idnum] for note in sheet.get("/Annots") or ()] for sheet in whole.pages
    ]
    own = {1: 2, 4: 5, 6: 7}
    assert leads[2] == [1, 4, 6]
    for page, other in ((1, 4), (4, 6), (6, 1)):
        assert leads[page - 1][-3:] == [own[page], own[other], other]  # the link to data is gone


def test_a_page_of_the_book_on_paper(browser, built_site, tool, tmp_path):
    from pypdf import PdfReader

    made = tool("offline").paper(browser, built_site, ["book/index", "book/claims"], tmp_path / "two.pdf")
    whole = PdfReader(made)
    assert [one.title for one in whole.outline if not isinstance(one, list)] == ["gated", "Contents", "The scoreboard"]
    said = [sheet.extract_text() for sheet in whole.pages]
    assert all(said) and any("Refuted if" in text for text in said)  # reasons are unfolded, tables of times are not
    assert not any("Show code" in text for text in said) and len(said) < 100
    notes = [note.get_object() for sheet in whole.pages for note in sheet.get("/Annots") or ()]
    assert notes and not any("/A" in note for note in notes)  # neither page leads out of the book
