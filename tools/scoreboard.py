"""The scoreboard's HTML: what became of all claims, chapter by chapter, and each of them with its reasons.

All of it stands in the page as built; `scoreboard.js`, set into that page alone, hides rows and sorts them. Only the
standard library is needed, as for `claims`. `titles` has the chapters with claims, by name, in the book's order.
"""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from pathlib import Path

VERDICTS = {"holds here": "holds", "fails here": "fails", "not decidable at this scale": "open"}
SIGNS = {"holds": "✓", "fails": "✗", "open": "?"}
PROCESSES = 1.1  # as in gated.lab.intervals, which needs more than the standard library
SCRIPT = Path(__file__).resolve().with_name("scoreboard.js")


def summary(rows: list[dict]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    said = [
        f"{counts[verdict]} {verdict.replace('holds', 'hold').replace('fails', 'fail').replace('not', 'are not')}"
        for verdict in VERDICTS
        if counts[verdict]
    ]
    left = sum(row["measured"] in ("not run", "none") for row in rows)
    unrun = f"{left} of the last were not run: the row says what it would take."
    return f"{len(rows)} claims stand here: {', '.join(said)}. {unrun}"


def chapters(rows: list[dict], titles: dict[str, str]) -> str:
    """A line a chapter: a bar of its claims by verdict, and their numbers."""
    lines = []
    for chapter in titles:
        counts = Counter(VERDICTS[row["verdict"]] for row in rows if row["chapter"] == chapter)
        bars = "".join(f'<i class="verdict-{kind}" style="flex: {counts[kind]}"></i>' for kind in SIGNS if counts[kind])
        numbers = "".join(f'<td class="verdict-{kind}">{counts[kind]}</td>' for kind in SIGNS)
        bar = f'<td aria-hidden="true"><span class="gated-bar">{bars}</span></td>'
        lines.append(f'<tr><th scope="row">{_chapter(chapter, titles)}</th>{numbers}{bar}</tr>')
    heads = "".join(f'<th scope="col">{SIGNS[kind]} {word}</th>' for kind, word in _WORDS.items())
    head = f'<tr><th scope="col">chapter</th>{heads}<td aria-hidden="true"></td></tr>'
    return f'<table class="gated-counts"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'


_WORDS = {"holds": "hold", "fails": "fail", "open": "open"}


def table(rows: list[dict], titles: dict[str, str]) -> str:
    """All claims; a row opens to what would refute it, why it came out as it did, and what it would take."""
    place = {chapter: number for number, chapter in enumerate(titles)}
    body = "".join(_row(row, titles) for row in sorted(rows, key=lambda row: place[row["chapter"]]))
    heads = "".join(
        f'<th scope="col" data-sort="{key}"><span>{word}</span></th>'
        for key, word in (("place", "chapter"), ("claim", "claim"), ("measured", "measured"), ("seeds", "seeds"),
                          ("verdict", "verdict"))
    )  # fmt: skip
    chapter = "".join(f'<option value="{name}">{escape(title)} ({name})</option>' for name, title in titles.items())
    kinds = "".join(
        f'<label><input type="checkbox" value="{kind}" checked> {SIGNS[kind]} {word}</label>'
        for word, kind in VERDICTS.items()
    )
    controls = (
        '<form class="gated-filter" role="search" aria-label="Claims" hidden>'
        '<label>Find <input type="search" name="words" placeholder="a word of the claim"></label>'
        f'<label>Chapter <select name="chapter"><option value="">all</option>{chapter}</select></label>'
        f'<fieldset><legend>Verdict</legend>{kinds}</fieldset><p role="status"></p></form>'
    )
    css = "gated-scoreboard gated-claims"
    claims = f'<table class="{css}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    script = SCRIPT.read_text(encoding="utf-8")
    return f'<div class="gated-cards">{controls}{claims}</div><script type="module">{script}</script>'


def departures(listed: list[dict], titles: dict[str, str]) -> str:
    """Where a paper and its public code differ, what is done here, and the test that shows it."""
    lines = "".join(
        f'<tr><td data-label="chapter">{_chapter(row["chapter"], titles)}</td>'
        + "".join(f'<td data-label="{part}">{_code(row[part])}</td>' for part in ("paper", "code", "here"))
        + f'<td data-label="shown by">{_shown(row["test"])}</td></tr>'
        for row in listed
    )
    heads = "".join(f'<th scope="col">{word}</th>' for word in ("chapter", "paper", "code", "here", "shown by"))
    css = "gated-scoreboard gated-departures"
    return f'<table class="{css}"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'


def speed(report: dict, titles: dict[str, str]) -> str:
    """Kernels and hot loops beside their peers, as measured; a table for each chapter, to be opened."""
    parts = []
    for chapter in [name for name in titles if name in report["made"]]:
        rows = [row for row in report["rows"] if row["chapter"] == chapter]
        lines = "".join(
            f'<tr><td data-label="loop">{escape(row["case"])}</td><td data-label="sizes">{_sizes(row["sizes"])}</td>'
            f'<td data-label="threads">{row["threads"]}</td><td data-label="ours">{_ours(row)}</td>'
            f'<td data-label="beside">{_beside(row)}</td><td data-label="result">{_result(row)}</td></tr>'
            for row in rows
        )
        made = report["made"][chapter]
        stood = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        heads = "".join(f'<th scope="col">{head}</th>' for head in _HEADS)
        parts.append(
            f'<details class="gated-speed"><summary>{escape(titles[chapter])} <small>{chapter}</small>: {_counts(rows)}'
            "</summary>"
            f"<p>{escape(made['date'])}, {escape(made['machine'])}; {escape(stood)}</p>"
            f'<table class="gated-scoreboard"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></details>'
        )
    return f'<p>{escape(_lost(report["rows"]))}</p><div class="gated-cards">{"".join(parts)}</div>'


def _lost(rows: list[dict]) -> str:
    """Who is clearly faster than ours in more than half of the races that all computed the same."""
    races: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if "apart" in row:
            races.setdefault((row["ours"], row["peer"]), []).append(row["ratio_interval"][1] < 1 / PROCESSES)
    lost = [
        f"{peer} beside {ours} ({sum(slower)} of {len(slower)})"
        for (ours, peer), slower in races.items()
        if sum(slower) > len(slower) / 2
    ]
    return (
        f"Peers that gave the same results and were faster in most of their races: {'; '.join(lost)}." if lost else ""
    )


def _counts(rows: list[dict]) -> str:
    """Of the races by their whole intervals and a tenth: against some peers every method loses."""
    races = [row for row in rows if "peer" in row]
    faster = sum(row["ratio_interval"][0] > PROCESSES for row in races)
    slower = sum(row["ratio_interval"][1] < 1 / PROCESSES for row in races)
    doubtful = sum("unsteady" in row for row in races)
    unsteady = f"; {doubtful} of them too unsteady to count on" if doubtful else ""
    left = len(races) - faster - slower
    return f"{len(races)} races, faster in {faster}, slower in {slower}, open in {left}{unsteady}"


_HEADS = ("loop", "sizes", "threads", "ours", "beside", "times as fast, or growth")


def _sizes(sizes: dict) -> str:
    return escape(", ".join(f"{name} {_list(size)}" for name, size in sizes.items()))


def _list(size: object) -> str:
    return " / ".join(map(str, size)) if isinstance(size, list) else str(size)


def _ours(row: dict) -> str:
    if "peer" not in row:
        return f"{' / '.join(map(_number, row['ours_ms']))} ms"
    name = f"{escape(row['ours'])}, " if "ours" in row else ""
    return f"{name}{_number(row['ours_ms'])} ms"


def _beside(row: dict) -> str:
    """The peer, and whether it computes the same."""
    if "peer" not in row:
        return "itself, larger"
    said = row.get("uncompared", "")
    if "apart" in row:
        said = f"same results, {_number(row['apart'])} apart" if row["apart"] else "same results"
    return f"{escape(row['peer'])}, {_number(row['peer_ms'])} ms{f' ({escape(said)})' if said else ''}"


def _result(row: dict) -> str:
    if "peer" in row:
        doubt = ", unsteady" if "unsteady" in row else ""
        return f"{_number(row['ratio'])} times {_interval(row['ratio_interval'])}{doubt}"
    if "exponent" not in row:
        return "no one power of the size"
    return f"as size to the {_number(row['exponent'])} {_interval(row['exponent_interval'])}"


def _interval(ends: list[float]) -> str:
    return f"[{', '.join(map(_number, ends))}]"


def _shown(test: str) -> str:
    path, _, name = test.partition("::")
    if path.endswith(".ipynb"):
        return f'<a href="{Path(path).stem}.html">the chapter itself</a>'
    return f"<code>{escape(name)}</code> in <code>{escape(path)}</code>"


def _code(text: str) -> str:
    """Escaped, and what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _chapter(name: str, titles: dict[str, str], more: str = "") -> str:
    """The chapter's title, which leads there, and in small its name, which its module and its notebook have."""
    return f'<a href="{name}.html">{escape(titles[name])}</a> <small>{_breakable(name)}{more}</small>'


def _breakable(text: str) -> str:
    """Escaped; a line may end after a slash or an underscore."""
    return re.sub("([/_])", r"\1<wbr>", escape(text))


def _row(row: dict, titles: dict[str, str]) -> str:
    kind = VERDICTS[row["verdict"]]
    chapter, name = escape(row["chapter"]), escape(row["id"])
    measured, order = row["measured"], ""
    if not isinstance(measured, str):
        measured, order = f"{_number(measured)} {row['unit']}".strip(), measured
    interval = "" if row["interval"] is None else f" [{', '.join(_number(x) for x in row['interval'])}]"
    more = (
        f"<details><summary>{escape(row['claim'])}</summary><p><b>Refuted if</b> {escape(row['refuted_if'])}</p>"
        f"<p>{escape(row['why'])}</p>"
        f'<p><a href="{chapter}.html#at-full-scale">What it takes at full scale</a></p></details>'
    )
    runs = f"{row['seeds']}, {row['source']}" if row["seeds"] else "no run"
    return (
        f'<tr data-chapter="{chapter}" data-verdict="{kind}">'
        f'<td data-label="chapter">{_chapter(row["chapter"], titles, f" {name}")}</td>'
        f'<td data-label="claim">{more}</td>'
        f'<td data-label="measured" data-order="{order}">{_breakable(measured + interval)}</td>'
        f'<td data-label="seeds" data-order="{row["seeds"]}">{runs}</td>'
        f'<td data-label="verdict" class="verdict-{kind}">{SIGNS[kind]} {escape(row["verdict"])}</td></tr>'
    )


def _number(x: float) -> str:
    return f"{x:.3g}".replace("-", "−")
