"""The file format against the safetensors library, reads against slices, and faults met while reading."""

import json
import os
import tempfile
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gated.pregated.layers import Experts
from gated.pregated.store import ExpertStore, StoreError, read_header, write_experts

pytestmark = pytest.mark.clock

BLOCKS, EXPERTS, DIM, HIDDEN = 2, 3, 8, 16


def layers(dtype=torch.float32, dim=DIM, hidden=HIDDEN, blocks=BLOCKS, experts=EXPERTS):
    generator = torch.Generator().manual_seed(0)
    made = [Experts(experts, dim, hidden).to(dtype).requires_grad_(False) for _ in range(blocks)]
    for weight in [weight for layer in made for weight in layer.parameters()]:
        weight.normal_(generator=generator)
    return made


def named(all_layers):
    return {
        f"layers.{b}.experts.{i}.{name}": getattr(layer, name)[i].clone()
        for b, layer in enumerate(all_layers)
        for i in range(len(layer.w_in))
        for name in ("w_in", "w_out")
    }


@pytest.fixture
def path(tmp_path):
    write_experts(layers(), tmp_path / "experts.safetensors")
    return tmp_path / "experts.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_library_reads_what_we_write(tmp_path, dtype):
    write_experts(layers(dtype), tmp_path / "x")
    read = load_file(tmp_path / "x")
    wanted = named(layers(dtype))
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) and read[name].dtype == dtype for name in wanted)
    assert not (tmp_path / "x.part").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_read_what_the_library_writes(tmp_path, dtype):
    """Its order of tensors is its own, and it adds metadata."""
    save_file(named(layers(dtype)) | {"other": torch.zeros(3)}, tmp_path / "x", metadata={"format": "pt"})
    with ExpertStore(tmp_path / "x") as store:
        assert (store.blocks, store.num_experts, store.dim, store.hidden) == (BLOCKS, EXPERTS, DIM, HIDDEN)
        assert store.dtype == dtype and store.expert_bytes == 2 * DIM * HIDDEN * dtype.itemsize
        for b, layer in enumerate(layers(dtype)):
            for i in range(EXPERTS):
                buffer = store.buffer()
                store.read_into(b, i, buffer)
                w_in, w_out = store.view(buffer)
                assert torch.equal(w_in, layer.w_in[i]) and torch.equal(w_out, layer.w_out[i])


@given(st.dictionaries(st.text("abcdef.", min_size=1, max_size=8), st.lists(st.integers(0, 4), max_size=3), max_size=6))
def test_header_is_the_librarys(shapes):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/x")
        with open(f"{folder}/x", "rb") as file:
            found = read_header(file.fileno())
            file.seek(0)
            data = file.read()
        theirs = load_file(f"{folder}/x")
    assert found.keys() == theirs.keys()
    for name, span in found.items():
        assert span.shape == tuple(theirs[name].shape)
        assert torch.equal(torch.tensor(list(data[span.start : span.stop]), dtype=torch.uint8), bytes_of(theirs[name]))


def bytes_of(tensor):
    return tensor.flatten().view(torch.uint8)


def test_data_starts_aligned_and_an_experts_matrices_are_neighbours(path):
    header = read_header(os.open(path, os.O_RDONLY))
    assert min(span.start for span in header.values()) % 64 == 0
    for b in range(BLOCKS):
        for i in range(EXPERTS):
            name = f"layers.{b}.experts.{i}."
            assert header[name + "w_in"].stop == header[name + "w_out"].start


def test_short_reads_go_on(path, monkeypatch):
    whole, real = read(path), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:7]], at))
    assert torch.equal(read(path), whole)


def read(path, layer=1, expert=2):
    with ExpertStore(path) as store:
        buffer = store.buffer()
        store.read_into(layer, expert, buffer)
        return buffer


def test_a_read_that_fails_says_which(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with ExpertStore(path) as store:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StoreError, match=r"expert 2 of layer 1 could not be read .*Input/output error"):
            store.read_into(1, 2, store.buffer())


def test_truncated_while_open(path):
    with ExpertStore(path) as store:
        os.truncate(path, path.stat().st_size - 100)
        store.path.touch()
        with pytest.raises(StoreError, match=r"expert 2 of layer 1 ends after 412 of 512 bytes: .* was truncated"):
            store.read_into(1, 2, store.buffer())
        with pytest.raises(StoreError, match="replaced or changed"):
            store.read_into(0, 0, store.buffer())


def test_replaced_while_open(path, tmp_path):
    with ExpertStore(path) as store:
        store.read_into(0, 0, store.buffer())
        write_experts(layers(), tmp_path / "new")
        (tmp_path / "new").replace(path)
        with pytest.raises(StoreError, match="replaced or changed since it was opened"):
            store.read_into(0, 0, store.buffer())


def test_changed_while_open(path):
    with ExpertStore(path) as store:
        time.sleep(0.02)  # file times are a few milliseconds coarse
        with open(path, "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        with pytest.raises(StoreError, match="replaced or changed"):
            store.read_into(0, 0, store.buffer())


def test_deleted_while_open(path):
    with ExpertStore(path) as store:
        path.unlink()
        with pytest.raises(StoreError, match="is gone"):
            store.read_into(0, 0, store.buffer())


def test_the_throttle_is_a_link(path):
    """n copies take at least n times as long as one; a link that rested has saved nothing up. It is no slower either,
    at least in the best of three rounds."""
    size = 2 * DIM * HIDDEN * 4
    with ExpertStore(path, bytes_per_second=size / 0.01) as store:
        buffer = store.buffer()
        for copies in (1, 4):
            rounds = []
            for _ in range(3):
                time.sleep(0.03)
                start = time.monotonic()
                for _ in range(copies):
                    store.read_into(0, 0, buffer)
                rounds.append(time.monotonic() - start)
            assert copies * 0.01 <= min(rounds) < 0.5


def test_the_throttle_leaves_the_interpreter_to_others(path):
    size, spent = 2 * DIM * HIDDEN * 4, []
    with ExpertStore(path, bytes_per_second=size / 0.2) as store:
        for _ in range(3):
            thread = threading.Thread(target=store.read_into, args=(0, 0, store.buffer()))
            before = time.process_time()
            thread.start()
            thread.join()
            spent.append(time.process_time() - before)
    assert min(spent) < 0.1


def test_cold_and_warm_read_the_same(tmp_path):
    write_experts(layers(dim=128, hidden=512), tmp_path / "x")
    with ExpertStore(tmp_path / "x", cold=True) as cold, ExpertStore(tmp_path / "x") as warm:
        buffers = cold.buffer(), warm.buffer()
        cold.read_into(1, 1, buffers[0])
        warm.read_into(1, 1, buffers[1])
        assert torch.equal(*buffers)
        assert warm.is_cached(1, 1) in (True, None)
        speed = warm.measure_read(3)
    assert speed.cold > 0 and speed.warm > 0
    text = str(speed)
    assert (
        f"from the disk {speed.cold / 1e6:.0f} MB/s" in text and f"from the page cache {speed.warm / 1e6:.0f}" in text
    )


@pytest.mark.parametrize("drops", [True, False])
def test_cold_and_warm_are_told_apart(path, monkeypatch, drops):
    """A page cache that we can see into: a disk that takes 20 ms a matrix, drops that are obeyed or not, and questions
    that start to read ahead. Pages on their way in cannot be dropped, nor are they waited for long."""
    cached, coming, real = set(), set(), os.preadv

    def drop(descriptor, first, length, advice):
        if drops and not coming.intersection(range(first, first + length)):
            cached.difference_update(range(first, first + length))

    def preadv(descriptor, buffers, at, flags=0):
        pages = set(range(at, at + sum(memoryview(buffer).nbytes for buffer in buffers)))
        if not pages <= cached | coming:
            if flags:
                coming.update(range(at, at + 4096))
                raise BlockingIOError(11, "Resource temporarily unavailable")
            time.sleep(0.02)
        cached.update(pages)
        return real(descriptor, buffers, at)

    with ExpertStore(path) as store:
        for b in range(BLOCKS):
            for i in range(EXPERTS):
                store.read_into(b, i, store.buffer())
                start = store._spans[b, i][0].start
                cached.update(range(start, start + store.expert_bytes))
        monkeypatch.setattr(os, "posix_fadvise", drop)
        monkeypatch.setattr(os, "preadv", preadv)
        monkeypatch.setattr("mmap.PAGESIZE", 1)
        speed = store.measure_read(5)
    assert speed.dropped is drops
    if drops:
        assert speed.cold <= store.expert_bytes / 0.04
        assert speed.warm > speed.cold
    else:
        assert "(the page cache kept it)" in str(speed)


def test_an_unfinished_file_has_another_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_experts(layers(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def rewritten(path, change):
    """The file again with its header changed by `change`, offsets of the data as they were."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


LAST = f"layers.{BLOCKS - 1}.experts.{EXPERTS - 1}.w_out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("layers.0.experts.1.w_in"), "layers.0.experts.1.w_in .*missing"),
        (lambda h: h["layers.0.experts.1.w_in"].update(dtype="F16"), "w_in must have a dtype .*got F16"),
        (lambda h: [entry.update(dtype="I8") for entry in h.values()], "must have a dtype .*got I8"),
        (lambda h: h["layers.1.experts.0.w_out"].update(shape=[HIDDEN, DIM + 1]), "w_out must have shape"),
        (lambda h: h["layers.1.experts.0.w_out"].update(data_offsets=[0, 4]), "w_out must have shape .* in 4"),
        (lambda h: h["layers.1.experts.0.w_out"].update(data_offsets=[-8, 504]), "behind the header"),
        (lambda h: h["layers.1.experts.0.w_out"].update(data_offsets=[9]), "cannot be read"),
        (lambda h: h[LAST].update(data_offsets=[0, 10**9]), "truncated"),
        (lambda h: h.pop(LAST), "longer than its header says"),
        (lambda h: [h.pop(name) for name in list(h) if name != LAST] and h.update(x=h.pop(LAST)), "found none"),
    ],
)
def test_a_header_that_does_not_fit(path, change, message):
    with pytest.raises(ValueError, match=message):
        ExpertStore(rewritten(path, change))


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="truncated"):
        ExpertStore(path)


def test_no_safetensors_file(path):
    path.write_bytes((5).to_bytes(8, "little") + b"hello")
    with pytest.raises(ValueError, match="header cannot be read"):
        ExpertStore(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(ValueError, match="header cannot be read"):
        ExpertStore(path)
    with pytest.raises(FileNotFoundError):
        ExpertStore(path.with_name("nothing"))
