"""The clock against the closed form. Links and layers are chosen so that the order of the designs is far from a tie."""

import sys
import tempfile

import pytest
import torch

from gated.pregated.decode import Decoded
from gated.pregated.measure import _compare, measure, undisturbed
from gated.pregated.simulate import DESIGNS, Timing, simulate_step

pytestmark = pytest.mark.clock

MS = 1e-3


def test_order_and_bytes_of_a_short_run(monkeypatch, tmp_path):
    """F = T: `on_demand` takes twice as long as `resident`, `prefetch_all` four times, `pre_gated` hides all but the
    first of four copies. Other programs only add to a time, so the quickest of four rounds is compared."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (found,) = measure((1.0,), 4, dim=64, hidden=128, blocks=4, rounds=4, tokens=5, block_seconds=0.01)
    assert [one.design for one in found.designs] == ["resident", "on_demand", "prefetch_all", "pre_gated", "look_ahead"]
    assert all(len(one.rounds) == 4 for one in found.designs)
    quickest = {one.design: min(one.rounds) for one in found.designs}
    assert 1.2 * quickest["resident"] < quickest["on_demand"]
    assert 1.2 * quickest["on_demand"] < quickest["prefetch_all"]
    assert 1.1 * quickest["pre_gated"] < quickest["on_demand"]
    assert 1 / 3 < quickest["on_demand"] / found["on_demand"].predicted < 3
    assert found.timing.block == pytest.approx(found["resident"].median)
    assert found.ratio == pytest.approx(found.timing.expert / found.timing.block)
    size = 2 * 64 * 128 * 4
    assert {one.design: one.peak_bytes / size for one in found.designs} == {
        "resident": 16,
        "on_demand": 1,
        "prefetch_all": 8,
        "pre_gated": 2,
        "look_ahead": 2,
    }
    moved = {one.design: one.moved_bytes / size for one in found.designs}
    assert moved["resident"] == 0 and moved["on_demand"] == moved["pre_gated"] == 4 and moved["prefetch_all"] == 16
    assert not list(tmp_path.rglob("*.safetensors"))


def test_each_link_has_its_k_and_its_speed():
    sizes = {"dim": 16, "hidden": 32, "blocks": 2, "between": 0, "tokens": 4, "rounds": 3, "block_seconds": 0.004}
    slow, fast = measure((4.0, 0.5), 4, designs=("on_demand",), k=(1, 2), **sizes)
    size = 2 * 16 * 32 * 4
    assert (slow["on_demand"].moved_bytes, fast["on_demand"].moved_bytes) == (2 * size, 4 * size)
    assert slow.ratio > 2 * fast.ratio  # of a nominal 8


def decoded(latency, guessed):
    """A run whose mixture layers took `latency` milliseconds, all experts [steps][blocks] one."""
    times = torch.tensor(latency, dtype=torch.float64) * MS
    return Decoded(
        tokens=torch.zeros(1, 0, dtype=torch.int64),
        logits=torch.zeros(1, len(latency), 3),
        latency=times,
        dense=torch.full_like(times, 0.5 * MS),
        active=[[1] * len(step) for step in latency],
        moved_bytes=0,
        peak_bytes=0,
        hit_rate=0.0,
        guessed=guessed,
    )


def test_the_comparison_on_times_of_the_simulator():
    """Runs that last exactly as simulated: the constants are found again, and no error is left."""
    timing = Timing(block=4.0, dense=0.5, expert=5.0, overhead=0.1)
    hits = [[0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]
    steps = len(hits)

    def run(design, link=timing):
        simulated = [simulate_step(design, link, [1] * 3, 4, hit_rate=[1.0, *step[1:]]).latency for step in hits]
        return decoded([list(step) for step in simulated], hits if design == "look_ahead" else [[0] * 3] * steps)

    free = Timing(block=4.0, dense=0.5, expert=0.2, overhead=0.1)
    runs = {design: [run(design), run(design)] for design in DESIGNS}
    found = _compare(runs, [run("on_demand", free)], 0.2 * MS, 5.0 * MS, 1, 4)
    assert found.timing.block == pytest.approx(4.0) and found.timing.dense == pytest.approx(0.5)
    assert found.timing.expert == pytest.approx(5.0) and found.timing.overhead == pytest.approx(0.1)
    for one in found.designs:
        assert one.error == pytest.approx(0, abs=1e-9), one.design
    assert found.mean_error == pytest.approx(0, abs=1e-9)


def test_settings_are_put_back():
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    with undisturbed():
        assert torch.get_num_threads() == 1 and sys.getswitchinterval() == pytest.approx(1e-4)
    assert torch.get_num_threads() == threads and sys.getswitchinterval() == pytest.approx(interval)
