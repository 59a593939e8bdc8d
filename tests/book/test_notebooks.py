"""The committed notebooks as files: executed in order, clean, small, and with nothing of one machine in
them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PRIVATE = re.compile(r"(?<![\w./])/(home|root|tmp|Users|work|opt|usr|var|content|mnt)/|[A-Z]:\\\\Users")


def texts(output: dict) -> str:
    """What a reader sees of an output, data that browsers read included; images are left out."""
    if "text" in output:
        return "".join(output["text"])
    return "\n".join(
        str(value) for mime, value in output.get("data", {}).items() if not mime.startswith("image/p")
    )


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> Path:
    return request.param


def test_there_are_notebooks():
    assert {"gates", "gla"} <= {path.stem for path in NOTEBOOKS}


def test_it_is_small(notebook):
    assert notebook.stat().st_size <= 1.5e6


def test_every_cell_was_run_in_order_and_cleanly(notebook):
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            raises = "raises-exception" in cell.metadata.get("tags", [])
            assert raises or output.output_type != "error", cell.source
            assert output.get("name") != "stderr", (cell.source, texts(output))
            assert not re.search(r"\b\w*Warning:", texts(output)), cell.source


def test_no_path_of_one_machine(notebook):
    nb = nbformat.read(notebook, 4)
    for cell in nb.cells:
        for text in [cell.source, *(texts(output) for output in cell.get("outputs", []))]:
            assert not (found := PRIVATE.search(text)), text[max(0, found.start() - 60) : found.end() + 60]


def test_it_is_in_normal_form(notebook, tool):
    text = notebook.read_text(encoding="utf-8")
    tools = tool("notebooks")
    nb = tools.normalise(tools.with_bootstrap(nbformat.reads(text, 4)))
    assert nbformat.writes(nb) + "\n" == text, f"run: python tools/notebooks.py --tidy book/{notebook.name}"


def test_it_starts_with_the_bootstrap_cell(notebook, tool):
    first = next(cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    assert first.source == tool("bootstrap").text() and first.outputs == []


def test_something_exact_is_checked(notebook):
    """nbval --nbval-lax compares marked cells only: a notebook without any would be checked for
    errors alone."""
    marked = [
        cell
        for cell in nbformat.read(notebook, 4).cells
        if cell.cell_type == "code" and re.search(r"^# NBVAL_CHECK_OUTPUT", cell.source, re.M)
    ]
    assert marked and all(cell.outputs for cell in marked)


def test_it_is_in_the_table_of_contents(notebook):
    assert f"file: book/{notebook.stem}\n" in (ROOT / "_toc.yml").read_text(encoding="utf-8")


def test_claims_are_on_the_scoreboard(notebook, tool):
    claims = tool("claims")
    carried = claims.carried(notebook, claims.CLAIMS)
    assert notebook.stem in ("gates", "recipes") or carried
    tool("results").check("claims", {"rows": claims.collect()})
