"""Run parts of `make test` and say what ran: `python tools/check.py lint unit kernels notebooks results
pages`.

Every step runs in a process of its own and all run, also after a failure. A step that executed nothing
fails, and so does a test that was skipped for any reason but a missing GPU. The last line reads `N
passed, M failed`."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import alone
import chromium

ROOT = Path(__file__).resolve().parent.parent

JUNIT = ROOT / "build" / "junit"
NOTEBOOK_SECONDS = float(os.environ.get("NOTEBOOK_SECONDS", 90))
MAY_SKIP = re.compile(r"\b(needs|no) (a |an )?(GPU|CUDA)", re.I)
NONE = ["tests/nothing-to-run"]  # so that an empty part fails
TWO = ["-n", "2", "--dist", "loadfile"]  # processes; a file stays in one of them, for what its tests share
ALONE = {"OMP_NUM_THREADS": "1"}  # for each of two processes: threads that wait for one another's cores wait long
PIECE = """import time, torch
a, b, start = torch.eye(512), torch.zeros(64), time.perf_counter()
for _ in range(200):
    a = a @ a
for _ in range(400_000):
    b = b + 1
print(time.perf_counter() - start)"""
USES_SITE = re.compile(r"\b(browser|built_site|site_url)\b")


class Step(NamedTuple):
    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    notes: list[str]


def environment(**extra: str) -> dict[str, str]:
    """Ours, without the variables that would change what is tested."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GATED_SOURCE", "GATED_FULL", "GATED_TYPECHECK", "TRITON_INTERPRET", "PYTHONPATH")
    }
    kept["PATH"] = str(Path(sys.executable).parent) + os.pathsep + kept.get("PATH", "")
    kept["PYTHONWARNINGS"] = "ignore:Triton is not supported on current platform"  # the peer's, where there is no GPU
    return kept | {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "GATED_QUIET": "1"} | extra


def run(name: str, *arguments: str, **extra: str) -> Step:
    """A command that either succeeds or not."""
    print(f"\n--- {name}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(**extra)).returncode
    return Step(name, code == 0, code != 0, 0, time.perf_counter() - start, [] if code == 0 else [f"exit code {code}"])


def pytest(name: str, *arguments: str, python: str = sys.executable, **extra: str) -> Step:
    """A pytest run, counted from its report."""
    print(f"\n--- {name}", flush=True)
    report = JUNIT / (re.sub(r"\W+", "-", name) + ".xml")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        f"--junitxml={report.relative_to(ROOT)}",
        "-o",
        "junit_family=xunit1",
        *arguments,
    ]
    code = subprocess.run(command, cwd=ROOT, env=environment(**extra)).returncode
    seconds = time.perf_counter() - start
    if not report.exists():
        return Step(name, 0, 1, 0, seconds, [f"pytest ended with exit code {code} and no report"])
    passed = failed = skipped = 0
    notes = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        title = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
        # nbval marks as an expected failure what it could not run after a time-out: that counts as a failure too
        reasons = [child.get("message") or child.get("type") or "" for child in case.findall("skipped")]
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            notes.append(f"failed: {title}")
        elif reasons:
            allowed = MAY_SKIP.search(reasons[0])
            skipped += bool(allowed)
            failed += not allowed
            notes.append(f"skipped{'' if allowed else ' (counts as failed)'}: {title}: {reasons[0]}")
        else:
            passed += 1
    if not passed and not failed:
        failed, notes = 1, [*notes, "no test was executed"]
    elif code not in (0, 1) or (code and not failed):
        failed, notes = failed + 1, [*notes, f"pytest ended with exit code {code}"]
    return Step(name, passed, failed, skipped, seconds, notes)


def tests(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob(pattern))


def lint() -> Iterator[Step]:
    yield run(
        "lint: ruff",
        "-m",
        "ruff",
        "check",
        "gated",
        "tools",
        "tests",
        *(["benchmarks"] if (ROOT / "benchmarks").is_dir() else []),
    )
    yield run("lint: mypy", "-m", "mypy")


def bare() -> list[str]:
    """The files that run without the check of shapes, so that the package's own validation answers."""
    return tests("test_errors_*.py") + tests("test_compile_*.py")


def apart() -> list[str]:
    """What is no unit test, or runs bare, left out."""
    others = ["--ignore=tests/book", "--ignore-glob=*_interp*", "--ignore-glob=*_aot*"]
    return others + [f"--ignore={path}" for path in bare()]


def unit() -> Iterator[Step]:
    yield pytest(
        "unit: shapes checked at run time",
        *("tests", *apart(), "-m", "not pages and not clock", *TWO),
        **ALONE,
    )
    yield pytest("unit: against the clock", "tests", *apart(), "-m", "clock and not pages")
    yield pytest("unit: bad input, torch.compile (bare)", *(bare() or NONE), *TWO, GATED_TYPECHECK="0", **ALONE)


def kernels() -> Iterator[Step]:
    if not sys.platform.startswith("linux"):
        yield Step("kernels", 0, 0, 0, 0.0, [f"not run: Triton exists for Linux, this is {sys.platform}"])
        return
    yield pytest(
        "kernels: in the interpreter",
        *(*(tests("test_*_interp*.py") or NONE), *TWO),
        TRITON_INTERPRET="1",
        **ALONE,
    )
    yield run("kernels: compiled ahead of time", "tools/kernels.py")
    yield pytest("kernels: what was compiled", *(tests("test_*_aot*.py") or NONE))
    yield run("kernels: build/kernels.json", "tools/results.py", "kernels")


def slowness(processes: int = 2) -> float:
    """How many times longer a core takes than the one that `NOTEBOOK_SECONDS` means, with all that run beside it; at
    least 1. That core does `PIECE` in a second: 100 GFLOP/s in products, 1.2 us for a small operation."""
    pieces = [
        subprocess.Popen([sys.executable, "-c", PIECE], env=environment(**ALONE), stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return max(1.0, *(float(piece.communicate()[0]) for piece in pieces))


def notebooks() -> Iterator[Step]:
    chapters = sorted((ROOT / "book").glob("*.ipynb"))
    name = "notebooks: each alone, from a wheel, executed and compared (nbval)"
    try:
        copies, variables = alone.prepare(chapters, ROOT / "build" / "alone")
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        yield Step(name, 0, 1, 0, 0.0, [f"not prepared: {error}"])
        return
    allowed = NOTEBOOK_SECONDS * (slower := slowness())
    step = pytest(
        name,
        "--nbval-lax",
        "--nbval-kernel-name=lean",
        f"--nbval-cell-timeout={4 * allowed:.0f}",
        *TWO,
        "-p",
        "no:cacheprovider",
        "--nbval-sanitize-with",
        "tests/book/nbval.cfg",
        *(map(str, copies) if copies else NONE),
        JUPYTER_PLATFORM_DIRS="1",
        **ALONE,
        **variables,
    )
    report = JUNIT / (re.sub(r"\W+", "-", name) + ".xml")
    spent = dict.fromkeys((path.stem for path in chapters), 0.0)
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
        if case.get("name") != "Cell 0":  # there the wheel is installed
            spent[Path(case.get("file") or "").stem] += float(case.get("time", 0))
    late = [note for note, seconds in spent.items() if seconds > allowed or not seconds]
    times = ", ".join(f"{note} {seconds:.0f} s" for note, seconds in spent.items())
    notes = [
        f"{times} (at most {allowed:.0f} s each: {NOTEBOOK_SECONDS:.0f} s where a core is {slower:.2g} times as fast)",
        *(f"failed: {note} took {spent[note]:.0f} s" for note in late),
    ]
    yield step._replace(failed=step.failed + len(late), notes=step.notes + notes)
    others = [path for path in tests("book/test_*.py") if not uses_site(path)]
    yield pytest("notebooks: what the pages are made from", *(others or NONE), *TWO, **ALONE)


def results() -> Iterator[Step]:
    yield run("results: build/claims.json", "tools/claims.py")
    yield run("results: build/bench.json (quick sizes)", "tools/bench.py", "--quick")


def uses_site(path: str) -> bool:
    return bool(USES_SITE.search((ROOT / path).read_text(encoding="utf-8")))


@functools.cache
def book() -> Future[Step]:
    """The build of the book, started by the first who asks."""
    return ThreadPoolExecutor(1).submit(run, "pages: book, warnings are errors", "tools/book.py", "--force")


def pages() -> Iterator[Step]:
    yield book().result()
    try:
        print(f"\nbrowser: {chromium.ensure()}")
    except SystemExit as error:
        yield Step("pages: in Chromium", 0, 1, 0, 0.0, [str(error)])
        return
    files = list(filter(uses_site, tests("test_*.py")))
    # two browsers; how fast a slider answers is measured with nothing beside it
    yield pytest("pages: in Chromium", *files, "-m", "pages and not clock", "-n", "2", "--dist", "worksteal")
    yield pytest("pages: in Chromium, against the clock", *files, "-m", "pages and clock")


def main() -> int:
    parts = {part.__name__: part for part in (lint, unit, kernels, notebooks, results, pages)}
    unknown = [name for name in sys.argv[1:] if name not in parts]
    if unknown or not sys.argv[1:]:
        raise SystemExit(f"which parts? {', '.join(parts)}")
    steps: list[Step] = []
    start = time.perf_counter()
    if {"lint", "pages"} <= set(sys.argv[1:]):
        book()  # it and mypy take a core each
    try:
        for name in sys.argv[1:]:
            steps += parts[name]()
    except KeyboardInterrupt:
        print("\ninterrupted; run it again whenever you like")
        return 130
    print(f"\n{'what ran':<46}{'passed':>7}{'failed':>7}{'skipped':>8}{'s':>6}")
    for step in steps:
        print(f"{step.name:<46}{step.passed:>7}{step.failed:>7}{step.skipped:>8}{step.seconds:>6.0f}")
        for note in step.notes:
            print(f"    {note}")
    failed = sum(step.failed for step in steps)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    print(f"{sum(step.passed for step in steps)} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
