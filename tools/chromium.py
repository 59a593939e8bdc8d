"""Find a Chromium, or install one where this machine lets us: `python tools/chromium.py`."""

from __future__ import annotations

import os
import shutil
import subprocess

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
HOW = (
    "no Chromium or Chrome was found. Install one (Debian: apt install chromium; Fedora: dnf install "
    "chromium; macOS: brew install --cask chromium), or name it: CHROMIUM=/path/to/chrome make pages"
)


def find() -> str | None:
    """The path of the browser; the environment variable CHROMIUM comes first."""
    return next(
        (path for name in (os.environ.get("CHROMIUM", ""), *NAMES) if name and (path := shutil.which(name))),
        None,
    )


def ensure() -> str:
    """The path of the browser. As root on a machine with apt it is installed when missing; else
    SystemExit says how."""
    if path := find():
        return path
    if getattr(os, "geteuid", lambda: 1)() == 0 and shutil.which("apt-get"):
        print("installing Chromium (apt) ...", flush=True)
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in ("apt-get update -q", "apt-get install -y -q --no-install-recommends chromium"):
            subprocess.run(command.split(), env=env, stdout=subprocess.DEVNULL)
    if path := find():
        return path
    raise SystemExit(HOW)


if __name__ == "__main__":
    print(ensure())
