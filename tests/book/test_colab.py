"""The bootstrap cell where Colab runs it: an environment with torch and nothing else, and no `GATED_SOURCE`.

No network is needed. The repository's address leads to a copy of this checkout (by git's own `insteadOf`), and pip
finds one wheel for each installed package: its true metadata, and a path file that lends its modules. So pip resolves
what the package really asks for, and a module can be imported only if pip installed its distribution.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
COLAB = """
class _widgets: _installed_url = None
def enable_custom_widget_manager(): _widgets._installed_url = "https://manager.example"
"""
AFTERWARDS = """
import importlib, pkgutil, site, sysconfig
site.addsitedir(sysconfig.get_paths()["purelib"])  # the lent modules need it: path files are read at start
import gated, gated.lab, google.colab.output
for module in pkgutil.walk_packages(gated.lab.__path__, "gated.lab."):
    importlib.import_module(module.name)
from gated.lab.explorables import GateExplorable
shown, metadata = GateExplorable().live(lambda temperature, **_: {"asked at": temperature})._repr_mimebundle_()
assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= set(shown), shown.keys()
assert "manager.example" in str(metadata)  # widgets of third parties are switched on, and their manager is named
from gated.lab import claims
assert "gated" in claims.versions() and claims.provenance("gla", "__SOME__").command
print(gated.__file__)
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(*names: str) -> dict[str, Distribution]:
    """Installed distributions that these need, themselves included; extras left out."""
    found: dict[str, Distribution] = {}
    for name in names:
        if plain(name) not in found:
            found[plain(name)] = distribution(name)
            needs = [Requirement(text) for text in found[plain(name)].requires or []]
            wanted = [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
            found = closure(*wanted) | found if not set(map(plain, wanted)) <= found.keys() else found
    return found


def lend(package: Distribution, folder: Path) -> Path:
    """A folder with links to the modules of one distribution."""
    folder.mkdir(parents=True)
    for name in {file.parts[0] for file in package.files or []}:
        if name not in ("..", "__pycache__") and not name.endswith(".dist-info"):
            (folder / name).symlink_to(Path(str(package.locate_file(name))))
    return folder


def stub(package: Distribution, wheels: Path, lent: Path) -> None:
    """A wheel with the metadata of an installed distribution and, for modules, a path file."""
    stem = f"{plain(package.name).replace('-', '_')}-{package.version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(wheels / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.pth", f"{lend(package, lent / stem)}\n")
        wheel.writestr(f"{info}/METADATA", package.read_text("METADATA") or "")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*wheel.namelist(), f"{info}/RECORD"]))


@pytest.fixture(scope="module")
def colab(tmp_path_factory, tool):
    """A Python that sees torch alone, the environment variables of its process, and its empty working directory."""
    home = tmp_path_factory.mktemp("colab")
    venv.create(home / "environment", symlinks=True)
    python = home / "environment" / "bin" / "python"
    site = next((home / "environment").glob("lib/python*/site-packages"))
    for name, package in (torch := closure("torch", "pip")).items():
        lend(package, home / "torch" / name)
        info = Path(str(package.locate_file(""))) / f"{package.metadata['Name']}-{package.version}.dist-info"
        where = next(path for path in info.parent.glob("*.dist-info") if Distribution.at(path).name == package.name)
        (home / "torch" / name / where.name).symlink_to(where)
    (home / "google" / "google" / "colab").mkdir(parents=True)
    (home / "google" / "google" / "colab" / "__init__.py").touch()
    (home / "google" / "google" / "colab" / "output.py").write_text(COLAB)
    paths = [*(home / "torch").iterdir(), home / "google"]
    (site / "machine.pth").write_text("".join(f"{path}\n" for path in paths))

    (wheels := home / "wheels").mkdir()
    for package in {plain(one.name): one for one in distributions(path=[sysconfig_purelib()])}.values():
        if plain(package.name) not in {*torch, "gated"}:
            stub(package, wheels, home / "lent")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in ["pyproject.toml", *project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]:
        target = home / "repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    tag = f"v{tool('bootstrap').version()}"
    git = ["git", "-C", str(home / "repository"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"], ["tag", tag]):
        subprocess.run([*git, *command], check=True)

    (empty := home / "content").mkdir()
    keep = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_COMPILE": "1",
    }
    environment |= {"PIP_ROOT_USER_ACTION": "ignore", "GIT_CONFIG_COUNT": "1"}
    environment |= {
        "GIT_CONFIG_KEY_0": f"url.{(home / 'repository').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": tool("bootstrap").repository(),
    }
    return python, environment, empty


def sysconfig_purelib() -> str:
    return next(path for path in sys.path if path.endswith("site-packages"))


def run(colab, code: str) -> subprocess.CompletedProcess:
    python, environment, folder = colab
    return subprocess.run([str(python), "-c", code], env=environment, cwd=folder, text=True, capture_output=True)


def imported(path: Path) -> set[str]:
    """What the cells of a notebook import when they run, whatever the machine: what stands in no `if` and no `def`."""
    names: set[str] = set()
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and not re.search(r"^\s*[%!]", cell.source, re.M):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module)
    return names


def test_the_bootstrap_cell_installs_all_that_a_notebook_needs_beside_torch(colab):
    bare = run(colab, "import torch; print(torch.__version__)\nimport google.colab\nimport numpy")
    assert bare.stdout and "No module named 'numpy'" in bare.stderr, bare.stderr  # torch works, and is alone
    assert "No module named 'gated'" in run(colab, "import gated").stderr

    cells = [cell for cell in nbformat.read(ROOT / "book" / "gla.ipynb", 4).cells if cell.cell_type == "code"]
    stored = next(iter(json.loads((ROOT / "book" / "_results" / "gla.json").read_text())))
    done = run(colab, f"import google.colab.output\n{cells[0].source}\n{AFTERWARDS.replace('__SOME__', stored)}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(done.stdout.strip()).is_relative_to(colab[0].parents[1]), done.stdout  # and the cell said nothing

    told = set()  # what a page tells its reader to install
    for path in NOTEBOOKS:
        words = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        told |= {name for name in imported(path) if f"`pip install {name}`" in words}
    assert told == {"timm"}
    wanted = set.union(*map(imported, NOTEBOOKS)) - told
    assert {"numpy", "gated.lab", "einops"} <= wanted
    found = run(colab, f"import importlib.util as u\nprint([n for n in {sorted(wanted)} if u.find_spec(n) is None])")
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
