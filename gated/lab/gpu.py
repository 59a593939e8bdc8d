"""The GPU section of a chapter: runs the Triton kernel, checks it, times it, and stores the figures.

    def work(device, T):
        x = torch.randn(T, 64, device=device, generator=torch.Generator(device).manual_seed(0))
        return gpu.Work(lambda: topk_gate(x, 2), lambda: naive_topk_gate(x, 2), {"torch.topk": lambda: x.topk(2)})

    gpu.section("moe", "topk_gate", work, check={"T": 300}, sizes=[{"T": 8192}], tolerance=1e-5)

Where there is no GPU the same comparison runs on the processor, so that the cell cannot rot unseen, and the section
says what it would do. What a GPU measured is kept only where that is asked for: `make gpu-<chapter>`.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gated.lab import bench, claims
from gated.lab.compare import agreement, difference


class Work(NamedTuple):
    """A kernel at one size, its inputs bound: nothing is computed before one of these is called.

    `ours` runs the kernel, `reference` its definition on the same inputs, and `peers` are timed beside `ours`.
    `uncompared` has the peers that compute something else, each with what that is.
    """

    ours: Callable[[], Any]
    reference: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    uncompared: Mapping[str, str] | None = None


def section(
    chapter: str,
    kernel: str,
    work: Callable[..., Work],
    *,
    check: Mapping[str, int],
    sizes: Sequence[Mapping[str, int]],
    tolerance: float | int,
    rounds: int = 15,
) -> None:
    """Runs `kernel` on a GPU at the sizes `check` and at `sizes`, and at the latter against the clock.

    Each time it is compared with its reference, and with the peers. With `GATED_FULL=gpu`, as `make gpu-<chapter>` has
    it, the figures are written, with what made them, to `book/_results/gpu_<chapter>.json`; outside of a checkout to
    the working directory. Without a GPU, `work("cpu", **check)` is compared, and nothing is timed.

    Args:
        work: called with the device and one entry of sizes by name; gives the `Work`.
        tolerance: the largest difference allowed, relative to the largest value of the reference; twice that between
            kernel and peer. Whole numbers must be equal.

    Raises:
        AssertionError: kernel and reference, or a peer, differ by more; then nothing is timed or written.
        ValueError: no sizes, or a work without a peer.
    """
    if not sizes:
        raise ValueError("sizes must hold at least one size to time, got none")
    device = _gpu()
    small = work(device or "cpu", **check)
    if not small.peers:
        raise ValueError("peers must hold at least one function to time beside ours, got none")
    worst = _compare(kernel, small, check, tolerance)
    name = f"gpu_{chapter}.json"
    if device is None:
        several = f"{len(sizes)} sizes, the last " if len(sizes) > 1 else ""
        words = (
            f"No GPU here. On one, this cell runs the Triton kernel of {kernel} at {_text(check)}, and at {several}"
            f"{_text(sizes[-1])}, where it is timed beside {', '.join(small.peers)}. Each time it is compared with its "
            f"reference (at most {tolerance:g} apart); `make gpu-{chapter}` keeps the figures in {name}. On this "
            "processor PyTorch's form was compared instead, and agrees."
        )
        print(textwrap.fill(words, 88))
        return
    report = bench.Report(chapter)

    def measure(**_: Any) -> dict[str, Any]:
        apart = worst
        for size in sizes:
            full = work(device, **size)
            apart = max(apart, _compare(kernel, full, size, tolerance))
            report.race(kernel, size, bench.race({kernel: full.ours, **full.peers}, rounds=rounds, warmup=3))
        return {"difference": apart, "rows": report.rows}

    if os.environ.get("GATED_FULL") == "gpu":
        arguments = {"check": check, "sizes": list(sizes), "tolerance": tolerance, "rounds": rounds}
        found = claims.keep(_folder() / name, kernel, measure, arguments, command=f"make gpu-{chapter}")
        kept = f"written to {name}"
    else:
        found, kept = measure(), f"`make gpu-{chapter}` keeps these figures in {name}"
    print(report)
    print(f"{kernel} agrees with its reference at each size: {found['difference']:.1e} apart at most; {kept}")


def _compare(kernel: str, work: Work, sizes: Mapping[str, int], tolerance: float | int) -> float:
    """How far kernel and reference are apart."""
    ours = work.ours()
    apart = difference(ours, work.reference())
    if not apart <= tolerance:
        raise AssertionError(
            f"{kernel} differs from its reference by {apart:.2g} at {_text(sizes)}, above {tolerance:g}"
        )
    peers = {peer: run() for peer, run in work.peers.items()}
    agreement({"ours": ours, **peers}, work.uncompared or (), 2 * tolerance)
    return apart


def _gpu() -> str | None:
    return "cuda" if torch.cuda.is_available() else None


def _folder() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "book" / "_results" if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value:,}" for name, value in sizes.items())
