"""Every link, image, script and style of the built site leads to something that is there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.ids.add(value)
            elif value and name == "href" and tag == "a":
                self.links.append(value)
            elif value and (name == "src" or (name == "href" and tag == "link")):
                self.loads.append(value)


def test_internal_links_lead_somewhere(built_site):
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in built_site.rglob("*.html")
        if "_static" not in path.parts
    }
    broken, checked = [], 0
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{path.relative_to(built_site)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids | {"top"}:
                broken.append(f"{path.relative_to(built_site)}: {link} (no such place on that page)")
    assert checked > 100 and broken == []


def test_no_page_loads_from_another_host(built_site):
    for path in built_site.rglob("*.html"):
        outside = [
            link
            for link in Page(path.read_text(encoding="utf-8")).loads
            if urlsplit(link).netloc and "canonical" not in link
        ]
        assert outside == [], path.name
