"""Collect the claims of all executed notebooks into build/claims.json: `python tools/claims.py`.

Nothing is executed: a table's output carries its rows, under the MIME types below, beside what is shown.
Only the standard library is needed to read them, since the scoreboard's page is built where `gated` is
not installed. """

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = "application/vnd.gated.claims+json"
BENCH = "application/vnd.gated.bench+json"


def notebooks() -> list[Path]:
    return sorted((ROOT / "book").glob("*.ipynb"))


def carried(notebook: Path, mime: str) -> list[dict]:
    """The rows that a notebook's outputs carry under `mime`; a row that is shown twice is taken once."""
    rows: list[dict] = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            for row in output.get("data", {}).get(mime, {"rows": []})["rows"]:
                if row not in rows:
                    rows.append(row)
    return rows


def collect() -> list[dict]:
    """The claims of all chapters. Raises ValueError when two different ones share a chapter and an id."""
    rows = [row for notebook in notebooks() for row in carried(notebook, CLAIMS)]
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row["chapter"], row["id"])
        if key in seen:
            raise ValueError(f"claim {row['id']!r} of chapter {row['chapter']!r} is shown twice, and differs")
        seen.add(key)
    return rows


if __name__ == "__main__":
    from results import write

    write("claims", collect())
