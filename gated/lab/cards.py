"""The thirteen papers as cards: what flows, who decides, hard or soft, how the decision is learned.

`CARDS["gla"]` heads its chapter; `cards_table()` is the primer's table. Their text is in `_data/cards.toml`: a
chapter that is written sets its card's `status` there to "written".
"""

from __future__ import annotations

import html
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from gated.lab.style import PALETTE, Table


@dataclass(frozen=True)
class Card:
    """One paper and its answer to the book's question. `chapter` names the notebook and the module."""

    chapter: str
    part: str
    title: str
    authors: str
    venue: str
    year: int
    link: str
    sentence: str
    flows: str
    decides: str
    hardness: str
    learned: str
    status: Literal["written", "coming"] = "coming"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": str(self)}

    def html(self) -> str:
        """The card as HTML: no fixed colours, one column on a phone."""
        fields = "".join(
            f'<div style="flex:1 1 13em"><dt style="opacity:.75;font-weight:normal">{name}</dt>'
            f'<dd style="margin:0">{html.escape(text)}</dd></div>'
            for name, text in self.answers().items()
        )
        edge = f"border-left:.25em solid {PALETTE[0]};padding:.2em 0 .2em 1em;margin:1em 0;color:inherit"
        return (
            f'<section aria-label="The paper" style="{edge}"><p style="margin:0 0 .5em">'
            f'<a href="{html.escape(self.link, quote=True)}"><cite>{html.escape(self.title)}</cite></a><br>'
            f"{html.escape(self.authors)}. {html.escape(self.venue)}, {self.year}.</p>"
            f'<p style="margin:0 0 .5em">{html.escape(self.sentence)}</p>'
            f'<dl style="display:flex;flex-wrap:wrap;gap:.5em 1.5em;margin:0">{fields}</dl></section>'
        )

    def answers(self) -> dict[str, str]:
        """The four fields by their questions."""
        return {
            "What flows": self.flows,
            "Who decides": self.decides,
            "Hard or soft": self.hardness,
            "How it is learned": self.learned,
        }

    def __str__(self) -> str:
        fields = "\n".join(f"{name}: {text}" for name, text in self.answers().items())
        return f"{self.title}\n{self.authors}. {self.venue}, {self.year}. {self.link}\n{self.sentence}\n{fields}"

    __repr__ = __str__


def _load() -> dict[str, Card]:
    text = resources.files("gated.lab").joinpath("_data/cards.toml").read_text(encoding="utf-8")
    return {card["chapter"]: Card(**card) for card in tomllib.loads(text)["card"]}


CARDS: dict[str, Card] = _load()


def cards_table() -> Table:
    """The thirteen papers as one table, in the book's order; chapters to come say so."""
    rows: list[tuple[str | tuple[str, str], ...]] = []
    for card in CARDS.values():
        name = card.chapter if card.status == "written" else f"{card.chapter} (coming)"
        rows.append(((name, f"{card.title}. {card.venue}, {card.year}"), *card.answers().values()))
    return Table(("Chapter", "What flows", "Who decides", "Hard or soft", "How it is learned"), rows)
