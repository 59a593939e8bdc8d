"""The cards: thirteen, in the book's order, complete, and shown in every form."""

import re
import xml.etree.ElementTree as ET

import pytest

from gated.lab.cards import CARDS, cards_table

ORDER = [
    *("gla", "moe", "pregated", "topk_theory", "temperature_theory"),
    *("ninformer", "polarization", "jeidnn", "advmoe"),
    *("stn", "langevinflow", "commformer", "online_cbf"),
]


def test_thirteen_papers_in_the_books_order():
    assert list(CARDS) == ORDER
    assert len({card.link for card in CARDS.values()}) == 13
    parts = [card.part for card in CARDS.values()]
    assert list(dict.fromkeys(parts)) == ["Sequences", "Experts", "Theory", "Vision", "Time", "Agents"]
    assert parts == sorted(parts, key=list(dict.fromkeys(parts)).index)


@pytest.mark.parametrize("card", CARDS.values(), ids=ORDER)
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
    assert len(lines) == 14
    for line, card in zip(lines[1:], CARDS.values(), strict=True):
        assert line.startswith(card.chapter)
        assert ("(coming)" in line) == (card.status == "coming")
        assert card.flows in line
    assert CARDS["gla"].status == "written"
