"""The book to take along: `python tools/offline.py` writes `dist/gated-book-<version>.zip` and `.pdf`.

The archive holds the built site, which asks no server for anything: unpack it and open `index.html`. The PDF is what
Chromium prints of every page, in the book's order, with its contents, page numbers that run through and the headings as
bookmarks; links between pages lead within it. Code that a page folds beside what it draws is left to the pages.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path

import book
import chromium

DIST = book.ROOT / "dist"
SITE = book.INDEX.parent
LONG_AGO = (2026, 1, 1, 0, 0, 0)  # the same files make the same archive
CONTENTS = """
@page { margin: 18mm 16mm; @bottom-center { content: counter(page); font: 8pt sans-serif; } }
body { font: 10pt/1.4 sans-serif; margin: 0; }
ol { list-style: none; padding: 0; }
li { display: flex; justify-content: space-between; border-bottom: 1px dotted #999; break-inside: avoid; }
.inner { padding-left: 2em; }
a { color: inherit; text-decoration: none; }
b { font-weight: 400; font-variant-numeric: tabular-nums; }
"""


def version() -> str:
    text = (book.ROOT / "gated" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.M)
    assert found, "gated/__init__.py says no version"
    return found[1]


def archive(site: Path, target: Path) -> Path:
    """The site as one file, below a folder of the archive's name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as whole:
        for path in sorted(site.rglob("*")):
            if path.is_file() and path.name not in (".buildinfo", "objects.inv"):
                entry = zipfile.ZipInfo(f"{target.stem}/{path.relative_to(site).as_posix()}", LONG_AGO)
                entry.external_attr = 0o644 << 16
                whole.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def in_order(site: Path) -> list[str]:
    """The pages as the table of contents of the front page has them."""
    front = (site / "book" / "index.html").read_text(encoding="utf-8")
    sidebar = front.partition('<nav class="bd-links')[2].partition("</nav>")[0]
    listed = (name for name in re.findall(r'href="([\w./-]+)\.html"', sidebar))
    return list(dict.fromkeys(["book/index", *(f"book/{name}" for name in listed if not name.startswith(".."))]))


def paper(browser, site: Path, names: Sequence[str], target: Path) -> Path:
    """The pages one after the other: contents behind the first, numbers that run through, bookmarks and links."""
    from pypdf import PdfReader, PdfWriter

    titles = {name: title(site / f"{name}.html") for name in names}
    context = browser.new_context(color_scheme="light", viewport={"width": 794, "height": 1123})
    page = context.new_page()
    page.set_default_timeout(120_000)

    def printed(before: int) -> PdfReader:
        page.add_style_tag(content=f"@media print {{ html {{ counter-reset: page {before}; }} }}")
        return PdfReader(io.BytesIO(page.pdf(format="A4", outline=True, tagged=True, print_background=True)))

    def chapter(name: str, before: int) -> PdfReader:
        page.goto((site / f"{name}.html").as_uri())
        if page.locator(".math").count():
            page.wait_for_function("window.MathJax?.startup?.promise?.then(() => document.fonts.ready)")
        page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
        return printed(before)

    def contents(first: dict[str, int], before: int) -> PdfReader:
        page.goto((site / f"{names[0]}.html").as_uri())
        rows = [
            f"<li{' class=inner' if '/gated' in name else ''}><a href='{(site / name).as_uri()}.html'>"
            f"{escape(titles[name])}</a><b>{first.get(name, 0) + 1}</b></li>"
            for name in names
        ]
        page.set_content(f"<html lang=en><style>{CONTENTS}</style><h1>Contents</h1><ol>{''.join(rows)}</ol></html>")
        return printed(before)

    front = chapter(names[0], 0)
    sheets, first, before = [(names[0], front)], {names[0]: 0}, len(front.pages)
    after = before + len(contents({}, before).pages)
    for name in names[1:]:
        first[name] = after
        sheets.append((name, chapter(name, after)))
        after += len(sheets[-1][1].pages)
    sheets.insert(1, ("", contents(first, before)))
    context.close()

    whole = PdfWriter()
    places: dict[str, tuple[int, float]] = {}
    for name, sheet in sheets:
        address = (site / f"{name}.html").as_uri()
        places |= spots(sheet, address, len(whole.pages))
        whole.append(sheet, outline_item=titles.get(name, "Contents"))
    inward(whole, site.as_uri(), places)
    whole.add_metadata({"/Title": f"gated {version()}", "/Author": "The gated authors"})
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.write(target)
    return target


def title(page: Path) -> str:
    found = re.search(r"<h1>((?:(?!<h1>).)*?)<a class=.headerlink", page.read_text(encoding="utf-8"), re.S)
    assert found, f"{page} has no title"
    return unescape(re.sub(r"<[^>]+>", "", found[1])).strip()


def spots(sheet, address: str, before: int) -> dict[str, tuple[int, float]]:
    """The page and the height of an address and of its sections. Links between sections, which Chromium names for each
    printed page anew, get the whole address."""
    from pypdf.generic import DictionaryObject, NameObject, TextStringObject

    for page in sheet.pages:
        for reference in page.get("/Annots") or ():
            note = reference.get_object()
            if isinstance(name := note.get("/Dest"), str):
                del note["/Dest"]
                to = TextStringObject(f"{address}#{name.lstrip('/')}")
                note[NameObject("/A")] = DictionaryObject(
                    {NameObject("/S"): NameObject("/URI"), NameObject("/URI"): to}
                )
    found = {address: (before, 842.0)}
    for name, to in sheet.named_destinations.items():
        if (number := sheet.get_destination_page_number(to)) is not None:
            found[f"{address}#{name.lstrip('/')}"] = (before + number, float(to.top or 842))
    return found


def inward(whole, base: str, places: dict[str, tuple[int, float]]) -> None:
    """Links to a place in the book lead there, or to where its page begins; those to a file beside it lead nowhere on
    paper and go."""
    from pypdf.generic import ArrayObject, FloatObject, NameObject

    for sheet in whole.pages:
        kept = ArrayObject()
        for reference in sheet.get("/Annots") or ():
            note = reference.get_object()
            address = str(note["/A"].get_object().get("/URI", "")) if "/A" in note else ""
            if not address.startswith(base):
                kept.append(reference)
            elif spot := places.get(address) or places.get(address.partition("#")[0]):
                del note["/A"]
                page, top = whole.pages[spot[0]].indirect_reference, FloatObject(spot[1])
                note[NameObject("/Dest")] = ArrayObject([page, NameObject("/XYZ"), FloatObject(0), top, FloatObject(0)])
                kept.append(reference)
        if kept:
            sheet[NameObject("/Annots")] = kept
        elif "/Annots" in sheet:
            del sheet["/Annots"]


def main() -> None:
    from playwright.sync_api import sync_playwright

    book.build()
    name = f"gated-book-{version()}"
    print(archive(SITE, DIST / f"{name}.zip"), flush=True)
    flags = ["--disable-gpu", *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.ensure(), args=flags)
        print(paper(browser, SITE, in_order(SITE), DIST / f"{name}.pdf"))
        browser.close()


if __name__ == "__main__":
    main()
