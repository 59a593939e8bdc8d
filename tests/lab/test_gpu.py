"""The GPU section: what it does where there is a GPU (here the processor plays one), and what it says where not."""

from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch

import gated
from gated.lab import bench, claims, gpu
from gated.lab.compare import difference

pytestmark = pytest.mark.clock
ROOT = Path(__file__).resolve().parents[2]
INF = float("inf")


def work(device, n, error=0.0):
    x = torch.arange(1.0, n + 1, device=device)
    return gpu.Work(
        lambda: (x.cumsum(0) + error * n, n),
        lambda: x.double().cumsum(0),
        {"matrix": lambda: torch.ones(n, n).tril() @ x, "twice": lambda: (x + x, x * x)},
        uncompared={"twice": "sums nothing up"},
    )


@pytest.fixture
def played(monkeypatch, tmp_path):
    """The processor plays the GPU; figures go to an empty folder."""
    monkeypatch.setenv("GATED_FULL", "gpu")
    monkeypatch.setattr(gpu, "_gpu", lambda: "cpu")
    monkeypatch.setattr(gpu, "_folder", lambda: tmp_path)
    return tmp_path


def test_it_checks_times_and_stores(played, capsys):
    gpu.section("toy", "cumsum", work, check={"n": 50}, sizes=[{"n": 100}, {"n": 1000}], tolerance=1e-6, rounds=6)
    gpu.section("toy", "again", work, check={"n": 5}, sizes=[{"n": 7}], tolerance=1e-6, rounds=6)
    assert [path.name for path in played.iterdir()] == ["gpu_toy.json"]
    stored = json.loads((played / "gpu_toy.json").read_text())
    entry = stored["cumsum"]
    assert entry["arguments"] == {
        "check": {"n": 50},
        "sizes": [{"n": 100}, {"n": 1000}],
        "tolerance": 1e-6,
        "rounds": 6,
    }
    assert entry["command"] == "make gpu-toy" and entry["machine"] == claims.machine()
    assert {"gated", "torch", "python"} <= set(entry["versions"]) and entry["duration_s"] >= 0
    assert entry["value"]["difference"] <= 1e-6
    assert [(row["case"], row["sizes"], row["peer"]) for row in entry["value"]["rows"]] == [
        ("cumsum", {"n": n}, peer) for n in (100, 1000) for peer in ("matrix", "twice")
    ]
    assert all(row["ours_ms"] > 0 and row["ratio_interval"][0] <= row["ratio"] for row in entry["value"]["rows"])
    assert stored["again"]["value"]["rows"][0]["sizes"] == {"n": 7}  # the first kernel's entry is still there
    said = capsys.readouterr().out
    assert "twice" in said and "cumsum agrees with its reference at each size" in said and "gpu_toy.json" in said


@pytest.mark.parametrize("full", ["", "0", "1"])  # `make results-toy` makes what a processor computes
def test_what_nobody_asked_to_keep_is_measured_and_not_written(played, monkeypatch, capsys, full):
    monkeypatch.setenv("GATED_FULL", full)
    gpu.section("toy", "cumsum", work, check={"n": 5}, sizes=[{"n": 7}], tolerance=1e-6, rounds=6)
    assert not list(played.iterdir())
    assert "twice" in (said := capsys.readouterr().out) and "`make gpu-toy` keeps these figures" in said


def broken_from(least: int, part: str, device, n):
    """A work whose kernel, or whose peer, is wrong at sizes of `least` or more."""
    good, bad = work(device, n), work(device, n, 0.1)
    if n < least:
        return good
    return bad if part == "kernel" else good._replace(peers={"matrix": bad.ours})


@pytest.mark.parametrize(("least", "where"), [(0, "n = 50"), (60, "n = 90")])
def test_a_kernel_that_is_wrong_is_neither_timed_nor_stored(played, monkeypatch, least, where):
    monkeypatch.setattr(bench, "race", lambda *_, **__: pytest.fail("timed"))
    broken = partial(broken_from, least, "kernel")
    with pytest.raises(AssertionError, match=rf"cumsum differs from its reference by 0\.00\d+ at {where}"):
        gpu.section("toy", "cumsum", broken, check={"n": 50}, sizes=[{"n": 90}], tolerance=1e-3)
    assert not list(played.iterdir())


@pytest.mark.parametrize("least", [0, 60])
def test_a_peer_that_computes_something_else_is_not_timed(played, monkeypatch, least):
    monkeypatch.setattr(bench, "race", lambda *_, **__: pytest.fail("timed"))
    broken = partial(broken_from, least, "peer")
    with pytest.raises(AssertionError, match=r"matrix and ours differ by 0\.00"):
        gpu.section("toy", "cumsum", broken, check={"n": 50}, sizes=[{"n": 90}], tolerance=1e-3)


def test_without_a_gpu_it_compares_and_says_what_it_would_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "_gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    called = []

    def watched(device, n):
        called.append((device, n))
        one = work(device, n)
        return one._replace(peers={"twice": lambda: called.append("peer")})

    options = {"check": {"n": 50}, "tolerance": 1e-6}
    gpu.section("toy", "cumsum", watched, sizes=[{"n": 10**9}], **options)
    said = " ".join(capsys.readouterr().out.split())
    assert called == [("cpu", 50), "peer"] and not list(tmp_path.iterdir())
    for part in (
        "No GPU here",
        "Triton kernel of cumsum at n = 50",
        "1e-06",
        "and at n = 1,000,000,000, where it is timed beside twice",
        "gpu_toy.json",
    ):
        assert part in said
    with pytest.raises(AssertionError, match="cumsum differs"):
        gpu.section("toy", "cumsum", lambda device, n: work(device, n, 0.1), sizes=[{"n": 1}], **options)
    with pytest.raises(ValueError, match=r"^sizes "):
        gpu.section("toy", "cumsum", work, sizes=[], **options)
    with pytest.raises(ValueError, match=r"^peers "):
        gpu.section("toy", "cumsum", lambda device, n: work(device, n)._replace(peers={}), sizes=[{"n": 1}], **options)


@pytest.mark.parametrize(
    ("ours", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, INF], [1.0, INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, float("nan")], [1.0, 2.0], INF),
        ([0.0, 1e-20], [0.0, 0.0], 1e10),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], INF),
        ([1.0], [1.0, 2.0], INF),
        ([], [], 0.0),
    ],
)
def test_the_difference_is_relative_and_whole_numbers_are_exact(ours, reference, expected):
    assert difference(torch.tensor(ours), torch.tensor(reference)) == pytest.approx(expected)
    assert difference({"a": torch.zeros(3), "b": torch.tensor(ours)}, [torch.zeros(3), torch.tensor(reference)]) == (
        pytest.approx(expected)
    )


def test_results_of_another_number_of_tensors_are_refused():
    with pytest.raises(ValueError):
        difference((torch.zeros(2), torch.zeros(2)), torch.zeros(2))
    assert difference((), ()) == INF  # nothing was compared


def test_figures_go_to_the_checkout_and_elsewhere_to_where_one_works(monkeypatch, tmp_path):
    assert gpu._folder() == ROOT / "book" / "_results"
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gated" / "lab" / "gpu.py"))
    monkeypatch.chdir(tmp_path)
    assert gpu._folder() == tmp_path


def test_every_chapter_with_a_kernel_has_a_section_and_every_kernel_a_chapter():
    package = Path(gated.__file__).parent
    families = {path.parent.name for path in package.glob("kernels/*/gpu.py")}
    shown = {}
    for path in (ROOT / "book").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                shown.setdefault(path.stem, set()).update(
                    re.findall(r'gpu\.section\(\s*"(\w+)",\s*"(\w+)"', cell.source)
                )
    assert all({chapter for chapter, _ in found} <= {stem} for stem, found in shown.items())
    kernels = {kernel for found in shown.values() for _, kernel in found}
    assert {kernel.removeprefix("chunk_") for kernel in kernels} == families
    modules: dict[str, list[str]] = {}
    for chapter in tomllib.loads((ROOT / "book/chapters.toml").read_text(encoding="utf-8"))["chapter"]:
        modules.setdefault(chapter.get("module", chapter["name"]), []).append(chapter["name"])
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part in ("kernels", "lab", "gates"):
            continue
        for family in re.findall(r"^from gated\.kernels\.(\w+) import", path.read_text(encoding="utf-8"), re.M):
            for chapter in modules.get(part, [part]):
                assert shown[chapter], f"{chapter} uses {family} and has no GPU section"
