"""Build the book into `_build/html` and say where it is: `python tools/book.py [--force]`.

Warnings are errors. A digest of everything that goes in is written after a build that succeeded, so that
a second run has nothing to do and an interrupted one starts again."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import api
import vendor

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "_build" / "html" / "index.html"
STAMP = ROOT / "_build" / ".ready"


def digest() -> str:
    """Of every file that the pages are made from."""
    found = [
        ROOT / "_config.yml",
        ROOT / "_toc.yml",
        ROOT / "constraints.txt",
        *(ROOT / "tools").glob("*.py"),
    ]
    for folder in ("book", "gated"):
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and not path.match("__pycache__/*")]
    whole = hashlib.sha256()
    for path in sorted(found):
        whole.update(str(path.relative_to(ROOT)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def build(force: bool = False) -> None:
    vendor.fetch()
    api.main()
    now = digest()
    if not force and INDEX.exists() and STAMP.exists() and STAMP.read_text() == now:
        return
    STAMP.unlink(missing_ok=True)
    print("building the book ...", flush=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        ".",
        "--all",
        "-W",
        "--keep-going",
        "-q",
    ]
    quiet = os.environ | {
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    done = subprocess.run(command, cwd=ROOT, env=quiet, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode or not INDEX.exists():
        lines = [line for line in done.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
        said = "\n".join(lines) or done.stdout
        raise SystemExit(f"{said}\nThe book was not built: warnings count as errors (above).")
    STAMP.write_text(now)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="build even when nothing has changed")
    try:
        build(parser.parse_args().force)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command starts the build again") from None
    print(f"The book is ready; open  {INDEX.as_uri()}", flush=True)
