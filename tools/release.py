"""Is this checkout fit to be released? `python tools/release.py` writes reports/package.json.

The source and the wheel are built again under circumstances that should not matter, the wheel is imported in an
environment that holds nothing but what it declares, and pip resolves every extra in a fresh one, under the lock and,
but for the workshop's own, without it. `tests/test_package.py` does the first two as well, by the same functions, since
they need no network; the report keeps no digest of a build, only what the network said and what it was asked. `--notes`
prints the changelog's newest entry instead.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "package.json"
ROUNDS = 5
WORKSHOP = {"book", "test"}  # extras that nobody installs without the lock


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pip(*arguments: str) -> str:
    """This environment's pip; what it prints."""
    command = [sys.executable, "-m", "pip", *arguments]
    quiet = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=quiet, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


# Building ----------------------------------------------------------------------------------------------------------


def copy(folder: Path, mode: int = 0o644, time: int | None = None) -> Path:
    """A copy of what the source distribution is made from; its files with this mode and time."""
    included = project()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in [*included, "pyproject.toml", ".gitignore"]:
        source = ROOT / name
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        for path in files:
            if "__pycache__" in path.parts:
                continue
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(mode)
            if time is not None:
                os.utime(target, (time, time))
    return folder


def build(source: Path, out: Path, environment: dict[str, str], *arguments: str, umask: int = 0o022) -> dict[str, str]:
    """Name -> sha256 of what `python -m build` makes of `source`, without an isolated environment."""
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(out), str(source)]
    done = subprocess.run(command, env=kept | environment, text=True, capture_output=True, umask=umask)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def builds(folder: Path) -> list[dict[str, str]]:
    """The digests of four builds. The first two differ in all that should not matter: folder, times and modes of the
    files, umask, hash seed, time zone, and whether the wheel is made from the source distribution or from the
    checkout. The last two differ likewise, under one SOURCE_DATE_EPOCH."""
    one = copy(folder / "one")
    other = copy(folder / "another one" / "deeper", 0o600, 1_000_000_000)
    here = {"PYTHONHASHSEED": "0"}
    elsewhere = {"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "1", "LC_ALL": "C"}
    epoch = {"SOURCE_DATE_EPOCH": "1767225600"}
    direct = ("--sdist", "--wheel")
    return [
        build(one, folder / "dist", here),
        build(other, folder / "dist 2", elsewhere, *direct, umask=0o077),
        build(one, folder / "dist 3", here | epoch, *direct),
        build(other, folder / "dist 4", elsewhere | epoch, umask=0o077),
    ]


# Importing ----------------------------------------------------------------------------------------------------------


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """What the requirements install, by canonical name."""
    found: dict[str, metadata.Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[name] = metadata.distribution(name)
            todo += [Requirement(text) for text in found[name].requires or []]
    return found


def minimal(folder: Path, wheel: Path) -> Path:
    """The Python of a fresh environment with the wheel and what it declares. The libraries are links to ours, which
    takes a second and no network."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    lent = folder / "lent"
    lent.mkdir()
    for distribution in closure(project()["project"]["dependencies"]).values():
        site = Path(str(distribution.locate_file("")))
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            if not top.endswith(".pth"):
                (lent / top).symlink_to(site / top)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    pip("--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel))
    return python


def beyond_torch(python: Path, code: str, clock: str = "perf_counter") -> float:
    """How long a fresh interpreter takes for the code after it has imported torch."""
    probe = f"import torch\nfrom time import {clock}\nstart = {clock}()\n{code}\nprint({clock}() - start)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GATED"))}
    done = subprocess.run([str(python), "-c", probe], cwd=python.parent, env=clean, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


EACH = """
import json, os, sys, time, torch
def seconds(part):
    read, write = os.pipe()
    if not os.fork():
        start = time.process_time()
        __import__(part)
        os.write(write, str(time.process_time() - start).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        return float(told.read())
print(json.dumps({part: seconds(part) for part in sys.argv[1:]}))
"""


def imports(python: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Part -> the median over rounds of the processor's seconds that importing it takes beyond torch. A round forks an
    interpreter that has just imported torch, once a part, so that a machine that slows down slows all parts; one round
    more goes ahead, which writes what is cached."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GATED"))}
    command = [str(python), "-c", EACH, *parts()]
    times = []
    for _ in range(rounds + 1):
        done = subprocess.run(command, cwd=python.parent, env=clean, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        times.append(json.loads(done.stdout))
    return {part: round(statistics.median(time[part] for time in times[1:]), 4) for part in parts()}


def parts() -> list[str]:
    """`gated` and what stands right in it, but for `gated.lab`, which declares its needs as an extra."""
    found = {path.stem for path in (ROOT / "gated").glob("*.py")} | {
        path.parent.name for path in (ROOT / "gated").glob("*/__init__.py")
    }
    kernels = [f"gated.kernels.{path.parent.name}" for path in (ROOT / "gated/kernels").glob("*/__init__.py")]
    return ["gated", *sorted([f"gated.{name}" for name in found - {"__init__", "lab"}] + kernels)]


# Extras -------------------------------------------------------------------------------------------------------------


def locked() -> dict[str, Requirement]:
    """Canonical name -> the line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def pinned(pin: Requirement) -> str:
    """The version that a line of constraints.txt allows."""
    (only,) = pin.specifier
    return only.version


def unsatisfied(extra: str) -> list[str]:
    """Requirements of `gated[extra]`, and of what it installs, that constraints.txt does not meet on Linux."""
    declared = project()["project"]
    pins = locked()
    linux = {"platform_system": "Linux", "sys_platform": "linux"}
    extras = declared["optional-dependencies"] | {"": []}
    todo = [("gated", text, "") for text in [*declared["dependencies"], *extras[extra]]]
    seen, wrong = set(), []
    while todo:
        asking, text, asked = todo.pop()
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate(linux | {"extra": asked}):
            continue
        name = canonicalize_name(wanted.name)
        if (text, asked) in seen:
            continue
        seen.add((text, asked))
        if name == "gated":
            todo += [("gated", inner, "") for other in wanted.extras for inner in extras[other]]
        elif name not in pins:
            wrong.append(f"{asking} wants {wanted}, which constraints.txt lacks")
        elif not wanted.specifier.contains(pinned(pins[name]), prereleases=True):
            wrong.append(f"{asking} wants {wanted}, constraints.txt has {pinned(pins[name])}")
        else:
            inner_texts = metadata.requires(name) or []
            todo += [(name, inner, other) for other in ["", *wanted.extras] for inner in inner_texts]
    return wrong


def asked(extra: str) -> list[str]:
    """What pyproject.toml says that `gated[extra]` needs."""
    declared = project()["project"]
    return [*declared["dependencies"], *declared["optional-dependencies"].get(extra, [])]


def lock() -> str:
    """The digest of constraints.txt."""
    return hashlib.sha256((ROOT / "constraints.txt").read_bytes()).hexdigest()


def resolved(wheel: Path, extra: str, folder: Path, *, constrained: bool) -> dict[str, str]:
    """Name -> version that pip would install for `gated[extra]` into a fresh environment, under the lock or as it finds
    them today."""
    venv.create(folder, with_pip=False)
    wanted = f"gated[{extra}] @ {wheel.as_uri()}" if extra else f"gated @ {wheel.as_uri()}"
    found = folder / "found.json"
    pip(
        *("--python", str(folder / "bin" / "python"), "install", "-q", "--dry-run", "--report", str(found)),
        *(("-c", str(ROOT / "constraints.txt")) if constrained else ()),
        wanted,
    )
    installed = [entry["metadata"] for entry in json.loads(found.read_text(encoding="utf-8"))["install"]]
    return {canonicalize_name(entry["name"]): entry["version"] for entry in installed}


# The report -----------------------------------------------------------------------------------------------------------


def notes() -> str:
    """The newest dated entry of the changelog, without its heading."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entry = re.search(r"^## \[\d[^\n]*\n(.*?)(?=^## |^\[)", text, re.M | re.S)
    assert entry, "CHANGELOG.md has no dated entry"
    return entry[1].strip()


def main() -> None:
    import gated
    from gated.lab import claims

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("building four times ...", flush=True)
        digests = builds(folder)
        if digests[0] != digests[1] or digests[2] != digests[3]:
            raise SystemExit(f"two builds differ: {json.dumps(digests, indent=1)}")
        wheel = next((folder / "dist").glob("*.whl"))
        print("importing ...", flush=True)
        slow = imports(minimal(folder / "minimal", wheel))
        extras = {}
        for extra in ["", *project()["project"]["optional-dependencies"]]:
            print(f"resolving gated{f'[{extra}]' if extra else ''} ...", flush=True)
            kinds = {"locked": True} | ({} if extra in WORKSHOP else {"newest": False})
            extras[extra] = {"asks": asked(extra)} | {
                kind: resolved(wheel, extra, folder / f"{kind} {extra}", constrained=held)
                for kind, held in kinds.items()
            }
        torch = metadata.version("torch")
    report = {
        "command": "make release-check",
        "date": datetime.date.today().isoformat(),
        "versions": {"gated": gated.__version__, "python": platform.python_version(), "torch": torch},
        "machine": claims.machine(),
        "rounds": ROUNDS,
        "seconds_beyond_torch": slow,
        "lock": lock(),
        "extras": extras,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    slowest = max(slow, key=lambda part: slow[part])
    print(f"{REPORT.relative_to(ROOT)}: the same bytes; {slowest} is the slowest to import, {slow[slowest]} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", action="store_true", help="print the changelog's newest entry, and do nothing else")
    if parser.parse_args().notes:
        print(notes())
    else:
        main()
