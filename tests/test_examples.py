"""Each example that a docstring gives is run, and all that carries the book has one.

An example needs `torch` and what the entry's own package exports, as the front page of the API says; nothing else is
at hand here (`gated.lab` exports nothing, so its examples import what they use). The text is read from the source,
because the run-time check of shapes wraps what it hands out.
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
    str(path.relative_to(ROOT)) for path in (ROOT / "gated").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
)
# Every public name of these has an example, and in a chapter's package a quarter of them, what is met first.
WHOLE = ["gates", "gla", "backbones", "policy_gradient", "kernels.gla", "kernels.grouped_gemm", "kernels.topk_gate"]
WHOLE += ["kernels.barrier_qp", "kernels.langevin_scan", "kernels.gmoe_em"]
CHAPTERS = sorted(path.parent.name for path in (ROOT / "gated").glob("*/__init__.py"))
CHAPTERS = [name for name in CHAPTERS if name not in ("gates", "kernels", "lab")]


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


def with_and_without(name: str, api) -> tuple[list[str], list[str]]:
    """The public names of a package that have an example, and those that have none."""
    found = {public: api.find(f"gated.{name}", public) for public in api.exported(f"gated.{name}")}
    texts = {public: ast.get_docstring(place[1]) or "" for public, place in found.items() if place}
    have = [public for public, text in texts.items() if ">>> " in text]
    return have, [public for public in texts if public not in have and not public.startswith("check_")]


@pytest.mark.parametrize("name", WHOLE)
def test_every_public_name_of_the_ground_floor_has_an_example(name, tool):
    assert with_and_without(name, tool("api"))[1] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_quarter_of_a_chapters_names_have_an_example(name, tool):
    have, lacking = with_and_without(name, tool("api"))
    assert 3 * len(have) >= len(lacking) > 0, lacking
