"""The Sphinx extension of the book: pages that need no other host, and the scoreboard.

* sphinx-thebe's scripts go: `const THEBE_JS_URL` is written twice a page (a SyntaxError) and names a CDN.
* Font Awesome's script goes (1.45 MB): the theme's style sheet draws the same icons from a local font.
* `{scoreboard}` sets the claims of all chapters, read from their committed outputs, as one table.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

import claims

FONT_AWESOME = re.compile(r'\s*<script defer src="[^"]*_static/scripts/fontawesome\.js[^"]*"></script>')
VERDICTS = {"holds here": "holds", "fails here": "fails"}


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    def wanted(asset) -> bool:
        body = getattr(asset, "attributes", {}).get("body") or ""
        return "THEBE_JS_URL" not in body and "sphinx-thebe" not in str(getattr(asset, "filename", asset))

    for key in ("script_files", "css_files"):
        context[key][:] = [asset for asset in context.get(key, []) if wanted(asset)]


def lighten(app, exception) -> None:
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        text = page.read_text()
        lighter = FONT_AWESOME.sub("", text)
        if lighter != text:
            page.write_text(lighter)
    static = out / "_static"
    for unused in {*static.rglob("fontawesome.js*"), *static.rglob("*.map"), *static.rglob("fa-*.ttf")}:
        unused.unlink()


def scoreboard(rows: list[dict]) -> str:
    """The rows as HTML: one body a chapter, verdicts as words (colour only repeats them)."""

    def cell(label: str, text: str, css: str = "") -> str:
        return f'<td data-label="{label}"{css and f" class={css!r}"}>{escape(text)}</td>'

    body = []
    for chapter in dict.fromkeys(row["chapter"] for row in rows):
        body.append(
            f'<tr class="chapter"><th colspan="5" scope="rowgroup">'
            f'<a href="{chapter}.html">{escape(chapter)}</a></th></tr>'
        )
        for row in (row for row in rows if row["chapter"] == chapter):
            low_high = "" if row["interval"] is None else " [{:.3g}, {:.3g}]".format(*row["interval"])
            measured = row["measured"] if isinstance(row["measured"], str) else f"{row['measured']:.4g}"
            verdict = row["verdict"]
            body.append(
                "<tr>"
                + cell("claim", row["claim"])
                + cell("measured", measured + low_high)
                + cell("seeds", str(row["seeds"]))
                + cell("source", row["source"])
                + cell("verdict", verdict, f"verdict-{VERDICTS.get(verdict, 'open')}")
                + "</tr>"
            )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("claim", "measured [interval]", "seeds", "source", "verdict")
    )
    return (
        f'<div class="gated-cards"><table class="gated-scoreboard"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


class Scoreboard(Directive):
    """`{scoreboard}`: all claims; `{scoreboard}` with `summary` as its argument: one sentence that
    counts them."""

    optional_arguments = 1

    def run(self):
        environment = self.state.document.settings.env
        for notebook in claims.notebooks():
            environment.note_dependency(str(notebook))
        rows = claims.collect()
        if not self.arguments:
            return [nodes.raw("", scoreboard(rows), format="html")]
        counts = {
            verdict: sum(row["verdict"] == verdict for row in rows)
            for verdict in ("holds here", "fails here", "not decidable at this scale")
        }
        said = ", ".join(
            f"{count} {verdict.replace('holds', 'hold').replace('fails', 'fail').replace('not', 'are not')}"
            for verdict, count in counts.items()
            if count
        )
        return [nodes.paragraph(text=f"So far {len(rows)} claims were put to the test: {said}.")]


def setup(app):
    app.add_directive("scoreboard", Scoreboard)
    app.connect("html-page-context", drop_thebe, priority=990)
    app.connect("build-finished", lighten, priority=990)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
