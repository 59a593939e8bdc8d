"""The designs against the clock: real decode steps over a link of chosen speed, beside what the closed form says.

The experts lie in a temporary file and come over a throttled link, so that F / T can be chosen: .83 and 1.13 are the
paper's Base and Large models, 3 is a link too slow to hide. A layer of this size takes less time than Python needs to
switch between threads, so each mixture layer is padded with products until it takes `block_seconds`. All constants of
the prediction are measured apart from the runs that are predicted, in the same rounds: T and T_d in resident runs, F as
single copies over the link, delta as what fetching on demand adds to T and the copy where the link is not throttled (0
if that comes out below 0).
"""

from __future__ import annotations

import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from gated.pregated.decode import Decoded, decode
from gated.pregated.model import PreGatedDecoder, rewire, without_experts
from gated.pregated.offload import FastTier, Fetcher, ThreadCopy
from gated.pregated.simulate import DESIGNS, Design, Timing, block_latency
from gated.pregated.store import ExpertStore, write_experts


@dataclass(frozen=True)
class Measured:
    """One design's latency of a mixture layer, and what the closed form says, in milliseconds."""

    design: Design
    rounds: tuple[float, ...]
    """The mean of each round."""
    predicted: float
    moved_bytes: int
    """A step."""
    peak_bytes: int
    guess_rate: float
    """Of `look_ahead`: the share of experts that the guess had named."""

    @property
    def median(self) -> float:
        """Of the rounds: a burst of another program falls on few of them."""
        return median(self.rounds)

    @property
    def error(self) -> float:
        """Measured over predicted, less 1."""
        return self.median / self.predicted - 1


@dataclass(frozen=True)
class Measurement:
    """The designs on one link, and the constants of the prediction."""

    timing: Timing
    """In milliseconds, measured."""
    num_experts: int
    designs: tuple[Measured, ...]

    @property
    def ratio(self) -> float:
        """F / T as it was, not as it was wished."""
        return self.timing.expert / self.timing.block

    @property
    def mean_error(self) -> float:
        """Mean over the designs of |measured / predicted - 1|, without `resident`, from which T is taken."""
        return mean(abs(one.error) for one in self.designs if one.design != "resident")

    def __getitem__(self, design: Design) -> Measured:
        return next(one for one in self.designs if one.design == design)


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread for products, so that a core is left for the copies, and threads that take turns quickly.

    Python lets another thread run after 5 ms otherwise, longer than a block.
    """
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)


def measure(
    ratios: Sequence[float | int] = (0.83, 1.13, 3.0),
    num_experts: int = 8,
    *,
    designs: Sequence[Design] = DESIGNS,
    dim: int = 256,
    hidden: int = 1024,
    blocks: int = 6,
    between: int = 1,
    k: int | Sequence[int] = 1,
    rounds: int = 6,
    tokens: int = 12,
    block_seconds: float = 0.005,
    seed: int = 0,
) -> list[Measurement]:
    """Times the designs on links with F / T of `ratios`, in rounds that all links and designs share.

    Batch 1, top-k, with one k for all links or one for each. `look_ahead` runs the conventional model and the others
    the same model rewired, so these take the same experts in each round. Before the designs of a link run, in an order
    that turns from round to round, T is measured, and the link is set to ratio times T as the last three rounds have
    it: on a busy machine T drifts. One round more warms up and is not counted. In a round `prefetch_all`, which is slow
    by design, has a quarter of the tokens.

    Raises:
        ValueError: no ratio or one that is not above 0, another number of k than of ratios, fewer than 1 round or 4
            tokens; what the model raises.
    """
    if not ratios or any(not ratio > 0 for ratio in ratios):
        raise ValueError(f"ratios must hold numbers above 0, got {list(ratios)}")
    if rounds < 1 or tokens < 4:
        raise ValueError(f"rounds must be at least 1 and tokens at least 4, got {rounds}, {tokens}")
    taken = [k] * len(ratios) if isinstance(k, int) else list(k)
    if len(taken) != len(ratios):
        raise ValueError(f"k must be one number or one for each of the {len(ratios)} ratios, got {taken}")
    sizes: dict[str, int] = {"context": tokens, "between": between, "look_ahead": 0}
    with tempfile.TemporaryDirectory() as folder, undisturbed(), ExitStack() as stack:
        path = Path(folder) / "experts.safetensors"
        models: dict[int, PreGatedDecoder] = {}  # the weights do not depend on k: one file serves all
        for count in taken:
            generator = torch.Generator().manual_seed(seed)
            options = {"k": count, "generator": generator, **sizes}
            whole = PreGatedDecoder(64, dim, hidden, blocks, num_experts, **options)  # type: ignore[arg-type]
            models[count] = without_experts(whole)
        write_experts([layer.experts for layer in whole.layers], path)
        del whole
        prompt = torch.randint(64, (1, tokens), generator=generator)
        free = stack.enter_context(ExpertStore(path))
        links = [
            _Link(ratio, models[count], free, stack.enter_context(ExpertStore(path)), designs, prompt, block_seconds)
            for ratio, count in zip(ratios, taken, strict=True)
        ]
        for turn in range(rounds + 1):
            for link in links:
                link.round(turn)
        return [link.compare() for link in links]


class _Link:
    """A throttled link, the models that run over it, and what was measured."""

    def __init__(
        self,
        ratio: float | int,
        conventional: PreGatedDecoder,
        free: ExpertStore,
        store: ExpertStore,
        designs: Sequence[Design],
        prompt: Tensor,
        block_seconds: float,
    ) -> None:
        self._ratio, self._free, self._store, self._prompt = ratio, free, store, prompt
        self._conventional, self._moved = conventional, rewire(conventional, 1)
        self._work = _padding(block_seconds - _quickest(self._moved, free, prompt))
        self._runs: dict[Design, list[Decoded]] = {
            "resident": [],
            **{design: [] for design in designs if design != "resident"},
        }
        self._unthrottled: list[Decoded] = []
        self._copies: dict[ExpertStore, list[float]] = {store: [], free: []}
        self._late: list[float] = []  # a copy takes as long as the link, and until the waiting thread is awake

    def round(self, turn: int) -> None:
        """Everything once. What round 0 gave only sets the link of round 1."""
        if turn == 1:
            self._runs = {design: [] for design in self._runs}
            self._unthrottled, self._copies = [], {store: [] for store in self._copies}
        self._run("resident")
        self._set_link()
        others = [design for design in self._runs if design != "resident"]
        for i in range(len(others)):
            self._run(others[(i + turn) % len(others)])
        self._unthrottled.append(decode(self._moved, self._free, self._prompt, "on_demand", work=self._work))
        for store, seconds in self._copies.items():
            seconds += _copy_seconds(store)
        assert self._store.bytes_per_second is not None
        link = self._store.expert_bytes / self._store.bytes_per_second
        self._late.append(median(self._copies[self._store][-3:]) - link)

    def _run(self, design: Design) -> None:
        model = self._conventional if design == "look_ahead" else self._moved
        part = self._prompt[:, : max(2, self._prompt.shape[1] // 4)] if design == "prefetch_all" else self._prompt
        store = self._free if design == "resident" else self._store
        self._runs[design].append(decode(model, store, part, design, work=self._work))

    def _set_link(self) -> None:
        block = median(_means([done.latency for done in self._runs["resident"][-3:]])) / 1e3
        wanted, late = self._ratio * block, median(self._late[-3:]) if self._late else 0.0
        if copies := self._copies[self._store]:  # what was missed so far is made up for
            found = median(copies) / (median(_means([done.latency for done in self._runs["resident"]])) / 1e3)
            wanted *= min(1.25, max(0.8, self._ratio / found))
        self._store.bytes_per_second = self._store.expert_bytes / max(0.5 * wanted, wanted - late)

    def compare(self) -> Measurement:
        model, copies = self._moved, self._copies
        free, copy = median(copies[self._free]), median(copies[self._store])
        return _compare(self._runs, self._unthrottled, free, copy, model.k, model.num_experts)


def _quickest(model: PreGatedDecoder, store: ExpertStore, prompt: Tensor) -> float:
    """Seconds of a mixture layer without padding, when nobody disturbs."""
    return min(_means([decode(model, store, prompt, "resident").latency for _ in range(3)])) / 1e3


def _padding(seconds: float) -> Callable[[], None]:
    """Products that take so long: small ones, each of which lets go of the interpreter's lock."""
    a, b = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(a)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    products(50)
    quickest = min(timeit.repeat(lambda: products(50), number=1, repeat=7)) / 50
    return partial(products, max(0, round(seconds / quickest)))


def _means(rounds: Sequence[Tensor]) -> list[float]:
    """For each round the mean milliseconds over steps and layers; the first step warms up."""
    return [1e3 * float(seconds[1:].mean()) for seconds in rounds]


def _copy_seconds(link: ExpertStore, copies: int = 3) -> list[float]:
    """Single experts from order to arrival."""
    tier, seconds = FastTier(link, link.expert_bytes), []
    with Fetcher(tier, ThreadCopy(link)) as fetcher:
        for n in range(copies):
            start = time.perf_counter()
            fetcher.wait(fetcher.submit(0, [n % link.num_experts]))
            seconds.append(time.perf_counter() - start)
            fetcher.release(0, [n % link.num_experts])
    return seconds


def _compare(
    runs: dict[Design, list[Decoded]],
    unthrottled: list[Decoded],
    free_copy: float,
    copy: float,
    k: int,
    num_experts: int,
) -> Measurement:
    block = median(_means([done.latency for done in runs["resident"]]))
    dense = median(_means([done.dense for done in runs["resident"]]))
    overhead = median(_means([done.latency for done in unthrottled])) - 1e3 * k * free_copy - block
    timing = Timing(block=block, dense=dense, expert=1e3 * copy, overhead=max(0.0, overhead))
    designs = []
    for design, rounds in runs.items():
        steps = [
            block_latency(design, timing, len(active), k, num_experts, hit_rate=rate)
            for active, rate in list(zip(rounds[0].active, rounds[0].guess_rate(), strict=True))[1:]
        ]
        moved = rounds[0].moved_bytes // len(rounds[0].active)
        designs.append(
            Measured(
                design,
                rounds=tuple(_means([done.latency for done in rounds])),
                predicted=mean(steps),
                moved_bytes=moved,
                peak_bytes=rounds[0].peak_bytes,
                guess_rate=mean(rounds[0].guess_rate()[1:]),
            )
        )
    return Measurement(timing, num_experts, tuple(designs))
