"""The committed notebooks as files: executed in order, clean, small, and with nothing of one machine in
them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PRIVATE = re.compile(r"(?<![\w./])/(home|root|tmp|Users|work|opt|usr|var|content|mnt)/|[A-Z]:\\\\Users")


def texts(output: dict) -> str:
    """What a reader sees of an output, data that browsers read included; images are left out."""
    if "text" in output:
        return "".join(output["text"])
    return "\n".join(
        str(value) for mime, value in output.get("data", {}).items() if not mime.startswith("image/p")
    )


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> Path:
    return request.param


def test_there_are_notebooks():
    assert {"gates", "gla"} <= {path.stem for path in NOTEBOOKS}


def test_it_is_small(notebook):
    assert notebook.stat().st_size <= 1.5e6


def test_every_cell_was_run_in_order_and_cleanly(notebook):
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            raises = "raises-exception" in cell.metadata.get("tags", [])
            assert raises or output.output_type != "error", cell.source
            assert output.get("name") != "stderr", (cell.source, texts(output))
            assert not re.search(r"\b\w*Warning:", texts(output)), cell.source


def test_no_path_of_one_machine(notebook):
    nb = nbformat.read(notebook, 4)
    for cell in nb.cells:
        for text in [cell.source, *(texts(output) for output in cell.get("outputs", []))]:
            assert not (found := PRIVATE.search(text)), text[max(0, found.start() - 60) : found.end() + 60]


def test_it_is_in_normal_form(notebook, tool):
    text = notebook.read_text(encoding="utf-8")
    tools = tool("notebooks")
    nb = tools.normalise(tools.with_bootstrap(nbformat.reads(text, 4)))
    assert nbformat.writes(nb) + "\n" == text, f"run: python tools/notebooks.py --tidy book/{notebook.name}"


def test_it_starts_with_the_bootstrap_cell(notebook, tool):
    first = next(cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    assert first.source == tool("bootstrap").text() and first.outputs == []


def test_something_exact_is_checked(notebook):
    """nbval --nbval-lax compares marked cells only: a notebook without any would be checked for
    errors alone."""
    marked = [
        cell
        for cell in nbformat.read(notebook, 4).cells
        if cell.cell_type == "code" and re.search(r"^# NBVAL_CHECK_OUTPUT", cell.source, re.M)
    ]
    assert marked and all(cell.outputs for cell in marked)


def test_it_is_in_the_table_of_contents(notebook):
    assert f"file: book/{notebook.stem}\n" in (ROOT / "_toc.yml").read_text(encoding="utf-8")


def test_claims_are_on_the_scoreboard(notebook, tool):
    claims = tool("claims")
    carried = claims.carried(notebook, claims.CLAIMS)
    assert notebook.stem in ("gates", "recipes") or carried
    tool("results").check("claims", {"rows": claims.collect()})


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), "."],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def lean(tmp_path_factory) -> Path:
    """A fresh environment that has all libraries, but not `gated`. It is copied for each notebook.

    The libraries are lent by a path file, which takes seconds and no network where an installation
    would take minutes. A path file is not read through, so the editable installation of `gated` is
    not lent with them."""
    folder = tmp_path_factory.mktemp("lean") / "environment"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # Python 3.11 puts an old setuptools in, which would hide the lent one from torch's requirement.
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "setuptools"], check=True, capture_output=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    (Path(site) / "lent.pth").write_text(lent + "\n")
    return folder


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_notebook_copied_alone_runs_from_a_wheel(name, wheel, lean, tmp_path):
    """The file in an empty folder, GATED_SOURCE naming a wheel, an environment without gated: top to
    bottom."""
    python = shutil.copytree(lean, tmp_path / "environment", symlinks=True) / "bin" / "python"
    alone = tmp_path / "an empty folder"
    alone.mkdir()
    (alone / f"{name}.ipynb").write_bytes((ROOT / "book" / f"{name}.ipynb").read_bytes())
    missing = subprocess.run([str(python), "-c", "import gated"], cwd=alone, capture_output=True)
    assert missing.returncode != 0
    code = (
        "import nbformat, sys\nfrom nbclient import NotebookClient\n"
        f"nb = nbformat.read({name + '.ipynb'!r}, 4)\n"
        "NotebookClient(nb, timeout=120, kernel_name='lean').execute()\n"
        "print([c.outputs for c in nb.cells if c.cell_type == 'code'][0])"
    )
    spec = tmp_path / "jupyter" / "kernels" / "lean"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "lean",
                "language": "python",
            }
        )
    )
    environment = os.environ | {
        "GATED_SOURCE": str(wheel),
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run(
        [str(python), "-c", code], cwd=alone, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[]", "the bootstrap cell printed something"
    where = subprocess.run(
        [str(python), "-c", "import gated; print(gated.__file__)"], cwd=alone, text=True, capture_output=True
    )
    assert where.stdout.startswith(str(tmp_path / "environment"))
