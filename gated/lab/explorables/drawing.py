"""The few marks that the figures are drawn with: SVG and MathML as strings of the same bytes each time."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from html import escape

Number = int | float
_MUTED = {"fill_opacity": "0.72"}


@dataclass(frozen=True)
class Axis:
    """A number-to-pixel map: ``low`` and ``high`` lie at ``start`` and ``stop``; values outside are clipped."""

    low: Number
    high: Number
    start: Number
    stop: Number

    def __call__(self, value: Number) -> float:
        share = (float(min(self.high, max(self.low, value))) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def data(self) -> dict[str, object]:
        """The map as attributes, for the JavaScript that moves what was drawn with it."""
        return {
            "data_low": f"{self.low:g}",
            "data_high": f"{self.high:g}",
            "data_from": self.start,
            "data_to": self.stop,
        }

    def bar(self, value: Number, base: Number = 0) -> dict[str, object]:
        """Position and height of a bar from the base to the value."""
        a, b = self(value), self(base)
        return {"y": min(a, b), "height": abs(a - b)}


def fixed(value: Number, digits: int) -> str:
    """The number with so many decimals as JavaScript's ``toFixed`` writes it: a tie goes away from zero, 12.5 to 13."""
    return f"{Decimal(value + 0.0).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element; ``_`` in attribute names stands for ``-``, and floats are written with two decimals."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{f"{value:.2f}" if isinstance(value, float) else escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def text(words: str, x: Number, y: Number, *, small: bool = False, strong: bool = False, **attributes: object) -> str:
    """A label in the page's own text colour; sizes stand here too, for viewers that drop the style sheet."""
    weight = {"font_weight": 600, "data_strong": ""} if strong else {}
    size = {"font_size": 10.5, "data_small": "", **_MUTED} if small else {"font_size": "12"}
    return tag("text", escape(words), x=float(x), y=float(y), fill="currentColor", **size, **weight, **attributes)


def above(top: Number, line: Number) -> float:
    """Where a small label over a bar stands: 4 pixels above its top, or above a line that would strike it through."""
    base = float(top) - 4
    return line - 3 if base - 9 < line < base + 2 else base


def rule(x1: Number, y1: Number, x2: Number, y2: Number, *, faint: bool = True, **attributes: object) -> str:
    """A line of the scaffolding."""
    ink = {"stroke": "currentColor", "stroke_opacity": "0.25" if faint else "0.7"}
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), **{**ink, **attributes})


def svg(width: Number, height: Number, label: str, *content: str, **attributes: object) -> str:
    """The drawing, with its description for those who do not see it."""
    return tag(
        "svg",
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        font_family="system-ui, sans-serif",
        **attributes,
    )


# MathML, enough for the figures' equations. A part is markup, or words that `row` turns into markup one by one.
def row(*parts: str) -> str:
    """The parts side by side: ``row("w_i ≈", frac("1", "k"))``."""
    written = (part if part.startswith("<") else "".join(map(_symbol, part.split())) for part in parts)
    return f"<mrow>{''.join(written)}</mrow>"


def _symbol(word: str) -> str:
    if len(word) > 1 and "_" in word:
        base, index = word.split("_")
        return f"<msub>{_symbol(base)}{_symbol(index)}</msub>"
    if word in "()[]":
        return f'<mo stretchy="false">{word}</mo>'
    kind = "mn" if word.isdigit() else "mo" if word in ("max", "argmax") or not word[0].isalpha() else "mi"
    return f"<{kind}>{word}</{kind}>"


def sup(base: str, power: str) -> str:
    return f"<msup>{row(base)}{row(power)}</msup>"


def frac(above: str, below: str) -> str:
    return f"<mfrac>{row(above)}{row(below)}</mfrac>"


def total(index: str) -> str:
    """A sum sign over an index."""
    return f"<munder><mo>∑</mo>{row(index)}</munder>"


def formula(*parts: str) -> str:
    return f'<math display="block">{row(*parts)}</math>'


def callout(title: str, equation: str, words: str) -> str:
    """What is going on, as a heading, a formula and a sentence; the JavaScript exchanges them by their slots."""
    heading = tag("p", tag("strong", title, data_slot="title"))
    shown = tag("div", equation, data_slot="equation")
    return tag("div", heading, shown, tag("p", words, data_slot="words"), class_="gx-note")


def readings(numbers: dict[str, tuple[str, str]]) -> str:
    """A list of slot -> (what it is, the number now)."""
    listed = [tag("dt", label) + tag("dd", number, data_slot=key) for key, (label, number) in numbers.items()]
    return tag("dl", *listed, class_="gx-numbers")


def columns(left: str, *right: str) -> str:
    """The picture, and beside it (below it on a phone) all else."""
    return tag("div", left, tag("div", *right, class_="gx-side"), class_="gx-grid")
