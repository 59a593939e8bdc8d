"""Each example that a docstring gives is run, and all that carries the book has one.

An example needs `torch` and what the entry's own package exports, as the front page of the API says; nothing else is
at hand here. The text is read from the source, because the run-time check of shapes wraps what it hands out.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "gated").rglob("*.py")
    if "lab" not in path.parts and ">>> " in path.read_text(encoding="utf-8")
)
# Every public name of these has an example; of the others, what is met first.
WHOLE = ["gates", "gla", "backbones", "policy_gradient", "kernels.gla", "kernels.grouped_gemm", "kernels.topk_gate"]
WHOLE += ["kernels.barrier_qp", "kernels.langevin_scan", "kernels.gmoe_em"]


def package(path: str) -> str:
    """The package whose front door the file stands behind."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts[: 3 if parts[1] == "kernels" else 2])


def documented(path: str) -> list[tuple[str, str, int]]:
    """(name, docstring, line) of each module, class, function and method of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [
        (getattr(node, "name", path), text, getattr(node, "lineno", 1))
        for node in nodes
        if (text := ast.get_docstring(node))
    ]


@pytest.mark.parametrize("path", FILES)
def test_the_examples_run_and_give_what_they_say(path):
    front = vars(importlib.import_module(package(path)))
    public = {name: value for name, value in front.items() if not name.startswith("_")}
    for name, text, line in documented(path):
        example = doctest.DocTestParser().get_doctest(text, {"torch": torch, **public}, name, path, line)
        said: list[str] = []
        torch.manual_seed(0)
        result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
        assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", WHOLE)
def test_every_public_name_of_the_ground_floor_has_an_example(name, tool):
    api = tool("api")
    lacking = []
    for public in api.exported(f"gated.{name}"):
        found = api.find(f"gated.{name}", public)
        if found and not public.startswith("check_") and ">>> " not in (ast.get_docstring(found[1]) or ""):
            lacking.append(public)
    assert lacking == []
