"""What the tests of the book's reading matter share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """The prose of each notebook, by its name."""
    cells = {path.stem: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in BOOK.glob("*.ipynb")}
    return {
        name: "\n\n".join("".join(cell["source"]) for cell in every if cell["cell_type"] == "markdown")
        for name, every in cells.items()
    }
