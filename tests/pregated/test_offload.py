"""Slots, tickets and the thread that copies, without a model. Streams: `test_stream.py`."""

import threading
import time

import pytest
import torch

from gated.pregated.layers import Experts
from gated.pregated.offload import FastTier, Fetcher, FetchError, ThreadCopy
from gated.pregated.store import ExpertStore, write_experts

pytestmark = pytest.mark.clock

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
    """No copy begins before both orders are given: had `submit` waited for one, it would have waited in vain."""
    order, real, ordered = [], store.read_into, threading.Event()

    def late(layer, expert, buffer):
        assert ordered.wait(10)
        order.append((layer, expert))
        real(layer, expert, buffer)

    monkeypatch.setattr(store, "read_into", late)
    with Fetcher(FastTier(store, 8 * store.expert_bytes), ThreadCopy(store)) as fetcher:
        tickets = [fetcher.submit(1, [3, 0]), fetcher.submit(0, [2, 1])]
        assert not any(ticket.done.is_set() for ticket in tickets)
        ordered.set()
        assert are(fetcher.wait(tickets[1]), 0, [1, 2])
        assert order == [(1, 3), (1, 0), (0, 2), (0, 1)]


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
    """The first read lasts until the fetcher is closed; none begins after it."""
    read, backend = [], ThreadCopy(store)

    def slow(layer, expert, buffer):
        read.append(expert)
        deadline = time.monotonic() + 10
        while not backend._closed and time.monotonic() < deadline:
            time.sleep(1e-3)

    monkeypatch.setattr(store, "read_into", slow)
    with Fetcher(FastTier(store, 8 * store.expert_bytes), backend) as fetcher:
        fetcher.submit(0, [0, 1, 2, 3])
        fetcher.submit(1, [0, 1, 2, 3])
    backend._thread.join(10)
    assert not backend._thread.is_alive() and len(read) <= 1
