"""The GPU section: what it does where there is a GPU (here the processor plays one), and what it says where not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
import torch

import gated
from gated.lab import bench, claims, gpu

pytestmark = pytest.mark.clock
ROOT = Path(__file__).resolve().parents[2]
INF = float("inf")


def work(device, n, error=0.0):
    x = torch.arange(1.0, n + 1, device=device)
    return gpu.Work(
        lambda: (x.cumsum(0) + error * n, n), lambda: x.double().cumsum(0), {"twice": lambda: (x + x, x * x)}
    )


@pytest.fixture
def played(monkeypatch, tmp_path):
    """The processor plays the GPU; figures go to an empty folder."""
    monkeypatch.setattr(gpu, "_gpu", lambda: "cpu")
    monkeypatch.setattr(gpu, "_folder", lambda: tmp_path)
    return tmp_path


def test_it_checks_times_and_stores(played, capsys):
    gpu.section("toy", "cumsum", work, check={"n": 50}, sizes=[{"n": 100}, {"n": 10_000}], tolerance=1e-6, rounds=6)
    gpu.section("toy", "again", work, check={"n": 5}, sizes=[{"n": 7}], tolerance=1e-6, rounds=6)
    assert [path.name for path in played.iterdir()] == ["gpu_toy.json"]
    stored = json.loads((played / "gpu_toy.json").read_text())
    entry = stored["cumsum"]
    assert entry["arguments"] == {
        "check": {"n": 50},
        "sizes": [{"n": 100}, {"n": 10_000}],
        "tolerance": 1e-6,
        "rounds": 6,
    }
    assert entry["command"] == "make chapter NAME=toy" and entry["machine"] == claims.machine()
    assert {"gated", "torch", "python"} <= set(entry["versions"]) and entry["duration_s"] >= 0
    assert entry["value"]["difference"] <= 1e-6
    assert [(row["case"], row["sizes"], row["peer"]) for row in entry["value"]["rows"]] == [
        ("cumsum", {"n": 100}, "twice"),
        ("cumsum", {"n": 10_000}, "twice"),
    ]
    assert all(row["ours_ms"] > 0 and row["ratio_interval"][0] <= row["ratio"] for row in entry["value"]["rows"])
    assert stored["again"]["value"]["rows"][0]["sizes"] == {"n": 7}  # the first kernel's entry is still there
    said = capsys.readouterr().out
    assert "twice" in said and "cumsum agrees with its reference at n = 50" in said and "gpu_toy.json" in said


def test_a_kernel_that_is_wrong_is_neither_timed_nor_stored(played, monkeypatch):
    monkeypatch.setattr(bench, "race", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=r"cumsum differs from its reference by 0\.0039 at n = 50"):
        gpu.section(
            "toy", "cumsum", lambda device, n: work(device, n, 0.1), check={"n": 50}, sizes=[{"n": 9}], tolerance=1e-3
        )
    assert not list(played.iterdir())


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
        "n = 1,000,000,000 beside twice",
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
    assert gpu.difference(torch.tensor(ours), torch.tensor(reference)) == pytest.approx(expected)
    assert gpu.difference(
        {"a": torch.zeros(3), "b": torch.tensor(ours)}, [torch.zeros(3), torch.tensor(reference)]
    ) == (pytest.approx(expected))


def test_results_of_another_number_of_tensors_are_refused():
    with pytest.raises(ValueError):
        gpu.difference((torch.zeros(2), torch.zeros(2)), torch.zeros(2))
    assert gpu.difference((), ()) == INF  # nothing was compared


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
    modules = {"gaussian_moe": ("topk_theory", "temperature_theory")}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part in ("kernels", "lab", "gates"):
            continue
        for family in re.findall(r"^from gated\.kernels\.(\w+) import", path.read_text(encoding="utf-8"), re.M):
            for chapter in modules.get(part, (part,)):
                assert shown[chapter], f"{chapter} uses {family} and has no GPU section"
