"""The first code cell of every notebook: what lets the file run alone, in an empty folder or on Colab.

`tools/notebooks.py` and `tools/repo.py` write it; nobody edits it in a notebook. It takes the package as it was at this
version's tag, so that a page and what it runs on are of one age.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAGS = ["bootstrap", "hide-cell", "nbval-check-output"]  # it prints nothing
TEXT = """\
# This cell lets the notebook run alone: where `gated` is missing (Colab, an empty folder), it is installed.
# GATED_SOURCE may name a checkout or a wheel to take it from. An installed torch stays as it is.
import importlib.util, os, pathlib, subprocess, sys

source = os.environ.get("GATED_SOURCE", "")
if not source and importlib.util.find_spec("gated") is None:
    source = ".." if pathlib.Path("../gated/lab").is_dir() else "git+@URL@@v@VERSION@"
if source:
    source = source if "://" in source else pathlib.Path(source).resolve().as_uri()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, f"gated[lab] @ {source}"], capture_output=True, text=True)
    assert done.returncode == 0, f"gated could not be installed from {source}:\\n{done.stderr}"
    importlib.invalidate_caches()"""


def repository(root: Path = ROOT) -> str:
    """The repository's address, from the one place where it is decided."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def version(root: Path = ROOT) -> str:
    """The package's, from the one place where it stands, without importing it."""
    found = re.search(r'^__version__ = "(.+)"$', (root / "gated/__init__.py").read_text(encoding="utf-8"), re.M)
    assert found, "gated/__init__.py says no version"
    return found[1]


def text() -> str:
    return TEXT.replace("@URL@", repository()).replace("@VERSION@", version())
