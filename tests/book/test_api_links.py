"""Every public symbol that a chapter uses leads from the page to its API entry, and the entry leads back.

What a chapter uses is found out here by importing what its cells import, and what an entry is by importing it: the
links are made from the source text alone.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))
LINK = re.compile(r'<a class="code-link"[^>]* href="api/([\w.]+\.html)#([\w.]+)">')


@cache
def thing(full: str) -> object:
    """What a dotted name leads to through modules and classes, or None: what an object is, its name does not say."""
    parts = full.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None) if isinstance(found, ModuleType | type) else None
        return found
    return None


def ours(found: object) -> bool:
    return (
        not isinstance(found, ModuleType)
        and callable(found)
        and str(getattr(found, "__module__", "")).startswith("gated")
    )


def key(found: object) -> tuple[str, str]:
    """What makes two things the same: a method is made anew each time it is asked for."""
    return str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", ""))


def used(page: str) -> dict[tuple[str, str], str]:
    """The functions and classes of `gated` that a notebook's cells name."""
    trees = []
    for cell in nbformat.read(ROOT / "book" / f"{page}.ipynb", 4).cells:
        if cell.cell_type == "code" and "bootstrap" not in cell.metadata.get("tags", []):
            trees.append(ast.parse(cell.source))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {
        item.asname or item.name: f"{node.module}.{item.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gated")
        for item in node.names
    }
    own = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    out = {}
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute):
            head, *rest = ast.unparse(node).split(".")
            if head in names and head not in own:
                found = thing(".".join([names[head], *rest]))
                if ours(found):
                    out[key(found)] = ast.unparse(node)
    return out


@pytest.fixture(scope="module")
def entries(built_site) -> dict[str, str]:
    """All ids of the API pages, and the page of each."""
    pages = (built_site / "book" / "api").glob("*.html")
    return {name: path.name for path in pages for name in re.findall(r'id="(gated[\w.]+)"', path.read_text())}


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_symbol_of_a_chapter_leads_to_its_entry(page, built_site, entries):
    text = (built_site / "book" / f"{page}.html").read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert links and all(entries[anchor] == file for file, anchor in links)
    linked = {key(thing(anchor)) for _, anchor in links}
    public = {key(thing(name)) for name in entries}
    missing = {name for what, name in used(page).items() if what in public and what not in linked}
    assert missing == set()


def test_an_entry_leads_back_to_where_it_is_used(built_site, entries):
    back = re.compile(r'href="\.\./(\w+)\.html#(use-[\w.]+)"')
    found = {page: set(re.findall(r'id="(use-[\w.]+)"', (built_site / "book" / f"{page}.html").read_text()))
             for page in CHAPTERS}  # fmt: skip
    led = dict.fromkeys(CHAPTERS, 0)
    for path in sorted((built_site / "book" / "api").glob("gated*.html")):
        for page, place in back.findall(path.read_text(encoding="utf-8")):
            assert place in found[page], (path.name, page, place)
            led[page] += 1
    assert min(led.values()) > 10, led
    gla = (built_site / "book" / "api" / "gated.kernels.gla.html").read_text(encoding="utf-8")
    assert '"../gla.html#use-gated.kernels.gla.chunk_gla"' in gla
