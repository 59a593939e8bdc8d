"""What leads a reader through the book, set on the pages while they are built; no notebook is edited for it.

* At a chapter's head: what to know and read before. At its end: where it comes from and where it goes on, both from
  `book/chapters.toml`, so that a thread between two chapters shows on both.
* In each section: the words that lead to it in the search and the index.
* `{chapter-map}`: the chapters by what flows and who decides. `{chapter-table}`: the same in words, from their cards.
* In the primer's table of cards, which names chapters as their notebooks: their titles, which lead there.
* `{notation} Gates`: the symbols of that group in `book/notation.toml`.
"""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

BOOK = Path(__file__).resolve().parent.parent / "book"
CARDS = BOOK.parent / "gated" / "lab" / "_data" / "cards.toml"
COLUMNS = ["| symbol | meaning | in the code | chapter |", "|---|---|---|---|"]
OUTLINES = {"soft": "soft", "hard": "hard", "both": "soft and hard"}
NAMED = re.compile(r'(?<=data-label="Chapter">)\w+(?=<small>)')
HEADS = {"flows": "what flows", "decides": "who decides", "hardness": "how hard", "learned": "how it is learned"}


@cache
def read(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def pages() -> dict[str, dict]:
    facts = read(BOOK / "chapters.toml")
    return {page["name"]: page for page in facts["chapter"] + facts["page"]}


def module(page: str) -> str:
    """What the page explains: `gated.<module>`."""
    return pages().get(page, {}).get("module", page)


def links() -> list[dict]:
    return read(BOOK / "chapters.toml")["link"]


def cards() -> list[dict]:
    return read(CARDS)["card"]


@cache
def title(name: str) -> str:
    """The heading of a chapter's notebook."""
    cell = json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"][0]
    return "".join(cell["source"]).splitlines()[0].removeprefix("# ")


class Threads(SphinxTransform):
    """Before the domains look at the document, so that the index words count."""

    default_priority = 600

    def apply(self) -> None:
        name = self.env.docname.rpartition("/")[2]
        if self.env.docname != f"book/{name}" or name not in pages():
            return
        self.env.note_dependency(str(BOOK / "chapters.toml"))
        facts, page = pages()[name], next(iter(self.document.findall(nodes.section)))
        before = [link["from"] for link in links() if link["to"] == name and link.get("first")]
        comes = [(link["from"], link["back"]) for link in links() if link["to"] == name]
        goes = [(link["to"], link["forward"]) for link in links() if link["from"] == name]
        if "knows" in facts:
            page.insert(1, self.head(facts["knows"], before))
        if comes or goes:
            page += self.foot(comes, goes)
        sections = {key: section for section in page.findall(nodes.section) for key in section["ids"]}
        for word, place in facts["words"].items():
            if place not in sections:
                text = "book/chapters.toml: %s has no section %s"
                logging.getLogger(__name__).warning(text, name, place)
                continue
            entry = ("single", word, place, "main", None)
            sections[place].insert(1, addnodes.index(entries=[entry]))

    def head(self, knows: str, before: list[str]) -> nodes.Node:
        line = nodes.paragraph("", "", nodes.strong(text="Before this chapter."), nodes.Text(f" {knows}"))
        if before:
            line += nodes.Text(" Read first: ")
            for i, name in enumerate(before):
                line += [nodes.Text(", " if i else ""), self.to(name)]
            line += nodes.Text(".")
        return nodes.container("", line, classes=["gated-before"])

    def foot(self, comes: list[tuple[str, str]], goes: list[tuple[str, str]]) -> nodes.Node:
        block = nodes.container(classes=["gated-threads"])
        for head, threads in (("Comes from", comes), ("Goes on in", goes)):
            if threads:
                block += [nodes.rubric(text=head), nodes.bullet_list("", *(self.line(*thread) for thread in threads))]
        return block

    def line(self, name: str, why: str) -> nodes.Node:
        return nodes.list_item("", nodes.paragraph("", "", self.to(name), nodes.Text(f": {why}")))

    def to(self, name: str) -> nodes.Node:
        place = {"refdomain": "std", "reftype": "doc", "reftarget": f"/book/{name}", "refdoc": self.env.docname}
        return addnodes.pending_xref("", nodes.inline(text=title(name)), refexplicit=True, refwarn=True, **place)


class CardTitles(SphinxTransform):
    """In an executed table of cards a chapter has its title, which leads to it."""

    default_priority = 600

    def apply(self) -> None:
        if self.env.docname != "book/gates":
            return
        for raw in self.document.findall(nodes.raw):
            text = NAMED.sub(lambda found: f'<a href="{found[0]}.html">{escape(title(found[0]))}</a>', raw.astext())
            raw[:] = [nodes.Text(text)]


class ChapterMap(Directive):
    """The chapters as a table with a row for each kind of thing that flows and a column for each kind of decider."""

    def run(self) -> list[nodes.Node]:
        facts, hardness = read(BOOK / "chapters.toml"), {card["chapter"]: card["hardness"] for card in cards()}
        self.state.document.settings.env.note_dependency(str(BOOK / "chapters.toml"))
        heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in facts["decides"].values())
        rows = ""
        for flow, text in facts["flows"].items():
            cells = ""
            for decides, who in facts["decides"].items():
                here = [c["name"] for c in facts["chapter"] if c.get("flows") == flow and decides in c["decides"]]
                chips = "".join(chip(name, hardness[name]) for name in here)
                cells += f'<td data-label="{escape(who)}">{f"<ul>{chips}</ul>" if chips else ""}</td>'
            rows += f'<tr><th scope="row">{escape(text)}</th>{cells}</tr>'
        outlines = " ".join(f'<span class="gated-{kind}">{word}</span>' for kind, word in OUTLINES.items())
        caption = f"<caption>What flows (rows), and who decides (columns). Outlines: {outlines}</caption>"
        head = f'<thead><tr><td aria-hidden="true"></td>{heads}</tr></thead>'
        return [nodes.raw("", f'<table class="gated-map">{caption}{head}<tbody>{rows}</tbody></table>', format="html")]


def chip(name: str, hardness: str) -> str:
    kind = hardness.partition(" ")[0].rstrip(",:;")
    mark = f'<a href="{name}.html">{escape(title(name))}</a> <small>{OUTLINES[kind]}</small>'
    return f'<li class="gated-{kind}">{mark}</li>'


class ChapterTable(Directive):
    """The four questions and each chapter's answers, as its card has them."""

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.env.note_dependency(str(CARDS))
        rows = "".join(
            f'<tr><td data-label="chapter"><a href="{card["chapter"]}.html">{escape(title(card["chapter"]))}</a></td>'
            + "".join(f'<td data-label="{text}">{escape(card[key])}</td>' for key, text in HEADS.items())
            + "</tr>"
            for card in cards()
            if card["status"] == "written"
        )
        heads = "".join(f'<th scope="col">{text}</th>' for text in ("chapter", *HEADS.values()))
        table = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
        return [nodes.raw("", f'<table class="gated-scoreboard gated-answers">{table}</table>', format="html")]


class Notation(Directive):
    """The symbols of a group: what each means, its name and shape in the code, and who writes it so."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.env.note_dependency(str(BOOK / "notation.toml"))
        symbols = read(BOOK / "notation.toml")["symbol"]
        lines = COLUMNS + [row(symbol) for symbol in symbols if symbol["group"] == self.arguments[0]]
        block = nodes.container(classes=["gated-notation"])
        self.state.nested_parse(StringList(lines, source="book/notation.toml"), self.content_offset, block)
        return [block]


def row(symbol: dict) -> str:
    path, _, member = symbol["code"].partition(" ")
    name = f"{{py:obj}}`~{path.removesuffix('.forward')}`"
    code = f"`{member}` of {name}" if member else name
    kind = f"shape `{symbol['shape'].strip()}`" if "shape" in symbol else symbol.get("kind", "a number")
    where = ", ".join(f"[{title(page)}]({page}.ipynb)" for page in symbol["pages"])
    return f"| ${symbol['tex']}$ | {symbol['meaning']} | {code}, {kind} | {where} |"


def setup(app) -> None:
    app.add_transform(Threads)
    app.add_transform(CardTitles)
    for name, directive in (("chapter-map", ChapterMap), ("chapter-table", ChapterTable), ("notation", Notation)):
        app.add_directive(name, directive)
