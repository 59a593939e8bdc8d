"""Make or complete `.venv`: `python3 tools/environment.py book|test`.

Only the standard library is used, since this runs before anything is installed. A stamp with the digest of
what was asked for is written last, so an interrupted run is simply continued by the next one, and a finished
one needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
QUIET = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_NO_PYTHON_VERSION_WARNING": "1",
}


def requirements(extra: str) -> list[str]:
    """What the extra asks for, with the package's own extras (`gated[lab]`) unfolded; `test` adds the
    runtime."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    out: list[str] = list(project["dependencies"]) if extra == "test" else []
    for requirement in extras[extra]:
        if requirement.startswith("gated["):
            for name in requirement.removeprefix("gated[").removesuffix("]").split(","):
                out += requirements(name)
        else:
            out.append(requirement)
    return out


def oracles() -> list[str]:
    """Packages that some tests compare with and whose own pins exclude ours (`[tool.gated]`)."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["gated"]["oracles"])


def pip(*arguments: str) -> None:
    """pip in the environment; its warnings are held back and shown only when it fails."""
    command = [str(PYTHON), "-m", "pip", *arguments]
    done = subprocess.run(command, env=os.environ | QUIET, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(
            "\npip failed (above). With a network, run the same command again: it continues where it stopped."
        )


def healthy() -> bool:
    """Whether the environment exists, runs, and was made by a Python that we support."""
    probe = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", probe], capture_output=True).returncode == 0


BROKEN = """
import importlib.metadata as m
for d in m.distributions():
    if d.files is None or not all(d.locate_file(f).exists() for f in d.files):
        print(f"{d.name}=={d.version}")
"""


def repair() -> None:
    """Install again what an interrupted pip has left with files missing: it would count as installed."""
    found = subprocess.run([str(PYTHON), "-c", BROKEN], capture_output=True, text=True, check=True).stdout.split()
    if found:
        pip("install", "-q", "--ignore-installed", "--no-deps", "-c", "constraints.txt", *found)


def ensure(extra: str) -> None:
    wanted = requirements(extra)
    apart = oracles() if extra == "test" else []
    lock = (ROOT / "constraints.txt").read_bytes()
    digest = hashlib.sha256("\n".join([extra, *wanted, *apart]).encode() + lock).hexdigest()
    stamp = VENV / f".ready-{extra}"
    if healthy() and stamp.exists() and stamp.read_text() == digest:
        return
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise SystemExit(
            f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}: "
            "name one with `make PYTHON=python3.12 ...`"
        )
    if not healthy():
        print("making .venv", flush=True)
        if VENV.exists():
            shutil.rmtree(VENV)
        try:
            venv.create(VENV, with_pip=True, symlinks=os.name != "nt")
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "this Python has no pip to put into .venv (Debian, Ubuntu: apt install python3-venv)"
            ) from error
    print(f"installing what `{extra}` needs ({len(wanted)} packages and theirs) ...", flush=True)
    unfinished = VENV / ".installing"
    interrupted = unfinished.exists()
    unfinished.touch()
    pip("install", "-q", "-c", "constraints.txt", *wanted)
    if interrupted:
        repair()
    if extra == "test":
        # Building in this environment, not in an isolated one, needs no network and keeps the lock whole.
        pip("install", "-q", "--no-deps", "--no-build-isolation", "-e", ".")
        shutil.rmtree(VENV / "oracles", ignore_errors=True)
        pip("install", "-q", "--no-deps", "--target", str(VENV / "oracles"), *apart)
    partial = stamp.with_suffix(".partial")
    partial.write_text(digest)
    partial.replace(stamp)
    unfinished.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", choices=["book", "test"])
    try:
        ensure(parser.parse_args().extra)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command continues from here") from None
