"""Generation with experts that are not there: five designs of when to fetch them, one result.

| design         | what is fetched for layer b             | when it is ordered                              |
|----------------|-----------------------------------------|-------------------------------------------------|
| `resident`     | all experts of all layers               | before the first token                          |
| `on_demand`    | those its tokens take                   | by its own gate                                 |
| `prefetch_all` | all E                                   | one layer earlier; for layer 0 by its own gate   |
| `pre_gated`    | those its tokens take                   | N layers earlier; for b < N by its own gate     |
| `look_ahead`   | those its gate takes on h_{b-1}, then   | one layer earlier, and the missing ones by its   |
|                | what that guess missed                  | own gate; what was guessed in vain gives way     |

In each layer: attention, gate, wait for the layer's experts, order those of a later layer, and only then the experts'
products, which the copy runs beside. Before the wait the slots might still be written to; after the products most of
the time to hide behind would be gone. What the gates chose, for this layer or a later one, is read before that wait:
on a GPU the wait is queued, and a host that read behind it would stand still until the copy is there.

`pre_gated` needs a model whose gates run ahead, `look_ahead` a conventional one, whose results it does not change. The
other three take either.

Source: Hwang et al. 2024, arXiv 2308.12066, figures 6 to 9 and section V.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gated.gates._validation import check_choice, check_count, check_int
from gated.pregated.layers import ExpertWeights
from gated.pregated.model import PreGatedDecoder, State
from gated.pregated.offload import FastTier, Fetcher, StreamCopy, ThreadCopy, Ticket
from gated.pregated.simulate import DESIGNS, Design, peak_memory
from gated.pregated.store import ExpertStore


@dataclass(frozen=True)
class Decoded:
    """What a run produced and what it took. Steps are the tokens of the prompt and those generated."""

    tokens: Int[Tensor, "batch new"]
    """The most probable next tokens, each fed back."""
    logits: Float[Tensor, "batch steps vocab"]
    latency: Float64[Tensor, "steps blocks"]
    """Seconds of each mixture layer: attention, gate, wait and experts."""
    dense: Float64[Tensor, "steps blocks"]
    """Seconds of the dense layers behind it."""
    active: list[list[int]]
    """[steps][blocks]: distinct experts that the batch took."""
    moved_bytes: int
    """Copied into the fast tier, from the first token on."""
    peak_bytes: int
    """Of experts in the fast tier, held or kept, at the fullest moment. What is allocated is more: the tier takes its
    whole budget before the first token, and without `budget_bytes` that is the worst case (`budget_needed`)."""
    hit_rate: float
    """Share of the ordered experts that a cache had; 0 without one."""
    guessed: list[list[int]]
    """As `active`: how many of those `look_ahead` had guessed, 0 in layer 0 and for other designs."""

    def guess_rate(self) -> list[float]:
        """For each step the share of the experts of layers 1 to B - 1 that was guessed."""
        pairs = zip(self.guessed, self.active, strict=True)
        return [sum(guessed) / max(1, sum(active[1:])) for guessed, active in pairs]


def budget_needed(
    model: PreGatedDecoder, store: ExpertStore, design: Design, batch: int = 1, *, least: bool = False
) -> int:
    """Bytes of experts that `design` holds at its fullest, if a batch spreads over as many experts as it can.

    With `least` if it agrees on as few as it can: less is never enough.

    Raises:
        ValueError: an unknown design, a batch below 1.

    Source: Hwang et al. 2024, equation 1, and its siblings for the other designs (`simulate.peak_memory`).
    """
    check_count("batch", batch)
    active = model.k if least else min(model.num_experts, batch * model.k)
    return peak_memory(
        design, [active] * store.blocks, store.num_experts, store.expert_bytes, look_ahead=max(1, model.look_ahead)
    )


@torch.no_grad()
def decode(
    model: PreGatedDecoder,
    store: ExpertStore,
    tokens: Int[Tensor, "batch length"],
    design: Design,
    *,
    new_tokens: int = 0,
    budget_bytes: int | None = None,
    policy: str | None = None,
    seconds: float | int = 30,
    work: Callable[[], object] | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Runs `tokens` and then `new_tokens` more through the model, a step at a time, with the store's experts.

    The model's own experts are not looked at (`without_experts` makes a model that has none). The result is the same in
    every bit for every design, budget and policy.

    Args:
        budget_bytes: the size of the fast tier; None gives what `budget_needed` says.
        policy: keeps experts that were used in slots that are not needed (`FastTier`).
        seconds: the longest wait for a layer's experts.
        work: called in each mixture layer beside the products, to stand for a larger layer.
        generator: what the router `random` draws from.

    Raises:
        ValueError: a budget too small, with the bytes that are needed; a store or a design that does not fit the model.
        FetchError: experts did not arrive.

    Example:
        >>> import tempfile
        >>> model = PreGatedDecoder(vocab=16, dim=8, hidden=16, blocks=2, num_experts=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_experts([layer.experts for layer in model.layers], f"{folder}/experts.safetensors")
        ...     with ExpertStore(f"{folder}/experts.safetensors") as store:
        ...         found = decode(without_experts(model), store, torch.tensor([[1, 2, 3]]), "pre_gated", new_tokens=2)
        >>> found.tokens.shape
        torch.Size([1, 2])
    """
    _check(model, store, tokens, design, new_tokens, policy)
    if budget_bytes is not None:
        check_count("budget_bytes", budget_bytes, least=0)
    batch, device = tokens.shape[0], model.head.weight.device
    least = budget_needed(model, store, design, batch, least=True)
    budget = budget_needed(model, store, design, batch) if budget_bytes is None else budget_bytes
    if budget < least:
        raise ValueError(
            f"budget_bytes must be at least {least} for {design!r} ({least // store.expert_bytes} experts of "
            f"{store.expert_bytes} bytes); got {budget}"
        )
    tier = FastTier(store, budget, policy=policy, device=device)
    backend = ThreadCopy(store) if device.type == "cpu" else StreamCopy(store, device)
    with Fetcher(tier, backend, seconds=seconds) as fetcher:
        plan = _Plan(model, fetcher, design)
        watch = _Watch(device)
        state = model.start(batch, generator=generator)
        logits: list[Tensor] = []
        new: list[Tensor] = []
        active: list[list[int]] = []
        guessed: list[list[int]] = []
        for n in range(tokens.shape[1] + max(0, new_tokens - 1)):
            x = model.embed(tokens[:, n] if n < tokens.shape[1] else new[-1], state)
            active.append([])
            guessed.append([])
            for b in range(store.blocks):
                watch.mark()
                x, h = model.attend(b, x, state)
                fetcher.settle()
                route = model.route(b, h, state)
                turns, later = route.turns(), plan.look_ahead(b, h, state)
                experts = plan.arrive(b, [turn.expert for turn in turns])
                plan.order(later)
                x = x + model.mix(h, route, experts, turns)
                if work is not None:
                    work()
                plan.leave(b)
                watch.mark()
                x = model.leave(b, x, state)
                watch.mark()
                active[-1].append(len(turns))
                guessed[-1].append(plan.guessed)
            logits.append(model.read(x))
            if new_tokens and n >= tokens.shape[1] - 1:
                new.append(logits[-1].argmax(-1))
        fetcher.settle()
        latency, dense = watch.read(store.blocks)
        return Decoded(
            tokens=torch.stack(new, 1) if new else tokens[:, :0],
            logits=torch.stack(logits, 1),
            latency=latency,
            dense=dense,
            active=active,
            moved_bytes=fetcher.moved_bytes - plan.loaded_bytes,
            peak_bytes=tier.peak_bytes,
            hit_rate=tier.hits / max(1, tier.requests),
            guessed=guessed,
        )


class _Plan:
    """When a design orders, and what."""

    def __init__(self, model: PreGatedDecoder, fetcher: Fetcher, design: Design) -> None:
        self._model, self._fetcher, self._design = model, fetcher, design
        self._blocks, self._all = len(model.layers), list(range(model.num_experts))
        self._tickets: dict[int, Ticket] = {}
        self.guessed = 0  # in the layer that arrived last
        if design == "resident":
            self._tickets = {b: fetcher.submit(b, self._all) for b in range(self._blocks)}
            for ticket in self._tickets.values():
                fetcher.wait(ticket)
        self.loaded_bytes = fetcher.moved_bytes

    def look_ahead(self, b: int, h: Tensor, state: State) -> tuple[int, list[int]] | None:
        """A later layer and what it will need, as far as the design knows it when the gates of layer b have run."""
        ahead = {"pre_gated": self._model.look_ahead, "prefetch_all": 1, "look_ahead": 1}.get(self._design, 0)
        later = b + ahead
        if not ahead or later >= self._blocks:
            return None
        if self._design == "pre_gated":
            return later, self._model.known(later, state)
        return later, self._all if self._design == "prefetch_all" else self._model.hint(b, h)

    def arrive(self, b: int, needed: list[int]) -> dict[int, ExpertWeights]:
        """The weights of the layer's experts, ordered now if they were not before."""
        self.guessed = 0
        if b not in self._tickets:
            self._tickets[b] = self._fetcher.submit(b, self._all if self._design == "prefetch_all" else needed)
        elif self._design == "look_ahead":
            return self._repair(b, needed)
        return self._fetcher.wait(self._tickets[b])

    def _repair(self, b: int, needed: list[int]) -> dict[int, ExpertWeights]:
        guess = self._tickets[b]
        there = self._fetcher.wait(guess)
        self._fetcher.release(b, [i for i in guess.experts if i not in needed])
        missing = self._fetcher.submit(b, [i for i in needed if i not in there])
        self._tickets[b] = Ticket(b, needed, [])
        self.guessed = len(needed) - len(missing.experts)
        return {i: there[i] for i in needed if i in there} | self._fetcher.wait(missing)

    def order(self, later: tuple[int, list[int]] | None) -> None:
        """Orders what `look_ahead` found."""
        if later is not None:
            self._tickets[later[0]] = self._fetcher.submit(*later)

    def leave(self, b: int) -> None:
        """The layer's products are given: its slots are free."""
        if self._design != "resident":
            self._fetcher.release(b, self._tickets.pop(b).experts)


class _Watch:
    """Marks in time, on the clock of the device; three a mixture layer."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def read(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Seconds from the first to the second and from the second to the third, [steps, blocks] each."""
        if self._cuda:
            torch.cuda.synchronize()
            self._marks = [self._marks[0].elapsed_time(mark) * 1e-3 for mark in self._marks]
        times = torch.tensor(self._marks, dtype=torch.float64).view(-1, blocks, 3)
        return times[..., 1] - times[..., 0], times[..., 2] - times[..., 1]


def _check(
    model: PreGatedDecoder, store: ExpertStore, tokens: Tensor, design: str, new_tokens: int, policy: str | None
) -> None:
    check_choice("design", design, DESIGNS)
    if design == "pre_gated" and model.look_ahead == 0:
        raise ValueError("model must have look_ahead of at least 1 for the design 'pre_gated'; `rewire` makes one")
    if design == "look_ahead" and (model.look_ahead or model.router != "gate"):
        raise ValueError("model must be conventional (look_ahead 0, router 'gate') for the design 'look_ahead'")
    if design == "resident" and policy is not None:
        raise ValueError(f"policy must be None for the design 'resident', which fetches nothing; got {policy!r}")
    check_int("tokens", tokens)
    check_count("new_tokens", new_tokens, least=0)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [batch, length] with at least one position; got {tuple(tokens.shape)}")
    vocab = model.head.weight.shape[0]
    if bool(((tokens < 0) | (tokens >= vocab)).any()):
        raise ValueError(f"tokens must lie in 0..{vocab - 1}; got {int(tokens.min())} to {int(tokens.max())}")
    if tokens.shape[1] + max(0, new_tokens - 1) > model.context:
        raise ValueError(
            f"tokens and new_tokens must fit the context {model.context}; got {tokens.shape[1]} and {new_tokens}"
        )
    ours = len(model.layers), model.num_experts, model.dim, model.hidden, model.head.weight.dtype
    theirs = store.blocks, store.num_experts, store.dim, store.hidden, store.dtype
    if ours != theirs:
        raise ValueError(f"store must hold (blocks, experts, dim, hidden, dtype) {ours} as the model; got {theirs}")
