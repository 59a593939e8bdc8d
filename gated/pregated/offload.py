"""The fast tier, and how experts get there: slots, a fetcher, and a backend that copies while the model computes.

    tier = FastTier(store, budget_bytes)          memory for so many experts, allocated once
    fetcher = Fetcher(tier, ThreadCopy(store))
    ticket = fetcher.submit(layer, [3, 5])        returns at once
    ...                                           compute something else
    experts = fetcher.wait(ticket)                {3: (W1, W2), 5: (W1, W2)}
    fetcher.release(layer, [3, 5])                after the last product that reads them

`ThreadCopy` reads a file in a thread of its own; reading lets go of the interpreter's lock, so it runs beside the
products. `StreamCopy` copies from pinned memory to a GPU on a stream of its own. They are the only place where the two
differ. Copies are served in the order in which they are submitted, as over one link.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gated.gates._validation import check_count, check_number
from gated.pregated.cache import Policy
from gated.pregated.layers import ExpertWeights
from gated.pregated.store import ExpertStore, StoreError

Key = tuple[int, int]
"""Layer and expert."""


class FetchError(RuntimeError):
    """Experts that were ordered did not arrive. What their slots hold must not be used."""


class FastTier:
    """Slots for experts in memory that is allocated once, and the count of what they hold.

    A slot is held from the order of its expert until it is released. Without a policy a released slot is free; with one
    its expert stays until another needs the slot, and is found again for nothing: it is used where it lies.

    Args:
        store: says how large an expert is.
        budget_bytes: what the slots may take together; the part of a slot that is left over is not used.
        policy: None, `lru`, `lfu` or `lifo`.
        device: where the slots are.

    Raises:
        ValueError: a budget below one expert; experts whose matrices are not multiples of 64 bytes: matrices that
            start anywhere would round differently from slot to slot.
    """

    def __init__(
        self,
        store: ExpertStore,
        budget_bytes: int,
        *,
        policy: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("budget_bytes", budget_bytes)
        self.expert_bytes, self.budget_bytes, self._view = store.expert_bytes, budget_bytes, store.view
        if self.expert_bytes % 128:
            raise ValueError(f"store must hold matrices of a multiple of 64 bytes, got {self.expert_bytes // 2}")
        slots = min(budget_bytes // self.expert_bytes, store.blocks * store.num_experts)
        if slots < 1:
            raise ValueError(f"budget_bytes must be at least {self.expert_bytes}, one expert; got {budget_bytes}")
        self._memory = torch.empty(slots, self.expert_bytes, dtype=torch.uint8, device=device)
        self._policy: Policy[Key] | None = Policy(policy) if policy is not None else None
        self._free = list(range(slots))
        self._slot: dict[Key, int] = {}
        self._held: set[Key] = set()
        self.requests = self.hits = self.peak_bytes = 0

    @property
    def live_bytes(self) -> int:
        """Bytes of the experts that are held or kept."""
        return len(self._slot) * self.expert_bytes

    def hold(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Gives each expert a slot and returns those whose slot does not have their weights yet.

        Raises:
            ValueError: the slots do not suffice, with the bytes that would; an expert that is held already.
        """
        keys = [(layer, i) for i in experts]
        if len(set(keys)) < len(keys) or self._held.intersection(keys):
            raise ValueError(f"experts must be distinct and not held; got {list(experts)} of layer {layer}")
        needed = len(self._held) + len(keys)
        if needed > len(self._memory):
            raise ValueError(
                f"budget_bytes must be at least {needed * self.expert_bytes}: layer {layer} takes {len(keys)} experts "
                f"of {self.expert_bytes} bytes beside {len(self._held)} that are held; got {self.budget_bytes}"
            )
        self._held.update(keys)  # before anything is evicted for one of them, so that none of them is
        missing = [key for key in keys if key not in self._slot]
        for key in missing:
            if not self._free and self._policy is not None:
                self._free.append(self._slot.pop(self._policy.victim(self._slot.keys() - self._held)))
            self._slot[key] = self._free.pop()
        if self._policy is not None:
            for key in keys:
                self._policy.use(key)
        self.requests += len(keys)
        self.hits += len(keys) - len(missing)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return [i for _, i in missing]

    def release(self, layer: int, experts: Iterable[int]) -> None:
        """The experts, which have arrived, are no longer needed."""
        for key in [(layer, i) for i in experts]:
            self._held.remove(key)
            if self._policy is None:
                self._free.append(self._slot.pop(key))

    def buffer(self, layer: int, expert: int) -> Tensor:
        """The bytes of the expert's slot."""
        return self._memory[self._slot[layer, expert]]

    def weights(self, layer: int, expert: int) -> ExpertWeights:
        """W1 and W2 of an expert that is held and has arrived; no copy."""
        return self._view(self.buffer(layer, expert))


@dataclass
class Ticket:
    """Experts on their way: all that were ordered, and the (expert, buffer) pairs that have to be copied."""

    layer: int
    experts: list[int]
    copies: list[tuple[int, Tensor]]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    mark: Any = None
    """On a GPU, the event behind the copies."""

    def __str__(self) -> str:
        return f"experts {[i for i, _ in self.copies]} of layer {self.layer}"


@runtime_checkable
class Backend(Protocol):
    """Copies, in the order of the tickets."""

    def start(self, ticket: Ticket) -> None:
        """Orders the copies; returns at once."""

    def finish(self, ticket: Ticket, seconds: float | int) -> None:
        """Returns when products that are given from now on will read the copies, or raises `FetchError`."""

    def settle(self) -> None:
        """Returns when all finished tickets have arrived, or raises `FetchError`: the host is about to read."""

    def close(self) -> None:
        """Starts nothing more; does not wait for ever."""


class ThreadCopy:
    """Reads experts in one thread, from the store into the slots."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._closed = False
        # a daemon: a read that never returns must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name="fetch experts", daemon=True)
        self._thread.start()

    def start(self, ticket: Ticket) -> None:
        self._queue.put(ticket)

    def finish(self, ticket: Ticket, seconds: float | int) -> None:
        deadline = time.monotonic() + seconds
        while not ticket.done.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
            if not self._thread.is_alive() and not ticket.done.is_set():
                raise FetchError(f"{ticket} will not arrive: the thread that fetches has ended")
            if time.monotonic() >= deadline:
                raise FetchError(f"{ticket} did not arrive within {seconds} s")
        if ticket.error is not None:
            raise FetchError(f"{ticket} did not arrive: {ticket.error!r}") from ticket.error

    def settle(self) -> None:
        """`finish` has waited already."""

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while (ticket := self._queue.get()) is not None:
            try:
                for expert, buffer in ticket.copies:
                    if self._closed:
                        raise FetchError("the fetcher was closed")
                    self._store.read_into(ticket.layer, expert, buffer)
            except BaseException as error:
                ticket.error = error
                if not isinstance(error, Exception):
                    raise
            finally:
                ticket.done.set()


class StreamCopy:
    """Copies experts from pinned host memory to a GPU on a stream of its own.

    Order, which is what makes it correct: a copy starts behind all that the compute stream was given before the ticket.
    That holds every product that has read the slot, and costs nothing, because the host has waited for the gate that
    stands behind those products. The products that are given to the compute stream after `finish` run behind the
    copies' event. PyTorch's allocator is told that the slots are written to on this stream, so that it gives their
    memory to nobody else before that has ended.

    `finish` only queues the wait. That a copy is late is noticed by `settle`, which the host calls before it reads what
    depends on the copy and would have to wait for it anyway.

    All experts are read into pinned memory first (`ExpertStore.whole`): from pageable memory the copies would not be
    asynchronous. Whether the file is still the one that was read is asked again with each ticket.

    Args:
        store: read as a whole by the first backend, which the others of the same store share.
        device: the GPU of the fast tier.
        cuda: the module with `Stream`, `current_stream` and `stream`.
        pinned: False only where there is no GPU to pin for.

    Raises:
        FetchError: the store could not be read.
    """

    def __init__(
        self, store: ExpertStore, device: torch.device | str, *, cuda: Any = torch.cuda, pinned: bool = True
    ) -> None:
        if not isinstance(pinned, bool):
            raise ValueError(f"pinned must be True or False; got {pinned!r}")
        try:
            self._source = store.whole(pinned=pinned)
        except StoreError as error:
            raise FetchError(f"experts did not arrive in the host's memory: {error!r}") from error
        self._store, self._cuda, self._device, self._stream = store, cuda, device, cuda.Stream(device)
        self._under_way: deque[tuple[Ticket, float, float]] = deque()

    def start(self, ticket: Ticket) -> None:
        try:
            self._store.check_same_file()
        except StoreError as error:
            ticket.error = error
            return
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._stream):
            for expert, buffer in ticket.copies:
                buffer.copy_(self._source[ticket.layer, expert], non_blocking=True)
                if buffer.is_cuda:
                    buffer.record_stream(self._stream)
        ticket.mark = self._stream.record_event()

    def finish(self, ticket: Ticket, seconds: float | int) -> None:
        if ticket.error is not None:
            raise FetchError(f"{ticket} did not arrive: {ticket.error!r}") from ticket.error
        self._cuda.current_stream(self._device).wait_event(ticket.mark)  # the compute stream waits, the host does not
        self._under_way.append((ticket, seconds, time.monotonic() + seconds))

    def settle(self) -> None:
        while self._under_way:
            ticket, seconds, deadline = self._under_way[0]
            if not _ends(ticket.mark, deadline):
                raise FetchError(f"{ticket} did not arrive within {seconds} s")
            self._under_way.popleft()

    def close(self) -> None:
        _ends(self._stream, time.monotonic() + 1.0)


def _ends(work: Any, deadline: float) -> bool:
    """Whether an event or a stream ends in time; the host looks again and again, to miss no time itself."""
    while not work.query():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0)
    return True


class Fetcher:
    """Orders experts into the fast tier and counts what was moved. Once something did not arrive it orders no more.

    Args:
        tier: for this fetcher alone.
        seconds: how long experts may take from `wait` on before it, or `settle` on a GPU, raises.
    """

    def __init__(self, tier: FastTier, backend: Backend, *, seconds: float | int = 30) -> None:
        check_number("seconds", seconds, "[0, inf)")
        self.tier, self._backend, self._seconds = tier, backend, seconds
        self.moved_bytes = 0
        self._failed: FetchError | None = None

    def submit(self, layer: int, experts: Sequence[int]) -> Ticket:
        """Orders experts that are not held and returns at once.

        Raises:
            ValueError: the tier has no room for them.
            FetchError: an earlier ticket failed.
        """
        if self._failed is not None:
            raise FetchError(f"no more can be fetched after: {self._failed}") from self._failed
        missing = self.tier.hold(layer, experts)
        ticket = Ticket(layer, list(experts), [(i, self.tier.buffer(layer, i)) for i in missing])
        if missing:
            self.moved_bytes += len(missing) * self.tier.expert_bytes
            self._backend.start(ticket)
        return ticket

    def wait(self, ticket: Ticket) -> dict[int, ExpertWeights]:
        """The weights of a ticket's experts, for products that are given from now on.

        Raises:
            FetchError: they did not arrive, or not in time.
        """
        if ticket.copies:
            try:
                self._backend.finish(ticket, self._seconds)
            except FetchError as error:
                self._failed = error  # a copy that is late may still write to its slot
                raise
        return {i: self.tier.weights(ticket.layer, i) for i in ticket.experts}

    def settle(self) -> None:
        """To be called before the host reads what the products gave: on a GPU `wait` does not wait for the copies.

        Raises:
            FetchError: experts that were waited for did not arrive in time.
        """
        try:
            self._backend.settle()
        except FetchError as error:
            self._failed = error
            raise

    def release(self, layer: int, experts: Iterable[int]) -> None:
        """The experts' slots may be used again, after the products given so far."""
        self.tier.release(layer, experts)

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
