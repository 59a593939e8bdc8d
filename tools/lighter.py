"""Make the built pages light and sound: what `book_site` does to them once Sphinx has written them all.

* A page keeps the scripts that it uses, and at its end, so that words and figures come first. The search index is for
  the search page, MathJax for pages with mathematics.
* One style sheet, without the rules that no page can use, takes the place of the theme's eight.
* Icons come from fonts of the few that are drawn, loaded after the first paint; the theme's fonts of thousands go.
* Pictures load when they come near, and have their size, so that nothing jumps. Plots lose digits that nobody sees, and
  words of code the marks that colour them as all others.
* Names and roles that the theme's markup lacks are added, and what scrolls sideways answers to the keys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import imagesize
import tinycss2
from fontTools import subset
from fontTools.ttLib import TTFont

SCRIPT = re.compile(r"[ \t]*<script\b(?P<tag>[^>]*)>(?P<body>.*?)</script>\n?", re.S)
FONT_AWESOME = re.compile(r'\s*<script defer src="[^"]*fontawesome\.js[^"]*"></script>')
PRELOAD = re.compile(r'[ \t]*<link rel="preload" as="script"[^>]*>\n?')
SHEET = re.compile(r"[ \t]*<link\b(?=[^>]*\brel=.stylesheet)[^>]*\bhref=\"(?P<href>[^\"?]+)[^>]*>\n?")
VIEWPORT = re.compile(r'\s*<meta name="viewport"[^>]*>')
PARAMETERS = re.compile(r'<dl>\n((?:<dd><em class="sig-param.*?</dd>\n)+)</dl>', re.S)
IMAGE = re.compile(r'<img\b[^>]*\bsrc="(?P<source>[^"?#]+)[^>]*>')
ICON = re.compile("[\ue000-\uf8ff]")
PLAIN = re.compile(r'<span class="(?:n|nn|p|w)">([^<]*)</span>')  # names, signs, blanks: gated.css colours code as them
PLOT = re.compile(r'<svg xmlns="[^>]* aria-hidden="true">.*?</svg>', re.S)
PLACES = re.compile(r' d="[^"]*"| [xy]="[^"]*"|translate\([^)]*\)')
VARIABLE = re.compile(r"(?<=[{;\s])(--[\w-]+)\s*:[^;{}\"']*(?:;|(?=\}))")
LONG = re.compile(r"-?\d+\.\d{2,}")

# From a file a page may not read the others, to quote them below their titles.
NO_SUMMARIES = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'

# Where a result is quoted no formula is set: a letter or a number stands for itself, all else is left out.
NO_TEX = r"""const quoted = Search.htmlToText, letters = (_, tex = "") => (/^[A-Za-z0-9]+$/.test(tex) ? tex : "…");
Search.htmlToText = (html, anchor) => quoted(html.replace(/\\\(([^<]*?)\\\)|\\\[[^<]*?\\\]/g, letters), anchor);"""

# The theme's script gives a tab stop to code that scrolls, but not to what is folded then.
UNFOLDED = """<script>
  document.addEventListener("toggle", ({ target }) => {
    for (const code of target.querySelectorAll("pre")) code.tabIndex = code.scrollWidth > code.clientWidth ? 0 : -1;
  }, true);
</script>
"""

# Scripts that only some pages need, and what such a page holds.
USED_BY = {
    "searchtools.js": 'id="search-results"',
    "language_data.js": 'id="search-results"',
    "searchindex.js": 'id="search-results"',
    "clipboard.min.js": 'class="highlight',
    "copybutton.js": 'class="highlight',
    "design-tabs.js": "sd-tab-set",
    "togglebutton.js": "dropdown admonition",
    "tex-chtml.js": 'class="math',
}


def lighten(out: Path) -> None:
    static = out / "_static"
    pages = {
        page: named(page.read_text(encoding="utf-8")) for page in out.rglob("*.html") if static not in page.parents
    }
    scripts = [path.read_text(encoding="utf-8") for path in static.rglob("*.js") if "mathjax" not in path.parts]
    sheets = list(
        dict.fromkeys((page.parent / s["href"]).resolve() for page in pages for s in SHEET.finditer(pages[page]))
    )
    bundle = sheet(sheets, words([*pages.values(), *scripts]), static)
    name = f"book-{hashlib.sha256(bundle.encode()).hexdigest()[:10]}.css"
    for old in static.glob("book-*.css"):
        old.unlink()
    (static / name).write_text(bundle, encoding="utf-8")
    for page, text in pages.items():
        up = "../" * (len(page.relative_to(out).parts) - 1)
        link = f'<link rel="stylesheet" href="{up}_static/{name}" />\n'
        text = SHEET.sub(link, text, count=1)
        first, link, rest = text.partition(link)
        text = last_scripts(pictures(page, first + link + SHEET.sub("", rest)))
        page.write_text(PLOT.sub(short, PLAIN.sub(r"\1", text)), encoding="utf-8")
    for unused in {*sheets, *static.rglob("fontawesome.js*"), *static.rglob("fa-*.*"), *static.rglob("*.map")}:
        unused.unlink()


def named(text: str) -> str:
    """What the theme leaves without a name gets one; a list of parameters is none of terms and definitions; of three
    equal viewports one stays."""
    bare = '<summary><span class="toctree-toggle"'
    text = text.replace(bare, bare.replace("<summary", '<summary aria-label="Its pages"'))
    text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')  # of no list's items
    text = text.replace('<div class="math ', '<div class="pst-scrollable-table-container math ')  # scrolls by keys
    text = PARAMETERS.sub(
        lambda found: re.sub("(</?)dd>", r"\1span>", f'<span class="gated-parameters">{found[1]}</span>'), text
    )
    first, *rest = VIEWPORT.split(text)
    return f'{first}\n    <meta name="viewport" content="width=device-width, initial-scale=1" />{"".join(rest)}'


def last_scripts(text: str) -> str:
    """The scripts that this page needs, at its end; what sets the colours before the first paint stays."""
    head, close, body = FONT_AWESOME.sub("", text).partition("</head>")
    moved: list[str] = []

    def move(script: re.Match[str]) -> str:
        source = re.search(r'src="(?:[^"?]*/)?([^"/?]+)', script["tag"])
        name = source[1] if source else "tex-chtml.js" if "window.MathJax" in script["body"] else ""
        if "data-cfasync" in script["tag"]:
            return script[0]
        if USED_BY.get(name, "") in body:
            moved.append(script[0].strip())
        if name == "searchtools.js" and moved and name in moved[-1]:
            moved.append(f"<script>{NO_SUMMARIES}\n{NO_TEX}</script>")
        return ""

    head = PRELOAD.sub("", SCRIPT.sub(move, head))
    at = body.find("<script", body.find("<!-- Scripts loaded after <body>"))
    last = "".join(f"{script}\n" for script in moved) + (UNFOLDED if "<details" in body else "")
    return head + close + body[:at] + last + body[at:]


def short(plot: re.Match[str]) -> str:
    """A plot with its places to a hundredth of a pixel, and to a tenth from 20 on."""

    def number(found: re.Match[str]) -> str:
        value = float(found[0])
        return f"{round(value, 1 if abs(value) >= 20 else 2):g}"

    text = PLACES.sub(lambda places: LONG.sub(number, places[0]), plot[0])
    return re.sub(r"\s*\n\s*", "\n", text)


def pictures(page: Path, text: str) -> str:
    """Images load when they come near, and say their size."""

    def sized(image: re.Match[str]) -> str:
        tag, file = image[0], page.parent / image["source"]
        more = "" if "loading=" in tag else ' loading="lazy" decoding="async"'
        if not re.search(r"\b(width|height|style)=", tag) and file.is_file():
            width, height = imagesize.get(file)
            more += f' width="{width}" height="{height}"' if width > 0 else ""
        return tag.replace("<img", "<img" + more, 1)

    return IMAGE.sub(sized, text)


def words(texts: Iterable[str]) -> set[str]:
    """Whatever may be the name of a class or an element."""
    return {word for text in texts for word in re.findall(r"[A-Za-z_][\w-]*", text)}


def sheet(paths: list[Path], known: set[str], static: Path) -> str:
    """The style sheets as one, without rules and variables that nobody uses, and with the icons' fonts."""
    faces, css = [], []
    for path in paths:
        for rule in tinycss2.parse_stylesheet(_read(path), skip_comments=True, skip_whitespace=True):
            if rule.type == "at-rule" and rule.lower_at_keyword == "font-face":
                faces.append((path, rule.serialize()))
            elif text := _used(rule, known):
                css.append(text)
    drawn = {ord(sign) for text in css for sign in ICON.findall(text)}
    text = "\n".join(['@charset "utf-8";', *(_small(path, face, drawn, static) for path, face in faces), *css])
    read = {*re.findall(r"var\(\s*(--[\w-]+)", text), *known}
    return VARIABLE.sub(lambda found: found[0] if {found[1], found[1][2:]} & read else "", text)


def _read(path: Path) -> str:
    """A sheet with what it imports."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r'@import "([^"]+)";?', lambda found: _read((path.parent / found[1]).resolve()), text)


def _used(rule: tinycss2.ast.Node, known: set[str]) -> str:
    if rule.type == "at-rule" and rule.content and rule.lower_at_keyword in ("media", "supports", "container"):
        inside = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
        kept = "".join(filter(None, (_used(one, known) for one in inside)))
        return f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{kept}}}" if kept else ""
    if rule.type != "qualified-rule":
        return str(rule.serialize())
    selectors: list[list[tinycss2.ast.Node]] = [[]]
    for token in rule.prelude:
        selectors.append([]) if token == "," else selectors[-1].append(token)
    kept = ",".join(tinycss2.serialize(one).strip() for one in selectors if _names(one) <= known)
    return f"{kept}{{{tinycss2.serialize(rule.content).strip()}}}" if kept else ""


def _names(selector: list[tinycss2.ast.Node]) -> set[str]:
    """The classes and ids that an element must have; what stands inside `:not(...)` and the like does not count."""
    classes = {b.value for a, b in pairwise(selector) if a == "." and b.type == "ident"}
    return classes | {token.value for token in selector if token.type == "hash"}


def _small(path: Path, face: str, drawn: set[int], static: Path) -> str:
    """An icon font with only the icons drawn, and its rule; nothing where it draws none of them."""
    source = re.search(r"url\(([^)]+\.ttf)\)", face)
    if not source:
        return face
    font = TTFont((path.parent / source[1]).resolve())
    if not drawn & set(font.getBestCmap()):
        return ""
    options = subset.Options(layout_features=[], name_IDs=[], notdef_outline=False, glyph_names=False)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=drawn)
    cutter.subset(font)
    font.flavor = "woff"
    name = f"icons-{Path(source[1]).stem}.woff"
    font.save(static / name)
    return re.sub(r"src:[^;}]*", f'src:url({name}) format("woff")', face)
