"""The clock against the closed form. Links and layers are chosen so that the order of the designs is far from a tie."""

import sys
import tempfile

import pytest
import torch

from gated.pregated.decode import Decoded
from gated.pregated.measure import _compare, measure, undisturbed
from gated.pregated.simulate import DESIGNS, Timing, simulate_step

MS = 1e-3


def test_order_and_bytes_of_a_short_run(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # F = T: on_demand takes twice as long as resident, pre_gated hides all but the first copy
    (found,) = measure((1.0,), 4, dim=64, hidden=128, blocks=4, rounds=2, tokens=5, block_seconds=0.01)
    latency = {one.design: one.median for one in found.designs}
    assert list(latency) == ["resident", "on_demand", "prefetch_all", "pre_gated", "look_ahead"]
    assert latency["resident"] < latency["on_demand"] < latency["prefetch_all"]
    assert latency["pre_gated"] < latency["on_demand"]
    assert found.timing.block == pytest.approx(latency["resident"])
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
    assert 0.5 < found["on_demand"].median / found["on_demand"].predicted < 2
    assert not list(tmp_path.rglob("*.safetensors"))


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
