"""Measure into build/bench.json: `python tools/bench.py [--quick] [chapter ...]`.

Each benchmarks/<chapter>.py has `rows(quick) -> list[dict]`, in the schema of tools/schemas/bench.json;
`quick` takes small sizes and few rounds. A chapter without such a file contributes the rows that its
committed page carries. """

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

from claims import BENCH, carried, notebooks
from results import write

ROOT = Path(__file__).resolve().parent.parent


def measured(path: Path, quick: bool) -> list[dict]:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rows(quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("chapters", nargs="*")
    given = parser.parse_args()
    scripts = {
        path.stem: path
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        if not path.stem.startswith("_")
    }
    unknown = [name for name in given.chapters if name not in scripts]
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(scripts)}")
    rows: list[dict] = []
    for name in given.chapters or scripts:
        start = time.perf_counter()
        rows += measured(scripts[name], given.quick)
        print(f"measured {name} in {time.perf_counter() - start:.0f} s", flush=True)
    for notebook in [] if given.chapters else notebooks():
        if notebook.stem not in scripts:
            rows += carried(notebook, BENCH)
    write("bench", rows)


if __name__ == "__main__":
    main()
