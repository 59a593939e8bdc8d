"""Put MathJax beside the pages: `python tools/vendor.py` fills `vendor/` once; afterwards no network is
needed.

MathJax is taken from a Python wheel, so that building the book asks for no node and no npm. Only the one
component that we load and its fonts are kept (1.4 of 10 MB). """

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "vendor"
WHEEL = "django-static-mathjax==3.2.2.1"
SHA256 = "05ad109fd9e5d9d380c76389689b7f523e9ccb7f7a85c1eb962c7564eac7601d"
INSIDE = "mathjax/static/mathjax/es5/"
KEPT = ("tex-chtml.js", "output/chtml/fonts/woff-v2/")


def fetch() -> None:
    stamp = VENDOR / ".ready"
    if stamp.exists() and stamp.read_text() == SHA256:
        return
    print(f"fetching MathJax ({WHEEL}, 10 MB)", flush=True)
    cache = VENDOR / ".cache"
    shutil.rmtree(cache, ignore_errors=True)
    quiet = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(cache),
            WHEEL,
        ],
        env=quiet,
        text=True,
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        raise SystemExit(
            f"{done.stderr}\nMathJax could not be fetched; with a network, run the same command again."
        )
    wheel = next(cache.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel.name}: sha256 is {found}, expected {SHA256}; nothing was installed.")
    fresh = VENDOR / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(tuple(INSIDE + kept for kept in KEPT)) and not name.endswith("/"):
                target = fresh / name.removeprefix(INSIDE)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    shutil.rmtree(VENDOR / "mathjax", ignore_errors=True)
    fresh.rename(VENDOR / "mathjax")
    shutil.rmtree(cache)
    stamp.write_text(SHA256)


if __name__ == "__main__":
    fetch()
