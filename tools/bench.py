"""Measure into build/bench.json: `python tools/bench.py [--quick | --store] [chapter ...]`.

Each benchmarks/<chapter>.py has `rows(quick) -> list[dict]`, in the schema of tools/schemas/bench.json;
`quick` takes small sizes and few rounds. Each race must say how far its results are apart, or why they were not
compared, and no call may be timed in two races. A chapter without such a file contributes the rows that its committed
page carries. `--store` keeps the rows of the chapters measured in reports/bench.json, from which the
scoreboard's page is made, with the date, the machine and the versions; it needs a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from claims import BENCH, carried, notebooks
from results import check, write

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "bench.json"


def measured(path: Path, quick: bool) -> list[dict]:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows(quick)
    honest(rows)
    return rows


def timed(path: Path, quick: bool) -> tuple[list[dict], float]:
    """The rows, and the seconds that measuring them took."""
    start = time.perf_counter()
    return measured(path, quick), time.perf_counter() - start


def honest(rows: list[dict]) -> None:
    """Refuses rows that were not compared and do not say why, and those in which one call has two times."""
    times: dict[tuple, float] = {}
    for row in rows:
        if "peer" not in row:
            continue
        case = f"{row['chapter']}, {row['case']}"
        if "apart" not in row and "uncompared" not in row:
            raise SystemExit(f"{case}: is the result of {row['peer']} ours, or why was that not asked?")
        for name, ms in ((row["ours"], row["ours_ms"]), (row["peer"], row["peer_ms"])):
            call = (case, json.dumps(row["sizes"]), row["threads"], row["device"], name)
            if times.setdefault(call, ms) != ms:
                raise SystemExit(f"{case}, {row['sizes']}: {name} takes {times[call]} ms and {ms} ms")


def store(rows: list[dict], seconds: float) -> None:
    """In place of what the report has of their chapters; `seconds` is what measuring them took."""
    from gated.lab.claims import machine, versions

    old = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"made": {}, "rows": []}
    made = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(seconds),
    }
    chapters = {row["chapter"] for row in rows}
    rows = sorted([row for row in old["rows"] if row["chapter"] not in chapters] + rows, key=lambda row: row["chapter"])
    check("bench", {"rows": rows})
    stood = old["made"] | dict.fromkeys(chapters, made)
    report = {"command": "make bench", "made": dict(sorted(stood.items())), "rows": rows}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true")
    how.add_argument("--store", action="store_true")
    parser.add_argument("chapters", nargs="*")
    given = parser.parse_args()
    scripts = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("*.py")) if not path.stem.startswith("_")}
    unknown = [name for name in given.chapters if name not in scripts]
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(scripts)}")
    names = given.chapters or list(scripts)
    # quick rows show that all runs, not how fast: two chapters at once, each in a process of its own
    two = ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) if given.quick else None
    each = two.map if two else map
    rows: list[dict] = []
    for name, (found, spent) in zip(names, each(timed, [scripts[n] for n in names], repeat(given.quick)), strict=True):
        if given.store:
            store(found, spent)
        rows += found
        unsteady = sum("unsteady" in row for row in found)
        print(f"measured {name} in {spent:.0f} s, {len(found)} rows, {unsteady} of them unsteady", flush=True)
    for notebook in [] if given.chapters else notebooks():
        if notebook.stem not in scripts:
            rows += carried(notebook, BENCH)
    write("bench", rows)


if __name__ == "__main__":
    main()
