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


def test_paper_has_bookmarks_and_leads_within_itself(browser, built_site, tool, tmp_path):
    from pypdf import PdfReader

    made = tool("offline").paper(browser, built_site, ["book/index", "book/claims"], tmp_path / "two.pdf")
    whole = PdfReader(made)
    tops = [one.title for one in whole.outline if not isinstance(one, list)]
    assert len(tops) == 2 and len(whole.pages) > 4
    notes = [note.get_object() for sheet in whole.pages for note in sheet.get("/Annots") or ()]
    assert any("/Dest" in note for note in notes)
    addresses = [str(note["/A"].get_object().get("/URI", "")) for note in notes if "/A" in note]
    assert not any(address.startswith("file:") for address in addresses)
