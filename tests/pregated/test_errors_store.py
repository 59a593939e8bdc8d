import os

import pytest
import torch

from gated.pregated.cache import Policy, belady, replay
from gated.pregated.layers import Experts
from gated.pregated.store import ExpertStore, write_experts


@pytest.fixture
def path(tmp_path):
    write_experts([Experts(2, 8, 8)], tmp_path / "x")
    return tmp_path / "x"


def test_arguments_of_the_store(path, monkeypatch):
    for speed in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="bytes_per_second must be above 0"):
            ExpertStore(path, bytes_per_second=speed)
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(ValueError, match="cold must be False here"):
        ExpertStore(path, cold=True)


@pytest.mark.parametrize(("layer", "expert"), [(0, 2), (1, 0), (-1, 0)])
def test_an_expert_that_is_not_there(path, layer, expert):
    with ExpertStore(path) as store, pytest.raises(ValueError, match=f"below 1 and 2, got {layer}, {expert}"):
        store.read_into(layer, expert, store.buffer())


@pytest.mark.parametrize(
    "buffer",
    [
        torch.empty(511, dtype=torch.uint8),
        torch.empty(512, dtype=torch.int8),
        torch.empty(1024, dtype=torch.uint8)[::2],
    ],
)
def test_a_buffer_that_does_not_fit(path, buffer):
    with ExpertStore(path) as store, pytest.raises(ValueError, match="buffer must be 512 contiguous uint8"):
        store.read_into(0, 0, buffer)


def test_repeats(path):
    with ExpertStore(path) as store, pytest.raises(ValueError, match="repeats must be at least 1"):
        store.measure_read(0)


def test_arguments_of_the_caches():
    with pytest.raises(ValueError, match=r"policy must be one of \('lru', 'lfu', 'lifo'\); got 'mru'"):
        Policy("mru")
    with pytest.raises(ValueError, match="among must hold a key"):
        Policy("lru").victim([1])
    for call in (lambda: replay("lru", 0, [1]), lambda: belady(0, [1])):
        with pytest.raises(ValueError, match="capacity must be at least 1"):
            call()
