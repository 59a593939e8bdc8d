"""Move the repository: `python tools/repo.py https://github.com/you/gated` (or `make repo URL=...`).

The address is decided in pyproject.toml. This writes it there, and wherever else it has to stand literally:
the Colab buttons, the notebooks' bootstrap cells, the citation, the README.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import bootstrap

ROOT = Path(__file__).resolve().parent.parent

PLACES = [
    "_config.yml",
    "CITATION.cff",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "book/*.md",
    "book/*.ipynb",
    "pyproject.toml",
]


def move(url: str, root: Path = ROOT) -> list[Path]:
    """Replace the current address by `url` in all places, and return the files that changed."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", url) or url.endswith((".git", "/")):
        raise SystemExit(
            f"URL must look like https://github.com/you/gated, without .git or slash at the end; got {url!r}"
        )
    now = bootstrap.repository(root)
    colab = "https://github.com/", "colab.research.google.com/github/"
    pairs = [(now, url), (now.replace(*colab), url.replace(*colab))]
    changed = []
    for path in sorted(path for place in PLACES for path in root.glob(place)):
        text = path.read_text(encoding="utf-8")
        fresh = text
        for old, new in pairs:
            fresh = re.sub(re.escape(old) + r"(?![\w-])", new, fresh)
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        raise SystemExit("which address? for example: make repo URL=https://github.com/you/gated")
    for file in move(sys.argv[1]):
        print(f"changed {file.relative_to(ROOT)}")
