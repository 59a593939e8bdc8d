"""The claims ledger: what a paper claims, what would refute it, what we measured, and a computed verdict.

A verdict can only come from `decide`, `holds_if`, `not_decidable` or `all_of`: it is computed from the
numbers, never typed in. Long runs are made once by `stored` and kept with what made them. A cell of a notebook that
ends with the ledger shows its table.

Example:
    >>> from gated.lab.claims import Ledger, decide, paired_interval
    >>> gla, fixed = [1.51, 1.49, 1.52], [1.61, 1.60, 1.61]  # nats a byte, one for each seed
    >>> gap, ledger = paired_interval(gla, fixed), Ledger("gla")
    >>> ledger.claim(
    ...     id="C1", claim="Data-dependent decay models text better than a fixed one.",
    ...     refuted_if="The paired difference in nats a byte is not below zero.",
    ...     measured=-0.1, unit="nats/byte", interval=gap, seeds=3,
    ...     verdict=decide(gap, better="below", than=0.0), source="stored", why="Each seed has both arms.")
    <Verdict.HOLDS: 'holds here'>
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gated

# a page takes a claim and its interval from one place
from gated.lab.intervals import Interval
from gated.lab.intervals import across_processes as across_processes
from gated.lab.intervals import bootstrap_interval as bootstrap_interval
from gated.lab.intervals import mean_interval as mean_interval
from gated.lab.intervals import paired_interval as paired_interval
from gated.lab.intervals import prediction_interval as prediction_interval
from gated.lab.intervals import t_interval as t_interval
from gated.lab.style import Shown, Table, interval_text, number_text

MIME = "application/vnd.gated.claims+json"
Number = float | int


class Verdict(Enum):
    """What the numbers say. Made by `decide`, `holds_if`, `not_decidable` and `all_of`."""

    HOLDS = "holds here"
    FAILS = "fails here"
    UNDECIDED = "not decidable at this scale"

    def __str__(self) -> str:
        return self.value


_SIGN = {Verdict.HOLDS: "✓", Verdict.FAILS: "✗", Verdict.UNDECIDED: "?"}


def decide(interval: Sequence[Number], *, better: Literal["below", "above", "within"], than: Any = 0.0) -> Verdict:
    """Decides a claim about a quantity that is known up to an `interval` (low, high).

    The claim is "the quantity lies below `than`", "above `than`", or "within `than` = (a, b)". It *holds*
    when the whole interval lies on the claimed side, *fails* when the whole interval lies on the other
    side, and is *not decidable* when the interval holds points of both. One bound may be infinite.
    """
    low, high = _interval("interval", interval)
    if better in ("below", "above"):
        than = float(than)
        if math.isnan(than):
            raise ValueError("than must be a number, got nan")
        holds, fails = (high < than, low > than) if better == "below" else (low > than, high < than)
    elif better == "within":
        a, b = _interval("than", than)
        holds, fails = a <= low and high <= b, high < a or low > b
    else:
        raise ValueError(f"better must be 'below', 'above' or 'within', got {better!r}")
    return Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.UNDECIDED


def holds_if(condition: Any) -> Verdict:
    """For a statement that needs no interval (an identity, a bound that was checked): holds or fails."""
    return Verdict.HOLDS if bool(condition) else Verdict.FAILS


def not_decidable() -> Verdict:
    """For a claim that no run at this scale can touch (say so in the row's `why`)."""
    return Verdict.UNDECIDED


def all_of(*verdicts: Verdict) -> Verdict:
    """A claim of several parts holds if each part holds and fails if one fails; else it is not decidable."""
    if not verdicts:
        raise ValueError("all_of needs at least one verdict, got none")
    if Verdict.FAILS in verdicts:
        return Verdict.FAILS
    return Verdict.HOLDS if set(verdicts) == {Verdict.HOLDS} else Verdict.UNDECIDED


def agree(live: Number, interval: Sequence[Number]) -> None:
    """Asserts that a live figure lies in the stored one's interval (most often a `prediction_interval`)."""
    low, high = _interval("interval", interval)
    if not low <= live <= high:
        raise AssertionError(f"the live run gave {live:.6g}, outside the stored interval [{low:.6g}, {high:.6g}]")


class Row(NamedTuple):
    """One claim. `interval` is None for an exact statement; `source` says whether it is live or stored."""

    chapter: str
    id: str
    claim: str
    refuted_if: str
    measured: Number | str
    unit: str
    interval: Interval | None
    seeds: int
    verdict: Verdict
    source: str
    why: str

    def data(self) -> dict[str, Any]:
        """The row of `build/claims.json`; numbers are kept to six significant digits."""
        interval = None if self.interval is None else [_six(x) for x in self.interval]
        measured = self.measured if isinstance(self.measured, str) else _six(self.measured)
        return self._asdict() | {"measured": measured, "interval": interval, "verdict": str(self.verdict)}


class Ledger(Shown):
    """The claims of one chapter: add rows with `claim`, and let a cell end with the ledger to show it."""

    def __init__(self, chapter: str) -> None:
        if not chapter.isidentifier():
            raise ValueError(f"chapter must be the chapter's name, such as 'gla', got {chapter!r}")
        self.chapter = chapter
        self.rows: list[Row] = []

    def claim(
        self,
        id: str,
        claim: str,
        refuted_if: str,
        *,
        measured: Number | str,
        verdict: Verdict,
        why: str,
        interval: Sequence[Number] | None = None,
        seeds: int = 1,
        source: str = "live",
        unit: str = "",
    ) -> Verdict:
        """Adds a row and returns its verdict.

        - `claim`: the paper's claim in our words; `refuted_if`: what would refute it.
        - `measured`: the number (with `unit`), or a short text; `interval`: its (low, high); `seeds`: runs
          behind it, 0 where nothing was run.
        - `verdict`: from `decide`, `holds_if`, `not_decidable` or `all_of`.
        - `source`: "live" (this run of the page) or "stored" (see `stored`).
        - `why`: what explains the result, or limits it.

        Raises `ValueError` that names the argument.
        """
        for name, text in {"id": id, "claim": claim, "refuted_if": refuted_if, "why": why}.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name} must be a text that is not empty, got {text!r}")
        if any(row.id == id for row in self.rows):
            raise ValueError(f"id {id!r} stands in this ledger already; give each claim its own")
        if not isinstance(verdict, Verdict):
            raise ValueError(f"verdict must be computed by decide, holds_if, not_decidable or all_of, got {verdict!r}")
        if source not in ("live", "stored"):
            raise ValueError(f"source must be 'live' or 'stored', got {source!r}")
        if seeds < 0:
            raise ValueError(f"seeds must be at least 0 (nothing was run), got {seeds}")
        if not isinstance(measured, str):
            measured = float(measured)
            if not math.isfinite(measured):
                raise ValueError(f"measured must be finite (or a text), got {measured}")
        if interval is not None:
            interval = _interval("interval", interval)
            if not all(map(math.isfinite, interval)):
                raise ValueError(f"interval must be finite in a ledger, got {interval}")
        row = Row(self.chapter, id, claim, refuted_if, measured, unit, interval, int(seeds), verdict, source, why)
        self.rows.append(row)
        return verdict

    def verdicts(self) -> dict[str, str]:
        """The verdict of each claim by id, for checked cells: verdicts move less than numbers."""
        return {row.id: str(row.verdict) for row in self.rows}

    def __str__(self) -> str:
        rows = [(f"{row.id}.", str(row.verdict), _value(row), _runs(row), row.claim) for row in self.rows]
        return str(Table(("", "Verdict", "Measured", "Seeds", "Claim"), rows))

    def table(self) -> Table:
        return Table(
            ("Claim", "Measured", "Verdict"),
            [_cells(row) for row in self.rows],
            mime={MIME: {"rows": [row.data() for row in self.rows]}},
        )


def _value(row: Row) -> str:
    number = row.measured if isinstance(row.measured, str) else f"{number_text(row.measured)} {row.unit}".strip()
    return f"{number} {interval_text(row.interval)}".strip()


def _runs(row: Row) -> str:
    return f"{row.seeds} seed{'s' * (row.seeds != 1)}, {row.source}" if row.seeds else "no run"


def _cells(row: Row) -> list[tuple[str, str]]:
    claim = (f"{row.id}. {row.claim}", f"Refuted if: {row.refuted_if}")
    return [claim, (_value(row), _runs(row)), (f"{_SIGN[row.verdict]} {row.verdict}", row.why)]


# Stored results ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Provenance:
    """What made a stored result. As text it is the line that a notebook prints beside the figure."""

    arguments: dict[str, Any]
    command: str
    duration_s: float
    machine: str
    seeds: Any
    versions: dict[str, str]

    def __str__(self) -> str:
        # the scoreboard's page says what a result of an unreleased version is worth
        early = {"gated": " (before its release)"} if self.versions.get("gated", "").startswith("0.") else {}
        versions = ", ".join(f"{name} {version}{early.get(name, '')}" for name, version in self.versions.items())
        spent = f"{self.duration_s:.0f} s " if self.duration_s >= 0.5 else ""  # less: the call found finished runs
        return f"stored; {self.command}; seeds {self.seeds}; {spent}on {self.machine}; {versions}"

    def __repr__(self) -> str:
        return str(self)


def stored(
    chapter: str, name: str, fn: Callable[..., Any], live: Mapping[str, Any], full: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Runs `fn(**live)` now and returns its result beside the stored result of `fn(**full)`.

    The stored one is read from `book/_results/<chapter>.json` (in a wheel: `gated/lab/_results`). With the
    environment variable GATED_FULL=1, which `make results-<chapter>` sets, `fn(**full)` is run and written
    there, with its arguments, command, seeds, versions, duration and machine. `fn` returns what JSON can
    hold; tensors and arrays become lists. Both results come back in JSON's types.

    Raises `ValueError` when nothing is stored under this name, or when it was stored with other arguments
    than `full`.
    """
    if os.environ.get("GATED_FULL", "") not in ("", "0", "gpu"):  # `gpu` makes the figures of a GPU alone
        _write(chapter, name, fn, full)
    entry = _entry(chapter, name)
    if entry["arguments"] != _plain(full):
        raise ValueError(
            f"full differs from what made the stored {name!r} of {chapter!r}: got {_plain(full)}, stored "
            f"{entry['arguments']}; run `make results-{chapter}`"
        )
    return _plain(fn(**live)), entry["value"]


def provenance(chapter: str, *names: str) -> Provenance:
    """What made the stored results `names` of `chapter`, such as the arms of one table.

    Of several, the durations are added, and seeds that differ are all told, each once. Raises `ValueError` for no
    name, for a name under which nothing is stored, and for results of different commands, machines or versions.
    """
    entries = {name: _entry(chapter, name) for name in names}
    if not entries:
        raise ValueError("names must hold at least one stored result; got none")
    first = {field: entries[names[0]][field] for field in Provenance.__annotations__}
    for name, entry in entries.items():
        if any(entry[field] != first[field] for field in ("command", "machine", "versions")):
            raise ValueError(f"names must be results of one command, machine and set of versions; {name!r} differs")
    if len(entries) > 1:
        first["arguments"] = {name: entry["arguments"] for name, entry in entries.items()}
        first["duration_s"] = sum(entry["duration_s"] for entry in entries.values())
        first["seeds"] = " and ".join(dict.fromkeys(str(entry["seeds"]) for entry in entries.values()))
    return Provenance(**first)


def machine() -> str:
    """The processor's model and the number of cores (and the GPU's name), without anything private."""
    import torch

    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    elif sys.platform == "darwin":
        cpu = platform.processor() or cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    # not asked of the installation, which remembers an older one where it is editable
    found = {"python": platform.python_version(), "gated": gated.__version__}
    for package in ("torch", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _folders() -> list[Path]:
    """Where stored results may lie: the checkout's `book/_results` first, then the wheel's copy."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    in_checkout = (checkout / "pyproject.toml").is_file()
    return [*([checkout / "book" / "_results"] if in_checkout else []), package / "_results"]


def _read(folder: Path, chapter: str) -> dict[str, Any]:
    path = folder / f"{chapter}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _entry(chapter: str, name: str) -> dict[str, Any]:
    for folder in _folders():
        if name in (entries := _read(folder, chapter)):
            return entries[name]
    raise ValueError(f"name {name!r}: chapter {chapter!r} has no such stored result; run `make results-{chapter}`")


def _write(chapter: str, name: str, fn: Callable[..., Any], full: Mapping[str, Any]) -> None:
    folder = _folders()[0]
    if folder.parent.name != "book":
        raise ValueError("GATED_FULL=1 writes to the repository's book/_results: run it in a checkout")
    keep(folder / f"{chapter}.json", name, fn, full, command=f"make results-{chapter}")


def keep(path: Path, name: str, fn: Callable[..., Any], arguments: Mapping[str, Any], *, command: str) -> Any:
    """Runs `fn(**arguments)` and writes what it returns to the JSON file, under `name`, with what made it.

    Other entries of the file stay. Returns the value.
    """
    start = time.perf_counter()
    value = _plain(fn(**arguments))
    entry = {
        "arguments": _plain(arguments),
        "command": command,
        "duration_s": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "seeds": _plain(arguments.get("seeds", arguments.get("seed"))),
        "versions": versions(),
        "value": value,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = _read(path.parent, path.stem) | {name: entry}
    text = json.dumps(entries, indent=1, sort_keys=True, allow_nan=False)
    partial = path.with_name(f".{path.stem}.partial")  # an interrupted run leaves the old file whole
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return value


def _plain(value: Any) -> Any:
    """In JSON's types, as a round trip through a file would give it."""

    def convert(x: Any) -> Any:
        if hasattr(x, "tolist"):
            return x.tolist()
        if isinstance(x, Mapping):
            return dict(x)
        raise ValueError(f"results and arguments must be numbers, texts, lists, dicts or tensors, got {type(x)}")

    return json.loads(json.dumps(value, default=convert))


# Checks -----------------------------------------------------------------------------------------------------


def _interval(name: str, interval: Sequence[Number]) -> Interval:
    try:
        low, high = (float(x) for x in interval)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (low, high), got {interval!r}") from None
    if not low <= high:
        raise ValueError(f"{name} must have low <= high, got ({low}, {high})")
    return low, high


def _six(x: float) -> float:
    return float(f"{x:.6g}") + 0.0
