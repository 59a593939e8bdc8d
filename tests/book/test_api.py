"""What the API pages promise of every entry: what it computes, its arguments, what it raises, where it comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = re.compile(r"\b(Float|Int|Int64|Bool|Tensor)\b")
# Said of another entry, or meant for all of a family: "Args, Raises: as in `topk_gate`".
ELSEWHERE = re.compile(r"(as in|as|of|see|like|what) `\w+`|is `\w+`", re.I)
SOURCE = re.compile(r"arXiv|\b(1[89]|20)\d\d\b|\bours?\b", re.I)
Definition = ast.FunctionDef | ast.ClassDef


@pytest.fixture(scope="module")
def api(tool):
    return tool("api")


@cache
def own_types() -> re.Pattern[str]:
    """The package's classes and the names that stand for a choice (`Score = Literal[...]`): each says what it is."""
    names = set()
    for path in (ROOT / "gated").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
            elif (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id[0].isupper()
            ):
                names.add(node.targets[0].id)
    return re.compile(rf"\b({'|'.join(sorted(names))})\b")


def text_of(node: Definition) -> str:
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return "\n\n".join(filter(None, [ast.get_docstring(node), *(ast.get_docstring(init) for init in inits)]))


def arguments(node: Definition) -> Iterator[tuple[str, str]]:
    """(name, annotation) of each argument; of a record, each field that no string below it explains."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        if not inits:
            for item, after in zip(node.body, [*node.body[1:], None], strict=True):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not said:
                    yield item.target.id, ast.unparse(item.annotation)
            return
        listed = inits[0].args
    else:
        listed = node.args
    for argument in [*listed.posonlyargs, *listed.args, *listed.kwonlyargs]:
        if argument.arg not in ("self", "cls"):
            yield argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""


def raises(node: Definition) -> bool:
    """Whether a call of it has a `raise` of its own; what a class's methods raise, they say."""
    bodies: list[ast.AST] = [node]
    if isinstance(node, ast.ClassDef):
        bodies = [
            item
            for item in node.body
            if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__post_init__")
        ]
    return any(isinstance(item, ast.Raise) for body in bodies for item in ast.walk(body))


def lacking(node: Definition, module: str, alike: set[str]) -> list[str]:
    """What the docstring of a public name does not say."""
    text = text_of(node)
    if not text:
        return ["a docstring"]
    out = []
    if not ELSEWHERE.search(text):
        for name, annotation in arguments(node):
            said = re.search(rf"(?<!\w){name}(?!\w)", text) or name in alike
            if not (name.startswith("_") or said or SHAPE.search(annotation) or own_types().search(annotation)):
                out.append(f"the argument {name}")
    if raises(node) and not re.search(r"Raises|[Rr]aises? `?\w*Error|ValueError", text) and not ELSEWHERE.search(text):
        out.append("what it raises")
    if not SOURCE.search(text + module):
        out.append("a source")
    return out


def entries(api) -> Iterator[tuple[str, str, Definition, str]]:
    """(page, name, node, text of the modules that it stands in) of each name that a front door exports."""
    pages = [name.removesuffix(".md") for name in api.pages() if name != "index.md"]
    for page in pages:
        for name in api.exported(page) if page != "gated.lab" else []:
            if found := api.find(page, name):
                around = " ".join(ast.get_docstring(tree) or "" for tree in map(api.parse, {page, found[0]}) if tree)
                yield page, name, found[1], around


def test_every_public_name_says_what_it_must(api):
    alike = {name for names in api.ALIKE for name in names.split(", ")}
    found = list(entries(api))
    assert len(found) > 350
    wrong = {f"{page}.{name}": gaps for page, name, node, around in found if (gaps := lacking(node, around, alike))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "gaps"),
    [
        ("def f(a: int) -> int:\n    return a", ["a docstring"]),
        ("def f(a: int) -> int:\n    '''Adds. Ours.'''", ["the argument a"]),
        ("def f(a: Tensor) -> int:\n    '''Adds, Shazeer 2017.'''\n    raise ValueError", ["what it raises"]),
        ("def f(a: int) -> int:\n    '''Adds a.'''", ["a source"]),
        ("def f(a: int, dim: int) -> int:\n    '''Adds a (ours). Raises ValueError.'''\n    raise ValueError", []),
        ("class C(NamedTuple):\n    '''Ours.'''\n    a: int\n    b: int\n    '''How many.'''", ["the argument a"]),
    ],
)  # fmt: skip
def test_a_gap_is_seen(source, gaps):
    node = ast.parse(source).body[0]
    assert isinstance(node, Definition)
    assert lacking(node, "", {"dim"}) == gaps


def test_a_page_shows_examples_fields_and_where_a_name_is_explained(api):
    gates, jeidnn = api.pages()["gated.gates.md"], api.pages()["gated.gla.md"]
    assert "~~~pycon\n>>> softmax_gate(torch.tensor" in gates
    assert "{py:attribute} memory\n:type: Tensor\n\nS, \\[batch, heads, K, V\\]" in jeidnn
    for names in api.ALIKE:
        assert f"`{names.split(', ')[0]}`" in api.pages()["index.md"]


def test_what_a_cell_binds_itself_and_what_is_no_name_stays_plain(tool):
    """The rules by which `tools/code_links.py` makes links of names."""
    links = tool("code_links")
    symbols = links.Symbols({"gated.gates.load", "gated.gates.topk_gate", "gated.gates.NoisyTopKGate"})
    names = links.Names("gates", symbols)
    names.imports = {"load": "gated.gates.load", "g": "gated.gates", "pick": "gated.gates.topk.topk_gate"}
    cell = 'pick(x, load=1) + g.topk_gate(y.load, "load")'
    assert [(cell[a:b], target) for a, b, target in names.code(cell)] == [
        ("pick", "gated.gates.topk_gate"),
        ("g.topk_gate", "gated.gates.topk_gate"),
    ]
    assert list(names.code("load = 3\nload + 1")) == []
    assert list(names.code("load(w)")) == [(0, 4, "gated.gates.load")]
    assert [a for a, _, _ in names.code('f"load {load(w)}"')] == [2, 8]  # the first is text: no token ends there
    assert names.literal("NoisyTopKGate(8, 4)") == "gated.gates.NoisyTopKGate"
    assert names.literal("a sentence") is None and names.literal("nothing_here") is None


def test_each_definition_is_explained_once_and_linked_elsewhere(api):
    places = [f"{place[0]}.{place[1].name}" for page in api.modules() for place in explained(api, page)]
    assert len(places) == len(set(places)) > 350
    moe = api.pages()["gated.moe.md"]
    assert moe.count("{py:class} LinearScore(features: int, num_experts: int, ") == moe.count("{py:class} LinearScore")
    assert "{py:obj}`LinearScore <gated.moe.scores.LinearScore>`" in moe


def explained(api, page: str) -> Iterator[tuple[str, Definition]]:
    """What has an entry on the page: the headings say in which module."""
    module = page
    for line in api.pages()[f"{page}.md"].splitlines():
        if line.startswith("```{py:currentmodule} "):
            module = line.split()[1]
        elif found := re.match(r":{3,4}\{py:(?:function|class)} (\w+)", line):
            yield api.find(module, found[1])


def test_a_signature_stays_when_the_pages_are_made_again(api):
    assert api.pages() == api.pages()
    pack = api.find("gated.kernels.gmoe_em", "Points")[1]
    assert "pack(x: " in api.describe("Points", pack) == api.describe("Points", pack)


def test_a_map_of_files_is_a_list_and_an_equation_is_not(api):
    files = "    a.py, b.py  what `x` is\n    long_name.py    more\n    rank(x, 3)      where it stands"
    assert api.prose(files) == "- `a.py, b.py`: what `x` is\n- `long_name.py`: more\n- `rank(x, 3)`: where it stands"
    for block in ("    a = b + c,    c > 0", "    o.weight  [d, e]    conv.weight\n    p.weight  [d]       none"):
        assert api.prose(block).startswith("~~~text\n")
    for page in api.pages().values():
        for block in re.findall(r"^~~~text\n(.*?)^~~~$", page, re.S | re.M):
            assert "`" not in block
