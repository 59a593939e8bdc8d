"""Execute notebooks in place, in one reproducible form: `python tools/notebooks.py [--check] book/*.ipynb`.

--check    write nothing; exit 1 if a notebook would change (on one machine the bytes are the same again)
--tidy     execute nothing: only refresh the bootstrap cell and normalise what is there
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import bootstrap

ROOT = Path(__file__).resolve().parent.parent

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
WIDGETS = "application/vnd.jupyter.widget-view+json"


def with_bootstrap(nb: NotebookNode) -> NotebookNode:
    """The notebook with the current bootstrap text in its first code cell, which is added when it is
    not there."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    cell = next((cell for cell in code if "bootstrap" in cell.metadata.get("tags", [])), None)
    if cell is None:
        cell = nbformat.v4.new_code_cell(id="bootstrap")
        nb.cells.insert(nb.cells.index(code[0]) if code else len(nb.cells), cell)
    cell.source = bootstrap.text()
    cell.metadata["tags"] = bootstrap.TAGS
    return nb


def normalise(nb: NotebookNode) -> NotebookNode:
    """Drop what differs from run to run or from machine to machine and is not a result.

    Kept are sources, tags, outputs and execution counts (nbval calls a cell with outputs and no count
    an error). """
    nb.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if not re.fullmatch(r"[a-z0-9_-]{1,24}", cell.get("id", "")) or re.fullmatch(
            r"[0-9a-f]{8}(-?[0-9a-f]{4,})*", cell["id"]
        ):
            cell["id"] = f"cell-{number:03d}"
        if cell.cell_type == "markdown":
            cell.pop("attachments", None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output["metadata"] = nbformat.from_dict({})
            data = output.get("data", {})
            data.pop(
                WIDGETS, None
            )  # a live widget has no kernel to speak to in a page; the text/html beside it has no need
            if "text/plain" in data:
                data["text/plain"] = re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x0", data["text/plain"])
    ids = [cell["id"] for cell in nb.cells]
    if len(set(ids)) != len(ids):
        for number, cell in enumerate(nb.cells):
            cell["id"] = f"cell-{number:03d}"
    return nb


def execute(nb: NotebookNode, folder: Path, timeout: int | None, say=lambda text: None) -> NotebookNode:
    """Run all cells in a fresh kernel; a cell that fails, or lasts longer than `timeout` seconds, raises."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    # Encryption between kernel and client silences ipykernel's remark about plain TCP.
    secure = {"transport_encryption": "auto"}
    total = len(nb.cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = NotebookClient(
            nb,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            config=Config({"KernelManager": secure, "AsyncKernelManager": secure}),
            on_cell_start=lambda cell, cell_index: say(f"cell {cell_index + 1}/{total}"),
        )
        client.execute()
    return nb


def process(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether the file is as it would be written."""
    before = path.read_text(encoding="utf-8")
    nb = with_bootstrap(nbformat.reads(before, as_version=4))
    terminal = sys.stdout.isatty()
    start = time.perf_counter()

    def say(text: str) -> None:
        if terminal:
            print(f"\r{path.name}: {text}  ", end="", flush=True)

    if not arguments.tidy:
        nb = execute(nb, path.parent, arguments.timeout or None, say)
    after = nbformat.writes(normalise(nb)) + "\n"
    same = after == before
    spent = time.perf_counter() - start
    print("\r" * terminal + f"{path.name}: {'as it was' if same else 'changed'}, {spent:.0f} s", flush=True)
    if not (same or arguments.check):
        partial = path.with_suffix(".partial")
        partial.write_text(after, encoding="utf-8")
        partial.replace(path)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tidy", action="store_true")
    parser.add_argument("--timeout", type=int, default=120, help="seconds a cell, 0: no limit")
    arguments = parser.parse_args()
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ["GATED_QUIET"] = "1"  # progress bars would be written into the outputs
    os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    missing = [path for path in arguments.paths if not path.exists()]
    if missing:
        there = ", ".join(sorted(path.stem for path in (ROOT / "book").glob("*.ipynb")))
        raise SystemExit(f"{missing[0]} does not exist; the notebooks are: {there}")
    same = [process(path, arguments) for path in arguments.paths]
    sys.exit(1 if arguments.check and not all(same) else 0)


if __name__ == "__main__":
    main()
