"""The recipes as somebody copies them: each one's first lines run alone, and no line runs past the page's column."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "book" / "recipes.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
COLUMN = 69  # characters of code, as wide as the page shows without scrolling
CODE = [cell for cell in CELLS if cell["cell_type"] == "code" and "bootstrap" not in cell["metadata"].get("tags", [])]


def first_lines() -> dict[str, str]:
    """The first cell that is not folded below each heading."""
    found: dict[str, str] = {}
    title = ""
    for cell in CELLS:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and text.startswith("## "):
            title = text.splitlines()[0][3:]
        elif cell["cell_type"] == "code" and title and "hide-cell" not in cell["metadata"].get("tags", []):
            found.setdefault(title, text)
    return found


FIRST = first_lines()


def test_there_are_four():
    assert len(FIRST) == sum("".join(cell["source"]).startswith("## ") for cell in CELLS) == 4


@pytest.mark.parametrize("title", FIRST)
def test_the_first_lines_run_alone(title):
    """In a new process and an empty namespace. Only the folded cell, which lets timm be imported where its torchvision
    does not fit, runs before it, in a namespace of its own."""
    folded = ["".join(cell["source"]) for cell in CODE if "hide-cell" in cell["metadata"].get("tags", [])]
    script = f"import torch\nfor text in {folded!r}: exec(text, {{'torch': torch}})\nexec({FIRST[title]!r}, {{}})"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_no_line_runs_past_the_column():
    shown = [line for cell in CODE for line in "".join(cell["source"]).splitlines()]
    for cell in CODE:
        for output in cell["outputs"]:
            shown += "".join(output.get("text", "")).splitlines()
    assert [line for line in shown if len(line) > COLUMN] == []
