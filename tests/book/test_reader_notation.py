"""The notation page against the code and the chapters: every name exists, every shape is the one annotated there, and
every chapter that is named writes the symbol so."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYMBOLS = tomllib.loads((ROOT / "book" / "notation.toml").read_text(encoding="utf-8"))["symbol"]


def find(path: str):
    """The object at a dotted path: the longest prefix that is a module, then attributes."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module in {path}")


def annotation(thing, member: str):
    """What is annotated for a parameter, a field, or (without a member) what is returned."""
    if isinstance(thing, property):
        thing = thing.fget
    if not member:
        return inspect.signature(thing).return_annotation
    if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields"):
        return thing.__annotations__[member]
    return inspect.signature(thing).parameters[member].annotation


def shapes(note) -> list[str]:
    """The shapes in an annotation, evaluated or not."""
    if isinstance(note, str):
        return re.findall(r"""\[Tensor, ["']([^"']*)["']\]""", note)
    return [note.dim_str] if hasattr(note, "dim_str") else re.findall(r"\[Tensor, '?([^']*?)'?\]", str(note))


@pytest.mark.parametrize("symbol", SYMBOLS, ids=lambda s: s["code"])
def test_the_name_exists_and_has_that_shape(symbol):
    path, _, member = symbol["code"].partition(" ")
    note = annotation(find(path), member)
    assert note is not inspect.Signature.empty
    if "shape" in symbol:
        assert symbol["shape"].strip() in [shape.strip() for shape in shapes(note)], note
    else:
        assert not shapes(note) or "float" in str(note), "it has a shape, which the page should show"


@pytest.mark.parametrize("symbol", SYMBOLS, ids=lambda s: f"{s['group']}-{s['tex']}")
def test_the_chapters_write_it_so(symbol, texts):
    assert symbol["pages"]
    for page in symbol["pages"]:
        maths = " ".join("".join(pair) for pair in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", texts[page], re.S))
        assert re.search(r"(?<![A-Za-z])" + re.escape(symbol["tex"]), maths), page


def test_no_symbol_stands_twice_in_a_group():
    seen = [(s["group"], s["tex"], page) for s in SYMBOLS for page in s["pages"]]
    assert len(seen) == len(set(seen))
    pages = {page for _, _, page in seen}
    assert pages <= {path.stem for path in (ROOT / "book").glob("*.ipynb")} and len(pages) >= 14
