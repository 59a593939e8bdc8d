"""The GPU section of a chapter: runs the Triton kernel, checks it, times it, and stores the figures.

    def work(device, T):
        x = torch.randn(T, 64, device=device, generator=torch.Generator(device).manual_seed(0))
        return gpu.Work(lambda: topk_gate(x, 2), lambda: naive_topk_gate(x, 2), {"torch.topk": lambda: x.topk(2)})

    gpu.section("moe", "topk_gate", work, check={"T": 300}, sizes=[{"T": 8192}], tolerance=1e-5)

Where there is no GPU the same comparison runs on the processor, so that the cell cannot rot unseen, and the section
says what it would do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gated.lab import bench, claims


class Work(NamedTuple):
    """A kernel at one size, its inputs bound: nothing is computed before one of these is called.

    `ours` runs the kernel, `reference` its definition on the same inputs, and `peers` are timed beside `ours`.
    """

    ours: Callable[[], Any]
    reference: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]


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
    """Runs `kernel` on a GPU at the sizes `check` against its reference, then at `sizes` against the clock.

    The figures are printed and written, with what made them, to `book/_results/gpu_<chapter>.json`; outside of a
    checkout to the working directory. Without a GPU, `work("cpu", **check)` is compared, and nothing is written.

    Args:
        work: called with the device and one entry of sizes by name; gives the `Work`.
        tolerance: the largest difference allowed, relative to the largest value of the reference. Whole numbers must
            be equal.

    Raises:
        AssertionError: kernel and reference differ by more; then nothing is timed or written.
        ValueError: no sizes, or a work without a peer.
    """
    if not sizes:
        raise ValueError("sizes must hold at least one size to time, got none")
    device = _gpu()
    small = work(device or "cpu", **check)
    if not small.peers:
        raise ValueError("peers must hold at least one function to time beside ours, got none")
    worst = difference(small.ours(), small.reference())
    if not worst <= tolerance:
        raise AssertionError(
            f"{kernel} differs from its reference by {worst:.2g} at {_text(check)}, above {tolerance:g}"
        )
    name = f"gpu_{chapter}.json"
    if device is None:
        for peer in small.peers.values():
            peer()
        largest = f"at {len(sizes)} sizes, the last {_text(sizes[-1])}," if len(sizes) > 1 else f"at {_text(sizes[0])}"
        words = (
            f"No GPU here. On one, this cell runs the Triton kernel of {kernel} at {_text(check)}, compares it with "
            f"its reference (at most {tolerance:g} apart), times it {largest} beside {', '.join(small.peers)}, and "
            f"writes the figures to {name}. On this processor PyTorch's form was compared instead, and agrees."
        )
        print(textwrap.fill(words, 88))
        return
    report = bench.Report(chapter)

    def measure(**_: Any) -> dict[str, Any]:
        for size in sizes:
            full = work(device, **size)
            report.race(kernel, size, bench.race({kernel: full.ours, **full.peers}, rounds=rounds, warmup=3))
        return {"difference": worst, "rows": report.rows}

    arguments = {"check": check, "sizes": list(sizes), "tolerance": tolerance, "rounds": rounds}
    path = _folder() / name
    claims.keep(path, kernel, measure, arguments, command=f"make chapter NAME={chapter}")
    print(report)
    print(f"{kernel} agrees with its reference at {_text(check)}: {worst:.1e} apart at most; written to {path.name}")


def difference(ours: Any, reference: Any) -> float:
    """The largest difference between the tensors of two results, relative to the reference's largest value.

    It is infinite where the shapes, or whole numbers, or the places of infinities differ.
    """
    pairs = list(zip(_tensors(ours), _tensors(reference), strict=True))
    return max((_apart(a.detach(), b.detach()) for a, b in pairs), default=float("inf"))


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu(), b.cpu()
    if a.shape != b.shape or (not b.is_floating_point() and not torch.equal(a.long(), b.long())):
        return float("inf")
    a, b = a.double(), b.double()
    gap = torch.where(a == b, 0.0, (a - b).abs())  # two equal infinities are no difference
    if not gap.numel() or not gap.any():
        return 0.0
    return float(gap.max() / b[b.isfinite()].abs().max().clamp_min(1e-30)) if gap.isfinite().all() else float("inf")


def _gpu() -> str | None:
    return "cuda" if torch.cuda.is_available() else None


def _folder() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "book" / "_results" if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value:,}" for name, value in sizes.items())
