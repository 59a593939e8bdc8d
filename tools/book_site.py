"""The Sphinx extension of the book: pages that need no other host, and the scoreboard.

* sphinx-thebe's scripts go: `const THEBE_JS_URL` is written twice a page (a SyntaxError) and names a CDN.
* What a page does not use goes, and the theme's gaps are closed (`tools/lighter.py`).
* `{scoreboard}` sets the claims of all chapters, read from their committed outputs, as one table.
* What a chapter calls by its name leads to its API entry, and back (`tools/code_links.py`).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

import claims
import code_links
import lighter
import reader
import scoreboard

DEPARTURES = claims.ROOT / "book" / "departures.toml"
SPEED = claims.ROOT / "reports" / "bench.json"


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    def wanted(asset) -> bool:
        body = getattr(asset, "attributes", {}).get("body") or ""
        return "THEBE_JS_URL" not in body and "sphinx-thebe" not in str(getattr(asset, "filename", asset))

    for key in ("script_files", "css_files"):
        context[key][:] = [asset for asset in context.get(key, []) if wanted(asset)]


def lighten(app, exception) -> None:
    if not exception and app.builder.name == "html":
        lighter.lighten(Path(app.outdir))


class Scoreboard(Directive):
    """`{scoreboard} summary`: a sentence that counts all claims; `chapters`: a line a chapter; without an argument: all
    claims; `departures`: where papers and their public code differ; `speed`: hot loops beside their peers."""

    optional_arguments = 1

    def run(self):
        environment = self.state.document.settings.env
        for path in (*claims.notebooks(), scoreboard.SCRIPT):
            environment.note_dependency(str(path))
        rows = claims.collect()
        if self.arguments == ["summary"]:
            return [nodes.paragraph(text=scoreboard.summary(rows))]
        if self.arguments == ["departures"]:
            environment.note_dependency(str(DEPARTURES))
            listed = tomllib.loads(DEPARTURES.read_text(encoding="utf-8"))["departure"]
            return [nodes.raw("", scoreboard.departures(listed, in_order()), format="html")]
        if self.arguments == ["speed"]:
            environment.note_dependency(str(SPEED))
            report = json.loads(SPEED.read_text(encoding="utf-8"))
            return [nodes.raw("", scoreboard.speed(report, in_order()), format="html")]
        make = scoreboard.chapters if self.arguments == ["chapters"] else scoreboard.table
        return [nodes.raw("", make(rows, in_order()), format="html")]


def in_order() -> dict[str, str]:
    """The chapters with claims, as the book has them, and their titles."""
    listed = re.findall(r"file: book/(\w+)$", (claims.ROOT / "_toc.yml").read_text(encoding="utf-8"), re.M)
    made = {row["chapter"] for row in claims.collect()}
    return {name: reader.title(name) for name in listed if name in made}


def setup(app):
    app.add_directive("scoreboard", Scoreboard)
    code_links.setup(app)
    reader.setup(app)
    app.connect("html-page-context", drop_thebe, priority=990)
    app.connect("build-finished", lighten, priority=990)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
