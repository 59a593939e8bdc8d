"""The book to take along: `python tools/offline.py` writes `dist/gated-book-<version>.zip` and `.pdf`.

The archive holds the built site, which asks no server for anything: unpack it and open `index.html`. The PDF is what
Chromium prints of every page, in the book's order, with the headings as bookmarks; links between pages lead within it.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import book
import chromium

DIST = book.ROOT / "dist"
SITE = book.INDEX.parent
LONG_AGO = (2026, 1, 1, 0, 0, 0)  # the same files make the same archive
FOOT = '<div style="width:100%;text-align:center;font:8pt sans-serif"><span class="pageNumber"></span></div>'


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
    """The pages printed one after the other, with bookmarks."""
    from pypdf import PdfReader, PdfWriter

    whole = PdfWriter()
    first: dict[str, int] = {}
    context = browser.new_context(color_scheme="light", viewport={"width": 794, "height": 1123})
    page = context.new_page()
    page.set_default_timeout(120_000)
    for name in names:
        page.goto((site / f"{name}.html").as_uri())
        if page.locator(".math").count():
            page.wait_for_function("window.MathJax?.startup?.promise?.then(() => document.fonts.ready)")
        page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
        sheet = page.pdf(format="A4", outline=True, tagged=True, display_header_footer=True, header_template="<i></i>",
                         footer_template=FOOT, print_background=True, prefer_css_page_size=False)  # fmt: skip
        first[(site / f"{name}.html").as_uri()] = len(whole.pages)
        title = page.locator("h1").first.evaluate("one => one.firstChild.textContent.trim()")
        whole.append(PdfReader(io.BytesIO(sheet)), outline_item=title)
    context.close()
    inward(whole, site.as_uri(), first)
    whole.add_metadata({"/Title": f"gated {version()}", "/Author": "The gated authors"})
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.write(target)
    return target


def inward(whole, base: str, first: dict[str, int]) -> None:
    """Links to a page of the book lead to where it begins; those to a file beside it lead nowhere on paper and go."""
    from pypdf.generic import ArrayObject, NameObject, NumberObject

    for sheet in whole.pages:
        kept = ArrayObject()
        for reference in sheet.get("/Annots") or ():
            note = reference.get_object()
            address = str(note["/A"].get_object().get("/URI", "")) if "/A" in note else ""
            if not address.startswith(base):
                kept.append(reference)
            elif (number := first.get(address.partition("#")[0])) is not None:
                del note["/A"]
                page = whole.pages[number].indirect_reference
                note[NameObject("/Dest")] = ArrayObject(
                    [page, NameObject("/XYZ"), NumberObject(0), NumberObject(842), NumberObject(0)]
                )
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
