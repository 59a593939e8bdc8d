"""Every notebook as a reader has it who has nothing else: `prepare` copies each alone into an empty folder, beside an
environment of its own that has all libraries but `gated`.

The kernel `lean` runs a notebook with the environment that lies beside its folder. `GATED_SOURCE` names the wheel that
the bootstrap cell installs there; without a network (`PIP_NO_INDEX`), since all that `gated` needs is there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path("environment", "Scripts" if os.name == "nt" else "bin", "python")


def prepare(notebooks: list[Path], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The copies below `folder`, which is made anew, and the variables with which to run them.

    The libraries are lent by a path file, which takes no time and no network where an installation would take minutes.
    Path files in the lent folder are not read through, so the editable installation of `gated` is not lent with it.
    Raises `RuntimeError` where `gated` can be found all the same.
    """
    shutil.rmtree(folder, ignore_errors=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), "."]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    copies = []
    for notebook in notebooks:
        own = folder / notebook.stem
        venv.create(own / "environment", symlinks=os.name != "nt")
        places = {"base": str(own / "environment"), "platbase": str(own / "environment")}
        lent = Path(sysconfig.get_path("purelib", "venv", places)) / "lent.pth"
        lent.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        copies.append(own / "an empty folder" / notebook.name)
        copies[-1].parent.mkdir()
        shutil.copyfile(notebook, copies[-1])
        probe = "import importlib.util; print(importlib.util.find_spec('gated'))"
        asked = [str(own / PYTHON), "-c", probe]
        found = subprocess.run(asked, cwd=copies[-1].parent, check=True, capture_output=True, text=True).stdout.strip()
        if found != "None":
            raise RuntimeError(f"the environment of {notebook.name} has gated already: {found}")
    spec = folder / "jupyter" / "kernels" / "lean" / "kernel.json"
    spec.parent.mkdir(parents=True)
    start = [str(Path("..") / PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": start, "display_name": "lean", "language": "python"}), encoding="utf-8")
    return copies, {"GATED_SOURCE": str(wheel), "JUPYTER_PATH": str(spec.parents[2]), "PIP_NO_INDEX": "1"}
