"""Somebody adds a chapter: the ten steps of CONTRIBUTING.md, taken one after the other in a copy of the checkout.

The page itself is not built here: that takes minutes, and `make pages` builds every page that stands in `_toc.yml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
STEPS = re.findall(
    r"^(\d+)\. \*\*(.+?)\*\*(.*?)(?=^\d+\. \*\*|^## )",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A chapter in ten steps")[2],
    re.M | re.S,
)

MODULE = '''"""A leaky integrator: a constant gate decides how much of the past is kept."""

from jaxtyping import Float
from torch import Tensor


def leak(x: Float[Tensor, "time"], gate: float | int) -> Float[Tensor, "time"]:
    """h_t = gate h_(t-1) + (1 - gate) x_t, from h = 0.

    Raises:
        ValueError: a gate outside [0, 1].
    """
    if not 0 <= gate <= 1:
        raise ValueError(f"gate must lie in [0, 1]; got {gate}")
    states = [x[0] * (1 - gate)]
    for value in x[1:]:
        states.append(gate * states[-1] + (1 - gate) * value)
    return x.new_tensor(states)
'''
TEST = '''"""The leak against its closed form."""

import torch

from gated.toy import leak


def test_a_constant_input_is_approached_geometrically():
    torch.testing.assert_close(leak(torch.ones(8), 0.5), 1 - 0.5 ** torch.arange(1, 9))
'''
ERRORS = '''"""What the leak refuses."""

import pytest
import torch

from gated.toy import leak


@pytest.mark.parametrize("gate", [-0.1, 1.1, float("nan")])
def test_a_gate_outside_its_range(gate):
    with pytest.raises(ValueError, match="gate"):
        leak(torch.ones(3), gate)
'''
CARD = """
[[card]]
chapter = "toy"
part = "Agents"
title = "A toy that leaks"
authors = "Nemo Nobody"
venue = "arXiv"
year = 2024
link = "https://arxiv.org/abs/2401.00001"
sentence = "A constant decides how much of the past is kept."
flows = "the state of an integrator"
decides = "a constant"
hardness = "soft"
learned = "not at all"
status = "written"
"""
CELLS = [
    "# A toy that leaks\n\nA constant gate, as in {cite}`toy2024leak`.",
    """import torch

from gated.lab import bench
from gated.lab.cards import CARDS
from gated.lab.claims import Ledger, holds_if
from gated.toy import leak

CARDS["toy"]""",
    "## The idea in one picture\n\nThe state approaches a constant input.",
    "# NBVAL_CHECK_OUTPUT\nleak(torch.ones(4), 0.5).tolist()",
    "## Claims",
    """ledger = Ledger("toy")
ledger.claim(
    id="C1",
    claim="The distance to a constant input halves at each step.",
    refuted_if="It does not.",
    measured=0.5,
    verdict=holds_if(leak(torch.ones(2), 0.5).tolist() == [0.5, 0.75]),
    why="An identity.",
)
ledger""",
    "## Cost",
    """report = bench.Report("toy")
x = torch.ones(64)
race = bench.race({"leak": lambda: leak(x, 0.5), "sum": lambda: x.cumsum(0)}, rounds=6, warmup=1)
report.race("64 steps", {"T": 64}, race)
report""",
]
ENTRY = """
@misc{toy2024leak,
  title  = {A toy that leaks},
  author = {Nobody, Nemo},
  year   = {2024},
  eprint = {2401.00001},
}
"""
FACTS = """
[[chapter]]
name = "toy"
knows = "You need a sum."
flows = "memory"
decides = ["constant"]
[chapter.words]
"leak" = "the-idea-in-one-picture"

[[link]]
from = "online_cbf"
to = "toy"
forward = "a constant that nobody sets anew"
back = "a constant that is set at every step"
"""


class Newcomer:
    """Who has a copy, and does what a step says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")

    def add(self, path: str, text: str, after: str = "") -> None:
        """To the end, or after a line that is there."""
        old = (self.folder / path).read_text(encoding="utf-8")
        assert after in old
        self.write(path, old.replace(after, after + text, 1) if after else old + text)

    def run(self, *arguments: str, **extra: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=self.environment | extra, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def test(self, *arguments: str, **extra: str) -> None:
        self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **extra)

    def set_up(self) -> None:
        skipped = shutil.ignore_patterns("__pycache__", ".*", "_build", "build", "vendor", "api", "dist")
        shutil.copytree(ROOT, self.folder, ignore=skipped)

    def write_the_module(self) -> None:
        self.write("gated/toy.py", MODULE)

    def write_the_tests(self) -> None:
        self.write("tests/test_toy.py", TEST)
        self.write("tests/test_errors_toy.py", ERRORS)
        self.test("tests/test_errors_toy.py", GATED_TYPECHECK="0")

    def fill_in_the_card(self) -> None:
        self.add("gated/lab/_data/cards.toml", CARD)

    def write_the_notebook(self) -> None:
        cells = [
            (new_code_cell, new_markdown_cell)[text.startswith("#") and "NBVAL" not in text](text) for text in CELLS
        ]
        nbformat.write(new_notebook(cells=cells), self.folder / "book" / "toy.ipynb")

    def cite(self) -> None:
        self.add("book/references.bib", ENTRY)

    def execute_it(self) -> None:
        self.add("_toc.yml", "      - file: book/toy\n", after="      - file: book/online_cbf\n")
        self.add("book/chapters.toml", FACTS)
        self.run("tools/notebooks.py", "book/toy.ipynb")

    def claims(self) -> None:
        self.run("tools/claims.py")
        rows = json.loads((self.folder / "build" / "claims.json").read_text(encoding="utf-8"))["rows"]
        assert [row["id"] for row in rows if row["chapter"] == "toy"] == ["C1"]

    def timing(self) -> None:
        code = "import claims; print(claims.carried(claims.ROOT / 'book/toy.ipynb', claims.BENCH)[0]['case'])"
        assert self.run("-c", f"import sys; sys.path.insert(0, 'tools'); {code}") == "64 steps\n"

    def check_all(self) -> None:
        """Of `make test` what could not pass before, and what a new chapter could break."""
        self.add("CHANGELOG.md", "\n- A chapter, `toy`.\n")
        own = ("gated/toy.py", "tests/test_toy.py", "tests/test_errors_toy.py")
        self.run("-m", "ruff", "check", *own)
        self.run("-m", "ruff", "format", "--check", *own)
        compared = ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/book/nbval.cfg")
        self.test(*compared, "book/toy.ipynb")
        files = (
            "tests/test_toy.py",
            "tests/lab/test_cards.py",
            "tests/book/test_notebooks.py",
            "tests/book/test_reader.py",
        )
        self.test(*files, "-k", "toy or test_cards or facts or threads or cited")


def test_the_ten_steps(tmp_path):
    assert [int(number) for number, *_ in STEPS] == list(range(1, 11))
    newcomer = Newcomer(tmp_path / "gated")
    for _, title, text in STEPS:
        getattr(newcomer, title.rstrip(".").lower().replace(" ", "_"))()
        for path in re.findall(r"`((?:gated|tests|book|tools)/[\w/]+\.\w+)`", text):
            assert "mychapter" in path or (newcomer.folder / path).exists(), path
