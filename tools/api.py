"""Write the API pages, `book/api/*.md`, from the source text: `python tools/api.py`.

Nothing is imported, so neither torch nor Triton is needed to build the book. A page is made for each
module directly in `gated` or `gated.kernels` whose name has no underscore in front, so a new chapter's
module gets its page by itself. A page shows what the module lists in `__all__` (followed to where it is
defined), else what it defines. A package's other modules, those that its `__init__` does not import from, follow as
sections; the parts of a family of kernels are inside matters and stay out. What two sections export is explained in
one, with a link in the other.

Docstrings are set as they are: paragraphs, `code`, lists, and indented blocks (equations) kept verbatim, but for
maps of files or calls, which become lists; the headings `Args:`, `Returns:`, `Raises:`, ... become bold. Arguments
that mean the same everywhere (`ALIKE`) are explained once, on the front page.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import textwrap
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "book" / "api"
Definition = ast.FunctionDef | ast.ClassDef
HEADING = re.compile(
    r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Attributes|Source|Shapes|Example|Examples|Note|Notes):\s*(.*)$"
)
ENTRY = re.compile(r"\s|[\w*`][\w*`, /]*\s*(\([^)]*\))?:\s")  # of an argument list, or a line that continues one
# A line of a map: files or a call, a gap, and what they are. No line of an equation is one.
MAPPED = re.compile(r"((?:\w+(?:, \w+)* = )?[\w.]+(?:\([^)]*\))?(?:, [\w.]+)*) {2,}(\S+(?: \S+)*)")
FENCED = re.compile("(^~~~.*?^~~~$)", re.M | re.S)
SPECIAL = re.compile(r"[*_<>\[\]{}|$#\\~^]")
# What an argument of this name is, wherever its own docstring does not say more.
ALIKE = {
    "batch, batch_size, steps": "how many at a time, how many times",
    "bias": "whether a linear map adds one",
    "bounds": "the lowest and the highest valid input; None: no bounds",
    "channels, dim, hidden, width": "sizes of what is computed; `hidden` and `width` lie inside a layer",
    "check_finite": "also look for NaN, which reads all values",
    "device, dtype": "where and in which precision the result is made",
    "dropout": "a probability, in [0, 1)",
    "exits, experts, gates, heads, num_experts, tokens": "how many, or the things themselves",
    "generator": "where random numbers come from",
    "in_channels, out_channels, num_classes, classes": "of the inputs, and of what comes out",
    "learning_rate, weight_decay, optimizer": "as in `torch.optim`",
    "model, network": "the module that is asked or trained",
    "path": "of a file",
    "samples": "how many are drawn",
    "temperature": "T or tau, above 0; 1 changes nothing",
    "x, y": "inputs, and labels or targets",
}


@cache
def parse(module: str) -> ast.Module | None:
    """The module's syntax tree, or None when there is no such file (or it does not parse yet)."""
    path = ROOT / module.replace(".", "/")
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.exists():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def children(module: str) -> list[str]:
    folder = ROOT / module.replace(".", "/")
    names = (
        {
            p.stem if p.suffix == ".py" else p.name
            for p in folder.glob("*")
            if p.suffix == ".py" or (p / "__init__.py").exists()
        }
        if folder.is_dir()
        else set()
    )
    return [f"{module}.{name}" for name in sorted(names) if not name.startswith("_")]


def exported(module: str) -> list[str]:
    """`__all__` when it is written out, else every public function and class that is defined here."""
    tree = parse(module)
    if tree is None:
        return []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            with suppress(ValueError):  # put together at run time
                return list(ast.literal_eval(node.value))
    return [node.name for node in tree.body if isinstance(node, Definition) and not node.name.startswith("_")]


def find(module: str, name: str) -> tuple[str, Definition] | None:
    """Where a name is defined: its module and syntax node, following `from gated... import name [as ...]`."""
    tree = parse(module)
    for node in tree.body if tree else []:
        if isinstance(node, Definition) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and (node.module or node.level):
            source = node.module or ""
            if node.level:
                base = module.split(".")
                is_package = (ROOT / module.replace(".", "/")).is_dir()
                keep = len(base) - node.level + is_package
                source = ".".join([*base[:keep], *([source] if source else [])])
            for alias in node.names:
                if (alias.asname or alias.name) == name and source.startswith("gated"):
                    return find(source, alias.name)
    return None


def escape(text: str, keep: str = "") -> str:
    """Everything outside `code` stands for itself; RST's double backticks and roles become code and
    mathematics."""
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${m[1]}$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    parts = re.split(r"(`[^`]*`|\$[^$\n]+\$)", text)
    return "".join(
        p if i % 2 else SPECIAL.sub(lambda m: m[0] if m[0] in keep else "\\" + m[0], p) for i, p in enumerate(parts)
    )


def prose(text: str) -> str:
    """A docstring as Markdown."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.rstrip().splitlines()
        first = HEADING.match(lines[0]) if lines else None
        if first:
            rest = next((i for i, line in enumerate(lines) if i and line.startswith(" ")), len(lines))
            out.append(f"**{first[1]}.** {escape(' '.join([first[2], *lines[1:rest]]))}".rstrip())
            body = textwrap.dedent("\n".join(lines[rest:]))
            if first[1] in ("Example", "Examples"):
                out.append(verbatim(body, "pycon"))
            elif body and all(ENTRY.match(line) for line in body.splitlines()):
                out.append("\n".join(f"- {item}" for item in entries(body)))
            elif body:
                out.append(escape(body))
        elif lines and all(line.startswith("|") for line in lines):
            out.append("\n".join(escape(line, keep="|") if i != 1 else line for i, line in enumerate(lines)))
        elif lines and all(line.startswith(("    ", "\t")) for line in lines):
            block = textwrap.dedent("\n".join(lines))
            rows = [MAPPED.fullmatch(line) for line in block.splitlines()]
            listed = "\n".join(f"- `{row[1]}`: {escape(row[2])}" for row in rows if row)
            out.append(listed if len(rows) > 1 and all(rows) else verbatim(block))
        elif lines and re.match(r"[-*] ", lines[0]):
            out.append("\n".join(re.sub(r"^(\s*)\\?[-*] ", r"\1- ", escape(line)) for line in lines))
        elif len(lines) > 1 and all(line.startswith("    ") for line in lines[1:]):
            out += [escape(lines[0]), verbatim(textwrap.dedent("\n".join(lines[1:])))]
        elif lines:
            out.append("\n".join(escape(line.strip()) for line in lines))
    return "\n\n".join(out)


def verbatim(text: str, language: str = "text") -> str:
    return f"~~~{language}\n{text}\n~~~" if text else ""


def entries(body: str) -> list[str]:
    """`name: text` with indented continuation lines, one Markdown item each."""
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith((" ", "\t")) and items:
            items[-1] += " " + escape(line.strip())
        else:
            name, _, text = line.partition(":")
            items.append(f"`{name.strip().replace('`', '')}`: {escape(text.strip())}")
    return items


def signature(node: ast.FunctionDef, method: bool = False) -> str:
    arguments = copy.deepcopy(node.args)
    if method and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list):
        (arguments.posonlyargs or arguments.args)[:1] = []
    simple: tuple[type[ast.expr], ...] = (ast.Constant, ast.Name, ast.Attribute, ast.UnaryOp, ast.Tuple)
    # What Sphinx cannot read, and what a person would not read either, is shown as an ellipsis.
    for defaults in (arguments.defaults, arguments.kw_defaults):
        for i, value in enumerate(defaults):
            if value is not None and not isinstance(value, simple):
                defaults[i] = ast.Constant(...)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returns}"


def directive(kind: str, head: str, body: str, options: str = "", fence: str = ":::") -> str:
    return f"{fence}{{py:{kind}}} {head}\n{options}\n{body}\n{fence}\n"


def describe(name: str, node: Definition) -> str:
    doc = prose(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return directive("function", name + signature(node), doc)
    members, call = [], ""
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            call = re.sub(r" -> None$", "", signature(item, method=True))
            doc += "\n\n" + prose(ast.get_docstring(item) or "")
        elif isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            if any(ast.unparse(d).split(".")[-1] in ("property", "cached_property") for d in item.decorator_list):
                kind = f":type: {ast.unparse(item.returns)}\n" if item.returns else ""
                members.append(directive("property", item.name, prose(ast.get_docstring(item) or ""), kind))
            elif ast.get_docstring(item) or item.name == "forward":
                members.append(
                    directive(
                        "method",
                        item.name + signature(item, method=True),
                        prose(ast.get_docstring(item) or ""),
                    )
                )
        elif (
            isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
        ):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value)
            kind = f":type: {ast.unparse(item.annotation)}\n"
            members.append(directive("attribute", item.target.id, prose(inspect.cleandoc(said or "")), kind))
    return directive("class", name + call, doc + "\n\n" + "\n".join(members), fence="::::")


def modules() -> list[str]:
    """Those that have a page."""
    return sorted([m for m in children("gated") if m != "gated.kernels"] + children("gated.kernels"))


def below(module: str) -> list[str]:
    """The modules that follow on its page."""
    tree = parse(module)
    merged = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)} if tree else set()
    return [] if module.startswith("gated.kernels.") else [m for m in children(module) if m not in merged]


@cache
def homes() -> dict[tuple[str, str], str]:
    """The entry of each definition (module, name): of the sections that export it the one nearest to its module."""
    sections = modules()
    for module in sections:  # grows on the way
        sections.extend(below(module))
    shown: dict[tuple[str, str], list[str]] = {}
    for module in sections:
        for name in exported(module):
            if found := find(module, name):
                shown.setdefault((found[0], found[1].name), []).append(f"{module}.{name}")

    def near(full: str, defined: str) -> int:
        module = full.rpartition(".")[0]
        return len(module) if f"{defined}.".startswith(f"{module}.") else 0

    return {place: max(names, key=lambda full: near(full, place[0])) for place, names in shown.items()}


def section(module: str, level: int) -> str:
    """A module's docstring and its public names, then the modules below it that it does not import from."""
    tree = parse(module)
    if tree is None:
        return ""
    found = [(name, place) for name in exported(module) if (place := find(module, name))]
    full = {name: homes()[place[0], place[1].name] for name, place in found}
    links = {name: name if there == f"{module}.{name}" else f"{name} <{there}>" for name, there in full.items()}
    shown = [describe(name, place[1]) for name, place in found if links[name] == name]
    shown += [section(child, level + 1) for child in below(module)]
    if level > 1 and not any(shown):
        return ""
    if others := ", ".join(f"`{name}`" for name in full if links[name] != name):
        shown.insert(0, f"Exported here, and explained elsewhere: {others}.\n")
    head = f"{'#' * level} {escape(module)}\n\n```{{py:currentmodule}} {module}\n```\n"
    text = "\n".join([head, prose(ast.get_docstring(tree) or ""), "", *shown]) + "\n"

    def link(found: re.Match[str]) -> str:
        return f"{{py:obj}}`{links[found[1]]}`" if found[1] in links else found[0]

    return "".join(
        part if i % 2 else re.sub(r"(?<![`}\w])`(\w+)`(?!`)", link, part) for i, part in enumerate(FENCED.split(text))
    )


def pages() -> dict[str, str]:
    out = {f"{module}.md": section(module, 1) for module in modules()}
    rows = "\n".join(
        f"- [`{name.removesuffix('.md')}`]({name}): {escape(summary(name.removesuffix('.md')))}" for name in out
    )
    alike = "\n".join(
        f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {text}" for names, text in ALIKE.items()
    )
    out["index.md"] = (
        "# The package\n\n"
        "`gated` is small enough to be read. These pages are made from its source; shapes stand in the "
        "signatures, as the tests check them. An example needs `torch` and what its own package exports "
        "(`from gated.gates import *`); each is run by the tests. Names of the field are used as they are used "
        "there, and some mean the same wherever they stand:\n\n" + alike + "\n\n## Modules\n\n" + rows + "\n"
    )
    return out


def summary(module: str) -> str:
    tree = parse(module)
    return ((ast.get_docstring(tree) if tree else None) or "").split("\n\n")[0].replace("\n", " ")


def main() -> None:
    fresh = pages()
    for old in OUT.glob("*.md"):
        if old.name not in fresh:
            old.unlink()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, text in fresh.items():
        if not (OUT / name).exists() or (OUT / name).read_text(encoding="utf-8") != text:
            (OUT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
