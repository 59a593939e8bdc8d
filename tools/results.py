"""The machine-readable results: JSON objects with `rows`, checked against tools/schemas/<name>.json.

python tools/results.py claims bench kernels      # check the files in build/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


def check(name: str, document: object) -> list[dict]:
    """The rows of a document that follows the schema; else ValueError with the place that does not."""
    import jsonschema

    schema = json.loads((ROOT / "tools" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        place = "/".join(map(str, error.absolute_path))
        raise ValueError(f"{name}.json at {place or 'the top'}: {error.message[:300]}")
    assert isinstance(document, dict)
    return document["rows"]


def write(name: str, rows: list[dict]) -> None:
    """Check the rows and write build/<name>.json in one step, so that no reader ever sees half a file."""
    document = {"rows": rows}
    check(name, document)
    BUILD.mkdir(exist_ok=True)
    partial = BUILD / f".{name}.partial"
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(BUILD / f"{name}.json")
    print(f"build/{name}.json: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        path = BUILD / f"{given}.json"
        if not path.exists():
            raise SystemExit(f"build/{given}.json does not exist")
        rows = check(given, json.loads(path.read_text(encoding="utf-8")))
        print(f"build/{given}.json: {len(rows)} rows, as the schema says")
