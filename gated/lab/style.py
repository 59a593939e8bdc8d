"""One look for every figure and table: light and dark pages, colour-blind readers, phones, screen readers.

A figure is inline SVG without a background. Its axes and words are drawn in `currentColor`, so they follow
the page's text colour when the reader switches to dark mode. Curves use `PALETTE`: Okabe and Ito's blue and
vermillion, a violet, a grey and a brick red, each with a contrast of at least 3:1 on white and on near-black,
and any two far apart for colour-blind eyes too; two curves also differ in dash. Words stay words (not
outlines): smaller files, sharp at any zoom.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gated.lab.intervals import mean_interval

PALETTE = ("#0072b2", "#d55e00", "#9837ff", "#8a8d8c", "#a54d38")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v")
MAX_SVG_BYTES = 200_000
_RIM = "paint-order: stroke; stroke: #0008; stroke-width: 2px"
_INK = "#010203"  # stands for the page's text colour until the SVG is written


def rc() -> Any:
    """The matplotlib settings of the book (pass them to `matplotlib.rc_context`)."""
    inks = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {
        **dict.fromkeys(inks, _INK),
        **dict.fromkeys(clear, "none"),
        "patch.edgecolor": _INK,
        "grid.color": _INK,
        "grid.alpha": 0.15,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=PALETTE, linestyle=DASHES),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "figure.figsize": (6.4, 3.2),
        "figure.constrained_layout.use": True,
        "font.size": 10.0,
        "image.cmap": "cividis",
        "image.interpolation": "none",
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.dpi": 144,
        "svg.fonttype": "none",
        "svg.hashsalt": "gated",
    }


@contextmanager
def look() -> Iterator[None]:
    """Within it matplotlib draws as the book does: `with style.look(): fig, ax = plt.subplots()`."""
    with mpl.rc_context(rc()):
        yield


@dataclass(frozen=True)
class Picture:
    """A drawn figure: `svg` for the page, `alt` for who cannot see it (also its plain-text form)."""

    svg: str
    alt: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        label = html.escape(self.alt, quote=True)
        page = f'<figure role="img" aria-label="{label}" style="margin:0.5em 0">{self.svg}</figure>'
        return {"text/html": page, "text/plain": self.alt}


def show(fig: Figure, alt: str) -> Picture:
    """Turns a matplotlib figure (made within `look()`) into inline SVG with a text alternative, and closes
    it.

    `alt` says what the figure shows, not that it is a figure. The bytes are the same in every run. Raises
    `ValueError` for an `alt` below three words, for a sign that readers' fonts lack (\\mathcal), and for an SVG
    above `MAX_SVG_BYTES` (draw dense artists with `rasterized=True`).
    """
    import matplotlib.pyplot as plt

    if len(alt.split()) < 3:
        raise ValueError(f"alt must say in words what the figure shows, got {alt!r}")
    buffer = io.StringIO()
    with look():
        fig.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    plt.close(fig)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace(_INK, "currentColor")
    svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # the same names recur in every figure of a page
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    # matplotlib's one rule of style would hold for the whole page and its other figures: here the root says it
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>\*{[^}]*}</style>\s*</defs>", "", svg)
    width = 72 * fig.get_figwidth()
    look_ = f'style="width:100%;max-width:{width:.0f}pt;height:auto" aria-hidden="true"'
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg xmlns="http://www.w3.org/2000/svg" '
        rf'xmlns:xlink="http://www.w3.org/1999/xlink" \1 stroke-linejoin="round" stroke-linecap="butt" {look_}>',
        svg,
        count=1,
    )
    # a word in a curve's colour needs more contrast than the curve: nearer to the page's text, in either theme;
    # white ones stand on a mark, not every one of them dark enough
    nearer = r"\1color-mix(in srgb, \2 65%, currentColor)"
    svg = re.sub(r'(<text style="[^"]*fill: )(#(?!ffffff)[0-9a-f]{6})', nearer, svg)
    svg = re.sub(r'(<text style="[^"]*fill: #ffffff)', rf"\1; {_RIM}", svg)
    if private := re.search("[\ue000-\uf8ff]", svg):
        raise ValueError(f"fig has a sign ({private[0]!r}) that only matplotlib's own font draws, such as \\mathcal")
    if len(svg.encode()) > MAX_SVG_BYTES:
        raise ValueError(
            f"fig makes {len(svg.encode()):,} bytes of SVG, above {MAX_SVG_BYTES:,}: "
            "draw dense artists with rasterized=True"
        )
    return Picture(svg, alt)


def band(ax: Axes, x: Sequence[float | int] | Any, runs: Any, label: str, index: int = 0, level: float = 0.95) -> None:
    """Draws the mean of `runs` [seeds, points] over `x` [points], with its t-interval as a band.

    With one seed there is no band. `index` picks colour, dash and marker.
    """
    runs = np.atleast_2d(np.asarray(runs, dtype=float))
    if runs.shape[1] != len(x):
        raise ValueError(f"runs must be [seeds, points] with {len(x)} points as x has, got {runs.shape}")
    colour, dash = PALETTE[index % len(PALETTE)], DASHES[index % len(DASHES)]
    ax.plot(x, runs.mean(0), color=colour, linestyle=dash, label=label)
    if len(runs) > 1:
        low, high = zip(*(mean_interval(column, level) for column in runs.T), strict=True)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


_CSS = """<style>
table.gated-table{width:100%;border-collapse:collapse;font-size:.9em;background:none;color:inherit}
.gated-wide{container-type:inline-size;overflow-x:auto;background:no-repeat right/2em 100% local
linear-gradient(to left,var(--pst-color-background,var(--jp-layout-color0,Canvas)) 60%,transparent),
no-repeat right/1em 100% linear-gradient(to left,#80808059,transparent)}
@media print{.gated-wide{overflow:visible}}
.gated-table caption{caption-side:top;text-align:left;color:inherit;padding:.3em 0;
position:sticky;left:0;max-width:100cqi}
table.gated-table.gated-table :is(th,td){padding:.4em .6em;vertical-align:top;text-align:left;
white-space:normal;background:none;color:inherit;border:0;border-bottom:1px solid #80808059}
table.gated-table.gated-table:has(th:nth-child(8)) :is(th,td){padding:.4em .3em}
.gated-table small{display:block;opacity:.8}
@media (max-width:640px){.gated-table :is(tbody,tr,td){display:block;width:auto}
.gated-table thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.gated-table.gated-table td{border-bottom:0;padding:.15em 0}
.gated-table td::before{content:attr(data-label) ": ";opacity:.7}
.gated-table td:empty{display:none}
.gated-table tr{border-bottom:1px solid #80808059;padding:.5em 0}}
</style>"""


@dataclass(frozen=True)
class Table:
    """Rows under named columns, as HTML (dark mode, stacked on a phone) and as plain text.

    A cell is a string, or a pair (string, small print). `mime` adds machine-readable data to the output.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    caption: str = ""
    mime: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} cells each, got {len(row)}: {row}")

    def html(self) -> str:
        head = "".join(f'<th role="columnheader" scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(f'<tr role="row">{"".join(map(_cell, self.columns, row))}</tr>' for row in self.rows)
        title = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        # the roles keep it a table for a screen reader when CSS stacks it on a phone; where the second class is known
        # (the book's theme), keys scroll what is wide
        return (
            f'{_CSS}<div class="gated-wide pst-scrollable-table-container"><table class="gated-table" role="table">'
            f'{title}<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">{body}</tbody>'
            "</table></div>"
        )

    def __str__(self) -> str:
        lines = [list(self.columns), *([c if isinstance(c, str) else c[0] for c in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*([self.caption] if self.caption else []), *text])

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self.html(), "text/plain": str(self), **self.mime}


class Shown:
    """Shows itself as its `table()` in a notebook, and as text."""

    def table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return self.table()._repr_mimebundle_() | {"text/plain": str(self)}


def _cell(column: str, cell: str | tuple[str, str]) -> str:
    text, small = (cell, "") if isinstance(cell, str) else cell
    small = f"<small>{html.escape(small)}</small>" if small else ""
    return f'<td role="cell" data-label="{html.escape(column, quote=True)}">{html.escape(text)}{small}</td>'


def number_text(x: float | int, digits: int = 3) -> str:
    """x with `digits` significant digits and, if negative, a minus sign and not a hyphen."""
    return f"{x:.{digits}g}".replace("-", "−")


def interval_text(interval: Iterable[float | int] | None, digits: int = 3) -> str:
    """`[low, high]` with `digits` significant digits, or an empty string for `None`."""
    return "" if interval is None else "[" + ", ".join(number_text(x, digits) for x in interval) + "]"
