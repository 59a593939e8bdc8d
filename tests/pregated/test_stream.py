"""Copies on a stream of their own: on a stand-in that copies as late as it may, and on a GPU where there is one."""

import time
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import pytest
import torch
from torch.overrides import TorchFunctionMode

from gated.pregated.decode import decode
from gated.pregated.model import PreGatedDecoder, rewire, without_experts
from gated.pregated.offload import FastTier, Fetcher, FetchError, StreamCopy, Ticket
from gated.pregated.store import ExpertStore, StoreError, write_experts

BLOCKS, EXPERTS, VOCAB = 3, 5, 17
FETCHING = ["on_demand", "prefetch_all", "pre_gated", "look_ahead"]
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class Cuda:
    """A stand-in for `torch.cuda`: notes what is asked of its streams, and copies when the compute stream must wait.

    Until then the slot holds NaN. With `stuck` no copy ever ends. `behind` are the events that the compute stream
    stands behind and that the host has not seen end: if it reads a result now, it stands behind them too.
    """

    def __init__(self):
        self.log, self.copies, self.behind, self.stuck = [], [], set(), False
        self.compute = Line(self, "compute")

    def Stream(self, device):
        return Line(self, "copy")

    def current_stream(self, device):
        return self.compute

    @contextmanager
    def stream(self, line):
        with Later(self, line.name):
            yield


class Line:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append((self.name, "waits for", other.name))

    def wait_event(self, event):
        self.cuda.log.append((self.name, "waits for", event))
        self.cuda.behind.add(event)
        for target, source in self.cuda.copies[: event.copies]:
            target.copy_(source)
        del self.cuda.copies[: event.copies]

    def record_event(self):
        self.cuda.log.append((self.name, "records"))
        return Event(self.cuda, len(self.cuda.copies))

    def query(self):
        self.cuda.log.append((self.name, "asked"))
        return not self.cuda.stuck


class Event:
    def __init__(self, cuda, copies):
        self.cuda, self.copies = cuda, copies

    def query(self):
        if not self.cuda.stuck:
            self.cuda.behind.discard(self)
        return not self.cuda.stuck


class Later(TorchFunctionMode):
    """Notes copies instead of making them."""

    def __init__(self, cuda, name):
        super().__init__()
        self.cuda, self.name = cuda, name

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.copy_:
            return func(*args, **(kwargs or {}))
        target, source = args
        self.cuda.log.append((self.name, "copies", kwargs["non_blocking"]))
        self.cuda.copies.append((target.fill_(255), source))
        return target


class HostReads(TorchFunctionMode):
    """Where the host would stand behind a copy, if this were a GPU."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda, self.count, self.behind = cuda, 0, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "cpu", "numpy"):
            self.count += 1
            if self.cuda.behind:
                self.behind.append(func.__name__)
        return func(*args, **(kwargs or {}))


def conventional(k=1):
    sizes = {"vocab": VOCAB, "dim": 16, "hidden": 32, "blocks": BLOCKS, "num_experts": EXPERTS, "look_ahead": 0}
    generator = torch.Generator().manual_seed(0)
    return PreGatedDecoder(**sizes, heads=2, context=12, between=1, k=k, generator=generator)


def wired(design, k=1, device="cpu"):
    """The model without its experts, as `design` wants it wired."""
    model = conventional(k).to(device)
    return without_experts(model if design == "look_ahead" else rewire(model, 1))


def prompt(batch=3, length=4):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path):
    write_experts([layer.experts for layer in conventional().layers], tmp_path / "experts.safetensors")
    return tmp_path / "experts.safetensors"


@pytest.fixture
def store(path):
    with ExpertStore(path) as store:
        yield store


@pytest.fixture
def cuda(monkeypatch):
    """`decode` on the CPU copies over the stand-in's streams."""
    cuda = Cuda()
    module = import_module("gated.pregated.decode")  # the package has a function of that name
    monkeypatch.setattr(module, "ThreadCopy", partial(StreamCopy, device="cpu", cuda=cuda, pinned=False))
    return cuda


def test_streams_are_ordered(store):
    """Compute -> copies -> event -> compute, and the host waits for none of it until it reads."""
    cuda = Cuda()
    backend = StreamCopy(store, "cuda", cuda=cuda, pinned=False)
    ticket = Ticket(1, [2, 0], [(2, store.buffer()), (0, store.buffer())])
    backend.start(ticket)
    copies = [("copy", "copies", True)] * 2
    assert cuda.log == [("copy", "waits for", "compute"), *copies, ("copy", "records")]
    backend.finish(ticket, 1)
    assert cuda.log[4:] == [("compute", "waits for", ticket.mark)] and cuda.behind == {ticket.mark}
    backend.settle()
    assert not cuda.behind
    backend.close()
    assert cuda.log[5:] == [("copy", "asked")]


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_streams_copy_the_same_experts(store, device):
    tier, made = FastTier(store, 2 * store.expert_bytes, device=device), conventional().layers
    options = {} if device == "cuda" else {"cuda": Cuda(), "pinned": False}
    with Fetcher(tier, StreamCopy(store, device, **options)) as fetcher:
        for b in range(BLOCKS):
            experts = fetcher.wait(fetcher.submit(b, [3, 0]))
            assert sorted(experts) == [0, 3]
            for i, (w_in, w_out) in experts.items():
                assert torch.equal(w_in.cpu(), made[b].experts.w_in[i])
                assert torch.equal(w_out.cpu(), made[b].experts.w_out[i])
            fetcher.release(b, [3, 0])
    assert fetcher.moved_bytes == 2 * BLOCKS * store.expert_bytes


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("design", FETCHING)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_decoding_with_streams_gives_the_same_bits(store, cuda, device, design, k):
    """Against the run on the same device that has all experts from the start, and that one against whole sequences."""
    model, tokens = wired(design, k, device), prompt().to(device)
    resident = decode(model, store, tokens, "resident", new_tokens=4)
    done = decode(model, store, tokens, design, new_tokens=4)
    assert torch.equal(done.logits, resident.logits) and torch.equal(done.tokens, resident.tokens)
    assert done.moved_bytes > 0 and done.peak_bytes < resident.peak_bytes
    fed = torch.cat([prompt(), done.tokens[:, :-1].cpu()], 1)
    whole = conventional(k) if design == "look_ahead" else rewire(conventional(k), 1)
    torch.testing.assert_close(done.logits.cpu(), whole(fed).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("design", ["resident", *FETCHING])
def test_the_host_reads_nothing_behind_a_copy(store, cuda, design, k):
    """Not even the next layer's choices: it would stand still and order nothing while the link is free."""
    with HostReads(cuda) as reads:
        done = decode(wired(design, k), store, prompt(), design, new_tokens=3)
    assert reads.behind == []
    assert reads.count >= BLOCKS * done.logits.shape[1]  # the gates are read, and seen to be
    assert not cuda.behind and not cuda.copies


def test_the_next_copy_is_ordered_before_the_host_settles(store, cuda, monkeypatch):
    """`pre_gated`: the next copy is queued behind the wait for this one, not behind its end."""
    real = StreamCopy.settle
    monkeypatch.setattr(StreamCopy, "settle", lambda self: (cuda.log.append("settles"), real(self))[1])
    decode(wired("pre_gated"), store, prompt(1, 1), "pre_gated")
    steps = [entry if entry == "settles" else entry[1] for entry in cuda.log[:-1]]
    order = ["waits for", "copies", "records"]
    assert steps == [
        *("settles", *order, "waits for", *order),
        *("settles", "waits for", *order),
        *("settles", "waits for"),
        "settles",
    ]


# Faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["resident", *FETCHING])
def test_a_copy_that_never_ends(store, cuda, design):
    cuda.stuck = True
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"experts \[.*\] of layer 0 did not arrive within 0.2 s"):
        decode(wired(design), store, prompt(), design, new_tokens=3, seconds=0.2)
    assert 0.2 <= time.monotonic() - start < 10


def test_nothing_is_ordered_after_a_copy_that_never_ended(store):
    cuda = Cuda()
    with Fetcher(FastTier(store, 2 * store.expert_bytes), StreamCopy(store, "cpu", cuda=cuda, pinned=False)) as fetcher:
        fetcher._seconds = 0.01
        fetcher.wait(fetcher.submit(0, [1]))
        cuda.stuck = True
        with pytest.raises(FetchError, match=r"experts \[1\] of layer 0 did not arrive within 0.01 s"):
            fetcher.settle()
        with pytest.raises(FetchError, match="no more can be fetched after"):
            fetcher.submit(1, [0])


def test_the_file_is_read_once(store, cuda, monkeypatch):
    count, real = [], store.read_into
    monkeypatch.setattr(store, "read_into", lambda *args: (count.append(args[:2]), real(*args))[1])
    first = decode(wired("on_demand"), store, prompt(), "on_demand")
    assert sorted(count) == [(b, i) for b in range(BLOCKS) for i in range(EXPERTS)]
    again = decode(wired("pre_gated"), store, prompt(), "pre_gated")
    assert len(count) == BLOCKS * EXPERTS and torch.equal(first.logits, again.logits)


def test_a_file_that_cannot_be_read(store, cuda, monkeypatch):
    def read_into(layer, expert, buffer):
        raise StoreError("Input/output error")

    monkeypatch.setattr(store, "read_into", read_into)
    with pytest.raises(FetchError, match=r"did not arrive in the host's memory: .*Input/output error") as caught:
        decode(wired("on_demand"), store, prompt(), "on_demand")
    assert isinstance(caught.value.__cause__, StoreError)
    monkeypatch.undo()  # nothing half read is kept
    assert torch.equal(store.whole()[1, 2], read(store, 1, 2))


def read(store, layer, expert):
    buffer = store.buffer()
    store.read_into(layer, expert, buffer)
    return buffer


@pytest.mark.parametrize("design", ["resident", *FETCHING])
@pytest.mark.parametrize("fault", ["replaced", "deleted"])
def test_a_file_that_is_no_longer_the_one_that_was_read(store, path, cuda, design, fault):
    """It lies in memory as it was, but it is not what the caller's path leads to."""
    store.whole()
    if fault == "replaced":
        write_experts([layer.experts for layer in conventional().layers], path)
    else:
        path.unlink()
    with pytest.raises(FetchError, match=r"experts \[.*\] of layer 0 did not arrive: StoreError") as caught:
        decode(wired(design), store, prompt(), design)
    assert isinstance(caught.value.__cause__, StoreError)


def test_what_was_read_goes_with_the_store(path):
    with ExpertStore(path) as store:
        assert store.whole() is store.whole()
    assert not store._whole
