"""What leads a reader: the threads between chapters, the map, the glossary and the references, as files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
FACTS = tomllib.loads((BOOK / "chapters.toml").read_text(encoding="utf-8"))
CARDS = tomllib.loads((ROOT / "gated" / "lab" / "_data" / "cards.toml").read_text(encoding="utf-8"))["card"]
ORDER = ["gates", *(card["chapter"] for card in CARDS)]
ENTRIES = parse_file(BOOK / "references.bib").entries
# Neither a DOI nor an arXiv number: the proceedings give none, or none could be confirmed in a second source.
NO_NUMBER = {
    "xu1994alternative", "bergstra2011algorithms", "bergstra2012random", "zhuang2020neuron", "gao2024provably",
    "act2026advmoe",  # these lead to a page
    "chen1995optimal", "ho2016weakly", "heinrich2018strong", "wang2022learning",  # these could not be confirmed
}  # fmt: skip


def glossary() -> list[tuple[list[str], str]]:
    """Each definition with its terms."""
    block = re.search(r"```\{glossary\}\n(.*?)```", (BOOK / "glossary.md").read_text(encoding="utf-8"), re.S)
    assert block
    entries = re.findall(r"((?:^\S.*\n)+)((?:^  .*\n)+)", block[1], re.M)
    return [(terms.splitlines(), text) for terms, text in entries]


def test_each_chapter_has_its_facts():
    assert [chapter["name"] for chapter in FACTS["chapter"]] == ORDER
    toc = re.findall(r"file: book/(\w+)$", (ROOT / "_toc.yml").read_text(encoding="utf-8"), re.M)
    assert [name for name in toc if name in ORDER] == ORDER
    for chapter in FACTS["chapter"]:
        assert chapter["knows"].startswith("You need ") and chapter["words"]
        if chapter["name"] != "gates":
            assert chapter["flows"] in FACTS["flows"] and set(chapter["decides"]) <= set(FACTS["decides"]) != set()
    assert {chapter.get("flows") for chapter in FACTS["chapter"]} - {None} == set(FACTS["flows"])
    assert {who for chapter in FACTS["chapter"] for who in chapter.get("decides", [])} == set(FACTS["decides"])


def test_threads_go_forward_and_say_why():
    pairs = [(link["from"], link["to"]) for link in FACTS["link"]]
    assert len(pairs) == len(set(pairs))
    assert all(ORDER.index(start) < ORDER.index(end) for start, end in pairs), "a thread that goes back closes a circle"
    for link in FACTS["link"]:
        for why in (link["forward"], link["back"]):
            assert len(why.split()) >= 5 and why[-1] not in ".,;"
        assert link["forward"] != link["back"]
    reached = {end for _, end in pairs}
    assert reached == set(ORDER) - {"gates"}


def test_glossary_terms_are_used_where_they_lead(texts):
    entries = glossary()
    terms = [term for names, _ in entries for term in names]
    assert 40 <= len(entries) <= 70 and len(terms) == len(set(terms))
    assert [names[0].lower() for names, _ in entries] == sorted(names[0].lower() for names, _ in entries)
    for names, text in entries:
        pages = re.findall(r"\]\((\w+)\.ipynb\)", text)
        assert pages, names
        for page in pages:
            used = [name for name in names if re.search(rf"\b{re.escape(name)}", texts[page], re.I)]
            assert used, f"{page} does not say {names}"


@pytest.mark.parametrize("key", ENTRIES)
def test_a_reference_can_be_found(key):
    fields = ENTRIES[key].fields
    if key in NO_NUMBER:
        assert not {"doi", "eprint"} & set(fields), "it has a number now: take it off the list"
    elif "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
    else:
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"])
    assert re.fullmatch(r"(19|20)\d\d", fields["year"]) and ENTRIES[key].persons["author"]


def test_numbers_are_unique():
    numbers = [e.fields[kind] for e in ENTRIES.values() for kind in ("doi", "eprint") if kind in e.fields]
    assert len(numbers) == len(set(numbers))


def test_cited_and_listed_are_the_same(texts):
    pages = [*texts.values(), *(path.read_text(encoding="utf-8") for path in BOOK.glob("*.md"))]
    marks = [mark for text in pages for mark in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)]
    cited = {key.strip() for mark in marks for key in mark.split(",")}
    assert set(ENTRIES) >= NO_NUMBER
    assert cited == set(ENTRIES), (cited - set(ENTRIES), set(ENTRIES) - cited)
