"""A small part of `make matrix` is run here. Warnings are errors, also of every module's import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.clock  # processes of its own

EVERY_MODULE = """
import importlib, pkgutil, gated
names = [module.name for module in pkgutil.walk_packages(gated.__path__, "gated.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="module")
def matrix(tool):
    return tool("matrix")


def test_a_small_part_again(matrix, tmp_path):
    """An order, a place and a processor that `make unit` does not know."""
    variables = {"OMP_NUM_THREADS": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"} | matrix.OLD
    if shutil.which("localedef"):
        made = ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"]
        if subprocess.run(made, capture_output=True).returncode == 0:  # its sources are a package of their own
            variables |= {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    chosen = ["tests/gates/test_soft.py", "tests/gates/test_schedules.py", "tests/gates/test_losses.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    seed = [*matrix.shuffled(4)]
    done = subprocess.run([*command, *seed], cwd=ROOT, env=os.environ | variables, text=True, capture_output=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_warnings_are_errors():
    """In the tests by pytest's setting, in the imports here."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    assert all(line.startswith(("ignore:", "default:")) for line in settings["filterwarnings"][1:])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERY_MODULE],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150 and not done.stderr
