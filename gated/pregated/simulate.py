"""When do the experts arrive? The timing of one decode step, in closed form and as a simulation of its events.

A step runs through B mixture blocks with a dense layer behind each. Two servers share the work: *compute*, and the
*link* over which experts are copied into the fast tier, first come, first served. Times may have any unit, the same for
all. One block, from its gate on: wait for its experts; overhead delta; order the next copies; compute T; then the dense
layer, T_d. The designs differ in when a block's copies are ordered and in how many experts they move:

| design          | copies for block b                     | ordered                                          |
|-----------------|----------------------------------------|--------------------------------------------------|
| `resident`      | none                                   |                                                  |
| `on_demand`     | its active experts                     | by its own gate                                  |
| `prefetch_all`  | all E experts                          | one block earlier; for block 0 by its own gate   |
| `pre_gated`     | its active experts                     | N blocks earlier; for b < N by its own gate      |
| `look_ahead`    | guessed experts, then those not guessed | one block earlier, then by its own gate         |

Source: Hwang et al. 2024, arXiv 2308.12066, figures 6 to 9 and section IV. The closed form is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from gated.gates._validation import check_choice

Design = Literal["resident", "on_demand", "prefetch_all", "pre_gated", "look_ahead"]
DESIGNS: tuple[Design, ...] = ("resident", "on_demand", "prefetch_all", "pre_gated", "look_ahead")
Kind = Literal["wait", "overhead", "block", "dense", "head", "copy", "repair"]
Number = float | int


@dataclass(frozen=True)
class Timing:
    """The constants of one step.

    Args:
        block: T, time of a layer with a mixture block when its experts are there (attention, gate, experts).
        dense: T_d, time of the dense layer behind it.
        expert: F, time to copy one expert over the link; bytes / bandwidth.
        overhead: delta, fixed cost of a block whose experts are copied.
        head: time of whatever a step has besides its blocks.

    Raises:
        ValueError: a negative time, or block = 0.
    """

    block: Number
    dense: Number
    expert: Number
    overhead: Number = 0.0
    head: Number = 0.0

    def __post_init__(self) -> None:
        for name in ("block", "dense", "expert", "overhead", "head"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be a time of at least 0, got {getattr(self, name)}")
        if self.block == 0:
            raise ValueError("block must be above 0: a block that takes no time has no latency to compare with")

    @property
    def window(self) -> float:
        """W = T + T_d: what a copy that is ordered one block early can hide behind."""
        return self.block + self.dense

    @property
    def break_even(self) -> float:
        """The number of experts a block whose copy just fits the window, W / F; infinite on a free link."""
        return self.window / self.expert if self.expert else float("inf")


class Event(NamedTuple):
    """One bar of a Gantt chart: what `lane` did for `block` from `start` to `end`."""

    lane: Literal["compute", "link"]
    kind: Kind
    block: int
    start: float
    end: float


@dataclass(frozen=True)
class Step:
    """One simulated step: `latency[b]` from block b's gate to its output, `total` time, experts `moved`."""

    latency: tuple[float, ...]
    total: float
    moved: float
    events: tuple[Event, ...] = field(repr=False)

    @property
    def mean_latency(self) -> float:
        return sum(self.latency) / len(self.latency)


def block_latency(
    design: Design,
    timing: Timing,
    blocks: int,
    active: Number = 1,
    num_experts: int = 1,
    *,
    hit_rate: Number = 1.0,
) -> float:
    """Mean latency of a mixture layer when every block uses the same number of experts, look-ahead 1.

    With a the active experts (E for `prefetch_all`), W = T + T_d and B blocks:
    `resident` T; `on_demand` T + delta + a F; `pre_gated`, `prefetch_all`
    T + delta + a F / B + (B - 1)/B max(0, a F - W). `look_ahead` adds (B - 1)/B (1 - hit_rate) a F for the
    experts that were not guessed.

    Raises:
        ValueError: an unknown design, blocks < 1, a number of experts or a hit rate out of range.
    """
    _check(design, blocks, [active], num_experts, 1, [hit_rate])
    if design == "resident":
        return float(timing.block)
    copy = (num_experts if design == "prefetch_all" else active) * timing.expert
    if design == "on_demand":
        return timing.block + timing.overhead + copy
    late = max(0.0, copy - timing.window)
    if design == "look_ahead":
        late += (1 - hit_rate) * copy
    return timing.block + timing.overhead + copy / blocks + (blocks - 1) / blocks * late


def simulate_step(
    design: Design,
    timing: Timing | Sequence[Timing],
    active: Sequence[Number],
    num_experts: int = 1,
    *,
    look_ahead: int = 1,
    hit_rate: Sequence[Number] | Number = 1.0,
) -> Step:
    """Plays one decode step through.

    Args:
        timing: one for all blocks, or one for each; the head of the last counts.
        active: number of experts that each block copies: the distinct active ones, less those found in a cache. Need
            not be whole (means).
        num_experts: E, what `prefetch_all` copies for every block.
        look_ahead: N >= 1 of `pre_gated`. Needs N + 1 buffers.
        hit_rate: for `look_ahead`, the share of each block's experts that the guess brought. As many are guessed as
            are active; wrong ones are copied in vain. Nothing is guessed for block 0.

    Raises:
        ValueError: as in `block_latency`; lists of other lengths than `active`.
    """
    B = len(active)
    hits = [hit_rate] * B if isinstance(hit_rate, (int, float)) else list(hit_rate)
    _check(design, B, active, num_experts, look_ahead, hits)
    timings = [timing] * B if isinstance(timing, Timing) else list(timing)
    if len(timings) != B or len(hits) != B:
        raise ValueError(
            f"timing and hit_rate must have one entry for each of {B} blocks, got {len(timings)}, {len(hits)}"
        )
    ahead = {"pre_gated": look_ahead, "prefetch_all": 1, "look_ahead": 1}.get(design, B)
    wanted = (
        [0.0] * B if design == "resident" else [float(num_experts if design == "prefetch_all" else a) for a in active]
    )

    events: list[Event] = []
    link_free = 0.0
    arrival: dict[int, float] = {}

    def order(block: int, experts: float, now: float, kind: Kind = "copy") -> None:
        nonlocal link_free
        start = max(now, link_free)
        link_free = arrival[block] = start + experts * timings[block].expert
        if experts:
            events.append(Event("link", kind, block, start, link_free))

    def spend(
        kind: Literal["wait", "overhead", "block", "dense", "head"], block: int, now: float, until: float
    ) -> float:
        if until > now:
            events.append(Event("compute", kind, block, now, until))
        return until

    now, latency, moved = 0.0, [], sum(wanted)
    for b, t in enumerate(timings):
        gate = now
        if design != "resident":
            if b < ahead:
                order(b, wanted[b], now)
            elif design == "look_ahead" and (missed := (1 - hits[b]) * wanted[b]):
                now = spend("wait", b, now, max(now, arrival[b]))
                order(b, missed, now, "repair")
                moved += missed
            now = spend("wait", b, now, max(now, arrival[b]))
            now = spend("overhead", b, now, now + t.overhead)
            if b + ahead < B:
                order(b + ahead, wanted[b + ahead], now)
        now = spend("block", b, now, now + t.block)
        latency.append(now - gate)
        now = spend("dense", b, now, now + t.dense)
    now = spend("head", B - 1, now, now + timings[-1].head)
    return Step(tuple(latency), now, moved, tuple(events))


def tokens_per_time(
    latency: Number, timing: Timing, blocks: int, *, encoder_experts: Number = 0.0, output_tokens: int = 256
) -> float:
    """Tokens per unit of time: 1 / (B (latency + T_d) + head + encoder_experts F / output_tokens).

    `encoder_experts` counts the experts that the encoder copies on demand, once for all `output_tokens`: its mixture
    blocks times the distinct experts that its input hits.

    Raises:
        ValueError: output_tokens < 1.
    """
    if output_tokens < 1:
        raise ValueError(f"output_tokens must be at least 1, got {output_tokens}")
    encoder = encoder_experts * timing.expert / output_tokens
    return 1 / (blocks * (latency + timing.dense) + timing.head + encoder)


def peak_memory(
    design: Design,
    active: Sequence[int],
    num_experts: int,
    expert_bytes: int,
    other_bytes: int = 0,
    *,
    look_ahead: int = 1,
) -> int:
    """Bytes in the fast tier at the fullest moment of a step.

    `other_bytes` (all that is no expert) plus, times `expert_bytes`: every expert of every block (`resident`);
    the fullest block (`on_demand`); two blocks of E (`prefetch_all`); the fullest N + 1 neighbours (`pre_gated`,
    equation 1 for N = 1; `look_ahead` the same, repairs take the place of wrong guesses).

    Raises:
        ValueError: as in `block_latency`; negative bytes.

    Source: Hwang et al. 2024, equation 1.
    """
    B = len(active)
    _check(design, B, active, num_experts, look_ahead, [1.0])
    if expert_bytes < 0 or other_bytes < 0:
        raise ValueError(f"expert_bytes and other_bytes must be at least 0, got {expert_bytes}, {other_bytes}")
    if design == "resident":
        experts = B * num_experts
    elif design == "prefetch_all":
        experts = min(B, 2) * num_experts
    else:
        N = {"on_demand": 0, "look_ahead": 1}.get(design, look_ahead)
        # block b holds its own experts and those already ordered; the first N blocks order theirs late
        experts = max(active[b] + sum(active[max(N, b + 1) : b + N + 1]) for b in range(B))
    return other_bytes + experts * expert_bytes


def distinct_experts(tokens: int, num_experts: int) -> float:
    """Expected number of distinct experts that `tokens` independent uniform choices hit: E (1 - (1 - 1/E)^tokens).

    Raises:
        ValueError: tokens < 0 or num_experts < 1.
    """
    if tokens < 0 or num_experts < 1:
        raise ValueError(f"tokens must be at least 0 and num_experts at least 1, got {tokens}, {num_experts}")
    return num_experts * (1 - (1 - 1 / num_experts) ** tokens)


def on_link(timing: Timing, expert_bytes: Number, bandwidth: Number) -> Timing:
    """The same step behind another link: F = expert_bytes / bandwidth (bytes per unit of time).

    Raises:
        ValueError: bandwidth not above 0.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0, got {bandwidth}")
    return replace(timing, expert=expert_bytes / bandwidth)


def _check(
    design: str, blocks: int, active: Sequence[Number], num_experts: int, look_ahead: int, hits: Sequence[Number]
) -> None:
    check_choice("design", design, DESIGNS)
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    if any(not a >= 0 for a in active):
        raise ValueError(f"active must hold numbers of experts of at least 0, got {list(active)}")
    if num_experts < 1 or (design == "prefetch_all" and any(a > num_experts for a in active)):
        raise ValueError(f"num_experts must be at least 1 and at least as many as are active, got {num_experts}")
    if look_ahead < 1:
        raise ValueError(f"look_ahead must be at least 1 block (0 is the design 'on_demand'), got {look_ahead}")
    if any(not 0 <= h <= 1 for h in hits):
        raise ValueError(f"hit_rate must lie in 0..1, got {list(hits)}")
