"""The cards: one a paper, in the book's order, complete, and shown in every form."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from gated.lab.cards import CARDS, cards_table

ROOT = Path(__file__).resolve().parents[2]
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
PAGES = {part["caption"]: [Path(page["file"]).name for page in part["chapters"]] for part in PARTS}
ORDER = [name for names in PAGES.values() for name in names if name in CARDS]


def test_the_papers_stand_in_the_books_order():
    assert list(CARDS) == ORDER
    assert len({card.link for card in CARDS.values()}) == len(CARDS) >= 13
    assert all(card.chapter in PAGES[card.part] for card in CARDS.values())


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_a_card_is_complete(card):
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", card.link)
    assert 2019 <= card.year <= 2025
    assert int(card.link[22:24]) <= card.year - 2000  # the preprint came first
    assert card.sentence.endswith((".", "?"))
    assert all(len(text) > 3 for text in card.answers().values())
    assert card.status in ("written", "coming")
    bundle = card._repr_mimebundle_()
    root = ET.fromstring(bundle["text/html"].replace("<br>", "<br/>"))
    text = " ".join(root.itertext())
    for field in (card.title, card.authors, card.venue, str(card.year), *card.answers().values()):
        assert field in text
        assert field in bundle["text/plain"]
    assert root.find(".//a").get("href") == card.link


def test_the_table_says_what_is_still_to_come():
    lines = str(cards_table()).splitlines()
    assert len(lines) == 1 + len(CARDS)
    for line, card in zip(lines[1:], CARDS.values(), strict=True):
        assert line.startswith(card.chapter)
        assert ("(coming)" in line) == (card.status == "coming")
        assert card.flows in line
    assert CARDS["gla"].status == "written"
