"""Slots, tickets and the two backends, without a model."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch

from gated.pregated.layers import Experts
from gated.pregated.offload import FastTier, Fetcher, FetchError, StreamCopy, ThreadCopy, Ticket
from gated.pregated.store import ExpertStore, write_experts

BLOCKS, EXPERTS = 2, 4


def layers():
    made = [Experts(EXPERTS, 8, 16).requires_grad_(False) for _ in range(BLOCKS)]
    generator = torch.Generator().manual_seed(0)
    for weight in [weight for layer in made for weight in layer.parameters()]:
        weight.normal_(generator=generator)
    return made


@pytest.fixture
def store(tmp_path):
    write_experts(layers(), tmp_path / "x")
    with ExpertStore(tmp_path / "x") as store:
        yield store


def are(experts, layer, wanted):
    assert sorted(experts) == wanted
    return all(
        torch.equal(w_in, layers()[layer].w_in[i]) and torch.equal(w_out, layers()[layer].w_out[i])
        for i, (w_in, w_out) in experts.items()
    )


def test_what_was_ordered_arrives(store):
    tier = FastTier(store, 4 * store.expert_bytes)
    with Fetcher(tier, ThreadCopy(store)) as fetcher:
        first, second = fetcher.submit(0, [3, 1]), fetcher.submit(1, [2])
        assert are(fetcher.wait(second), 1, [2]) and are(fetcher.wait(first), 0, [1, 3])
        fetcher.release(0, [1])
        third = fetcher.submit(0, [0, 2])
        assert are(fetcher.wait(third), 0, [0, 2]) and are(fetcher.wait(second), 1, [2])
        assert are(fetcher.wait(fetcher.submit(1, [])), 1, [])
        assert fetcher.moved_bytes == 5 * store.expert_bytes and tier.peak_bytes == 4 * store.expert_bytes


def test_submit_returns_at_once_and_copies_run_in_order(store, monkeypatch):
    order, real = [], store.read_into

    def slow(layer, expert, buffer):
        time.sleep(0.02)
        order.append((layer, expert))
        real(layer, expert, buffer)

    monkeypatch.setattr(store, "read_into", slow)
    with Fetcher(FastTier(store, 8 * store.expert_bytes), ThreadCopy(store)) as fetcher:
        start = time.monotonic()
        tickets = [fetcher.submit(1, [3, 0]), fetcher.submit(0, [2, 1])]
        assert time.monotonic() - start < 0.02
        fetcher.wait(tickets[1])
        assert order == [(1, 3), (1, 0), (0, 2), (0, 1)]
        assert time.monotonic() - start >= 0.08


def test_slots_are_allocated_once(store):
    tier = FastTier(store, 3 * store.expert_bytes + 5)
    assert tier.hold(0, [1, 2]) == [1, 2] and tier.live_bytes == 2 * store.expert_bytes
    first = tier.buffer(0, 1).data_ptr()
    tier.hold(1, [0])
    assert tier.live_bytes == tier.peak_bytes == 3 * store.expert_bytes
    tier.release(0, [1])
    assert tier.live_bytes == 2 * store.expert_bytes and tier.hold(1, [3]) == [3]
    assert tier.buffer(1, 3).data_ptr() == first
    pointers = {tier.buffer(*key).data_ptr() for key in ((0, 2), (1, 0), (1, 3))}
    assert len(pointers) == 3 and all((p - min(pointers)) % store.expert_bytes == 0 for p in pointers)


def test_what_is_held_is_not_evicted(store):
    """Least recently used, but in use: the younger one has to go."""
    tier = FastTier(store, 3 * store.expert_bytes, policy="lru")
    tier.hold(0, [0])
    tier.hold(0, [1, 2])
    tier.release(0, [1, 2])
    assert tier.hold(0, [3]) == [3] and tier.live_bytes == 3 * store.expert_bytes
    tier.release(0, [3])
    assert tier.hold(0, [2]) == []  # 1 went, 2 is still there
    tier.release(0, [0])
    assert tier.hold(0, [0]) == [] and tier.hits == 2 and tier.requests == 6


def test_a_kept_expert_that_is_asked_for_with_new_ones_stays(store):
    tier = FastTier(store, 2 * store.expert_bytes, policy="lru")
    tier.hold(0, [0, 1])
    tier.release(0, [0, 1])
    assert tier.hold(0, [2, 0]) == [2]  # not 0, though it is the oldest


def test_a_thread_that_ended_is_noticed(store):
    backend = ThreadCopy(store)
    with Fetcher(FastTier(store, store.expert_bytes), backend, seconds=20) as fetcher:
        backend._queue.put(None)
        start = time.monotonic()
        ticket = fetcher.submit(0, [1])
        with pytest.raises(FetchError, match=r"experts \[1\] of layer 0 will not arrive: the thread .* has ended"):
            fetcher.wait(ticket)
        assert time.monotonic() - start < 5
        with pytest.raises(FetchError, match="no more can be fetched after"):
            fetcher.submit(1, [1])


def test_closing_ends_the_thread_and_drops_what_is_queued(store, monkeypatch):
    read, real = [], store.read_into

    def slow(layer, expert, buffer):
        time.sleep(0.05)
        read.append(expert)
        real(layer, expert, buffer)

    monkeypatch.setattr(store, "read_into", slow)
    with Fetcher(FastTier(store, 8 * store.expert_bytes), ThreadCopy(store)) as fetcher:
        fetcher.submit(0, [0, 1, 2, 3])
        fetcher.submit(1, [0, 1, 2, 3])
    assert len(read) <= 2
    assert not [t for t in threading.enumerate() if t.name == "fetch experts" and t.is_alive()]


class Cuda:
    """Streams that note what is asked of them. A stand-in for `torch.cuda`, where there is no GPU."""

    def __init__(self):
        self.log, self.running = [], "compute"
        self.compute = self.Line(self, "compute")

    class Line:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def wait_stream(self, other):
            self.cuda.log.append((self.name, "waits for", other.name))

        def wait_event(self, event):
            self.cuda.log.append((self.name, "waits for", event))

        def record_event(self):
            self.cuda.log.append((self.name, "records"))
            return f"event {len(self.cuda.log)}"

        def synchronize(self):
            self.cuda.log.append((self.name, "synchronised"))

    def Stream(self, device):
        return self.Line(self, "copy")

    def current_stream(self, device):
        return self.compute

    @contextmanager
    def stream(self, line):
        self.running = line.name
        yield
        self.running = "compute"


class Slot(torch.Tensor):
    """A buffer that notes on which stream it is written."""

    cuda: Cuda

    def copy_(self, source, non_blocking=False):
        self.cuda.log.append((self.cuda.running, "copies", non_blocking))


def test_streams_are_ordered(store):
    """Compute -> copies -> event -> compute, and the host waits for none of it until the end."""
    cuda = Cuda()
    backend = StreamCopy(store, "cuda", cuda=cuda, pinned=False)
    slots = [torch.empty(4).as_subclass(Slot) for _ in range(2)]
    for slot in slots:
        slot.cuda = cuda
    ticket = Ticket(1, [2, 0], list(zip([2, 0], slots, strict=True)))
    backend.start(ticket)
    copies = [("copy", "copies", True)] * 2
    assert cuda.log == [("copy", "waits for", "compute"), *copies, ("copy", "records")]
    assert ticket.mark == "event 4"
    backend.finish(ticket, 1)
    assert cuda.log[4:] == [("compute", "waits for", "event 4")]
    backend.close()
    assert cuda.log[5:] == [("copy", "synchronised")]


def test_streams_copy_the_same_experts(store):
    tier = FastTier(store, 4 * store.expert_bytes)
    with Fetcher(tier, StreamCopy(store, "cpu", cuda=Cuda(), pinned=False)) as fetcher:
        for layer in range(BLOCKS):
            assert are(fetcher.wait(fetcher.submit(layer, [3, 0])), layer, [0, 3])
            fetcher.release(layer, [0, 3])
    assert fetcher.moved_bytes == 4 * store.expert_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_experts(store):
    tier = FastTier(store, 2 * store.expert_bytes, device="cuda")
    with Fetcher(tier, StreamCopy(store, "cuda")) as fetcher:
        for layer in range(BLOCKS):
            experts = fetcher.wait(fetcher.submit(layer, [3, 0]))
            assert are({i: tuple(w.cpu() for w in pair) for i, pair in experts.items()}, layer, [0, 3])
            fetcher.release(layer, [0, 3])
