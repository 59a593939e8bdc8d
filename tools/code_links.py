"""On the built pages, what the book calls by its name leads to its API entry, and the entry leads back.

A name is linked in a code cell where the cell uses it (its tree is read, so that a keyword or a string is left alone),
and in prose where it stands in backticks. Which symbol a name is, the notebook's own imports say; names that the cell
binds itself are its own. Like `tools/api.py` this reads the source text and imports nothing: the pages are built
without torch, which is why sphinx-codeautolink (it imports what it links) is not used.
"""

from __future__ import annotations

import ast
import html
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import nbformat
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import api
import reader

BOOK = api.ROOT / "book"
BLOCK = re.compile(r'(<div class="highlight-i?python\d? notranslate"><div class="highlight"><pre>)(.*?)(</pre>)', re.S)
LITERAL = re.compile(r'<code class="docutils literal notranslate">(.*?)</code>', re.S)
PIECE = re.compile(r"<span[^>]*>([^<]*)</span>|([^<]+)")
MARKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
CALL = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?", re.S)
ENTRY = re.compile(r'(<dt class="sig sig-object py" id="([\w.]+)">.*?</dt>\s*<dd>)', re.S)


def own(page: str) -> str:
    return f"gated.{reader.module(page)}"


@cache
def definition(module: str, name: str) -> tuple[str, str] | None:
    """Where the thing that `module` calls `name` is defined, and its name there."""
    found = api.find(module, name)
    return (found[0], found[1].name) if found else None


class Symbols:
    """All entries of the API pages by where they are defined; `objects`: their full names, Sphinx's own."""

    def __init__(self, objects: set[str]) -> None:
        self.objects = objects
        self.modules = {name.rpartition(".")[0] for name in objects}
        self.entry: dict[tuple[str, str], str] = {}
        self.public: dict[str, str | None] = {}  # a name to its entry, None where two share it
        for full in sorted(objects, key=lambda full: (full.count("."), full)):
            module, _, name = full.rpartition(".")
            place = definition(module, name)
            if place and full == self.entry.setdefault(place, full):
                self.public[name] = None if name in self.public else full

    def resolve(self, full: str) -> str | None:
        """The entry of `gated.a.b.name[.member]`, however many floors down it is imported from."""
        parts = full.split(".")
        for cut in range(len(parts) - 1, 1, -1):
            module, name, rest = ".".join(parts[:cut]), parts[cut], parts[cut + 1 :]
            place = definition(module, name)
            if place and place in self.entry:
                member = ".".join([self.entry[place], *rest])
                return member if member in self.objects else self.entry[place]
        return None


def sources(page: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each cell of a notebook whose input is on the page; nothing for a page that is none."""
    path = BOOK / f"{page}.ipynb"
    for cell in nbformat.read(path, 4).cells if path.exists() else []:
        if "bootstrap" not in cell.metadata.get("tags", []):
            yield cell.cell_type, cell.source


def parse(source: str) -> ast.Module:
    with suppress(SyntaxError):  # a block of shell or of output
        return ast.parse(source)
    return ast.Module([], [])


def bound(nodes: list[ast.AST]) -> set[str]:
    """The names that these nodes bind other than by an import."""
    out = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    out |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return out | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


class Names:
    """What a page's names mean: its imports, and its own module's names where it binds none such itself."""

    def __init__(self, page: str, symbols: Symbols) -> None:
        self.symbols, self.imports = symbols, dict[str, str]()
        taken: set[str] = set()
        for kind, source in sources(page):
            tree = parse(source) if kind == "code" else ast.Module([], [])
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gated":
                    self.imports |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
            for node in tree.body:
                taken |= bound([node] if isinstance(node, ast.FunctionDef | ast.ClassDef) else list(ast.walk(node)))
        self.prose = {name: full for name, full in symbols.public.items() if full and re.search("_|.[A-Z]", name)}
        self.prose |= {name: f"{own(page)}.{name}" for name in api.exported(own(page))}
        self.prose = {name: full for name, full in self.prose.items() if name not in taken} | self.imports

    def literal(self, text: str) -> str | None:
        """The entry of `name`, `module.name`, `name(...)` or `Class.member` in backticks."""
        if not (match := CALL.fullmatch(text.strip())):
            return None
        head, _, rest = match[1].partition(".")
        return self.symbols.resolve(match[1] if head == "gated" else f"{self.prose.get(head, head)}.{rest}".rstrip("."))

    def code(self, source: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, entry) of each use in a cell, in order."""
        tree = parse(source)
        lines = source.splitlines(keepends=True)
        begins = list(itertools.accumulate(map(len, lines), initial=0))
        skip = bound(list(ast.walk(tree)))
        # Python 3.11 does not know where in an f-string an expression stands: there it is looked for by its text.
        inside = {node: text for text in ast.walk(tree) if isinstance(text, ast.JoinedStr) for node in ast.walk(text)}
        out = []

        def offset(line: int, column: int) -> int:
            return begins[line - 1] + len(lines[line - 1].encode()[:column].decode())

        def span(node: ast.alias | ast.expr) -> tuple[int, int]:
            return offset(node.lineno, node.col_offset), offset(node.end_lineno or 0, node.end_col_offset or 0)

        for node in ast.walk(tree):
            if not isinstance(node, ast.alias | ast.Name | ast.Attribute):
                continue
            text = node.name if isinstance(node, ast.alias) else ast.unparse(node)
            head, *rest = (node.asname or node.name).split(".") if isinstance(node, ast.alias) else text.split(".")
            if head not in self.imports or (head in skip and not isinstance(node, ast.alias)):
                continue
            plain = all(map(str.isidentifier, rest))  # and not `f(x).y`
            target = self.symbols.resolve(".".join([self.imports[head], *rest])) if plain else None
            if target and node in inside:
                begin, end = span(inside[node])
                word = re.compile(rf"(?<![\w.]){re.escape(text)}(?!\w)")
                out += [(found.start(), found.end(), target) for found in word.finditer(source, begin, end)]
            elif target:
                begin, end = span(node)
                out.append((begin, begin + len(text) if isinstance(node, ast.alias) else end, target))
        end = -1
        for item in sorted(out, key=lambda item: (item[0], -item[1])):  # the longest of `a.b.c`, `a.b`, `a`
            if item[0] > end:
                end = item[1]
                yield item


def mentions(page: str, symbols: Symbols) -> set[str]:
    """The entries that a notebook uses or speaks of."""
    names = Names(page, symbols)
    out: set[str | None] = set()
    for kind, source in sources(page):
        if kind == "code":
            out |= {target for _, _, target in names.code(source)}
        elif kind == "markdown":
            prose = re.sub(r"```.*?```|~~~.*?~~~", "", source, flags=re.S)
            out |= {names.literal(text) for text in MARKED.findall(prose)}
    return {target for target in out if target}


def link(body: str, names: Names, address) -> str:
    """The page's HTML with its links; the first one of each entry carries the id that the entry leads back to."""
    seen: set[str] = set()

    def tag(target: str) -> str:
        place = "" if target in seen else f' id="use-{target}"'
        seen.add(target)
        return f'<a class="code-link"{place} href="{address(target)}">'

    def block(match: re.Match[str]) -> str:
        pieces, position = [], 0
        uses = names.code(html.unescape(re.sub("<[^>]+>", "", match[2])))
        starts = {start: (end, target) for start, end, target in uses}
        closing = -1
        for piece in PIECE.finditer(match[2]):
            text = html.unescape(piece[1] if piece[1] is not None else piece[2])
            opened = ""
            if position in starts and text:
                closing, target = starts[position]
                opened = tag(target)
            position += len(text)
            pieces.append(opened + piece[0] + "</a>" * (position == closing and bool(text)))
        whole = "".join(pieces)
        return match[1] + (whole if whole.count("<a ") == whole.count("</a>") else match[2]) + match[3]

    def literal(match: re.Match[str]) -> str:
        target = names.literal(html.unescape(re.sub("<[^>]+>", "", match[1])))
        return f"{tag(target)}{match[0]}</a>" if target else match[0]

    out = []
    for i, part in enumerate(re.split(r"(<a\b.*?</a>|<h1>.*?</h1>)", body, flags=re.S)):
        out.append(part if i % 2 else LITERAL.sub(literal, BLOCK.sub(block, part)))
    return "".join(out)


def back(body: str, chapters: dict[str, list[str]]) -> str:
    """An API page with, below each entry, the chapters that use it."""

    def insert(match: re.Match[str]) -> str:
        places = (f'<a href="../{page}.html#use-{match[2]}">{page}</a>' for page in chapters.get(match[2], []))
        text = ", ".join(places)
        return match[1] + (f'<p class="in-the-book">In the book: {text}</p>' if text else "")

    return ENTRY.sub(insert, body)


def prepare(app, env) -> None:
    """Once all pages are read: which entries there are, and which chapters use them."""
    objects = {name: (entry.docname, entry.node_id) for name, entry in env.get_domain("py").objects.items()}
    app.gated_entries, app.gated_symbols = objects, Symbols(set(objects))
    app.gated_chapters = {}
    for page in sorted(path.stem for path in BOOK.glob("*.ipynb")):
        for target in mentions(page, app.gated_symbols):
            app.gated_chapters.setdefault(target, []).append(page)


def apply(app, pagename, templatename, context, doctree) -> None:
    folder, _, page = pagename.rpartition("/")
    if "body" not in context or app.builder.name != "html":
        return
    if folder == "book/api":
        context["body"] = back(context["body"], app.gated_chapters)
    elif folder == "book":

        def address(target: str) -> str:
            docname, anchor = app.gated_entries[target]
            return f"{app.builder.get_relative_uri(pagename, docname)}#{anchor}"

        context["body"] = link(context["body"], Names(page, app.gated_symbols), address)


class Settle(SphinxPostTransform):
    """A name in a signature is what its module means by it, where several modules have one of that name."""

    default_priority = 5  # before Sphinx resolves references

    def run(self, **kwargs: object) -> None:
        app: Any = self.app
        for node in self.document.findall(addnodes.pending_xref):
            module = node.get("py:module") if node.get("refdomain") == "py" else None
            place = definition(module, node["reftarget"]) if module else None
            if place and place in app.gated_symbols.entry:
                node["reftarget"], node["refspecific"] = app.gated_symbols.entry[place], False


def setup(app) -> None:
    app.add_post_transform(Settle)
    app.connect("env-updated", lambda app, env: prepare(app, env))
    app.connect("html-page-context", apply, priority=980)
